"""Clocks, conditions and verdicts: what every timing here needs."""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def processor() -> str:
    """The processor's name as the system gives it, or the architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_seconds() -> float:
    """What this process and its children that ended have used of processors: others' load has less effect on it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def conditions() -> dict[str, str | int]:
    """Processor, cores, threads, load by others and versions: what a time means nothing without."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "niceness": os.nice(0),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, in seconds."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def in_turn(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, A B C A B C ..., so that a load by others meets all. No warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            times[name].append(seconds(work))
    return times


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Median and range, as in "3.10 (2.98 to 3.40)"."""
    middle, low, high = (scale * value for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round: neighbours in time shared the machine's load."""
    return [a / b for a, b in zip(above, below, strict=True)]


def verdict(name: str, ratio: float, at_least: float, at_most: float | None = None) -> bool:
    """Print a comparison's one line; whether its goal is met."""
    goal = f"{at_least:g}" if at_most is None else f"{at_least:g}..{at_most:g}"
    print(f"{name} ratio={ratio:.3f} goal={goal}", flush=True)
    return at_least <= ratio and (at_most is None or ratio <= at_most)
