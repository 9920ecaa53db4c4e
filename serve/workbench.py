"""Where a replica makes images: one chunk at a time, off the event loop, and never with an endless queue."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve.problems import Problem

CHUNK = 32
"""Images per forward pass: enough to fill a matrix unit, few enough that a large request lets others in between."""

T = TypeVar("T")


class Workbench:
    """Runs forward passes and encoding in one thread, so that health checks are answered meanwhile.

    Large requests come in chunks, which take turns with those of other requests.

    Args:
        max_waiting: requests here at once, running and waiting.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="workbench")
        self.requests = 0
        self.images = 0  # asked for and not yet made
        self.seconds_per_image = 0.01  # a running mean; only Retry-After depends on it

    async def run(self, make: Callable[[int, int], T], count: int, finish: Callable[[list[T]], bytes]) -> bytes:
        """`finish` of what `make(offset, size)` gives for each chunk of `count` images.

        Raises:
            Problem: 503 with Retry-After while `max_waiting` requests are here already.
        """
        self._admit(count)
        loop = asyncio.get_running_loop()
        done, parts = 0, []
        try:
            while done < count:
                size = min(CHUNK, count - done)
                started = time.perf_counter()
                parts.append(await loop.run_in_executor(self.executor, make, done, size))
                done += size
                self.images -= size
                self.seconds_per_image += 0.2 * ((time.perf_counter() - started) / size - self.seconds_per_image)
            return await loop.run_in_executor(self.executor, finish, parts)
        finally:  # also when the client went away and this task was cancelled
            self.requests -= 1
            self.images -= count - done

    def _admit(self, count: int) -> None:
        if self.requests >= self.max_waiting:
            wait_s = min(max(round(self.images * self.seconds_per_image), 1), 120)
            raise Problem(
                503,
                f"{self.requests} requests are here already, as many as this service takes; try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )
        self.requests += 1
        self.images += count
