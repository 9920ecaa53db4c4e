"""Child processes, one thread each, so many at a time; and how long the rest will take."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Child:
    """A command to run."""

    arguments: list[str]
    """Of this Python."""
    log: Path
    """What it prints."""
    exclusive: str = ""
    """Two of the same are never run at the same time."""


def run_children(children: Sequence[Child], jobs: int, ended: Callable[[Child, int, str], None]) -> None:
    """Run all, `jobs` at a time, in order; when interrupted, end them.

    Args:
        ended: called with a child, its exit status and a line about progress.
    """
    waiting, running = list(children), dict[subprocess.Popen[bytes], tuple[Child, float]]()
    taken_s: list[float] = []
    try:
        while waiting or running:
            while len(running) < jobs and (child := _next(waiting, [each for each, _ in running.values()])):
                waiting.remove(child)
                running[_start(child)] = child, time.monotonic()
            time.sleep(0.2)
            for process in [each for each in running if each.poll() is not None]:
                child, started_s = running.pop(process)
                taken_s.append(time.monotonic() - started_s)
                ended(child, process.returncode, _progress(taken_s, len(children), jobs))
    finally:
        for process in running:
            process.terminate()


def _next(waiting: list[Child], running: list[Child]) -> Child | None:
    busy = {child.exclusive for child in running if child.exclusive}
    return next((child for child in waiting if child.exclusive not in busy), None)


def _start(child: Child) -> subprocess.Popen[bytes]:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with open(child.log, "ab") as log:
        command = [sys.executable, *child.arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ONE_THREAD)


def _progress(taken_s: list[float], total: int, jobs: int) -> str:
    """As in "3 of 24, 12 min, about 2.1 h left"."""
    left_s = sum(taken_s) / len(taken_s) * (total - len(taken_s)) / jobs
    return f"{len(taken_s)} of {total}, {duration(taken_s[-1])}, about {duration(left_s)} left"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def last_line(log: Path) -> str:
    """What a child said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
