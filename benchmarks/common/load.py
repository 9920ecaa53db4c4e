"""Requests sent as fast as a service answers them, by a process of their own.

Each of `concurrency` senders waits for its answer before it asks again, over connections that stay open.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import numpy as np

TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is asked, and how often."""

    url: str
    accept: str
    body: Mapping[str, Any]
    """JSON; `start` is added, so that no two requests of a cell ask for the same images."""
    count: int
    """Images in each request."""
    concurrency: int
    seconds: float
    """For how long requests are begun; each that was is waited for."""


@dataclass(frozen=True)
class Answers:
    """What came back."""

    count: int
    """Images in each."""
    took_s: float
    """From the first request to the last answer."""
    latencies_s: list[float]
    """Of each answered request, until its last byte."""
    failures: int
    """Answers of another status than 200."""
    num_bytes: int
    client_s: float
    """Processor seconds of this client."""

    @property
    def images_per_s(self) -> float:
        return self.count * len(self.latencies_s) / self.took_s

    def percentiles_ms(self) -> list[float]:
        """p50, p95, p99."""
        if not self.latencies_s:
            return [float("nan")] * 3
        return [float(1e3 * value) for value in np.percentile(self.latencies_s, (50, 95, 99))]


class LoadGenerator:
    """The process that sends; ends with the context."""

    def __enter__(self) -> "LoadGenerator":
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()  # its input ends, and so does it

    def send(self, cell: Cell) -> Answers:
        """One cell's requests, after one for an image that is not counted."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(cell)), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the load generator has ended; its message is above")
        return Answers(**json.loads(answer))


async def run(cell: Cell) -> Answers:
    """Send a cell's requests from this process."""
    latencies_s: list[float] = []
    failures = num_bytes = asked = 0
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def ask(count: int) -> tuple[int, int]:
            nonlocal asked
            body = {**cell.body, "count": count, "start": asked}
            asked += count
            async with session.post(cell.url, json=body, headers={"Accept": cell.accept}) as answer:
                size = 0
                async for data in answer.content.iter_any():  # let go of what has come: bodies may be megabytes
                    size += len(data)
                return answer.status, size

        async def sender() -> None:
            nonlocal failures, num_bytes
            while (asked_s := time.perf_counter()) < end_s:
                status, size = await ask(cell.count)
                if status == 200:
                    latencies_s.append(time.perf_counter() - asked_s)
                    num_bytes += size
                else:
                    failures += 1

        await ask(1)
        client_s = time.process_time()
        began_s = time.perf_counter()
        end_s = began_s + cell.seconds
        await asyncio.gather(*(sender() for _ in range(cell.concurrency)))
        took_s = time.perf_counter() - began_s
    return Answers(cell.count, took_s, latencies_s, failures, num_bytes, time.process_time() - client_s)


def main() -> int:
    """One cell per line of the input, one line of answers each."""
    for line in sys.stdin:
        print(json.dumps(asdict(asyncio.run(run(Cell(**json.loads(line)))))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
