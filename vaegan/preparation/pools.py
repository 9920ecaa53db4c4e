"""Parts decoded side by side: by threads of this process, by processes of this machine, or (`tasks`) on a cluster."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from vaegan.importers.base import Record
from vaegan.preparation.decoding import Decoding
from vaegan.preparation.spool import decode_part

FEW_RECORDS = 2000
"""Below, threads are done before processes have started; Pillow and zlib let other threads run while they decode."""
AHEAD = 2
"""Parts per worker that wait or are worked on: what is read ahead of the workers stays bounded."""


class Interrupted(UserError):
    """Not the images' fault: what is decoded is kept, and the same command goes on from there."""


@dataclass(frozen=True)
class Part:
    """Records to decode, and the file to write them to."""

    records: list[Record]
    path: Path


Run = Callable[[Iterator[Part], Decoding], Iterator[int]]
"""Decodes and writes parts, some at a time; gives each one's number of records as it is done, in order."""


def choose_pool(num_records: int, num_workers: int) -> Run:
    """What decodes so many records on this machine best.

    Args:
        num_workers: processes; 0 for one per core, or threads where the records are few; 1 for this process alone.
    """
    if num_workers == 1 or (not num_workers and num_records < FEW_RECORDS):
        return _in_threads(1 if num_workers else cores())
    return _in_processes(num_workers or cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(finish: Iterator[Callable[[], int]], ahead: int) -> Iterator[int]:
    """Results of jobs in order; drawing from `finish` starts one, calling what it gives waits for its end."""
    under_way: deque[Callable[[], int]] = deque()
    for wait in finish:
        under_way.append(wait)
        if len(under_way) > ahead:
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


def _in_threads(num_threads: int) -> Run:
    def run(parts: Iterator[Part], how: Decoding) -> Iterator[int]:
        with ThreadPoolExecutor(num_threads) as pool:
            for part in parts:
                yield decode_part(part.records, how, part.path, pool.map)

    return run


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it couldn't tell its workers.

    Ctrl-C reaches all processes of a terminal; the one that started this one answers it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_processes(num_processes: int) -> Run:
    def run(parts: Iterator[Part], how: Decoding) -> Iterator[int]:
        # A fork would copy this process's locks as they happen to be; a new process has none.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_end_with_parent)
        try:
            started = (pool.submit(decode_part, part.records, how, part.path).result for part in parts)
            yield from in_order(started, AHEAD * num_processes)
        except BrokenProcessPool:
            raise Interrupted(
                "a process that decodes images was killed, most likely for want of memory: run the same command again "
                "with fewer --num-workers; what is decoded is kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    return run
