"""The HTTP routes over a catalog of models. Knows nothing of Ray: any ASGI server, or a test, can run them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from serve import formats, problems
from serve.catalog import Catalog, LoadedModel
from serve.formats import Format
from serve.orders import Order, make_order
from serve.problems import Problem, shown
from serve.schemas import Health, ModelList, ModelSummary, Readiness, SampleRequest, documented
from serve.security import HEADERS, BodyLimit, SecureHeaders, make_gate
from serve.workbench import Workbench
from vaegan.latents import MAX_SEED
from vaegan.shards import Images

STATIC = Path(__file__).parent / "static"
Seed = Annotated[int, PathParameter(ge=0, le=MAX_SEED)]


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What a service serves, to whom, and its limits."""

    registry: Path
    """Folder of models, NAME/VERSION each."""
    api_keys: Path | None = None
    """Text file with one API key per line; without it the service answers its own host only."""
    allow_anonymous: bool = False
    """Answer other hosts too although there are no keys."""
    device: str = "cpu"
    """Where the models run: cpu or cuda."""
    num_replicas: int = 1
    """Processes that answer; each loads every model."""
    torch_threads: int = 1
    """Threads of one forward pass in each replica."""
    max_count: int = 1024
    """Most images in one request."""
    max_body_bytes: int = 64 * 1024
    """Largest body of one request."""
    max_waiting: int = 32
    """Sampling requests in one replica, running and waiting; further ones get 503 at once."""

    def __post_init__(self) -> None:
        for name in ("num_replicas", "torch_threads", "max_count", "max_body_bytes", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more; leave it out for the default")


def make_api(catalog: Catalog, config: ServiceConfig, key_digests: frozenset[str] | None = None) -> FastAPI:
    """The whole service as an ASGI application.

    Args:
        key_digests: SHA-256 of the API keys; None serves this host only, or everybody with `allow_anonymous`.
    """
    api = FastAPI(
        title="AugRay",
        version="1",
        summary="Synthetic medical images on demand; every image has an address.",
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
    )
    problems.install(api, HEADERS)
    api.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    api.add_middleware(SecureHeaders)  # added last, so outermost: a 413 carries the headers too
    gate = [Depends(make_gate(key_digests, config.allow_anonymous))]
    api.include_router(_model_routes(catalog, config), prefix="/v1", dependencies=gate)
    api.include_router(_image_routes(catalog, config, private=key_digests is not None), prefix="/v1", dependencies=gate)
    api.include_router(_open_routes(catalog))
    api.mount("/static", StaticFiles(directory=STATIC), name="static")
    return api


def _open_routes(catalog: Catalog) -> APIRouter:
    """What needs no key: health, and the page, which shows nothing without the routes that do."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @router.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @router.get("/readyz", tags=["health"], responses=documented(503))
    async def readyz() -> Readiness:
        """At least one model is loaded."""
        unavailable = [f"{name}/{version}" for name, version in catalog.unavailable]
        if not catalog.models:
            raise Problem(503, "no model could be loaded; the log of the service says why", unavailable=unavailable)
        return Readiness(status="ready", models=[model.id for model in catalog.models], unavailable=unavailable)

    return router


def _model_routes(catalog: Catalog, config: ServiceConfig) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models", responses=documented(401, 403))
    async def list_models() -> ModelList:
        """Every version of every model, those that could not be loaded too."""
        summaries = [_summary(model, catalog.latest[model.info.name] is model) for model in catalog.models]
        summaries += [
            ModelSummary(name=name, version=version, available=False, latest=False)
            for name, version in catalog.unavailable
        ]
        return ModelList(models=summaries, max_count=config.max_count)

    @router.get("/models/{model}/{version}", responses=documented(401, 403, 404, 503))
    async def get_model(model: str, version: str) -> dict[str, Any]:
        """What the model is and how it was made: its model.json, without the paths of the machine that trained it."""
        document = catalog.get(model, version).document
        # The command line that trained it names folders of the machine it ran on.
        provenance = {name: value for name, value in document.get("provenance", {}).items() if name != "command"}
        return document | {"provenance": provenance}

    @router.get(
        "/models/{model}/{version}/card",
        response_class=Response,
        responses=documented(401, 403, 404, 503, content=["text/markdown"]),
    )
    async def get_card(model: str, version: str) -> Response:
        """The model card, in Markdown."""
        return Response(catalog.get(model, version).card, media_type="text/markdown")

    return router


def _image_routes(catalog: Catalog, config: ServiceConfig, *, private: bool) -> APIRouter:
    router = APIRouter(tags=["images"])
    bench = Workbench(config.max_waiting)
    # A cache that others share must not hand out what a key was asked for.
    cache_control = f"{'private' if private else 'public'}, max-age=31536000, immutable"

    @router.post(
        "/samples",
        response_class=Response,
        responses=documented(401, 403, 406, 413, 415, 422, 503, content=[f.media_type for f in formats.FORMATS]),
    )
    async def create_samples(
        request: Request, order: Annotated[SampleRequest, Body(openapi_examples=_examples(catalog))]
    ) -> Response:
        """Images as PNG (one), ZIP of PNGs, NPZ or Parquet, by the Accept header. The same request, the same images."""
        if order.count > config.max_count:
            raise Problem(
                422,
                f"count is {shown(order.count)}, expected an integer from 1 to {config.max_count}; "
                "ask in several requests, each with the next start",
            )
        if order.class_ is not None and order.labels is not None:
            raise Problem(422, "class and labels are both given, expected one of them; leave one out")
        format = formats.negotiate(request.headers.get("accept"), order.count)
        return await _answer(
            bench,
            make_order(
                catalog.get(order.model, order.version, status=422),
                order.labels or [] if order.class_ is None else [order.class_],
                seed=order.seed,
                start=order.start,
                count=order.count,
                latent=order.latent,
                truncation=order.truncation,
            ),
            format,
        )

    image_path = "/models/{model}/{version}/images/{classes}/{seed}/{index}.png"

    @router.head(image_path, include_in_schema=False)
    @router.get(
        image_path,
        response_class=Response,
        responses=documented(304, 401, 403, 404, 422, 503, content=["image/png"]),
    )
    async def get_image(
        request: Request,
        model: str,
        version: str,
        classes: str,
        seed: Seed,
        index: Seed,
        latent: Annotated[str, Query(max_length=40)] = "prior",
        truncation: Annotated[float, Query(ge=0, le=2, allow_inf_nan=False)] = 1.0,
    ) -> Response:
        """One image by its address. Classes are joined by +; none stands for no class."""
        found = catalog.get(model, version)
        names = found.parse_classes(classes)
        order = make_order(found, names, seed=seed, start=index, latent=latent, truncation=truncation, status=404)
        caching = {"ETag": order.etag(), "Cache-Control": cache_control}
        if _matches(request.headers.get("if-none-match"), order.etag()):
            return Response(status_code=304, headers=caching)
        response = await _answer(bench, order, formats.PNG)
        response.headers.update(caching)
        return response

    return router


async def _answer(bench: Workbench, order: Order, format: Format) -> Response:
    """The images of an order in a format, made on the bench."""
    model, addresses = order.model, order.addresses()

    def encode(parts: list[Images]) -> bytes:
        images = Images.concatenate(parts)
        if format is formats.NPZ:
            return formats.npz(images, addresses, model.info.classes)
        return formats.parquet(images, task=model.info.task, classes=model.info.classes)

    def pack(parts: list[list[bytes]]) -> bytes:
        files = [file for part in parts for file in part]
        return files[0] if format is formats.PNG else formats.zip_of_pngs(files, addresses)

    if format in (formats.PNG, formats.ZIP):
        body = await bench.run(order.pngs, order.count, pack)
    else:
        body = await bench.run(order.sample, order.count, encode)
    return Response(body, media_type=format.media_type, headers=order.headers())


def _matches(if_none_match: str | None, etag: str) -> bool:
    """Weak comparison with each tag of an If-None-Match header (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def _summary(model: LoadedModel, latest: bool) -> ModelSummary:
    info = model.info
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
    )


def _examples(catalog: Catalog) -> dict[str, Any]:
    """Requests that this very service answers, for the OpenAPI document."""
    if not catalog.models:
        return {}
    model = catalog.models[-1].info
    one: dict[str, Any] = {"model": model.name, "seed": 1} | ({"class": model.classes[0]} if model.classes else {})
    return {
        "one": {"summary": "One image", "value": one},
        "many": {
            "summary": "Sixteen images of a given version",
            "value": one | {"version": model.version, "count": 16},
        },
    }
