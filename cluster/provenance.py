"""What a stage records so that somebody else can repeat it: code, packages, hardware, inputs, time."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("augray", "torch", "torchvision", "ray", "numpy", "scipy", "scikit-learn", "pyarrow", "pillow")


@cache
def git_revision() -> str | None:
    """The commit of the source tree, with "+changes" when files differ from it; None outside a checkout.

    A Ray job runs in a copy without .git; `cluster.submit` gives it AUGRAY_GIT_REVISION.
    """
    if submitted := os.environ.get("AUGRAY_GIT_REVISION"):
        return submitted
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@cache
def package_versions() -> dict[str, str]:
    """Version of each installed package that can move a number, Python's own included."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def hardware() -> dict[str, Any]:
    """Processor, its cores and memory, and the GPUs that torch sees if torch is loaded."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()}
    torch = sys.modules.get("torch")  # never import it only to ask
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def provenance(*, seed: int | None, started_s: float, inputs: dict[str, str]) -> dict[str, Any]:
    """Everything needed to repeat a stage, as JSON-ready values.

    Args:
        started_s: `time.time()` at the stage's start; the wall time is counted from it, in seconds.
        inputs: name of each thing the stage read, to its sha256.
    """
    return {
        "command": Path(sys.argv[0]).name + "".join(f" {word}" for word in sys.argv[1:]),
        "git_revision": git_revision(),
        "packages": package_versions(),
        "hardware": hardware(),
        "seed": seed,
        "inputs": inputs,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round(time.time() - started_s, 1),
    }
