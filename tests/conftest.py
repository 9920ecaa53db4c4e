"""What every test may ask for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch, matplotlib or Ray is imported. `make test` sets the first as well; a bare `pytest` should be as quick.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
    os.environ.pop(name, None)  # a test must never join somebody's cluster


_status: list[int] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember what pytest found, for `pytest_unconfigure`."""
    _status.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave with pytest's own status at once if Ray ran in this process.

    After 13 minutes of green tests the process once died of a segmentation fault in a thread that Ray's native library
    had left, hashing a string that the end of the process had freed already. By now everything is reported and closed.
    """
    if "ray" in sys.modules and _status:
        sys.modules["ray"].shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status[-1])


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images and weights, which are not part of the repository."""
    path = Path(os.environ.get("AUGRAY_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no folder {path}: set AUGRAY_SHARED to where the real images and weights are")
    return path


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two cores for the tests of one module; commands that call `connect` find and use it."""
    from cluster.config import ClusterConfig
    from cluster.session import connect

    with connect(ClusterConfig(num_cpus=2, num_gpus=0)):
        yield
