"""`AsyncClient`: the service from asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import pyarrow as pa

from serve.client import answers, requests
from serve.client.answers import Encoding, Rebatch
from serve.client.connection import PER_REQUEST, Connection
from serve.client.requests import Classes, Order, Request, names_of
from serve.client.retry import Attempts, Retry, ServiceError, refusal, unanswered
from serve.client.transfer import Transfer
from vaegan.shards import Images


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and results; an asynchronous context manager, or `aclose` it.

    Args:
        transport: how httpx sends requests; for tests.
        pause: waits so many seconds between two attempts.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retry: Retry | None = None,
        per_request: int = PER_REQUEST,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._connection = Connection(url, api_key, timeout_s, retry, per_request)
        self._http = httpx.AsyncClient(transport=transport)
        self._pause = pause

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """What GET /v1/models lists: one dictionary per model and version."""
        return answers.models(await self._send(requests.models()))

    async def samples(
        self,
        model: str,
        classes: Classes = (),
        *,
        count: int,
        seed: int,
        start: int = 0,
        version: str | None = None,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> Images:
        """`count` labelled images, those that `vaegan.sample` would write for the same addresses.

        Args:
            classes: one class, or several for a model of co-occurring findings.
            version: the latest when it is None; then all parts of a large order come from the same one.
        """
        batches = self.stream(
            model, classes, count=count, seed=seed, start=start, version=version, latent=latent, truncation=truncation,
            batch_size=count,
        )  # fmt: skip
        (images,) = [images async for images in batches]
        return images

    def stream(
        self,
        model: str,
        classes: Classes = (),
        *,
        count: int,
        seed: int,
        start: int = 0,
        version: str | None = None,
        latent: str = "prior",
        truncation: float = 1.0,
        batch_size: int = 256,
    ) -> AsyncGenerator[Images, None]:
        """The same images in order, `batch_size` at a time (the last batch may have fewer), as they arrive.

        Holds one batch, and what the service sends at a time (256 images), however large `count` is. A connection that
        breaks is made anew and continues where it broke: each image comes once.
        """
        tables = self.tables(
            model, classes, count=count, seed=seed, start=start, version=version, latent=latent, truncation=truncation
        )
        return self._batches(tables, Rebatch(batch_size))

    def tables(
        self,
        model: str,
        classes: Classes = (),
        *,
        count: int,
        seed: int,
        start: int = 0,
        version: str | None = None,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> AsyncGenerator[pa.Table, None]:
        """As `stream`, but as Arrow tables of `vaegan.shards.schema`, as long as the service happens to send them."""
        order = Order(
            model=model, classes=names_of(classes), count=count, seed=seed, start=start, version=version, latent=latent,
            truncation=truncation,
        )  # fmt: skip
        return self._tables(Transfer(order, self._connection.retry, self._connection.per_request))

    async def image(self, address: str) -> np.ndarray:
        """The image of one address, NAME/VERSION/CLASSES/SEED/INDEX: uint8 (H, W, C).

        Raises:
            UserError: `address` isn't one.
        """
        return answers.pixels(await self._send(requests.image(address)))

    async def encode(
        self, image_bytes: bytes, model: str, classes: Classes = (), *, version: str | None = None
    ) -> Encoding:
        """Where the model's encoder puts an image: a PNG, JPEG, BMP or TIFF file's bytes, and the image's classes."""
        return answers.encoding(await self._send(requests.upload("encode", image_bytes, model, classes, version)))

    async def reconstruct(
        self, image_bytes: bytes, model: str, classes: Classes = (), *, version: str | None = None
    ) -> np.ndarray:
        """What the model makes of an image when it has encoded it: uint8 (H, W, C), of the model's own size."""
        request = requests.upload("reconstruct", image_bytes, model, classes, version, "image/png")
        return answers.pixels(await self._send(request))

    async def anomaly(
        self, image_bytes: bytes, model: str, classes: Classes = (), *, version: str | None = None
    ) -> dict[str, Any]:
        """How unlike its training images the model finds an image: score, features, kl, pixels."""
        return answers.json_of(await self._send(requests.upload("anomaly", image_bytes, model, classes, version)))

    async def interpolate(
        self,
        model: str,
        classes: Classes = (),
        *,
        from_seed: int,
        to_seed: int,
        from_index: int = 0,
        to_index: int = 0,
        steps: int = 8,
        version: str | None = None,
        latent: str = "prior",
        truncation: float = 1.0,
    ) -> Images:
        """`steps` images on the way from one address to another of the same classes, both included."""
        ends = ((from_seed, from_index), (to_seed, to_index))
        request = requests.interpolation(model, classes, ends, steps, version, latent, truncation)
        return answers.images(await self._send(request), steps)

    async def _batches(self, tables: AsyncGenerator[pa.Table, None], rebatch: Rebatch) -> AsyncGenerator[Images, None]:
        try:
            async for table in tables:
                for images in rebatch.add(table):
                    yield images
            for images in rebatch.rest():
                yield images
        finally:
            await tables.aclose()

    async def _tables(self, transfer: Transfer) -> AsyncGenerator[pa.Table, None]:
        while (request := transfer.request()) is not None:
            try:
                async with self._open(request, transfer.attempts) as response:
                    transfer.begin(response)
                    async for data in response.aiter_bytes():
                        for table in transfer.feed(data):
                            yield table
                    transfer.end()
            except ServiceError as failure:
                await self._pause(transfer.failed(failure))

    async def _send(self, request: Request) -> httpx.Response:
        attempts = Attempts(self._connection.retry)
        while True:
            try:
                async with self._open(request, attempts) as response:
                    await response.aread()
                if response.is_success:
                    return response
                raise refusal(response)
            except ServiceError as failure:
                await self._pause(attempts.wait_s(failure))

    @asynccontextmanager
    async def _open(self, request: Request, attempts: Attempts) -> AsyncIterator[httpx.Response]:
        """An answer; the body of one that is no success has been read."""
        built = self._http.build_request(**self._connection.arguments(request, attempts))
        try:
            response = await self._http.send(built, stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                yield response
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise unanswered(built, error) from error
