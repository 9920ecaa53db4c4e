"""Charged, recorded, made, sent: the books of an order, and answers too large for memory."""

import asyncio
import io
import json
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.requests import ClientDisconnect

from serve.access.audit import read
from serve.access.keyfile import Limits
from serve.api import make_api
from serve.batching import BATCH
from serve.ledger import LocalLedger
from vaegan.sampler import Sampler
from vaegan.shards import from_table

NPZ, ARROW, PARQUET = "application/x-npz", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
BODY = {"model": "chest", "class": "normal"}
SECRET = "augray_a-key-for-tests-only"
HEADERS = {"X-API-Key": SECRET}


def records(folder):
    return list(read(folder / "audit"))


def test_who_took_which_addresses_is_in_the_audit_log(service_of, make_key, tmp_path):
    service = service_of(keys=[make_key()], state=tmp_path)
    answer = service.request("POST", "/v1/samples", json=BODY | {"count": 40, "seed": 3, "start": 7}, headers=HEADERS)
    (entry,) = records(tmp_path)
    assert answer.status_code == 200
    assert entry["request"] == answer.headers["x-request-id"]
    about = {"event": "granted", "key": "lab", "address": "chest/2/normal/3/7", "count": 40, "format": "zip"}
    assert about.items() <= entry.items()
    assert entry["privacy"] == answer.headers["x-augray-privacy"] == "not audited"
    assert SECRET not in json.dumps(entry)


def test_what_was_refused_is_not_in_it(service_of, make_key, tmp_path):
    service = service_of(keys=[make_key()], state=tmp_path)
    for body, headers in ((BODY, {}), ({"model": "nobody"}, HEADERS), (BODY | {"count": 0}, HEADERS)):
        assert not service.request("POST", "/v1/samples", json=body, headers=headers).is_success
    assert records(tmp_path) == []


def test_nothing_is_handed_out_that_cannot_be_recorded(service_of, tmp_path):
    service = service_of(state=tmp_path)
    (tmp_path / "audit").rmdir()
    (tmp_path / "audit").write_text("a file is in the way")
    answer = service.post(BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert "recorded" in answer.json()["detail"]
    assert str(tmp_path) not in answer.text
    (tmp_path / "audit").unlink()
    (tmp_path / "audit").mkdir()
    assert service.post(BODY).status_code == 200


def test_a_keys_quota_of_images_and_requests_ends_in_429_with_a_time(service_of, make_key):
    limits = Limits(images_per_day=50, requests_per_minute=4)
    service = service_of(keys=[make_key(limits=limits)])

    def ask(count: int):
        return service.request("POST", "/v1/samples", json=BODY | {"count": count}, headers=HEADERS)

    assert ask(45).status_code == 200
    refused = ask(6)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert ask(5).status_code == 200
    metrics = {ask(1).status_code for _ in range(4)}
    assert metrics == {429}


def test_images_that_were_not_delivered_are_given_back(service_of, make_key, monkeypatch):
    service = service_of(keys=[make_key(limits=Limits(images_per_day=50))], raise_app_exceptions=False)
    body = BODY | {"count": 20}
    with monkeypatch.context() as broken:
        broken.setattr(Sampler, "decode", lambda *a, **k: 1 / 0)
        for _ in range(5):
            assert service.request("POST", "/v1/samples", json=body, headers=HEADERS).status_code == 500
    assert service.request("POST", "/v1/samples", json=body | {"count": 50}, headers=HEADERS).status_code == 200


def test_a_key_for_some_models_sees_and_gets_no_other(service_of, make_key):
    service = service_of(keys=[make_key(models=frozenset({"plain"}))])
    assert service.request("POST", "/v1/samples", json=BODY, headers=HEADERS).status_code == 403
    assert service.get("/v1/models/chest/2/card", headers=HEADERS).status_code == 403
    assert service.request("POST", "/v1/samples", json={"model": "plain"}, headers=HEADERS).status_code == 200
    listed = service.get("/v1/models", headers=HEADERS).json()["models"]
    assert {model["name"] for model in listed} == {"plain"}


def test_metrics_need_a_key_that_may_operate_and_count_what_was_handed_out(service_of, make_key):
    operator = make_key("operator", "another-secret", scopes=frozenset({"operate"}))
    service = service_of(keys=[make_key(), operator])
    service.request("POST", "/v1/samples", json=BODY | {"count": 40}, headers=HEADERS)
    assert service.get("/metrics", headers=HEADERS).status_code == 403
    text = service.get("/metrics", headers={"X-API-Key": "another-secret"}).text
    line = next(line for line in text.splitlines() if line.startswith("augray_images_total{"))
    assert all(part in line for part in ('key="lab"', 'model="chest/2"', 'format="zip"', 'replica="local"'))
    assert line.endswith(" 40.0")
    assert 'augray_models_loaded{replica="local"} 3.0' in text


async def call(service, body: dict, accept: str, send) -> None:
    """POST /v1/samples as a server would call it; httpx's in-process transport would gather the whole answer."""
    sent = [{"type": "http.request", "body": json.dumps(body).encode()}]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/samples", "raw_path": b"/v1/samples", "query_string": b"",
        "headers": [(b"accept", accept.encode()), (b"content-type", b"application/json")], "root_path": "",
        "client": ("127.0.0.1", 5), "server": ("service", 80), "scheme": "http", "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip

    async def receive() -> dict:
        return sent.pop() if sent else await asyncio.Event().wait()

    await make_api(service.backend)(scope, receive, send)


@pytest.mark.parametrize("accept", [ARROW, PARQUET])
def test_a_long_stream_takes_no_more_memory_than_a_short_one(service_of, accept):
    service = service_of()

    def peak(count: int) -> int:
        """Bytes allocated at most for an answer of so many images, whose reader keeps nothing."""
        received = 0

        async def send(message: dict) -> None:
            nonlocal received
            received += len(message.get("body", b""))

        tracemalloc.start()
        asyncio.run(call(service, BODY | {"count": count}, accept, send))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert received > count * 500
        return most

    assert peak(8000) < peak(800) + 1_000_000  # the answer itself grows by more than that


@pytest.mark.parametrize("accept", [ARROW, PARQUET, NPZ, "application/zip"])
def test_a_stream_that_fails_midway_is_cut_and_never_ended_as_if_it_were_whole(
    service_of, monkeypatch, accept, tmp_path
):
    service = service_of(state=tmp_path)
    passes = []
    decode = Sampler.decode

    def failing(self, z, labels):
        passes.append(len(z))
        if len(passes) > 20:
            raise ArithmeticError("made to fail")
        return decode(self, z, labels)

    monkeypatch.setattr(Sampler, "decode", failing)
    messages = []

    async def send(message: dict) -> None:
        messages.append(message)

    with pytest.raises(ArithmeticError):
        asyncio.run(call(service, BODY | {"count": 50 * BATCH}, accept, send))
    assert messages[0]["status"] == 200
    assert sum(len(m.get("body", b"")) for m in messages) > 1000
    assert all(message.get("more_body", True) for message in messages)  # the last chunk was never sent
    granted, cut = records(tmp_path)
    assert (granted["count"], cut["event"], cut["request"]) == (50 * BATCH, "cut short", granted["request"])
    assert 0 < cut["sent"] <= 20 * BATCH
    assert service.backend.batcher.requests == 0


def test_interpolated_images_are_the_same_as_rows_and_as_addresses(service):
    body = BODY | {"from": {"seed": 1, "index": 4}, "to": {"seed": 2}, "steps": 5}
    answer = service.request("POST", "/v1/interpolate", json=body, headers={"Accept": PARQUET})
    rows = from_table(pq.read_table(io.BytesIO(answer.content)))
    assert rows.image_id[1] == "chest/2/normal/1/4?to=2/0&at=0.25"
    for i, at in enumerate((0, 0.25, 0.5, 0.75, 1)):
        url = f"/v1/models/chest/2/images/normal/1/4.png?to=2/0&at={at}"
        png = service.get(url)
        assert png.headers["x-augray-address"] == rows.image_id[i]
        assert png.headers["etag"] != service.get("/v1/models/chest/2/images/normal/1/4.png").headers["etag"]
        one = service.request("POST", "/v1/interpolate", json=body, headers={"Accept": NPZ})
        np.testing.assert_array_equal(np.load(io.BytesIO(one.content))["pixels"][i], rows.pixels[i])
    ends = [service.post(BODY | {"seed": seed, "start": start}, NPZ).content for seed, start in ((1, 4), (2, 0))]
    for position, end in zip((0, 4), ends, strict=True):
        np.testing.assert_array_equal(np.load(io.BytesIO(end))["pixels"][0], rows.pixels[position])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "from is missing"),
        ({"from": {"seed": 1}}, "to is missing"),
        ({"from": 1, "to": {"seed": 1}}, "from is 1, expected an address such as"),
        ({"from": {"seed": -1}, "to": {"seed": 1}}, "from.seed is -1"),
        ({"from": {"seed": 1}, "to": {"seed": 1}, "steps": 1}, "steps is 1, expected an integer from 2 to 256"),
        ({"from": {"seed": 1}, "to": {"seed": 1}, "count": 3}, 'unknown field "count", expected some of class, from'),
    ],
)
def test_a_way_that_leads_nowhere_is_refused_in_one_sentence(service, body, words):
    answer = service.request("POST", "/v1/interpolate", json=BODY | body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    "query", ["at=0.5", "to=1", "to=1/0&at=2", "to=1/0&at=nan", f"to={2**63}/0", "to=-1/0", "to=1/0/0"]
)
def test_an_address_on_no_way_is_refused(service, query):
    assert service.get(f"/v1/models/chest/2/images/normal/1/0.png?{query}").status_code == 422


def test_the_rows_of_an_arrow_stream_can_be_read_before_its_end(service):
    answer = service.post(BODY | {"count": 600}, ARROW)
    reader = pa.ipc.open_stream(io.BytesIO(answer.content[: len(answer.content) * 2 // 3]))
    first = reader.read_next_batch()
    assert first.column("index").to_pylist() == list(range(256))


def test_a_replica_whose_forward_pass_never_ends_is_not_healthy(service_of):
    backend = service_of().backend
    backend.check_health()
    backend.batcher.busy_since_s = time.monotonic() - 1
    backend.check_health()  # at work
    backend.batcher.busy_since_s = time.monotonic() - 3600
    with pytest.raises(RuntimeError, match="has not ended"):
        backend.check_health()


def test_the_numbers_of_a_replica_that_ended_are_forgotten(monkeypatch):
    async def scenario() -> None:
        ledger = LocalLedger({})
        await ledger.exchange("a", b"1")
        assert await ledger.exchange("b", b"2") == {"a": b"1", "b": b"2"}
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert await ledger.exchange("b", b"3") == {"b": b"3"}

    asyncio.run(scenario())


def test_a_client_that_stops_reading_does_not_keep_its_place(service_of):
    service = service_of(reader_timeout_s=0.2)
    parts = []

    async def send(message: dict) -> None:
        parts.append(message)
        if len(parts) > 3:
            await asyncio.Event().wait()  # a socket whose buffers are full

    with pytest.raises(Exception) as caught:
        asyncio.run(call(service, BODY | {"count": 5000}, ARROW, send))
    assert isinstance(caught.value, (TimeoutError, ClientDisconnect))
    assert (service.backend.batcher.requests, service.backend.batcher.images) == (0, 0)
