"""Memory of a process and of all that it starts, while it runs, as the kernel counts it."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.05
MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Proportional set size in bytes: a page that n processes share counts as 1/n of it in each.

    anonymous: what processes have allocated, which without swap stays until they free it.
    files: pages of mapped files (libraries too), which the kernel drops when anything else needs the room.
    """

    anonymous: int = 0
    files: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.anonymous + other.anonymous, self.files + other.files)

    @staticmethod
    def of(pid: int) -> "Memory":
        """A process's; none where it has ended."""
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return Memory()
        found = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines[1:])}
        return Memory(found.get("Pss_Anon", 0), found.get("Pss_File", 0) + found.get("Pss_Shmem", 0))


@dataclass(frozen=True)
class Sample:
    """Memory of the process itself and of it with all its descendants, `at_s` seconds after its start."""

    at_s: float
    stage: str
    parent: Memory
    tree: Memory


@dataclass(frozen=True)
class Watched:
    """A command that has ended.

    stages: name to (start, end) in seconds after its start.
    """

    status: int
    output: str
    wall_s: float
    samples: list[Sample]
    stages: dict[str, tuple[float, float]]

    def peak(self, of: Callable[[Sample], int], stage: str | None = None) -> int:
        """The largest value in a stage, or in all."""
        return max((of(sample) for sample in self.samples if stage in (None, sample.stage)), default=0)


def descendants(pid: int) -> list[int]:
    """All processes that a process or its descendants have started and that still run."""
    found = []
    waiting = [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except OSError:  # the thread has ended
                continue
            found += children
            waiting += children
    return found


def watch(
    command: Sequence[str], environment: Mapping[str, str], first_stage: str, next_stage: Callable[[str, str], str]
) -> Watched:
    """Run a command, and look at its memory every `PERIOD_S`.

    Args:
        first_stage: what it does until it says something else.
        next_stage: the stage, and what was written to standard error since, to the stage now.
    """
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment)
    said: list[str] = []
    starts = {first_stage: 0.0}
    now = [first_stage]

    def listen() -> None:
        assert process.stderr is not None
        while text := os.read(process.stderr.fileno(), 1 << 16).decode(errors="replace"):
            said.append(text)
            now[0] = next_stage(now[0], text)
            starts.setdefault(now[0], time.perf_counter() - started_s)

    def collect() -> None:
        assert process.stdout is not None
        said.append(process.stdout.read().decode(errors="replace"))

    threads = [threading.Thread(target=listen), threading.Thread(target=collect)]
    for thread in threads:
        thread.start()
    samples = []
    while process.poll() is None:
        stage, parent = now[0], Memory.of(process.pid)
        tree = sum(map(Memory.of, descendants(process.pid)), parent)
        samples.append(Sample(time.perf_counter() - started_s, stage, parent, tree))
        time.sleep(PERIOD_S)
    wall_s = time.perf_counter() - started_s
    for thread in threads:
        thread.join()
    ends = [*list(starts.values())[1:], wall_s]
    stages = {name: (start, end) for (name, start), end in zip(starts.items(), ends, strict=True)}
    return Watched(process.returncode, "".join(said), wall_s, samples, stages)
