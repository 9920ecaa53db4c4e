"""Services as processes: started, waited for, held, charged for their processor time, ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 120


class Server:
    """A command that serves HTTP, in a session of its own; ends with the context.

    Args:
        arguments: of this Python.
        health: a path that answers 200 once requests can be taken.
        folder: where it starts.
        log: where what it prints goes.
    """

    def __init__(self, arguments: Sequence[str], url: str, health: str, folder: Path, log: Path) -> None:
        self.arguments, self.url, self.health, self.folder, self.log = arguments, url, health, folder, log

    def __enter__(self) -> "Server":
        # A local Ray, whatever this user's environment names; one thread, wherever a library would take more.
        environment = os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=self.folder,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.hold(False)
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"{self.arguments[1]} did not end in {STOP_TIMEOUT_S} s and is killed", file=sys.stderr)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it left behind in its session
        self.process.wait()

    def wait(self) -> None:
        """Return once it answers. Raises RuntimeError, with the end of its log, when it ended or takes minutes."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.arguments[1]} does not serve:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def hold(self, on: bool) -> None:
        """Stop its processes, or let them go on: LitServe's worker polls, and would disturb the others."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    def processor_s(self) -> float:
        """Processor seconds so far of it and all processes below it; 0 where there is no /proc."""
        used: dict[int, float] = {}
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            pid = int(path.parent.name)
            used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            children.setdefault(int(fields[1]), []).append(pid)
        line, total = [self.process.pid], 0.0
        while line:
            pid = line.pop()
            total += used.get(pid, 0.0)
            line += children.get(pid, [])
        return total

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url + self.health, timeout=5).status_code == 200
        except httpx.TransportError:
            return False
