"""What a model's networks say of an image that a client sends; it is never stored, and only its hash is recorded."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.requests import ClientDisconnect

from cluster.errors import UserError
from serve import formats
from serve.access.keyfile import Key
from serve.backend import Backend
from serve.catalog import LoadedModel
from serve.delivery import allowed_by, asked_by
from serve.orders import header_text
from serve.problems import Problem, busy, shown
from serve.schemas import SYNTHETIC_HEADERS, Anomaly, Encoding, documented
from serve.security import Doorkeeper
from vaegan.anomaly import anomaly
from vaegan.images import TooManyPixels, decode, pixel_hash, resize

TYPES = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "application/octet-stream")
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
REFUSALS = (401, 403, 408, 413, 415, 422, 429, 503)
BODY = {
    "requestBody": {
        "required": True,
        "description": "One image file; it is cropped to a square and scaled to the model's size.",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in TYPES},
    }
}
T = TypeVar("T")
Model = Annotated[str, Query(min_length=1, max_length=200, description="Name of the model.")]
Version = Annotated[str | None, Query(max_length=200, description="Its version; the current one by default.")]
Classes = Annotated[
    Sequence[Annotated[str, Query(max_length=200)]],
    Query(alias="class", max_length=1000, description="Its class; several for models of co-occurring findings."),
]


class Film:
    """An image that was sent, as a model takes it."""

    def __init__(self, model: LoadedModel, classes: Sequence[str], pixels: np.ndarray) -> None:
        self.model, self.classes = model, list(classes)
        self.labels = model.labels(classes, 422)[None]  # (1, K)
        self.pixels = pixels[None]  # (1, H, W, C)
        self.sha256 = pixel_hash(pixels)

    def about(self) -> dict[str, Any]:
        """Which model answers, as which class."""
        return {"model": self.model.info.name, "version": self.model.info.version, "classes": self.classes}

    @property
    def address(self) -> str:
        """Names a reconstruction: NAME/VERSION/CLASSES/reconstruction/SHA256 of the image as the model took it."""
        return f"{self.model.id}/{'+'.join(self.classes) or 'none'}/reconstruction/{self.sha256}"


def film_routes(backend: Backend, doorkeeper: Doorkeeper) -> APIRouter:
    router = APIRouter(tags=["images of one's own"])
    may = Depends(doorkeeper.requires("reconstruct"))
    config = backend.config
    # Threads of their own: a large image takes a second and hundreds of megabytes, however many are sent at once.
    decoders = ThreadPoolExecutor(config.encoders, "films")
    reading = 0

    async def read(request: Request, key: Key, model: LoadedModel) -> np.ndarray:
        """The image in a request's body as its model takes it. No more bodies are in memory than requests may wait."""
        nonlocal reading
        if reading >= config.max_waiting:
            backend.telemetry.refused("busy")
            raise busy(f"{reading} images are being read already, as many as this service takes", 2)
        await backend.charge(key, 1)
        reading += 1
        try:
            work = partial(_read, await request.body(), model, config.max_upload_pixels)
            return await asyncio.get_running_loop().run_in_executor(decoders, work)
        except BaseException as error:
            await backend.ledger.give_back(key.name, 1)
            if isinstance(error, ClientDisconnect):
                raise Problem(408, "the client went away before its image had come; send it again") from None
            raise
        finally:
            reading -= 1

    async def ask(
        request: Request, key: Key, model: str, version: str | None, classes: Sequence[str], work: Callable[[Film], T]
    ) -> tuple[Film, T]:
        """What `work` makes of the image in a request's body, in the network's thread."""
        media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if media_type not in TYPES:
            found = shown(media_type) if media_type else "missing"
            raise Problem(415, f"the header Content-Type is {found}, expected one of {', '.join(TYPES)}; correct it")
        listing, verdict = backend.find(model, version, key, "reconstruct", status=422)
        request.state.model = listing.id
        loaded = await backend.load(listing)
        loaded.labels(classes, 422)  # before the work of decoding
        if loaded.info.kind == "gan":
            raise Problem(422, f"model {listing.id} is a gan and has no encoder; ask another model")
        pixels = await read(request, key, loaded)
        film = Film(loaded, classes, pixels)
        await backend.record(
            request.url.path.rsplit("/", 1)[-1],
            **asked_by(request, key),
            address=film.address,
            **allowed_by(verdict),
        )
        return film, await backend.batcher.call(lambda: work(film))

    @router.post("/encode", responses=documented(*REFUSALS), openapi_extra=BODY)
    async def encode(
        request: Request, key: Annotated[Key, may], model: Model, version: Version = None, classes: Classes = ()
    ) -> Encoding:
        """Where an image lies among a model's latents: mean and log variance of q(z|x)."""
        film, (mu, log_var) = await ask(
            request, key, model, version, classes, lambda film: film.model.sampler.encode(film.pixels, film.labels)
        )
        return Encoding(**film.about(), mu=mu[0].tolist(), log_var=log_var[0].tolist())

    @router.post(
        "/reconstruct",
        response_class=Response,
        responses=documented(*REFUSALS, content=["image/png"], headers=SYNTHETIC_HEADERS),
        openapi_extra=BODY,
    )
    async def reconstruct(
        request: Request, key: Annotated[Key, may], model: Model, version: Version = None, classes: Classes = ()
    ) -> Response:
        """What a model's decoder makes of its encoder's mean for an image: a PNG at the model's size."""
        film, pixels = await ask(
            request, key, model, version, classes, lambda film: film.model.sampler.reconstruct(film.pixels, film.labels)
        )
        headers = {
            "X-AugRay-Synthetic": "true",
            "X-AugRay-Address": header_text(film.address),
            "X-AugRay-Version": film.model.info.version,
        }
        return Response(formats.png(pixels[0], film.address), media_type="image/png", headers=headers)

    @router.post("/anomaly", responses=documented(*REFUSALS), openapi_extra=BODY)
    async def score(
        request: Request, key: Annotated[Key, may], model: Model, version: Version = None, classes: Classes = ()
    ) -> Anomaly:
        """How unlike its training images a model finds an image."""
        film, found = await ask(
            request,
            key,
            model,
            version,
            classes,
            lambda film: anomaly(film.model.sampler, film.pixels, film.labels),
        )
        numbers = {name: float(values[0]) for name, values in found.items()}
        return Anomaly.model_validate(film.about() | {"features": None} | numbers)

    return router


def _read(body: bytes, model: LoadedModel, max_pixels: int) -> np.ndarray:
    """The image in a body as its model takes it: uint8 (H, W, C)."""
    try:
        pixels = decode(body, formats=PILLOW_FORMATS, max_pixels=max_pixels)
    except TooManyPixels as error:
        raise Problem(413, f"the image is too large: {error}; scale it down") from None
    except UserError as error:
        raise Problem(422, f"the image can't be used: {error}; send a PNG, JPEG, BMP or TIFF file") from None
    return resize(pixels, model.info.size, model.info.channels)
