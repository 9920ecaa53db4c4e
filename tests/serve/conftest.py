"""A registry of small untrained models, and the application over it, called without a network."""

import asyncio
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve.api import ServiceConfig, make_api
from serve.catalog import Catalog

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


@pytest.fixture(scope="session")
def catalog(registry: Path) -> Catalog:
    return Catalog.load(registry)


class Service:
    """An application called in process, by a synchronous client such as tests like to write."""

    def __init__(self, api: FastAPI, peer: str = "127.0.0.1", raise_app_exceptions: bool = True) -> None:
        self._transport = httpx.ASGITransport(api, raise_app_exceptions, client=(peer, 50000))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, json: Any = None, accept: str | None = None, **options: Any) -> httpx.Response:
        headers = {"Accept": accept} if accept else {}
        body = {} if json is None else {"json": json}
        return self.request("POST", "/v1/samples", headers=headers, **body, **options)


@pytest.fixture
def config(registry: Path) -> ServiceConfig:
    return ServiceConfig(registry=registry)


@pytest.fixture
def service(catalog: Catalog, config: ServiceConfig) -> Service:
    return Service(make_api(catalog, config))


@pytest.fixture
def service_of(catalog: Catalog) -> Callable[..., Service]:
    """A service over the same models with other options."""

    def build(*, peer: str = "127.0.0.1", keys: frozenset[str] | None = None, **options: Any) -> Service:
        return Service(make_api(catalog, ServiceConfig(registry=Path("unused"), **options), keys), peer)

    return build


@pytest.fixture
def service_class(config: ServiceConfig) -> Callable[..., Service]:
    """A service over another catalog."""
    return lambda catalog, **options: Service(make_api(catalog, config), **options)
