import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client.parser import text_string_to_metric_families

from serve.telemetry import Observed, Telemetry, merge


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    found = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    by_name = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(by_name) == len(found)
    return by_name


def value(text: bytes, name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    return sum(n for (of, have), n in samples(text).items() if of == name and labels.items() <= dict(have).items())


def busy(replica: str = "", scale: int = 1) -> Telemetry:
    """One that has counted something of each kind."""
    telemetry = Telemetry(replica)
    for number in range(scale):
        telemetry.request_ended("/v1/samples", "POST", 200, seconds=0.02 * number, model="chest/1", key="lab")
        telemetry.first_byte_sent("/v1/samples", seconds=0.01, model="chest/1")
        telemetry.bytes_sent("/v1/samples", 1000)
        telemetry.images_sent(64, format="npz", model="chest/1", key="lab")
        telemetry.refused("quota", "lab")
        telemetry.batch_decoded(32, seconds=0.5, model="chest/1")
        telemetry.encoded("npz", seconds=0.25)
        telemetry.queue_is(requests=3, images=number)
        telemetry.models_loaded_are(2)
        telemetry.model_load_ended("chest/1", outcome="loaded", seconds=1.5)
    return telemetry


def test_what_is_counted_is_exported():
    text = busy(scale=3).snapshot()
    assert value(text, "augray_requests_total", route="/v1/samples", status="200", model="chest/1", key="lab") == 3
    assert value(text, "augray_request_seconds_count", route="/v1/samples") == 3
    assert value(text, "augray_request_seconds_sum") == pytest.approx(0.06)
    assert value(text, "augray_request_seconds_bucket", le="0.025") == 2
    assert value(text, "augray_first_byte_seconds_count") == 3
    assert value(text, "augray_bytes_total", route="/v1/samples") == 3000
    assert value(text, "augray_images_total", model="chest/1", key="lab", format="npz") == 192
    assert value(text, "augray_refused_total", reason="quota", key="lab") == 3
    assert value(text, "augray_batch_images_sum", model="chest/1") == 96
    assert value(text, "augray_batch_images_bucket", le="16.0") == 0
    assert value(text, "augray_batch_images_bucket", le="32.0") == 3
    assert value(text, "augray_decode_seconds_total", model="chest/1") == 1.5
    assert value(text, "augray_encode_seconds_total", format="npz") == 0.75
    assert (value(text, "augray_queue_requests"), value(text, "augray_queue_images")) == (3, 2)
    assert value(text, "augray_models_loaded") == 2
    assert value(text, "augray_model_loads_total", model="chest/1", outcome="loaded") == 3
    assert value(text, "augray_model_load_seconds_count") == 3


def test_two_instances_share_nothing():
    one, other = Telemetry(), Telemetry()
    one.bytes_sent("/", 5)
    assert value(other.snapshot(), "augray_bytes_total") == 0


def test_a_method_that_a_client_made_up_gets_no_label_of_its_own():
    telemetry = Telemetry()
    for number in range(10):
        telemetry.request_ended("other", f"METHOD{number}", 405, seconds=0)
    assert value(telemetry.snapshot(), "augray_requests_total", method="other", status="405") == 10


def test_merged_snapshots_hold_each_replicas_samples_and_their_sums():
    snapshots = {"a": busy(scale=2).snapshot(), "b": busy(scale=5).snapshot(), "c": Telemetry().snapshot()}
    text = merge(snapshots)
    merged = samples(text)
    for replica, snapshot in snapshots.items():
        for (name, labels), number in samples(snapshot).items():
            assert merged.pop((name, labels | {("replica", replica)})) == number
    assert merged == {}
    assert value(text, "augray_images_total") == 7 * 64
    assert value(text, "augray_request_seconds_count") == 7


def test_a_merged_text_describes_each_metric_once_and_above_its_samples():
    lines = merge({name: busy(scale=2).snapshot() for name in ("a", "b")}).decode().splitlines()
    described = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(described) == len(set(described)) == sum(line.startswith("# HELP") for line in lines) == 14
    current = ""
    for line in lines:
        if line.startswith("# TYPE"):
            current = line.split()[2]
        elif not line.startswith("#"):
            assert re.sub("_(bucket|sum|count)$", "", line.partition("{")[0]) == current


def test_counters_keep_their_ending_and_times_of_creation_are_left_out():
    for text in (busy().snapshot(), merge({"a": busy().snapshot()})):
        assert b"# TYPE augray_requests_total counter" in text
        assert b"_created" not in text


def test_a_merge_of_one_is_what_a_named_replica_says_of_itself():
    assert merge({"a": busy().snapshot()}) == busy("a").snapshot()
    assert samples(merge({"a": busy("other").snapshot()})) == samples(busy("a").snapshot())
    assert merge({}) == b""


def test_names_with_quotes_and_line_ends_survive_a_merge():
    telemetry = Telemetry()
    name = 'a "quoted" \\ name\nof two lines, {odd="1"} #'
    telemetry.bytes_sent(name, 7)
    assert value(merge({name: telemetry.snapshot()}), "augray_bytes_total", route=name, replica=name) == 7


# ---------------------------------------------------------------------------------------------------- the middleware


def make_app(static: Any) -> FastAPI:
    api, router = FastAPI(), APIRouter()

    @router.post("/samples")
    async def samples(request: Request) -> Response:
        request.state.key, request.state.model = "lab", "chest/1"
        request.state.images, request.state.format = 64, "npz"
        return Response(b"x" * 100, headers={"X-Request-ID": "of-the-handler"})

    @router.get("/models/{model}/{version}")
    async def model(request: Request, model: str, version: str) -> dict[str, str]:
        return {"request_id": request.state.request_id}

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    @router.get("/cut")
    async def cut(request: Request) -> Response:
        request.state.images = 0

        async def body() -> Any:
            for _ in range(3):
                request.state.images += 1
                yield b"y" * 10
            raise RuntimeError("cut")

        return StreamingResponse(body())

    @api.get("/healthz")
    async def healthz() -> str:
        return "ok"

    api.include_router(router, prefix="/v1")
    api.mount("/static", StaticFiles(directory=static))
    return api


class Client:
    """Calls an observed application and remembers what it counted and wrote."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.telemetry = Telemetry()
        self.app = Observed(app, self.telemetry, **options)

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def count(self, name: str = "augray_requests_total", **labels: str) -> float:
        return value(self.telemetry.snapshot(), name, **labels)


@pytest.fixture
def client(tmp_path) -> Client:
    (tmp_path / "page.js").write_text("//")
    return Client(make_app(tmp_path))


@pytest.fixture
def lines(caplog) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "ray.serve")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "ray.serve"]


def test_a_good_id_of_the_client_is_used_everywhere(client, lines):
    answer = client.send("GET", "/v1/models/chest/1", headers={"X-Request-ID": "Job-7.step_3"})
    assert answer.headers.get_list("x-request-id") == ["Job-7.step_3"]
    assert answer.json() == {"request_id": "Job-7.step_3"}
    assert lines()[0].endswith("request=Job-7.step_3")


@pytest.mark.parametrize("own", [None, "", "a b", "a\u00e9", "x" * 65, "a,b", "\x7f", "<script>"])
def test_another_id_is_replaced_by_a_new_one(client, own):
    headers = {} if own is None else {"X-Request-ID": own.encode("latin-1")}
    ids = [client.send("GET", "/v1/models/chest/1", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in ids)
    assert ids[0] != ids[1]


def test_an_answer_never_has_two_ids(client):
    answer = client.send("POST", "/v1/samples", headers={"X-Request-ID": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_behind_a_proxy_that_sends_the_id_none_is_added(tmp_path):
    client = Client(make_app(tmp_path), sends_request_id=False)
    answer = client.send("POST", "/v1/samples", headers={"X-Request-ID": "of-the-proxy"})
    assert "x-request-id" not in answer.headers
    answer = client.send("GET", "/v1/models/chest/1", headers={"X-Request-ID": "of-the-proxy"})
    assert answer.json() == {"request_id": "of-the-proxy"}


def test_what_handlers_tell_is_counted_and_written(client, lines):
    client.send("POST", "/v1/samples", headers={"X-Request-ID": "r"})
    labels = {"route": "/v1/samples", "model": "chest/1"}
    assert client.count(**labels, method="POST", status="200", key="lab") == 1
    assert client.count("augray_images_total", model="chest/1", key="lab", format="npz") == 64
    assert client.count("augray_bytes_total", route="/v1/samples") == 100
    assert client.count("augray_request_seconds_count", **labels) == 1
    assert client.count("augray_first_byte_seconds_count", **labels) == 1
    assert re.fullmatch(r"POST /v1/samples 200 \d+ ms key=lab model=chest/1 images=64 request=r", lines()[0])


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/v1/models/chest/1", "/v1/models/{model}/{version}", 200),
        ("GET", "/v1/models/che%20st/v1", "/v1/models/{model}/{version}", 200),
        ("GET", "/v1/samples", "/v1/samples", 405),
        ("GET", "/v1/broken", "/v1/broken", 500),
        ("GET", "/healthz", "/healthz", 200),
        ("GET", "/nowhere/1", "other", 404),
        ("GET", "/v1/models/a/b/c", "other", 404),
        ("GET", "/static/page.js", "other", 200),
        ("GET", "/healthz/", "other", 307),
    ],
)
def test_a_request_counts_for_the_template_of_its_route_and_not_for_its_path(client, method, path, route, status):
    assert client.send(method, path).status_code == status
    assert client.count(route=route, status=str(status)) == 1
    assert client.count() == 1


def test_a_path_can_not_forge_a_line_or_a_field(client, lines):
    client.send("GET", "/v1/models/a%0AGET%20/forged/1%20200%20key=root")
    client.send("GET", "/" + "a" * 5000)
    forged, long = lines()
    assert forged.startswith("GET /v1/models/a%0AGET%20/forged/1%20200%20key%3Droot 404 ")
    assert "\n" not in forged
    assert len(long) < 300


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/static/page.js"])
def test_what_is_asked_all_the_time_is_written_at_debug_alone(client, lines, caplog, path):
    client.send("GET", path)
    assert lines() == []
    caplog.set_level(logging.DEBUG, "ray.serve")
    client.send("GET", path)
    assert lines()[0].startswith(f"GET {path} ")
    assert client.count() == 2


def test_an_answer_that_breaks_off_is_a_failure_though_it_began_as_a_success(client, lines):
    with pytest.raises(RuntimeError, match="cut"):
        asyncio.run(call(client.app, "/v1/cut"))
    assert client.count(route="/v1/cut", status="500") == 1
    assert client.count("augray_bytes_total", route="/v1/cut") == 30
    assert client.count("augray_images_total") == 3
    assert lines()[-1].startswith("GET /v1/cut 500 ")


async def call(app: Any, path: str, receive: Callable[[], Awaitable[Any]] | None = None, send: Any = None) -> list[Any]:
    """One GET without a server in between, which would hide an application's exceptions."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    async def nothing() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "GET",
             "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
             "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}  # fmt: skip
    await app(scope, receive or nothing, send or keep)
    return sent


def test_exceptions_pass_through_and_are_counted():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("broken")

    client = Client(broken)
    with pytest.raises(KeyError):
        asyncio.run(call(client.app, "/x"))
    assert client.count(status="500") == 1


def test_a_client_that_went_away_before_the_end_is_status_499_however_it_is_told(lines):
    async def start(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})

    async def reads_it(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def told_by_send(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"b", "more_body": True})

    async def cancelled(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await asyncio.Event().wait()

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def closed(message: Any) -> None:
        if message.get("body") == b"b":
            raise OSError("closed")

    async def cancel(app: Any) -> None:
        task = asyncio.create_task(call(app, "/x"))
        await asyncio.sleep(0)
        task.cancel()
        await task

    client = Client(reads_it)
    asyncio.run(call(client.app, "/x", receive=gone))
    client.app.app = told_by_send
    with pytest.raises(OSError, match="closed"):
        asyncio.run(call(client.app, "/x", send=closed))
    client.app.app = cancelled
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel(client.app))
    assert client.count(status="499") == client.count() == 3
    assert [line.split()[2] for line in lines()] == ["499"] * 3


def test_a_client_that_leaves_after_the_end_is_no_failure():
    async def answers_then_listens(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        assert (await receive())["type"] == "http.disconnect"

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    client = Client(answers_then_listens)
    asyncio.run(call(client.app, "/x", receive=gone))
    assert client.count(status="204") == 1
    assert client.count("augray_first_byte_seconds_count") == 0


def test_what_is_no_request_is_handed_on_untouched():
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    client = Client(app)
    for kind in ("lifespan", "websocket"):
        asyncio.run(client.app({"type": kind}, None, None))
    assert seen == ["lifespan", "websocket"]
    assert client.count() == 0
