"""Forward passes that serve several requests: fair, bounded, and without a trace of who was in a batch with whom."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest

from serve.batching import FEW, Batcher
from serve.problems import Problem
from serve.telemetry import Telemetry

BATCH = 8


class Model:
    """Decodes latents to images of one pixel; can be held in the middle of a pass."""

    def __init__(self, failing_on: float | None = None) -> None:
        self.passes: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.failing_on = failing_on

    def decode(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.free.wait(20)
        self.passes.append([int(value) for value in z[:, 0]])
        if self.failing_on is not None and self.failing_on in z[:, 0]:
            raise ArithmeticError("made to fail")
        return z[:, :, None, None].astype(np.uint8)


class Request:
    """`count` images whose only pixel is first, first + 1, ..."""

    def __init__(self, model: Model, count: int, first: int = 0) -> None:
        self.sampler, self.count, self.first, self.model_id = model, count, first, "m/1"

    def latents(self, offset: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(self.first + offset, self.first + offset + size)[:, None], np.zeros((size, 0))


class Plain:
    """An encoder whose bytes are the pixels."""

    def __init__(self) -> None:
        self.finished = False

    def prepare(self, offset: int, pixels: np.ndarray) -> bytes:
        return pixels.tobytes()

    def add(self, prepared: bytes) -> bytes:
        return prepared

    def finish(self) -> bytes:
        self.finished = True
        return b"."


def batcher(**options) -> Batcher:
    return Batcher(Telemetry(), **({"max_waiting": 100, "batch": BATCH} | options))


async def read(batcher: Batcher, request: Request) -> bytes:
    return b"".join([data async for _, data in batcher.encode(request, Plain())])


async def waiting(condition) -> None:
    """Until a condition holds; a test that waits for ever fails by the suite's patience, not by a race."""
    while not condition():
        await asyncio.sleep(0.001)


def test_every_request_gets_its_own_images_in_order_whatever_shares_its_passes():
    async def scenario() -> None:
        model, work = Model(), batcher()
        requests = [Request(model, count, first=i) for i, count in enumerate([1, 3, 8, 9, 40, 1, 17])]
        answers = await asyncio.gather(*(read(work, request) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            assert answer == bytes(range(request.first, request.first + request.count)) + b"."
        assert sum(map(len, model.passes)) == sum(request.count for request in requests)
        assert max(map(len, model.passes)) <= BATCH
        assert (work.requests, work.images) == (0, 0)

    asyncio.run(scenario())


def test_requests_that_wait_together_share_a_pass():
    async def scenario() -> list[list[int]]:
        model, work = Model(), batcher()
        model.free.clear()
        first = asyncio.create_task(read(work, Request(model, 1)))
        await waiting(model.entered.is_set)
        others = [asyncio.create_task(read(work, Request(model, 1, first=i))) for i in range(1, 8)]
        await waiting(lambda: work.requests == 8)
        await asyncio.sleep(0)
        model.free.set()
        await asyncio.gather(first, *others)
        return model.passes

    assert asyncio.run(scenario()) == [[0], [1, 2, 3, 4, 5, 6, 7]]


def test_a_lone_request_waits_for_nobody():
    async def scenario() -> list[list[int]]:
        model, work = Model(), batcher()
        await read(work, Request(model, 1))
        return model.passes

    assert asyncio.run(scenario()) == [[0]]


def test_models_do_not_share_a_pass_and_take_turns():
    async def scenario() -> None:
        one, other, work = Model(), Model(), batcher()
        await asyncio.gather(read(work, Request(one, 64)), read(work, Request(other, 64, first=100)))
        assert all(value < 64 for part in one.passes for value in part)
        assert all(value >= 100 for part in other.passes for value in part)

    asyncio.run(scenario())


def test_a_small_request_is_in_the_next_pass_however_large_the_others():
    async def scenario() -> None:
        model, work = Model(), batcher()
        model.free.clear()
        large = [asyncio.create_task(read(work, Request(model, 200))) for _ in range(4)]
        await waiting(model.entered.is_set)
        small = asyncio.create_task(read(work, Request(model, FEW, first=250)))
        await waiting(lambda: work.requests == 5)
        await asyncio.sleep(0)
        model.free.set()
        await small
        assert 250 in model.passes[1]
        await asyncio.gather(*large)

    asyncio.run(scenario())


def test_small_requests_without_end_do_not_keep_a_large_one_out():
    async def scenario() -> None:
        model, work = Model(), batcher()
        large = asyncio.create_task(read(work, Request(model, 64)))

        async def crowd() -> None:
            while not large.done():
                await read(work, Request(model, FEW, first=100))

        await asyncio.wait_for(asyncio.gather(large, *(crowd() for _ in range(6))), timeout=60)
        passes = [part for part in model.passes if any(value < 64 for value in part)]
        assert sum(value < 64 for part in passes for value in part) / len(passes) >= BATCH / 2

    asyncio.run(scenario())


def test_a_large_request_is_made_no_faster_than_it_is_read():
    async def scenario() -> None:
        model, work = Model(), batcher()
        async with contextlib.aclosing(work.encode(Request(model, 8000), Plain())) as parts:
            await anext(parts)
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert sum(map(len, model.passes)) <= 4 * BATCH
        assert (work.requests, work.images) == (0, 0)

    asyncio.run(scenario())


def test_more_requests_than_may_wait_are_turned_away_with_a_time_and_places_come_free():
    async def scenario() -> None:
        model, work = Model(), batcher(max_waiting=2)
        model.free.clear()
        held = [asyncio.create_task(read(work, Request(model, 40))) for _ in range(2)]
        await waiting(model.entered.is_set)
        with pytest.raises(Problem) as caught:
            await read(work, Request(model, 1))
        assert caught.value.status == 503
        assert 1 <= int(caught.value.headers["Retry-After"]) <= 120
        model.free.set()
        assert [len(answer) for answer in await asyncio.gather(*held)] == [41, 41]
        assert await read(work, Request(model, 1)) == b"\0."

    asyncio.run(scenario())


@pytest.mark.parametrize("during", ["a pass", "the queue"])
def test_a_request_that_is_given_up_frees_its_place_and_is_not_made(during):
    async def scenario() -> None:
        model, work = Model(), batcher()
        model.free.clear()
        first = asyncio.create_task(read(work, Request(model, 1)))
        await waiting(model.entered.is_set)
        given_up = first if during == "a pass" else asyncio.create_task(read(work, Request(model, 1000, first=5)))
        await waiting(lambda: work.requests == (1 if during == "a pass" else 2))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert work.requests == (0 if during == "a pass" else 1)
        model.free.set()
        assert await read(work, Request(model, 1, first=9)) == b"\x09."
        assert not any(5 in part for part in model.passes)
        if during == "the queue":
            await first
        assert (work.requests, work.images) == (0, 0)

    asyncio.run(scenario())


def test_a_pass_that_fails_ends_its_own_requests_only():
    async def scenario() -> None:
        bad, good, work = Model(failing_on=3), Model(), batcher()
        failing, fine = await asyncio.gather(
            read(work, Request(bad, 30)), read(work, Request(good, 30)), return_exceptions=True
        )
        assert isinstance(failing, ArithmeticError)
        assert len(fine) == 31
        assert (work.requests, work.images) == (0, 0)

    asyncio.run(scenario())


def test_a_request_that_waits_too_long_is_told_so():
    async def scenario() -> None:
        model, work = Model(), batcher(timeout_s=0.05)
        model.free.clear()
        with pytest.raises(Problem) as caught:
            await read(work, Request(model, 1))
        assert caught.value.status == 503
        model.free.set()

    asyncio.run(scenario())


def test_other_work_of_the_network_takes_its_turn_between_passes():
    async def scenario() -> None:
        model, work = Model(), batcher()
        made_before = []
        large = asyncio.create_task(read(work, Request(model, 400)))
        await waiting(lambda: len(model.passes) >= 2)
        assert await work.call(lambda: made_before.append(len(model.passes)) or "done") == "done"
        assert made_before[0] < 50
        await large

    asyncio.run(scenario())


def test_clients_that_ask_again_at_once_share_the_passes_evenly():
    """Else passes of one, the first who was back, and of all the others would alternate."""

    async def scenario() -> list[int]:
        model, work = Model(), batcher(batch=16)
        decode = model.decode
        model.decode = lambda z, labels: (time.sleep(0.1), decode(z, labels))[1]

        async def client(place: int) -> None:
            for _ in range(8):
                await asyncio.sleep(0.001 * place)  # a server reads one request after the other
                await read(work, Request(model, 1))

        await asyncio.gather(*(client(place) for place in range(16)))
        return [len(part) for part in model.passes]

    sizes = asyncio.run(scenario())
    assert sizes.count(1) <= len(sizes) // 3
