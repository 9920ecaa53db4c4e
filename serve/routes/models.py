"""What there is to ask for: models, their cards, and the service's numbers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from serve.access.keyfile import Key
from serve.backend import GATES, Backend
from serve.catalog import Listing
from serve.gate import IMAGES, MODEL
from serve.schemas import ModelList, ModelSummary, Privacy, documented
from serve.security import Doorkeeper
from serve.telemetry import CONTENT_TYPE


def model_routes(backend: Backend, doorkeeper: Doorkeeper) -> APIRouter:
    router = APIRouter(tags=["models"])
    known = Depends(doorkeeper.requires())

    @router.get("/models", responses=documented(401, 403))
    async def list_models(key: Annotated[Key, known]) -> ModelList:
        """Every version of every model, those that could not be loaded too."""
        stock = backend.catalog.stock
        allowed = lambda name: not key.models or name in key.models  # noqa: E731
        summaries = [
            _summary(backend, listing, key, latest=stock.current.get(listing.info.name) == id)
            for id, listing in stock.listings.items()
            if allowed(listing.info.name)
        ]
        damaged = [id.split("/") for id in stock.damaged if allowed(id.split("/")[0])]
        summaries += [ModelSummary(name=name, version=version, available=False) for name, version in damaged]
        return ModelList(models=summaries, max_count=backend.config.max_count)

    @router.get("/models/{model}/{version}", responses=documented(401, 403, 404, 503))
    async def get_model(request: Request, model: str, version: str, key: Annotated[Key, known]) -> dict[str, Any]:
        """What the model is and how it was made: its model.json, without the paths of the machine that trained it."""
        listing, _ = backend.find(model, version, key)
        request.state.model = listing.id
        # The command line that trained it names folders of the machine it ran on.
        provenance = {
            name: value for name, value in listing.document.get("provenance", {}).items() if name != "command"
        }
        return dict(listing.document) | {"provenance": provenance}

    @router.get(
        "/models/{model}/{version}/card",
        response_class=Response,
        responses=documented(401, 403, 404, 503, content=["text/markdown"]),
    )
    async def get_card(request: Request, model: str, version: str, key: Annotated[Key, known]) -> Response:
        """The model card, in Markdown."""
        listing, _ = backend.find(model, version, key)
        request.state.model = listing.id
        return Response(listing.card, media_type="text/markdown")

    return router


def metric_routes(backend: Backend, doorkeeper: Doorkeeper) -> APIRouter:
    router = APIRouter(tags=["health"], dependencies=[Depends(doorkeeper.requires("operate"))])

    @router.get("/metrics", response_class=Response, responses=documented(401, 403, content=["text/plain"]))
    async def metrics() -> Response:
        """The numbers of all replicas, as Prometheus reads them."""
        return Response(await backend.metrics(), media_type=CONTENT_TYPE)

    return router


def _summary(backend: Backend, listing: Listing, key: Key, *, latest: bool) -> ModelSummary:
    info = listing.info
    verdicts = {scope: backend.gate.judge(listing.id, listing.privacy, scope) for scope in (IMAGES, MODEL)}
    overrides = [f"{scope}: {found.override}" for scope, found in verdicts.items() if found.override]
    can = {"sample": "sample" in key.scopes, "reconstruct": "reconstruct" in key.scopes and info.kind != "gan"}
    return ModelSummary(
        name=info.name,
        version=info.version,
        available=True,
        latest=latest,
        kind=info.kind,
        task=info.task,
        classes=list(info.classes),
        size=info.size,
        channels=info.channels,
        latents=list(info.latents),
        sha256=info.tensors_sha256,
        privacy=Privacy(
            images=verdicts[IMAGES].verdict, model=verdicts[MODEL].verdict, override="; ".join(overrides) or None
        ),
        serves=[scope for scope, of in GATES.items() if can[scope] and not verdicts[of].refused],
    )
