"""What went wrong, whether asking again can help, and how long to wait before. Sends nothing."""

import math
import random
import time
from dataclasses import dataclass
from typing import Self

import httpx

from cluster.errors import UserError

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be gone next time. 500 too: Ray Serve answers it for the requests of a replica that died."""
UNANSWERED = 0


class ServiceError(UserError):
    """The service said no, said nonsense, or said nothing; the message is one sentence.

    Attributes:
        status: the HTTP status; 0 when there was no whole answer.
        request_id: under which the service's log has the request; None when it was never sent.
        retry_after_s: what the service asked to wait, in seconds, or None.
    """

    def __init__(
        self, status: int, message: str, request_id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.request_id, self.retry_after_s = status, request_id, retry_after_s

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        """Ray and multiprocessing send exceptions from one process to another."""
        return type(self), (self.status, str(self), self.request_id, self.retry_after_s)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long a client goes on trying."""

    attempts: int = 7
    """How often the same thing is asked for before giving up; images that arrive start the count anew."""
    first_wait_s: float = 0.2
    """Longest wait after the first failure; it doubles with each further one."""
    longest_wait_s: float = 30.0
    """No wait is longer, whatever the service asks for."""
    deadline_s: float | None = None
    """Most seconds for one call, all of its requests and waits together; of a stream, also what its reader takes."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait_s < 0 or self.longest_wait_s < 0:
            raise UserError(
                f"attempts {self.attempts}, first_wait_s {self.first_wait_s}, longest_wait_s {self.longest_wait_s}: "
                "expected at least 1, 0 and 0"
            )


class Attempts:
    """One call's attempts so far.

    Args:
        retry: how many there may be.
    """

    def __init__(self, retry: Retry) -> None:
        self.retry = retry
        self._failures = 0
        self._end_s = math.inf if retry.deadline_s is None else time.monotonic() + retry.deadline_s

    def progress(self) -> None:
        """Something new arrived: whatever failed before is behind us."""
        self._failures = 0

    def left_s(self) -> float:
        """Seconds until the deadline, infinity without one.

        Raises:
            ServiceError: it is over.
        """
        left = self._end_s - time.monotonic()
        if left <= 0:
            raise ServiceError(
                UNANSWERED, f"not done within deadline_s = {self.retry.deadline_s} s; ask for less, or allow more"
            )
        return left

    def wait_s(self, failure: ServiceError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ServiceError: `failure` itself, where another attempt would not help, or there is none left.
        """
        self._failures += 1
        if failure.status not in PASSING | {UNANSWERED} or self._failures >= self.retry.attempts:
            raise failure
        if failure.retry_after_s is not None:
            wait = failure.retry_after_s
        else:
            # Doubling, and at random within it: clients that were turned away together don't return together.
            wait = random.uniform(0.5, 1.0) * self.retry.first_wait_s * 2.0 ** (self._failures - 1)
        wait = min(wait, self.retry.longest_wait_s)
        if time.monotonic() + wait >= self._end_s:
            raise failure
        return wait


def refusal(response: httpx.Response) -> ServiceError:
    """What an answer of 300 and above says; its body has been read."""
    try:
        message = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):  # Ray Serve's own answers and a proxy's are plain text
        message = (
            f"{response.url} answered {response.status_code}, which is not this service's way; is it this service?"
        )
    return ServiceError(
        response.status_code, message, request_id=_request_id(response), retry_after_s=_retry_after_s(response)
    )


def strange(response: httpx.Response, found: str) -> ServiceError:
    """An answer that says success and isn't what was asked for: asking again would bring the same."""
    return ServiceError(
        response.status_code,
        f"{response.url} sent {found}; is it this service, and no newer than this client?",
        request_id=_request_id(response),
    )


def unanswered(request: httpx.Request, error: httpx.RequestError) -> ServiceError:
    """The connection failed or broke."""
    origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
    reason = str(error) or type(error).__name__
    return ServiceError(
        UNANSWERED,
        f"{origin} does not answer ({reason}); check the URL and that it runs",
        request_id=request.headers.get("X-Request-ID"),
    )


def _request_id(response: httpx.Response) -> str | None:
    return response.headers.get("X-Request-ID") or response.request.headers.get("X-Request-ID")


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
