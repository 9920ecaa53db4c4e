"""Ray sessions of a process's own, each in a process of its own: Ray allows one at a time."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import json, os
from pathlib import Path
import ray
from cluster.config import ClusterConfig
from cluster.session import connect
from ray.util.state import list_nodes

def listening(pids):
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}

def descendants(pid):
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue
    found, new = [], [pid]
    while new:
        found += new
        new = [child for parent in new for child in children.get(parent, [])]
    return found

@ray.remote
def dashboard():
    return os.environ["RAY_API_SERVER_ADDRESS"]

with connect(ClusterConfig(num_cpus=2, num_gpus=0)):
    with connect():  # a command called by another
        pass
    report = {
        "outlives the inner": ray.is_initialized(),
        "cpus": ray.cluster_resources()["CPU"],
        "worker asks our dashboard": ray.get(dashboard.remote()) == os.environ["RAY_API_SERVER_ADDRESS"],
        "dashboard answers": len(list_nodes()),
        "hosts": sorted(listening(descendants(os.getpid()))),
    }
report["ended"] = not ray.is_initialized() and "RAY_API_SERVER_ADDRESS" not in os.environ
report["token"] = oct(Path.home().joinpath(".ray/auth_token").stat().st_mode)[-3:]
print(json.dumps(report))
"""
LOOPBACK = {"0100007F", "0" * 31 + "1", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel writes them, little end first in each word."""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a process saw of the cluster it started in an empty home."""
    home = tmp_path_factory.mktemp("home")
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={"HOME": str(home)}, capture_output=True, text=True, timeout=180
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_an_inner_session_uses_the_outer_and_only_the_outer_ends_it(report):
    assert report["outlives the inner"]
    assert report["ended"]
    assert report["cpus"] == 2


def test_workers_ask_the_dashboard_of_their_own_cluster(report):
    assert report["worker asks our dashboard"]
    assert report["dashboard answers"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_own_cluster_listens_on_loopback_alone_and_its_token_is_private(report):
    assert report["hosts"]
    assert set(report["hosts"]) <= LOOPBACK
    assert report["token"] == "600"
