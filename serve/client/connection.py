"""What both clients hold: where the service is, who asks, and how long to go on."""

import os
import uuid
from typing import Any

import httpx

from cluster.errors import UserError
from serve.client.requests import Request
from serve.client.retry import Attempts, Retry

KEY_VARIABLE = "AUGRAY_API_KEY"
PER_REQUEST = 8192
CONNECT_TIMEOUT_S = 10.0  # a host that is away is known sooner than one that works


class Connection:
    """Settings that `Client` and `AsyncClient` share; see there.

    Raises:
        UserError: `url` isn't one.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retry: Retry | None, per_request: int) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"{url!r} is no URL ({error}), expected one such as http://127.0.0.1:8000") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UserError(f"{url!r} is no URL of a service, expected one such as http://127.0.0.1:8000")
        self.url, self.timeout_s, self.per_request = url.rstrip("/"), timeout_s, per_request
        self.retry = retry or Retry()
        key = api_key or os.environ.get(KEY_VARIABLE)
        self.headers = {"X-API-Key": key} if key else {}

    def arguments(self, request: Request, attempts: Attempts) -> dict[str, Any]:
        """Arguments of httpx's `build_request`.

        Raises:
            ServiceError: the deadline is over.
        """
        options = request.options()
        options["headers"] |= self.headers | {"X-Request-ID": uuid.uuid4().hex}
        timeout_s = min(self.timeout_s, attempts.left_s())
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        return {"method": request.method, "url": self.url + request.path, "timeout": timeout, **options}
