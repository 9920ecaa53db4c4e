"""Images that come as a stream, over connections that break: every one once, in order, and the right one."""

import asyncio
import tracemalloc
from contextlib import aclosing
from itertools import accumulate, pairwise

import httpx
import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import UserError
from serve.client import AsyncClient, Client, Retry, ServiceError
from serve.client.answers import as_rows
from serve.client.arrow import StreamDecoder
from vaegan.shards import Images, from_table

COLUMNS = ("pixels", "labels", "image_id", "patient_id", "source", "model", "seed", "index")


def assert_same(found: Images, expected: Images) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def expected_rows(service, count, start=0, version="1", classes=("effusion",), suffix=""):
    return service.rows(list(classes), 4, np.arange(start, start + count), version, suffix)


@pytest.mark.parametrize(("per_request", "batch_size"), [(8192, 256), (100, 256), (7, 3), (1000, 999), (1, 1)])
def test_a_stream_is_the_order_cut_into_batches_however_it_was_asked_for(service, connect, per_request, batch_size):
    service.batch_rows = 64
    count = 300 if per_request > 1 else 12
    batches = connect(per_request=per_request).stream(
        "chest", "effusion", count=count, seed=4, start=5, batch_size=batch_size
    )
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert_same(Images.concatenate(batches), expected_rows(service, count, 5))
    assert len(service.requests) == -(-count // per_request)


@pytest.mark.parametrize("seed", range(6))
def test_a_connection_that_breaks_anywhere_yields_every_row_once(service, connect, made_up, seed):
    """The bytes of a segment are about 20,000; breaks fall into the schema, metadata, bodies and between them."""
    service.batch_rows, service.chunk_bytes = 16, 700
    rng = np.random.default_rng(seed)
    service.faults = [made_up.Fault(break_after=int(after)) for after in rng.integers(1, 30_000, 12)]
    client = connect(per_request=50, retry=Retry(attempts=20))
    images = Images.concatenate(client.stream("chest", "effusion", count=200, seed=4, start=3, batch_size=30))
    assert_same(images, expected_rows(service, 200, 3))
    assert len(service.requests) > 4


def test_every_single_place_where_an_answer_can_break_is_survived(service, connect, made_up):
    service.batch_rows = 2
    size = sum(map(len, service.arrow(iter([expected_rows(service, 2), expected_rows(service, 2, 2)]))))
    client = connect(retry=Retry(attempts=2))
    for after in range(1, size + 1, 7):
        service.faults = [made_up.Fault(break_after=after)]
        assert_same(Images.concatenate(client.stream("chest", "effusion", count=4, seed=4)), expected_rows(service, 4))


def test_progress_starts_the_count_of_attempts_anew_and_no_progress_ends_it(service, connect, made_up):
    service.batch_rows = 10
    size = len(b"".join(service.arrow(iter([expected_rows(service, 10, 100)]))))
    service.faults = [made_up.Fault(break_after=size - 8)] * 5  # each brings its first ten rows, not the stream's end
    order = dict(count=60, seed=4, start=100)  # indices of equal length, so that batches are
    client = connect(retry=Retry(attempts=2))
    assert_same(Images.concatenate(client.stream("chest", "effusion", **order)), expected_rows(service, 60, 100))
    service.faults = [made_up.Fault(break_after=10)] * 5
    with pytest.raises(ServiceError, match="does not answer") as caught:
        client.stream("chest", "effusion", **order)
    assert (caught.value.status, len(service.faults)) == (0, 3)


def test_an_answer_that_ends_early_as_if_complete_is_continued(service, connect, made_up):
    service.faults = [made_up.Fault(rows=0), made_up.Fault(rows=30)]
    assert_same(Images.concatenate(connect().stream("chest", "effusion", count=50, seed=4)), expected_rows(service, 50))
    service.faults = [made_up.Fault(rows=0)] * 9
    with pytest.raises(ServiceError, match="ended 50 images early") as caught:
        connect(retry=Retry(attempts=3)).stream("chest", "effusion", count=50, seed=4)
    assert caught.value.request_id == "id-of-stream"


def test_statuses_that_pass_are_waited_for_as_the_service_asks(service, connect, made_up):
    answers = [
        httpx.Response(503, headers={"Retry-After": "7"}),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(429, headers={"Retry-After": "1e9"}),
        httpx.Response(408),
        httpx.Response(502, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        httpx.Response(504, headers={"Retry-After": "nan"}),
    ]
    service.faults = [made_up.Fault(response=answer) for answer in answers]
    client = connect(retry=Retry(first_wait_s=0.5, longest_wait_s=20))
    client.stream("chest", "effusion", count=3, seed=4)
    assert len(service.requests) == 7
    assert (client.waits[0], client.waits[2]) == (7, 20)
    ceilings = [0.5 * 2**failures for failures in (1, 3, 4, 5)]
    for wait, ceiling in zip(np.array(client.waits)[[1, 3, 4, 5]], ceilings, strict=True):
        assert ceiling / 2 <= wait <= min(ceiling, 20)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 413, 415, 422, 301])
def test_a_refusal_is_told_once_in_the_services_words(service, connect, made_up, status):
    answer = httpx.Response(status, json={"detail": "the reason"}, headers={"X-Request-ID": "abc"})
    service.faults = [made_up.Fault(response=answer)]
    client = connect()
    with pytest.raises(ServiceError, match="the reason") as caught:
        client.stream("chest", "effusion", count=3, seed=4)
    assert (caught.value.status, caught.value.request_id) == (status, "abc")
    assert (len(service.requests), client.waits) == (1, [])


def test_a_version_published_meanwhile_does_not_mix_in(service, connect):
    client = connect(per_request=10)
    original = service.handle

    def publish_after_first(request):
        answer = original(request)
        service.version = "2"
        return answer

    client = connect(per_request=10, retry=Retry(attempts=1))
    client.client._http._transport.handler = publish_after_first
    images = Images.concatenate(client.stream("chest", "effusion", count=30, seed=4))
    assert set(images.model) == {"chest/1"}
    names = [request.headers.get("serve_multiplexed_model_id") for request in service.requests]
    assert names == [None, "chest/1", "chest/1"]


def test_unusual_latents_are_part_of_the_addresses(service, connect):
    options = dict(count=2, seed=4, latent="mixture", truncation=0.7)
    images = Images.concatenate(connect().stream("chest", "effusion", **options))
    assert images.image_id[1] == "chest/1/effusion/4/1?latent=mixture&truncation=0.7"
    assert connect().call("samples", "chest", "effusion", count=1, seed=4, truncation=2).image_id[0].endswith("=2.0")


def test_a_model_without_classes_and_one_with_several_at_once(service, connect):
    service.task = "multilabel"
    both = connect().call("samples", "chest", ["mass", "normal"], count=2, seed=4)
    assert both.image_id[1] == "chest/1/normal+mass/4/1"
    service.classes = ()
    none = connect().call("samples", "chest", count=2, seed=4)
    assert (none.image_id[1], none.labels.shape) == ("chest/1/none/4/1", (2, 0))


def other_index(rows: Images) -> Images:
    rows.index = rows.index + 1
    return rows


def other_seed(rows: Images) -> Images:
    rows.seed = rows.seed + 1
    return rows


def other_labels(rows: Images) -> Images:
    rows.labels = rows.labels[:, ::-1].copy()
    rows.labels[:, 0] = 1
    return rows


def other_address(rows: Images) -> Images:
    rows.image_id = rows.image_id[::-1].copy()
    return rows


def other_model(rows: Images) -> Images:
    rows.model = np.array(["chest/9"] * len(rows), dtype=object)
    return rows


def twice(rows: Images) -> Images:
    return Images.concatenate([rows, rows])


@pytest.mark.parametrize("change", [other_index, other_seed, other_labels, other_address, other_model, twice])
def test_rows_other_than_those_asked_for_are_refused_at_once(service, connect, change):
    service.change = change
    with pytest.raises(ServiceError, match=r"asked for|contradict") as caught:
        connect().stream("chest", "effusion", count=8, seed=4)
    assert (caught.value.status, len(service.requests)) == (200, 1)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<html>hello", "text/html"),
        (b"<html>hello, hello", "arrow"),
        (b"\xff" * 4 + b"\x10\0\0\0" + b"\xee" * 64, "arrow"),
    ],
)
def test_something_that_is_no_stream_of_images_is_said_so(service, connect, made_up, content, kind):
    headers = {"Content-Type": made_up.ARROW if kind == "arrow" else kind, "X-AugRay-Version": "1"}
    service.faults = [made_up.Fault(response=httpx.Response(200, content=content, headers=headers))]
    with pytest.raises(ServiceError, match="is it this service"):
        connect().stream("chest", "effusion", count=8, seed=4)


def test_rows_of_another_schema_are_refused(service, connect, made_up):
    table = pa.table({"image": [b"12345"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"Content-Type": made_up.ARROW, "X-AugRay-Version": "1"}
    answer = httpx.Response(200, content=sink.getvalue().to_pybytes(), headers=headers)
    service.faults = [made_up.Fault(response=answer)]
    with pytest.raises(ServiceError, match="without a description"):
        connect().stream("chest", "effusion", count=8, seed=4)


def test_a_deadline_that_is_over_ends_the_call(service, connect, made_up):
    service.faults = [made_up.Fault(response=httpx.Response(503, headers={"Retry-After": "5"}))] * 9
    with pytest.raises(ServiceError) as caught:
        connect(retry=Retry(deadline_s=4)).stream("chest", "effusion", count=8, seed=4)
    assert (caught.value.status, len(service.requests)) == (503, 1)  # five seconds don't fit into four
    with pytest.raises(ServiceError, match="deadline_s"):
        connect(retry=Retry(deadline_s=0)).stream("chest", "effusion", count=8, seed=4)


def test_nonsense_is_refused_before_anything_is_sent(service, connect):
    client = connect()
    with pytest.raises(UserError, match="count is 0"):
        client.stream("chest", "normal", count=0, seed=1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        client.stream("chest", "normal", count=1, seed=1, batch_size=0)
    with pytest.raises(UserError, match="expected at least 1"):
        Retry(attempts=0)
    assert not service.requests


def test_memory_is_flat_over_a_hundred_thousand_rows(service, made_up):
    """26 MB of pixels pass by; what is held at any time is some batches of 64 kB and their addresses."""
    client = Client("http://service", transport=httpx.MockTransport(service.handle))
    batches = client.stream("chest", "effusion", count=100_000, seed=4, batch_size=512)
    seen = len(next(batches))
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        for batch in batches:
            seen += len(batch)
            assert pa.total_allocated_bytes() - arrow_before < 4e6
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 100_000
    assert peak < 4e6


def test_no_more_is_fetched_than_is_read(service):
    client = Client("http://service", transport=httpx.MockTransport(service.handle))
    batches = client.stream("chest", "effusion", count=100_000, seed=4, batch_size=100)
    next(batches)
    assert service.sent <= 512
    batches.close()
    assert service.sent <= 512


def test_a_stream_that_is_left_early_is_closed_in_asyncio_too(service):
    async def first_batch_of_many():
        client = AsyncClient("http://service", transport=httpx.MockTransport(service.handle))
        async with client, aclosing(client.stream("chest", "effusion", count=100_000, seed=4)) as batches:
            return await anext(batches)

    assert len(asyncio.run(first_batch_of_many())) == 256
    assert service.sent <= 512


def test_an_asyncio_reader_goes_on_with_other_work_while_it_waits(service, made_up):
    """Two streams, each waiting for the other's progress before its service sends more."""
    turns = [asyncio.Event(), asyncio.Event()]

    class TakesTurns(httpx.AsyncByteStream):
        def __init__(self, number, body):
            self.number, self.body = number, body

        async def __aiter__(self):
            for piece in self.body:
                turns[self.number].set()
                await turns[1 - self.number].wait()
                yield piece

    async def handle(request):
        answer = service.handle(request)
        number = len(service.requests) - 1
        return httpx.Response(200, headers=answer.headers, stream=TakesTurns(number, answer.stream))

    async def read(seed):
        client = AsyncClient("http://service", transport=httpx.MockTransport(handle))
        return await client.samples("chest", "effusion", count=300, seed=seed)

    async def both():
        return await asyncio.wait_for(asyncio.gather(read(4), read(5)), 60)

    one, other = asyncio.run(both())
    assert_same(one, expected_rows(service, 300))
    assert len(other) == 300


def test_a_connection_that_a_real_server_cuts_is_resumed(service, made_up, url):
    service.batch_rows, service.chunk_bytes = 16, 700
    service.faults = [made_up.Fault(break_after=after) for after in (900, 5000, 9000)]
    with Client(url, retry=Retry(first_wait_s=0)) as client:
        assert_same(client.samples("chest", "effusion", count=100, seed=4), expected_rows(service, 100))
    assert len(service.requests) == 4


def test_the_decoder_is_pyarrows_reader_whatever_the_pieces(service):
    parts = [expected_rows(service, 5), expected_rows(service, 1, 5), expected_rows(service, 3, 6)]
    data = b"".join(service.arrow(iter(parts)))
    expected = pa.ipc.open_stream(data).read_all()
    rng = np.random.default_rng(0)
    for mean in (1, 10, 300, 10_000):
        cuts = [0, *accumulate(rng.integers(1, 2 * mean, 2 * len(data) // mean + 2)), len(data)]
        decoder = StreamDecoder()
        batches = [batch for a, b in pairwise(cuts) for batch in decoder.feed(data[a : max(a, b)])]
        assert decoder.ended
        assert pa.Table.from_batches(batches).equals(expected)


def test_damaged_bytes_are_an_error_and_never_a_crash(service):
    data = b"".join(service.arrow(iter([expected_rows(service, 2)])))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=2):
            damaged[at] = rng.integers(256)
        try:
            for batch in StreamDecoder().feed(bytes(damaged)):
                from_table(pa.Table.from_batches([as_rows(batch)]))
        except pa.ArrowInvalid:
            refused += 1
    assert refused > 500  # others hit pixels or padding
