"""Who may ask and how much at once: API keys, the size of a body, the headers of every answer."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import UserError
from serve.problems import Problem

MIN_KEY_LENGTH = 16

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
    "Cross-Origin-Resource-Policy": "same-origin",
}


def read_keys(path: Path) -> frozenset[str]:
    """The SHA-256 of each API key of a file: one key per line, or `sha256:` and 64 hexadecimal digits; # comments.

    Raises:
        UserError: no such file, no key in it, or a line that is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"api_keys={path}: {error.strerror}; expected a text file with one key per line") from None
    except UnicodeDecodeError:
        raise UserError(f"api_keys={path} is not text; expected a UTF-8 file with one key per line") from None
    keys = [
        _digest_of_line(line.strip(), f"line {number} of {path}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not keys:
        raise UserError(f"no key in {path}: expected one per line; make one with: openssl rand -hex 24 >> {path}")
    return frozenset(keys)


def _digest_of_line(line: str, where: str) -> str:
    # The message never quotes the line: it may be a key, and messages end in logs.
    if line.startswith("sha256:"):
        digest = line.removeprefix("sha256:").strip().lower()
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise UserError(f"{where} is no SHA-256: expected sha256: and 64 hexadecimal digits; correct it")
        return digest
    if len(line) < MIN_KEY_LENGTH:
        raise UserError(
            f"{where} has {len(line)} characters: expected a key of at least {MIN_KEY_LENGTH}, since a short one "
            "can be guessed; make one with: openssl rand -hex 24"
        )
    return hashlib.sha256(line.encode()).hexdigest()


def is_valid_key(key: str, digests: frozenset[str]) -> bool:
    """Whether a key is one of those whose digests are given, in a time that tells nothing about them."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return bool(sum([hmac.compare_digest(digest, known) for known in sorted(digests)]))  # a list: never stops early


def is_loopback(host: str) -> bool:
    """Whether a peer's address is this very host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def make_gate(digests: frozenset[str] | None, allow_anonymous: bool) -> Callable[..., Awaitable[None]]:
    """The dependency that each /v1 route has: a valid key, or, where there are no keys, a peer on this host.

    The second half is a check of the peer and not of the socket, because whoever starts Ray Serve chooses the
    socket: a Serve config file without a host listens on every interface.
    """
    if digests is None:

        async def gate(request: Request) -> None:
            peer = request.client.host if request.client else ""
            if not (allow_anonymous or is_loopback(peer)):
                raise Problem(
                    403,
                    "this service has no API keys and therefore answers its own host only; its operator can start it "
                    "with api_keys=FILE, or with allow_anonymous=true to serve everybody",
                )

        return gate

    header = APIKeyHeader(name="X-API-Key", auto_error=False)

    async def gate_with_keys(key: Annotated[str | None, Security(header)]) -> None:
        if key is None or not is_valid_key(key, digests):
            found = "missing" if key is None else "not one of this service's keys"
            raise Problem(
                401,
                f"the header X-API-Key is {found}, expected a key; ask the operator of this service for one",
                headers={"WWW-Authenticate": 'ApiKey realm="augray"'},
            )

    return gate_with_keys


class BodyLimit:
    """ASGI middleware: a body above `max_bytes` ends as 413 before anything parses it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:  # Content-Length is a claim; the bytes are counted
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                problem = Problem(
                    413, f"the body has more than {self.max_bytes} bytes, expected fewer; ask for less in one request"
                )
                await problem.response()(scope, receive, send)
                return
        unread = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope, replay, send)


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
