"""Where a replica makes images: forward passes that serve several requests at once, off the event loop.

Batches count images, not requests. Whenever the network is free it takes what is there, so that a lone request has no
delay and a crowd makes full batches by itself. Only after a pass that served several requests it gives those whom it
has answered a moment to ask again: else it would leave with the first of them, and passes of one and of all would
alternate.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from serve.formats import Writer
from serve.problems import busy
from serve.telemetry import Telemetry
from vaegan.sampler import Sampler

BATCH = 32
"""Images per forward pass on a CPU, which computes 8 to 32 of them fastest (docs/log.md)."""
BATCH_ON_GPU = 256
FEW = 4
"""Requests of at most so many images may overtake larger ones, within half of each batch."""

SMALL_BYTES = 16 * 1024
"""Pixels that are encoded where they are: handing so few over to another thread costs more than encoding them."""

LINGER = 0.1
"""Of a pass's time, most that the next one waits for those whom it has answered."""

T = TypeVar("T")


class Source(Protocol):
    """What is to be decoded: `count` images of one model."""

    @property
    def count(self) -> int: ...

    @property
    def sampler(self) -> Sampler: ...

    @property
    def model_id(self) -> str: ...

    def latents(self, offset: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """z (N, D) and labels (N, K) of images offset ... offset + size - 1."""


class Portion:
    """Consecutive images of one request that wait for their turn; a batch may hold a part of them."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self.source, self.offset, self.size = source, offset, size
        self.done = 0
        self.settled = False  # made, failed, or given up
        self.latents: tuple[np.ndarray, np.ndarray] | None = None
        self.pixels: np.ndarray | None = None
        self.ready: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()

    @property
    def is_small(self) -> bool:
        """Whether its images, once made, are `SMALL_BYTES` at most."""
        return self.pixels is not None and self.pixels.nbytes <= SMALL_BYTES

    def take(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `size` latents and labels; those of a portion are drawn at once, which costs one call."""
        if self.latents is None:
            self.latents = self.source.latents(self.offset, self.size)
        z, labels = self.latents
        return z[self.done : self.done + size], labels[self.done : self.done + size]

    def put(self, pixels: np.ndarray) -> None:
        """Their images, uint8 (N, H, W, C)."""
        if self.pixels is None:
            self.pixels = pixels if len(pixels) == self.size else np.empty((self.size, *pixels.shape[1:]), np.uint8)
        if self.pixels is not pixels:
            self.pixels[self.done : self.done + len(pixels)] = pixels
        self.done += len(pixels)


@dataclass(frozen=True)
class Pass:
    """One forward pass: how many images of which portions."""

    parts: tuple[tuple[Portion, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.parts)

    def run(self) -> None:
        """Decode them, in the network's thread."""
        inputs = [portion.take(size) for portion, size in self.parts]
        z, labels = (np.concatenate(column) if len(column) > 1 else column[0] for column in zip(*inputs, strict=True))
        pixels = self.parts[0][0].source.sampler.decode(z, labels)
        at = 0
        for portion, size in self.parts:
            portion.put(pixels[at : at + size])
            at += size


class Batcher:
    """Runs a replica's forward passes, one at a time in one thread, and encoding in others.

    Args:
        batch: most images in one forward pass.
        max_waiting: requests here at once, running and waiting.
        timeout_s: a request that waits longer than this for its next images ends as 503.
        threads: of one forward pass.
        encoders: threads that turn images into bytes meanwhile.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        max_waiting: int,
        timeout_s: float = 60.0,
        batch: int = BATCH,
        threads: int = 1,
        encoders: int = 1,
    ) -> None:
        self.telemetry, self.max_waiting, self.timeout_s, self.batch = telemetry, max_waiting, timeout_s, batch
        # A thread has its own number of threads to compute with: it is set there.
        self._network = ThreadPoolExecutor(1, "network", initializer=torch.set_num_threads, initargs=(threads,))
        self._encoders = ThreadPoolExecutor(encoders, "encoder", initializer=torch.set_num_threads, initargs=(1,))
        self._ahead = encoders + 1
        self._waiting: deque[Portion] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self.requests = 0
        self.images = 0  # asked for and not yet made
        self.seconds_per_image = 0.01  # a running mean; only Retry-After depends on it
        self.busy_since_s: float | None = None
        """time.monotonic() at which the work that the network does now began; None while it rests."""

    def close(self) -> None:
        """End the threads once what they do is done."""
        for executor in (self._network, self._encoders):
            executor.shutdown(wait=False, cancel_futures=True)

    async def encode(self, source: Source, writer: Writer, format: str = "") -> AsyncGenerator[tuple[int, bytes], None]:
        """A request's images as bytes, a portion at a time, each with its number of images.

        The next portion is made while one is encoded and sent. No more than a few are in memory, however large the
        request and however slow its reader. Close it when it isn't used to its end.

        Args:
            format: under which the time of encoding is counted.

        Raises:
            Problem: 503 with Retry-After, while `max_waiting` requests are here or after `timeout_s` without images.
        """
        self._admit(source.count)
        made = asked = 0
        line: deque[tuple[Portion, asyncio.Task[Any]]] = deque()
        try:
            while made < source.count:
                while asked < source.count and len(line) < self._ahead:
                    portion = Portion(source, asked, min(self.batch, source.count - asked))
                    self._waiting.append(portion)
                    line.append((portion, asyncio.create_task(self._prepared(portion, writer, format))))
                    asked += portion.size
                self._wake()
                prepared = await self._in_time(line[0][1])
                portion, _ = line.popleft()
                size = portion.size
                made += size
                last = made == source.count
                yield size, await self._encoded(portion.is_small, format, _written, writer, prepared, last)
        finally:  # also when the client went away and this was cancelled
            made += sum(portion.size for portion, _ in line if portion.settled)
            for portion, task in line:
                portion.settled = True
                if portion in self._waiting:
                    self._waiting.remove(portion)
                if not task.cancel() and not task.cancelled():
                    task.exception()  # a failure of several portions was raised for the first of them
            self._count(-1, made - source.count)

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns, run in the network's thread between two forward passes.

        Raises:
            Problem: as `encode`.
        """
        self._admit(1)
        try:
            return await self._in_time(_in(self._network, work))
        finally:
            self._count(-1, -1)

    def wait_s(self) -> int:
        """Whole seconds in which what waits now will have been made: 1 to 120."""
        return min(max(round(self.images * self.seconds_per_image), 1), 120)

    def _admit(self, count: int) -> None:
        if self.requests >= self.max_waiting:
            self.telemetry.refused("busy")
            raise busy(f"{self.requests} requests are here already, as many as this service takes", self.wait_s())
        self._count(1, count)

    def _count(self, requests: int, images: int) -> None:
        self.requests += requests
        self.images += images
        self.telemetry.queue_is(requests=self.requests, images=self.images)

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await work
        except TimeoutError:
            self.telemetry.refused("timeout")
            raise busy(f"this request waited {self.timeout_s:g} s for the model", self.wait_s()) from None

    async def _prepared(self, portion: Portion, writer: Writer, format: str) -> Any:
        pixels = await portion.ready
        return await self._encoded(portion.is_small, format, writer.prepare, portion.offset, pixels)

    async def _encoded(self, here: bool, format: str, work: Callable[..., T], *args: object) -> T:
        def timed() -> tuple[T, float]:
            began_s = time.perf_counter()
            return work(*args), time.perf_counter() - began_s

        found, seconds = timed() if here else await _in(self._encoders, timed)
        self.telemetry.encoded(format, seconds=seconds)
        return found

    def _wake(self) -> None:
        self._asked.set()
        if self._waiting and (self._worker is None or self._worker.done()):
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        """Forward passes as long as anything waits."""
        while self._waiting:
            batch = self._next_pass()
            self.busy_since_s = began_s = time.monotonic()
            failure = None
            try:
                await _in(self._network, batch.run)
            except Exception as error:  # the fault of one model or one request must not end the others
                failure = error
            self.busy_since_s = None
            seconds = time.monotonic() - began_s
            self._settle(batch, seconds, failure)
            await self._linger(batch, LINGER * seconds)

    async def _linger(self, batch: Pass, longest_s: float) -> None:
        """Wait until half as many images are asked for as the last pass made, if that was of several requests."""
        if len(batch.parts) == 1:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while sum(portion.size - portion.done for portion in self._waiting) < (batch.size + 1) // 2:
                    self._asked.clear()
                    await self._asked.wait()

    def _next_pass(self) -> Pass:
        """The oldest portion's model: its small requests first, within half the batch, then whoever came first."""
        sampler = self._waiting[0].source.sampler
        portions = [portion for portion in self._waiting if portion.source.sampler is sampler]
        few = [portion for portion in portions if portion.source.count <= FEW]
        many = [portion for portion in portions if portion.source.count > FEW]
        parts = []
        room = self.batch
        for portion in [*few, *many]:
            free = room - self.batch // 2 if many and portion.source.count <= FEW else room
            size = min(portion.size - portion.done, free)
            if size > 0:
                parts.append((portion, size))
                room -= size
        return Pass(tuple(parts))

    def _settle(self, batch: Pass, seconds: float, failure: Exception | None) -> None:
        """Hand out what a pass made, or why it made nothing."""
        self.seconds_per_image += 0.2 * (seconds / batch.size - self.seconds_per_image)
        self.telemetry.batch_decoded(batch.size, seconds=seconds, model=batch.parts[0][0].source.model_id)
        for portion, _ in batch.parts:
            if failure is None and portion.done < portion.size:
                continue
            if portion.settled:  # whoever asked has gone
                continue
            portion.settled = True
            self._waiting.remove(portion)
            self._count(0, -portion.size)
            if failure is not None:
                portion.ready.set_exception(failure)
            else:
                assert portion.pixels is not None
                portion.ready.set_result(portion.pixels)


def _written(writer: Writer, prepared: Any, last: bool) -> bytes:
    data = writer.add(prepared)
    return data + writer.finish() if last else data


async def _in(executor: ThreadPoolExecutor, work: Callable[..., T], *args: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, work, *args)
