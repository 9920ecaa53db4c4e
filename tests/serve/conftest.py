"""A registry of small untrained models, and the application over it, called without a network."""

import asyncio
import hashlib
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.storage import read_json, write_json
from serve.access.keyfile import Key, Keys
from serve.api import make_api
from serve.backend import Backend
from serve.config import ServiceConfig
from vaegan.images import encode_png
from vaegan.registry import renew_sums

# By path: what a test module may import depends on how pytest was started.
publish_untrained = runpy.run_path(str(Path(__file__).with_name("untrained.py")))["publish_untrained"]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """chest/1, chest/2: three exclusive classes; findings/1: co-occurring ones; plain/1: none."""
    root = tmp_path_factory.mktemp("serve") / "registry"
    publish_untrained(root, "chest/1", ("normal", "consolidation", "effusion"), seed=1)
    publish_untrained(root, "chest/2", ("normal", "consolidation", "effusion"), seed=2)
    publish_untrained(root, "findings/1", ("Atelectasis", "Mass", "Büschel + Rest"), "multilabel", seed=3)
    publish_untrained(root, "plain/1", (), seed=4)
    return root


class Service:
    """An application called in process, by a synchronous client such as tests like to write."""

    def __init__(self, backend: Backend, peer: str = "127.0.0.1", raise_app_exceptions: bool = True) -> None:
        self.backend = backend
        asyncio.run(backend.catalog.warm_up())
        self._transport = httpx.ASGITransport(make_api(backend), raise_app_exceptions, client=(peer, 50000))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def upload(self, path: str, data: bytes, media_type: str = "image/png", **options: Any) -> httpx.Response:
        headers = {"Content-Type": media_type} | options.pop("headers", {})
        return self.request("POST", path, content=data, headers=headers, **options)

    def post(self, json: Any = None, accept: str | None = None, **options: Any) -> httpx.Response:
        headers = {"Accept": accept} if accept else {}
        body = {} if json is None else {"json": json}
        return self.request("POST", "/v1/samples", headers=headers, **body, **options)


KEY = "augray_a-key-for-tests-only"


def key(name: str = "lab", secret: str = KEY, **about: Any) -> Key:
    """A key of the service as its file would give it."""
    return Key(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), **about)


@pytest.fixture(scope="session")
def backends() -> Iterator[list[Backend]]:
    made: list[Backend] = []
    yield made
    for backend in made:
        asyncio.run(backend.stop())


@pytest.fixture(scope="session")
def service_of(registry: Path, backends: list[Backend]) -> Callable[..., Service]:
    """A service over the untrained models, or over another registry, with options of its config."""

    def build(
        *,
        peer: str = "127.0.0.1",
        keys: Sequence[Key] | None = None,
        raise_app_exceptions: bool = True,
        **options: Any,
    ) -> Service:
        config = ServiceConfig(**{"registry": registry, **options})
        backends.append(Backend(config, None if keys is None else Keys(tuple(keys))))
        return Service(backends[-1], peer, raise_app_exceptions)

    return build


@pytest.fixture(scope="session")
def service(service_of: Callable[..., Service]) -> Service:
    return service_of()


@pytest.fixture(scope="session")
def make_key() -> Callable[..., Key]:
    return key


@pytest.fixture(scope="session")
def film_pixels() -> np.ndarray:
    """Something like a film, uint8 (32, 32, 1)."""
    y, x = np.mgrid[:32, :32] / 31
    shade = 120 + 60 * np.sin(6 * x) * np.cos(4 * y) + 20 * np.random.default_rng(5).normal(size=(32, 32))
    return shade.clip(0, 255).astype(np.uint8)[:, :, None]


@pytest.fixture(scope="session")
def film(film_pixels: np.ndarray) -> bytes:
    """The same as a PNG file."""
    return encode_png(film_pixels)


@pytest.fixture(scope="session")
def write_verdict() -> Callable[[Path, dict[str, Any]], None]:
    """Put what an audit found into a published model, whatever it is."""

    def write(folder: Path, found: dict[str, Any]) -> None:
        write_json(folder / "model.json", read_json(folder / "model.json") | {"privacy": found})
        renew_sums(folder)

    return write
