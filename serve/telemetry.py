"""What an operator can see of the service: Prometheus metrics, and one line in the log for each request."""

import asyncio
import logging
import re
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Telemetry.snapshot` and `merge` return."""
REASONS = frozenset({"key", "scope", "gate", "quota", "busy", "timeout", "limit"})
"""Why a request was refused."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_QUIET = re.compile("/(healthz|readyz|metrics)|/static/.*")
_REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,64}")
_LIMITS = (408, 413)  # of time and size
_CLIENT_WENT_AWAY = 499  # as nginx has it; no client ever sees it

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log


class Telemetry:
    """The metrics of one replica, in a registry of their own. Threads may share one.

    Values of the labels `model` ("chest/1") and `key` (a key's name) must be the server's own names and not what a
    client sent, since each new value costs memory for as long as the process lives; "" stands for none.

    Args:
        replica: where given, every sample has it as the label `replica`.
    """

    def __init__(self, replica: str = "") -> None:
        self.replica = replica
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "augray_requests_total", "Requests answered.", ["route", "method", "status", "model", "key"], registry=own
        )
        self._seconds = Histogram(
            "augray_request_seconds", "From request to end of answer.", ["route", "model"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self._first_byte = Histogram(
            "augray_first_byte_seconds", "From request to first byte of the body.", ["route", "model"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self._bytes = Counter("augray_bytes_total", "Bytes of bodies sent.", ["route"], registry=own)
        self._images = Counter("augray_images_total", "Images handed out.", ["model", "key", "format"], registry=own)
        self._refused = Counter("augray_refused_total", "Requests refused.", ["reason", "key"], registry=own)
        self._batch = Histogram(
            "augray_batch_images", "Images per forward pass.", ["model"], buckets=_BATCHES, registry=own
        )
        self._decoding = Counter("augray_decode_seconds_total", "Time in forward passes.", ["model"], registry=own)
        self._encoding = Counter("augray_encode_seconds_total", "Time in writing files.", ["format"], registry=own)
        self._queued_requests = Gauge("augray_queue_requests", "Requests that wait or run.", registry=own)
        self._queued_images = Gauge("augray_queue_images", "Images asked for and not yet made.", registry=own)
        self._loaded = Gauge("augray_models_loaded", "Versions of models in memory.", registry=own)
        self._loads = Counter("augray_model_loads_total", "Loads of models.", ["model", "outcome"], registry=own)
        self._load_seconds = Histogram(
            "augray_model_load_seconds", "Time in loading a model.", buckets=_SECONDS, registry=own
        )

    def request_ended(
        self, route: str, method: str, status: int, *, seconds: float, model: str = "", key: str = ""
    ) -> None:
        """Count one request, with the time from its first line to the end of its answer."""
        method = method if method in _METHODS else "other"  # a client may send any word
        self._requests.labels(route, method, str(status), model, key).inc()
        self._seconds.labels(route, model).observe(seconds)

    def first_byte_sent(self, route: str, *, seconds: float, model: str = "") -> None:
        """An answer's body began after `seconds`."""
        self._first_byte.labels(route, model).observe(seconds)

    def bytes_sent(self, route: str, count: int) -> None:
        """Bytes of an answer's body left."""
        self._bytes.labels(route).inc(count)

    def images_sent(self, count: int, *, format: str, model: str, key: str = "") -> None:
        """Images were handed out in a format ("png", "npz")."""
        self._images.labels(model, key, format).inc(count)

    def refused(self, reason: str, key: str = "") -> None:
        """A request was turned away, for one of `REASONS`."""
        assert reason in REASONS, reason
        self._refused.labels(reason, key).inc()

    def batch_decoded(self, images: int, *, seconds: float, model: str) -> None:
        """One forward pass made `images` images in `seconds`."""
        self._batch.labels(model).observe(images)
        self._decoding.labels(model).inc(seconds)

    def encoded(self, format: str, *, seconds: float) -> None:
        """Time went into writing images as files of a format."""
        self._encoding.labels(format).inc(seconds)

    def queue_is(self, *, requests: int, images: int) -> None:
        """How much waits or runs now."""
        self._queued_requests.set(requests)
        self._queued_images.set(images)

    def models_loaded_are(self, count: int) -> None:
        """How many versions of models are in memory now."""
        self._loaded.set(count)

    def model_load_ended(self, model: str, *, outcome: str, seconds: float) -> None:
        """Loading a model ended, well or not; `outcome` is a word of a few, such as "loaded" and "failed"."""
        self._loads.labels(model, outcome).inc()
        self._load_seconds.observe(seconds)

    def snapshot(self) -> bytes:
        """Everything counted so far, as Prometheus' exposition text (`CONTENT_TYPE`)."""
        added = {"replica": self.replica} if self.replica else {}
        return generate_latest(_Families(_with_labels(family, added) for family in self._registry.collect()))


def merge(snapshots: Mapping[str, bytes]) -> bytes:
    """One exposition text of several replicas': each sample gets its replica's name as the label `replica`.

    Args:
        snapshots: what `Telemetry.snapshot` returned, by the name of the replica.
    """
    merged: dict[str, Metric] = {}
    for replica, text in snapshots.items():
        for family in text_string_to_metric_families(text.decode()):
            if family.name.endswith("_created"):
                continue
            labelled = _with_labels(family, {"replica": replica})
            # Samples of one metric must stand together, below a single HELP and TYPE.
            merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged[family.name].samples += labelled.samples
    return generate_latest(_Families(merged.values()))


class _Families(Collector):
    """Metrics that are counted already, as prometheus_client wants to be handed them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _with_labels(family: Metric, added: dict[str, str]) -> Metric:
    """A copy with labels added, without the times of creation, which Prometheus does not read from this format."""
    copy = Metric(family.name, family.documentation, family.type)
    copy.samples = [
        Sample(sample.name, {**sample.labels, **added}, sample.value)
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return copy


class Observed:
    """ASGI middleware, the outermost: gives each request an id, times it, counts it, and writes its line in the log.

    The id is the client's own X-Request-ID if it has 1 to 64 letters, digits and . _ -, else a new one; handlers find
    it in scope["state"]["request_id"], clients in the header X-Request-ID. Handlers tell what a request was by entries
    of scope["state"]: "key" (its name), "model" (NAME/VERSION), "images" (how many have been handed out) and "format".

    A request whose client went away before the end has status 499, an answer that broke off for another reason 500,
    whatever its first line said.

    Args:
        sends_request_id: False behind Ray Serve's HTTP proxy, which adds the header X-Request-ID to every answer, also
            to one that has it. It takes the client's own, whatever it is, or makes one, and hands it on in the request,
            so that ours is the same except where a client's own is not acceptable here.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, *, sends_request_id: bool = True) -> None:
        self.app, self.telemetry, self.sends_request_id = app, telemetry, sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # routing may change root_path

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                del headers["X-Request-ID"]
                if self.sends_request_id:
                    headers["X-Request-ID"] = request_id
            answer.note(message)
            try:
                await send(message)
            except OSError:  # how a server tells that nobody listens, from ASGI 2.4 on
                answer.client_went_away = True
                raise

        async def receive_observed() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not answer.ended:
                answer.client_went_away = True
            return message

        try:
            await self.app(scope, receive_observed, send_observed)
        except asyncio.CancelledError:  # how Ray Serve tells that nobody listens
            answer.client_went_away |= not answer.ended
            raise
        finally:
            self._tell(scope, path, answer)

    def _tell(self, scope: Scope, path: str, answer: "_Answer") -> None:
        """Count the request and write its line."""
        state, seconds = scope["state"], answer.elapsed_s()
        route, status = _route(scope, path), answer.final_status()
        model, key, images = state.get("model") or "", state.get("key") or "", state.get("images", 0)
        self.telemetry.request_ended(route, scope["method"], status, seconds=seconds, model=model, key=key)
        self.telemetry.bytes_sent(route, answer.body_bytes)
        if answer.first_byte_s is not None:
            self.telemetry.first_byte_sent(route, seconds=answer.first_byte_s, model=model)
        if status in _LIMITS:
            self.telemetry.refused("limit", key)
        if images:
            self.telemetry.images_sent(images, format=state.get("format", ""), model=model, key=key)
        details = {"key": key, "model": model, "images": images, "request": state["request_id"]}
        # Quoted, a path can't break the line or pretend to be its other fields.
        shown = urllib.parse.quote(path[:200], safe="/+~:@!$&'()*,;", errors="replace")
        logger.log(
            logging.DEBUG if _QUIET.fullmatch(path) else logging.INFO,
            "%s %s %d %.0f ms %s",
            scope["method"],
            shown,
            status,
            seconds * 1000,
            " ".join(f"{name}={value}" for name, value in details.items() if value),
        )


class _Answer:
    """What has been seen of one answer."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self.status: int | None = None
        self.first_byte_s: float | None = None
        self.body_bytes = 0
        self.ended = False
        self.client_went_away = False

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started_s

    def note(self, message: Message) -> None:
        """Take in what the application sends."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body and self.first_byte_s is None:
                self.first_byte_s = self.elapsed_s()
            self.body_bytes += len(body)
            self.ended = not message.get("more_body", False)

    def final_status(self) -> int:
        if self.client_went_away:
            return _CLIENT_WENT_AWAY
        return self.status if self.ended and self.status is not None else 500


def _request_id(scope: Scope) -> str:
    own = Headers(scope=scope).get("x-request-id", "")
    return own if _REQUEST_ID.fullmatch(own) else uuid.uuid4().hex


def _route(scope: Scope, path: str) -> str:
    """The template of the path, such as "/v1/models/{model}/{version}", or "other" where no route matched.

    From 0.137 on, FastAPI's `route.path` lacks the prefix under which a router was included. The prefix is the segments
    that the path has and the template has not; a parameter that spans several (:path) has no such count.
    """
    route: Any = scope.get("route")
    if not isinstance(route, Route) or ":path}" in route.path:
        return "other"
    segments = path.split("/")
    missing = len(segments) - route.path.count("/") - 1
    return "/".join(segments[: missing + 1]) + route.path
