"""Answers other than success: `application/problem+json` documents (RFC 9457) with one sentence in `detail`."""

import http
import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve.schemas import BODIES, EXPECTED, Order

MEDIA_TYPE = "application/problem+json"

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log


class Problem(Exception):
    """Ends a request with `status` and one sentence: what was found, what was expected, what to do next.

    Args:
        headers: added to the answer, such as Retry-After.
        extra: further members of the document, such as the names there are.
    """

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.extra = status, detail, headers, extra

    def response(self, request_id: str = "") -> Response:
        document = {"type": "about:blank", "title": http.HTTPStatus(self.status).phrase, "status": self.status}
        document |= {"request_id": request_id} if request_id else {}
        # ASCII only: a lone surrogate that a client sent has no UTF-8 form, and would turn its 422 into our 500.
        body = json.dumps(document | {"detail": self.detail} | self.extra, ensure_ascii=True, allow_nan=False)
        return Response(body, self.status, self.headers, media_type=MEDIA_TYPE)


def busy(found: str, wait_s: int) -> Problem:
    """503 with Retry-After: the service could answer, later."""
    return Problem(503, f"{found}; try again in {wait_s} s", headers={"Retry-After": str(wait_s)})


def install(api: FastAPI, headers: dict[str, str]) -> None:
    """Render every exception that leaves a handler of `api` as a problem.

    Args:
        headers: for the answer to an unforeseen exception, which is written outside all middleware.
    """

    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        detail = "the service failed to answer; its log has the reason, and a retry may succeed"
        return Problem(500, detail, headers=headers).response(request_id(request))

    api.add_exception_handler(Problem, _problem)
    api.add_exception_handler(HTTPException, _http_exception)
    api.add_exception_handler(RequestValidationError, _invalid_request)
    api.add_exception_handler(Exception, unexpected)


def shown(value: Any) -> str:
    """A value as an error message quotes it: short, whatever was sent."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, float) else _json(value)
    text = text if len(text) <= 40 else text[:37] + "..."
    return json.dumps(text) if isinstance(value, str) else text


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names as an error message lists them."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"


def request_id(request: Request) -> str:
    """The id that the outermost middleware gave a request; empty where there is none."""
    return str(getattr(request.state, "request_id", ""))


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request_id(request))


async def _http_exception(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, 400 of a body that can't be decoded."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    path = shown(request.url.path)
    if error.status_code == 404:
        detail = f"there is nothing at {path}; /openapi.json lists the paths of this service"
    elif error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        detail = f"{path} does not answer {request.method}, expected {allowed}; see /openapi.json"
    else:
        detail = "the body could not be read, expected a JSON object in UTF-8; see /openapi.json for an example"
    return Problem(error.status_code, detail, headers=headers).response(request_id(request))


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    content_type = request.headers.get("content-type", "")
    body = BODIES.get(request.url.path)
    if body is not None and "json" not in content_type:
        found = shown(content_type) if content_type else "missing"
        return Problem(
            415, f"the header Content-Type is {found}, expected application/json; send it with the request"
        ).response(request_id(request))
    errors = [{"field": _field(e["loc"]), "detail": _sentence(e, body)} for e in error.errors()[:20]]
    return Problem(422, errors[0]["detail"], errors=errors).response(request_id(request))


def _field(location: tuple[Any, ...]) -> str:
    return ".".join(str(part)[:40] for part in location[1:]) or str(location[0])


def _sentence(error: dict[str, Any], body: type[Order] | None) -> str:
    """One pydantic error as found, expected and what to do, instead of pydantic's several lines."""
    field = _field(error["loc"])
    example = body.EXAMPLE if body else "{}"
    if error["type"] == "json_invalid":
        where = error["loc"][-1]
        return f"the body is not JSON (character {where}), expected an object such as {example}"
    if error["type"] == "extra_forbidden":
        return f"unknown field {shown(field)}, expected some of {listed(sorted(body.fields() if body else []))}"
    if field == "body":
        found = "missing" if error["type"] == "missing" else "not an object"
        return f"the body is {found}, expected a JSON object such as {example}"
    expected = EXPECTED.get(field.split(".")[0], "another value")
    if error["type"] == "missing":
        return f"{field} is missing, expected {expected}"
    return f"{field} is {shown(error['input'])}, expected {expected}"
