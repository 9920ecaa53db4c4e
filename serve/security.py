"""Who may ask and how much at once: API keys, the size of a body, the headers of every answer."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access.keyfile import SCOPES, Key, Keys
from serve.problems import Problem
from serve.telemetry import Telemetry

ANONYMOUS = Key(name="", sha256="", scopes=frozenset(SCOPES))
"""Whoever is let in where there are no keys."""
UPLOADS = frozenset({"/v1/encode", "/v1/reconstruct", "/v1/anomaly"})

# Nothing from elsewhere, nothing inline, no frame around the page: a script that got into a model's name or card
# has nowhere to run. blob: is how the page shows images that it fetched with a key.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # unless a route says more: scripts of two versions must not meet on one page
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether a peer's address is this very host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Doorkeeper:
    """Knows who asks, and what they may ask for.

    Without keys it lets in peers on this host. That is a check of the peer and not of the socket, because whoever
    starts Ray Serve chooses the socket: a Serve config file without a host listens on every interface.

    Args:
        keys: gives the service's keys, which may change; None serves this host only, or everybody with
            `allow_anonymous`, and that does not change.
        telemetry: counts refusals.
    """

    def __init__(self, keys: Callable[[], Keys | None], allow_anonymous: bool, telemetry: Telemetry) -> None:
        self.keys, self.allow_anonymous, self.telemetry = keys, allow_anonymous, telemetry
        self.has_keys = keys() is not None

    def requires(self, scope: str | None = None) -> Callable[..., Awaitable[Key]]:
        """The dependency of a route that only keys of `scope` may use, or every key without one; gives the key."""
        if not self.has_keys:

            async def anybody(request: Request) -> Key:
                peer = request.client.host if request.client else ""
                if not (self.allow_anonymous or is_loopback(peer)):
                    self.telemetry.refused("key")
                    raise Problem(
                        403,
                        "this service has no API keys and therefore answers its own host only; its operator can start "
                        "it with api_keys=FILE, or with allow_anonymous=true to serve everybody",
                    )
                return ANONYMOUS

            return anybody
        header = APIKeyHeader(name="X-API-Key", auto_error=False)

        async def with_key(request: Request, presented: Annotated[str | None, Security(header)]) -> Key:
            keys = self.keys()
            key = None if presented is None or keys is None else keys.find(presented)
            if key is None:
                self.telemetry.refused("key")
                found = "missing" if presented is None else "not one of this service's keys"
                raise Problem(
                    401,
                    f"the header X-API-Key is {found}, expected a key; ask the operator of this service for one",
                    headers={"WWW-Authenticate": 'ApiKey realm="augray"'},
                )
            request.state.key = key.name
            if scope is not None and scope not in key.scopes:
                self.telemetry.refused("scope", key.name)
                raise Problem(
                    403,
                    f"the key {key.name} may {' and '.join(sorted(key.scopes))}, expected one that may {scope}; "
                    "ask the operator of this service",
                )
            return key

        return with_key


class BodyLimit:
    """ASGI middleware: a body that is too large or too slow ends as 413 or 408 before anything parses it.

    Small ones are read here. Those to paths in `UPLOADS` are read by whoever handles them, once it knows who asks:
    until then they would fill the memory of a service that refuses them.

    Args:
        max_bytes: of a request's body; max_upload_bytes: of those to paths in `UPLOADS`.
        timeout_s: in which it must have come.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.max_upload_bytes, self.timeout_s = app, max_bytes, max_upload_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] in UPLOADS:
            await self.app(scope, self._bounded(receive, self.max_upload_bytes), send)
            return
        try:
            body = await self._read(self._bounded(receive, self.max_bytes))
        except Problem as problem:
            await problem.response(str(scope.get("state", {}).get("request_id", "")))(scope, receive, send)
            return
        if body is None:
            return  # the client went away
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, replay, send)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        """`receive` that raises Problem, 413 or 408, while the body comes."""
        deadline_s: float | None = None
        size, more = 0, True

        async def bounded() -> Message:
            nonlocal deadline_s, size, more
            if not more:
                return await receive()
            if deadline_s is None:  # from the first look at the body on: a model that loads first is not its fault
                deadline_s = asyncio.get_running_loop().time() + self.timeout_s
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                raise _cut_short(
                    408, f"the body did not come in {self.timeout_s:g} s; send it faster, or less"
                ) from None
            more = message["type"] == "http.request" and message.get("more_body", False)
            size += len(message.get("body", b""))  # Content-Length is a claim; the bytes are counted
            if size > limit:
                raise _cut_short(413, f"the body has more than {limit} bytes, expected fewer; send less in one request")
            return message

        return bounded

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None when the client went away."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body)


def _cut_short(status: int, detail: str) -> Problem:
    # What was not read is in the way of the next request on this connection.
    return Problem(status, detail, headers={"Connection": "close"})


class ReaderLimit:
    """ASGI middleware, around all others: an answer whose client does not take its next part in time is cut.

    Else clients that stop reading could hold every place that a replica has. Servers that wait for nobody, such as a
    replica behind Ray's proxy, never get here.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self.app, self.timeout_s = app, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.timeout_s):  # ends in an OSError, as if the client had gone
                await send(message)

        await self.app(scope, receive, send_in_time if scope["type"] == "http" else send)


class SecureHeaders:
    """ASGI middleware: `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
