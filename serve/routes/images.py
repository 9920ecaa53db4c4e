"""Synthetic images: by count, by address, and on the way between two addresses."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi import Path as PathParameter

from serve import formats
from serve.access.keyfile import Key
from serve.backend import Backend
from serve.delivery import deliver
from serve.orders import Way, fractions, make_order
from serve.problems import Problem, shown
from serve.schemas import CACHE_HEADERS, IMAGE_HEADERS, InterpolateRequest, Order, SampleRequest, documented
from serve.security import Doorkeeper
from vaegan.latents import MAX_SEED

Seed = Annotated[int, PathParameter(ge=0, le=MAX_SEED)]
REFUSALS = (400, 401, 403, 406, 408, 413, 415, 422, 429, 503)
BY_ADDRESS = (304, 401, 403, 404, 422, 429, 503)
IMAGE_PATH = "/models/{model}/{version}/images/{classes}/{seed}/{index}.png"


def image_routes(backend: Backend, doorkeeper: Doorkeeper) -> APIRouter:
    router = APIRouter(tags=["images"])
    may_sample = Depends(doorkeeper.requires("sample"))
    # A cache that others share must not hand out what a key was asked for.
    cache_control = f"{'private' if doorkeeper.has_keys else 'public'}, max-age=31536000, immutable"
    media_types = [format.media_type for format in formats.FORMATS]

    async def answer(
        request: Request, key: Key, order: Order, *, seed: int, start: int, count: int, way: Way | None = None
    ) -> Response:
        """The images that a body asks for, in the format that the request accepts."""
        names = _classes(order)
        format = formats.negotiate(request.headers.get("accept"), count)
        listing, verdict = backend.find(order.model, order.version, key, "sample", status=422)
        made = make_order(
            await backend.load(listing),
            names,
            seed=seed,
            start=start,
            count=count,
            latent=order.latent,
            truncation=order.truncation,
            way=way,
        )
        return await deliver(backend, request, key, made, format, verdict)

    @router.post(
        "/samples",
        response_class=Response,
        responses=documented(*REFUSALS, content=media_types, headers=IMAGE_HEADERS),
    )
    async def create_samples(
        request: Request,
        order: Annotated[SampleRequest, Body()],
        key: Annotated[Key, may_sample],
    ) -> Response:
        """Images as PNG (one), ZIP of PNGs, NPZ, Parquet or an Arrow stream, by the Accept header.

        The same request, the same images. Many are streamed while they are made.
        """
        if order.count > backend.config.max_count:
            raise Problem(
                422,
                f"count is {shown(order.count)}, expected an integer from 1 to {backend.config.max_count}; "
                "ask in several requests, each with the next start",
            )
        return await answer(request, key, order, seed=order.seed, start=order.start, count=order.count)

    @router.post(
        "/interpolate",
        response_class=Response,
        responses=documented(
            *REFUSALS,
            content=[media_type for media_type in media_types if media_type != formats.PNG.media_type],
            headers=IMAGE_HEADERS,
        ),
    )
    async def interpolate(
        request: Request,
        order: Annotated[InterpolateRequest, Body()],
        key: Annotated[Key, may_sample],
    ) -> Response:
        """Images at equal steps on the way from one address to another, both included."""
        way = Way(order.to.seed, order.to.index, fractions(order.steps))
        return await answer(
            request, key, order, seed=order.from_.seed, start=order.from_.index, count=order.steps, way=way
        )

    @router.head(IMAGE_PATH, include_in_schema=False)
    @router.get(
        IMAGE_PATH,
        response_class=Response,
        responses=documented(*BY_ADDRESS, content=["image/png"], headers=IMAGE_HEADERS | CACHE_HEADERS),
    )
    async def get_image(
        request: Request,
        model: str,
        version: str,
        classes: str,
        seed: Seed,
        index: Seed,
        key: Annotated[Key, may_sample],
        latent: Annotated[str, Query(max_length=40)] = "prior",
        truncation: Annotated[float, Query(ge=0, le=2, allow_inf_nan=False)] = 1.0,
        to: Annotated[
            str | None,
            Query(pattern=r"^\d{1,19}/\d{1,19}$", description="SEED/INDEX of another image: a point on the way there."),
        ] = None,
        at: Annotated[
            float | None,
            Query(ge=0, le=1, allow_inf_nan=False, description="Which fraction of the way; .5 by default."),
        ] = None,
    ) -> Response:
        """One image by its address. Classes are joined by +; none stands for no class."""
        listing, verdict = backend.find(model, version, key, "sample")
        made = make_order(
            await backend.load(listing),
            listing.parse_classes(classes),
            seed=seed,
            start=index,
            latent=latent,
            truncation=truncation,
            way=_way(to, at),
            status=404,
        )
        caching = {"ETag": made.etag(), "Cache-Control": cache_control}
        if _matches(request.headers.get("if-none-match"), made.etag()):
            return Response(status_code=304, headers=caching)
        response = await deliver(backend, request, key, made, formats.PNG, verdict)
        response.headers.update(caching)
        return response

    return router


def _classes(order: Order) -> Sequence[str]:
    if order.class_ is not None and order.labels is not None:
        raise Problem(422, "class and labels are both given, expected one of them; leave one out")
    return order.labels or [] if order.class_ is None else [order.class_]


def _way(to: str | None, at: float | None) -> Way | None:
    """The way that the query of an address names."""
    if to is None:
        if at is not None:
            raise Problem(422, "at is given without to, expected to=SEED/INDEX beside it; add it, or leave at out")
        return None
    seed, index = map(int, to.split("/"))
    if max(seed, index) > MAX_SEED:
        raise Problem(422, f"to is {shown(to)}, expected a seed and an index of at most {MAX_SEED}; correct it")
    return Way(seed, index, (0.5 if at is None else at,))


def _matches(if_none_match: str | None, etag: str) -> bool:
    """Weak comparison with each tag of an If-None-Match header (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags
