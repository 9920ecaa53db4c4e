"""From an order to its answer: charged, recorded, made, sent, and counted as far as it was sent."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.access.keyfile import Key
from serve.backend import Backend
from serve.formats import Format, Writer, writer
from serve.gate import Verdict
from serve.orders import Order
from serve.problems import request_id


async def deliver(
    backend: Backend, request: Request, key: Key, order: Order, format: Format, verdict: Verdict | None
) -> Response:
    """The images of an order in a format; streamed where they are more than one forward pass makes.

    Raises:
        Problem: 429 where the key's quota is used up; 503 where the service is full, slow, or can't record the order.
    """
    request.state.model, request.state.format = order.model_id, format.name
    await backend.charge(key, order.count)
    sending = _Sending(backend, request, key, order)
    try:
        await backend.record("granted", **sending.about(format, verdict))
        parts = sending.parts(writer(format, order.answer()))
        headers = order.headers(str(verdict or ""))
        if order.count > backend.batcher.batch:
            first = await anext(parts)  # what goes wrong before it is still a problem of its own
            return _Streamed(first, parts, headers=headers, media_type=format.media_type)
        body = b"".join([part async for part in parts])
    except BaseException:
        await sending.end()
        raise
    return Response(body, media_type=format.media_type, headers=headers)


def asked_by(request: Request, key: Key) -> dict[str, object]:
    """Who asks, for the audit log."""
    return {
        "request": request_id(request),
        "key": key.name,
        "peer": request.client.host if request.client else "",
    }


def allowed_by(verdict: Verdict | None) -> dict[str, object]:
    """What the privacy gate said, and who overrode it, for the audit log."""
    return {
        "privacy": str(verdict or ""),
        "override": str(verdict.override) if verdict and verdict.override else "",
    }


class _Sending:
    """Keeps the books of one order."""

    def __init__(self, backend: Backend, request: Request, key: Key, order: Order) -> None:
        self.backend, self.request, self.key, self.order = backend, request, key, order
        self.sent = 0
        self.ended = False

    def about(self, format: Format, verdict: Verdict | None) -> dict[str, object]:
        """Who takes which addresses, for the audit log."""
        order = self.order
        way = {"to": f"{order.way.seed}/{order.way.index}", "at": list(order.way.at)} if order.way else {}
        taken = {"address": order.address(0), "count": order.count, **way, "format": format.name}
        return asked_by(self.request, self.key) | taken | allowed_by(verdict)

    async def parts(self, writer: Writer) -> AsyncGenerator[bytes, None]:
        """The bytes of what is made; when it ends, however that is, the books are closed."""
        try:
            made = self.backend.batcher.encode(self.order, writer, self.request.state.format)
            with contextlib.closing(writer):
                async with contextlib.aclosing(made):
                    async for size, data in made:
                        yield data
                        self.sent += size
        finally:
            await self.end()

    async def end(self) -> None:
        """Count what was sent, give back the rest. Once."""
        if self.ended:
            return
        self.ended = True
        self.request.state.images = self.sent
        if self.sent < self.order.count:
            await self.backend.ledger.give_back(self.key.name, self.order.count - self.sent)
            await self.backend.record("cut short", request=request_id(self.request), sent=self.sent)


class _Streamed(StreamingResponse):
    """Parts as they come. They are closed in any case, also if nobody ever asked for one."""

    def __init__(
        self, first: bytes, parts: AsyncGenerator[bytes, None], *, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(_chained(first, parts), headers=headers, media_type=media_type)
        self.parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.parts.aclose()


async def _chained(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in parts:
        yield part
