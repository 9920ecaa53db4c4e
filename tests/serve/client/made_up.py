"""A service that is made up: it answers as the real one does, at once, and fails exactly where it is told to.

Its images hold their own address in their first bytes, so that a test sees which ones it got.
"""

import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import numpy as np
import pyarrow as pa
from PIL import Image

from vaegan.shards import Images, schema, to_table

ARROW = "application/vnd.apache.arrow.stream"
CLASSES = ("normal", "effusion", "mass")
SIZE = 16


@dataclass
class Fault:
    """What happens to one request: an exception, another answer, or a body that breaks after so many bytes."""

    error: Exception | None = None
    response: httpx.Response | None = None
    break_after: int | None = None
    rows: int | None = None
    """Send only so many rows, and end as if that was all."""


@dataclass
class MadeUpService:
    """Answers httpx's MockTransport (`handle`) or a socket (`as_asgi`).

    Attributes:
        faults: what goes wrong with the next requests, one each; None is no fault.
        requests: all that came.
        change: called with the rows of each batch before they are sent.
    """

    faults: list[Fault | None] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    version: str = "1"
    batch_rows: int = 256
    chunk_bytes: int = 65536
    classes: tuple[str, ...] = CLASSES
    task: str = "multiclass"
    change: object = None
    sent: int = 0

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        fault = (self.faults.pop(0) if self.faults else None) or Fault()
        if fault.error:
            raise fault.error
        if fault.response:
            return fault.response
        if request.url.path == "/v1/samples":
            return self._samples(json.loads(request.content), fault)
        if request.url.path == "/v1/interpolate":
            return self._interpolation(json.loads(request.content))
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"models": [self.summary()], "max_count": 100_000})
        if request.url.path == "/v1/encode":
            about = self._about(request) | {"mu": [0.5, float(len(request.content))], "log_var": [0.0, -1.0]}
            return httpx.Response(200, json=about)
        if request.url.path == "/v1/anomaly":
            return httpx.Response(200, json=self._about(request) | {"score": 1.5, "features": 1, "kl": 2, "pixels": 3})
        if request.url.path == "/v1/reconstruct" or request.url.path.endswith(".png"):
            file = io.BytesIO()
            Image.fromarray(np.full((SIZE, SIZE), 7, np.uint8)).save(file, "PNG")
            return httpx.Response(200, content=file.getvalue(), headers={"Content-Type": "image/png"})
        return httpx.Response(404, json={"detail": "no such path"}, headers={"X-Request-ID": "id-of-404"})

    def summary(self) -> dict[str, object]:
        return {
            "name": "chest", "version": self.version, "available": True, "latest": True, "kind": "vaegan",
            "task": self.task, "classes": list(self.classes), "size": SIZE, "channels": 1,
        }  # fmt: skip

    def rows(self, classes: list[str], seed: int, index: np.ndarray, version: str, suffix: str = "") -> Images:
        """What the addresses hold."""
        labels = np.tile(np.array([name in classes for name in self.classes], np.uint8), (len(index), 1))
        names = "+".join(name for name in self.classes if name in classes) or "none"
        address = np.array([f"chest/{version}/{names}/{seed}/{i}{suffix}" for i in index], dtype=object)
        pixels = np.zeros((len(index), SIZE * SIZE), np.uint8)
        pixels[:, :8] = index.astype("<i8").view(np.uint8).reshape(-1, 8)
        pixels[:, 8 : 8 + len(self.classes)] = labels
        pixels[:, 12] = seed % 251
        column = lambda value: np.array([value] * len(index), dtype=object)  # noqa: E731
        return Images(
            pixels.reshape(-1, SIZE, SIZE, 1), labels, address, address, column("synthetic"),
            model=column(f"chest/{version}"), seed=np.full(len(index), seed, np.int64), index=index,
        )  # fmt: skip

    def arrow(self, parts: Iterator[Images]) -> Iterator[bytes]:
        """An Arrow IPC stream, in pieces."""
        about = schema(task=self.task, classes=self.classes, height=SIZE, width=SIZE, channels=1)
        sink = io.BytesIO()
        writer = pa.ipc.new_stream(sink, about)
        for rows in parts:
            if self.change:
                rows = self.change(rows)
            writer.write_table(to_table(rows, about))
            yield from _pieces(sink, self.chunk_bytes)
            self.sent += len(rows)
        writer.close()
        yield from _pieces(sink, self.chunk_bytes)

    def _samples(self, order: dict, fault: Fault) -> httpx.Response:
        version = order["version"] or self.version
        query = ([f"latent={order['latent']}"] if order["latent"] != "prior" else []) + (
            [f"truncation={float(order['truncation'])!r}"] if order["truncation"] != 1 else []
        )
        suffix = "?" + "&".join(query) if query else ""
        count = order["count"] if fault.rows is None else fault.rows
        index = range(order["start"], order["start"] + count)
        parts = (
            self.rows(
                order["labels"], order["seed"], np.array(index[at : at + self.batch_rows], np.int64), version, suffix
            )
            for at in range(0, count, self.batch_rows)
        )
        return self._stream(self.arrow(parts), version, fault.break_after)

    def _interpolation(self, order: dict) -> httpx.Response:
        at = [i / (order["steps"] - 1) for i in range(order["steps"])]
        to = f"{order['to']['seed']}/{order['to']['index']}"
        index = np.full(order["steps"], order["from"]["index"], np.int64)
        rows = self.rows(order["labels"], order["from"]["seed"], index, self.version)
        rows.image_id = np.array([f"{rows.image_id[0]}?to={to}&at={f!r}" for f in at], dtype=object)
        return self._stream(self.arrow(iter([rows])), self.version)

    def _stream(self, pieces: Iterator[bytes], version: str, break_after: int | None = None) -> httpx.Response:
        headers = {"Content-Type": ARROW, "X-AugRay-Version": version, "X-Request-ID": "id-of-stream"}
        return httpx.Response(200, headers=headers, stream=Body(pieces, break_after))

    def _about(self, request: httpx.Request) -> dict[str, object]:
        asked = request.url.params
        return {"model": asked["model"], "version": self.version, "classes": asked.get_list("class")}

    async def as_asgi(self, scope, receive, send) -> None:
        """The same over a socket; a broken body closes the connection."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        url = f"http://service{scope['path']}?{scope['query_string'].decode()}"
        answer = self.handle(httpx.Request(scope["method"], url, headers=scope["headers"], content=body))
        headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() not in (b"content-length",)]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        pieces = [answer.content] if not isinstance(answer.stream, Body) else answer.stream
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Pieces of a body, for both kinds of client; the connection breaks after so many bytes."""

    def __init__(self, pieces: Iterator[bytes], break_after: int | None) -> None:
        self.pieces, self.left = pieces, break_after

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if self.left is not None:
                if len(piece) >= self.left:
                    yield piece[: self.left]
                    raise httpx.ReadError("connection reset")
                self.left -= len(piece)
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def addresses_in(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """(label bits…, index) of made-up images, uint8 (N, H, W, C) or (N, C, H, W)."""
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    index = np.ascontiguousarray(flat[:, :8]).view("<i8").ravel()
    return [(*map(int, bits), int(i)) for bits, i in zip(flat[:, 8:11], index, strict=True)]


def _pieces(sink: io.BytesIO, size: int) -> Iterator[bytes]:
    data = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    for at in range(0, len(data), size):
        yield data[at : at + size]
