"""`python -m vaegan.train` with a Ray cluster of its own, killed with SIGKILL: the same command goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from vaegan.recipe import TrainConfig

pytestmark = pytest.mark.integration

RUN_S = 150  # for one command
END_S = 30  # for workers to follow the command that started them; it takes 2 s


def test_a_killed_command_takes_its_worker_with_it_and_the_same_command_goes_on(
    tiny_run: TrainConfig,
    command_line: Callable[[TrainConfig], list[str]],
    assert_same_end: Callable[..., None],
    wait_until: Callable[..., None],
):
    longer = replace(tiny_run, total_images=640)
    whole = replace(longer, run_dir=longer.run_dir.with_name("command"), num_workers=0)
    with running(command_line(whole)) as process:
        assert process.wait(RUN_S) == 0

    # One worker of one thread does what one process does, bit for bit.
    broken = replace(longer, run_dir=longer.run_dir.with_name("broken_command"), num_workers=1)
    with running(command_line(broken)) as process:
        wait_until(lambda: has_checkpoint(broken) or process.poll() is not None, "a checkpoint", RUN_S)
        started = descendants(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    workers = {pid: about for pid, about in started.items() if about[1].startswith("ray::RayTrainWorker")}
    assert workers
    try:
        wait_until(lambda: not alive(workers), "the end of the killed command's worker", END_S)
    finally:
        for pid in alive(started):  # Ray 2.60 leaves the agents of its dashboard
            os.kill(pid, signal.SIGKILL)
    assert not (broken.run_dir / "model").exists()

    with running(command_line(broken)) as process:
        assert process.wait(RUN_S) == 0
    assert_same_end(whole, broken)


@contextmanager
def running(flags: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command; it does not outlive the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vaegan.train", *flags],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def has_checkpoint(config: TrainConfig) -> bool:
    return any(config.run_dir.glob("checkpoint_*"))


def descendants(pid: int) -> dict[int, tuple[int, str]]:
    """What `pid` started, and what that did: by process id its start, which tells it from a later one, and its name."""
    table = {int(path.name): status(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found: dict[int, tuple[int, str]] = {}
    parents = {pid}
    while parents:
        children = {child: about for child, about in table.items() if about and about[0] in parents}
        found |= {child: (about[1], about[2]) for child, about in children.items()}
        parents = set(children)
    return found


def alive(processes: dict[int, tuple[int, str]]) -> list[int]:
    """Those that have not ended."""
    now = {pid: status(pid) for pid in processes}
    return [pid for pid, (start, _) in processes.items() if (about := now[pid]) and about[1] == start]


def status(pid: int) -> tuple[int, int, str] | None:
    """Parent, start time and name of a process that runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        name = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[19]), name)
