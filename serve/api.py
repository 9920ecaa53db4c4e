"""The whole service as an ASGI application. Knows nothing of Ray: any ASGI server, or a test, can run it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from serve import problems
from serve.backend import Backend
from serve.direct import listening
from serve.examples import with_examples
from serve.routes.films import film_routes
from serve.routes.images import image_routes
from serve.routes.models import metric_routes, model_routes
from serve.routes.open import STATIC, open_routes
from serve.security import HEADERS, BodyLimit, Doorkeeper, ReaderLimit, SecureHeaders
from serve.telemetry import Observed


def make_api(backend: Backend, *, sends_request_id: bool = True) -> ASGIApp:
    """The routes over a backend, which starts and stops with the application.

    Args:
        sends_request_id: see `Observed`; False behind Ray Serve's proxy.
    """

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        async with _own_port(backend, _guarded(api, backend)):
            yield
        await backend.stop()

    api = FastAPI(
        title="AugRay",
        version="1",
        summary="Synthetic medical images on demand; every image has an address.",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a path with a slash too many is a 404 like any other
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
    )
    problems.install(api, HEADERS)
    config = backend.config
    api.add_middleware(
        BodyLimit,
        max_bytes=config.max_body_bytes,
        max_upload_bytes=config.max_upload_bytes,
        timeout_s=config.body_timeout_s,
    )
    api.add_middleware(SecureHeaders)  # outside of it: a 413 carries the headers too
    doorkeeper = Doorkeeper(lambda: backend.keys, config.allow_anonymous, backend.telemetry)
    for routes in (model_routes, image_routes, film_routes):
        api.include_router(routes(backend, doorkeeper), prefix="/v1")
    api.include_router(metric_routes(backend, doorkeeper))
    api.include_router(open_routes(backend))
    api.mount("/static", StaticFiles(directory=STATIC), name="static")
    plain = api.openapi
    api.openapi = lambda: with_examples(plain(), backend)  # type: ignore[method-assign]  # FastAPI's documented way
    return _guarded(api, backend, sends_request_id=sends_request_id)


def _guarded(api: FastAPI, backend: Backend, *, sends_request_id: bool = True) -> ASGIApp:
    """What stands around everything, the answer to an unforeseen exception too, which no middleware of its sees."""
    observed = Observed(api, backend.telemetry, sends_request_id=sends_request_id)
    return ReaderLimit(observed, backend.config.reader_timeout_s)


def _own_port(backend: Backend, app: ASGIApp) -> AbstractAsyncContextManager[None]:
    config = backend.config
    return nullcontext() if config.direct_port is None else listening(app, config.direct_host, config.direct_port)
