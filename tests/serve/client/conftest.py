"""A made-up service, without a network and behind a socket."""

import asyncio
import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn

from cluster.session import free_port
from serve.client import AsyncClient, Client


def _module(path: Path) -> ModuleType:
    # By path: what a test module may import depends on how pytest was started.
    spec = importlib.util.spec_from_file_location(f"augray_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


_made_up = _module(Path(__file__).with_name("made_up.py"))


@pytest.fixture(scope="session")
def made_up() -> ModuleType:
    """tests/serve/client/made_up.py."""
    return _made_up


@pytest.fixture
def service() -> Any:
    return _made_up.MadeUpService()


class Sync:
    """`Client` over a service; its waits don't happen and are noted."""

    def __init__(self, service: Any, **options: Any) -> None:
        self.waits: list[float] = []
        transport = httpx.MockTransport(service.handle)
        self.client = Client("http://service/", transport=transport, pause=self.waits.append, **options)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.client, name)(*arguments, **options)

    def stream(self, *arguments: Any, **options: Any) -> list[Any]:
        return list(self.client.stream(*arguments, **options))


class Async:
    """`AsyncClient`, called as `Sync` is."""

    def __init__(self, service: Any, **options: Any) -> None:
        self.waits: list[float] = []
        transport = httpx.MockTransport(service.handle)
        self.client = AsyncClient("http://service/", transport=transport, pause=self._pause, **options)

    async def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return asyncio.run(getattr(self.client, name)(*arguments, **options))

    def stream(self, *arguments: Any, **options: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [images async for images in self.client.stream(*arguments, **options)]

        return asyncio.run(collect())


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest, service: Any) -> Callable[..., Any]:
    """Makes a client of either kind over `service`: what holds for one holds for the other."""
    return lambda **options: request.param(service, **options)


@contextlib.contextmanager
def _running(application: Any) -> Iterator[str]:
    port = free_port()
    config = uvicorn.Config(
        application, host="127.0.0.1", port=port, log_level="critical", lifespan="off", interface="asgi3"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn ended at once"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def running() -> Callable[[Any], Any]:
    """Runs an ASGI application on a loopback port, in a thread: a context manager that gives its URL."""
    return _running


@pytest.fixture
def url(service: Any) -> Iterator[str]:
    """Where `service` listens."""
    with _running(service.as_asgi) as found:
        yield found
