"""What needs no key: health, and the page, which shows nothing without the routes that do."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serve.backend import Backend
from serve.problems import Problem
from serve.schemas import Health, Readiness, documented

STATIC = Path(__file__).parents[1] / "static"


def open_routes(backend: Backend) -> APIRouter:
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @router.get("/healthz", tags=["health"], responses=documented())
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @router.get("/readyz", tags=["health"], responses=documented(503))
    async def readyz() -> Readiness:
        """At least one model can be asked."""
        stock = backend.catalog.stock
        if not stock.listings:
            raise Problem(
                503,
                "no model could be loaded; the log of the service says why",
                headers={"Retry-After": "10"},
                unavailable=list(stock.damaged),
            )
        return Readiness(status="ready", models=list(stock.listings), unavailable=list(stock.damaged))

    return router
