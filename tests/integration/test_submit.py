"""Jobs against a real head that demands a token."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import cluster
from cluster.config import ClusterConfig
from cluster.errors import UserError
from cluster.session import connect, free_port
from cluster.submit import main

pytestmark = pytest.mark.integration

START_TIMEOUT_S = 90
STAGE = """
import os, sys
from pathlib import Path
import ray
from cluster.session import connect

@ray.remote
def word(i):
    return f"word{i}"

if __name__ == "__main__":
    with connect():
        words = ray.get([word.remote(i) for i in range(2)])
        nodes = len(ray.nodes())
    packed = [path.name for path in Path(__file__).parent.iterdir() if path.is_file()]
    Path("answer.txt").write_text(" ".join(words))
    print("LOG", nodes, os.environ["GREETING"], sorted(packed))
"""


class Head(NamedTuple):
    address: str
    dashboard: str
    token: Path


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head of two cores on free ports, with a token of its own; ended by its process id."""
    home = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of Ray's sockets may have 107 characters
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard_port = free_port(), free_port()
    bin_folder = Path(sys.executable).parent
    command = [
        bin_folder / "ray", "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats",
        f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={free_port()}",
        "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={home}/ray",
    ]  # fmt: skip
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment["PATH"] = f"{bin_folder}:{os.environ['PATH']}"  # jobs run the first `python` on it
    with (home / "log").open("w") as log:
        head = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        dashboard = f"http://127.0.0.1:{dashboard_port}"
        wait_for_agent(dashboard, token.read_text(), head, home / "log")
        yield Head(f"127.0.0.1:{port}", dashboard, token)
    finally:
        head.terminate()  # `ray start --block` ends what it started
        try:
            head.wait(timeout=60)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def wait_for_agent(dashboard: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    for _ in range(START_TIMEOUT_S):
        assert head.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (OSError, urllib.error.HTTPError):
            time.sleep(1)
    pytest.fail(log.read_text())


@pytest.fixture
def project(tmp_path, monkeypatch, head) -> Path:
    """A project to pack, with patients' images lying about in it, and another folder to submit from."""
    package = tmp_path / "project"
    (package / "stages").mkdir(parents=True)
    shutil.copytree(Path(cluster.__file__).parent, package / "cluster")
    (package / "stages" / "connects.py").write_text(STAGE)
    (package / "stages" / "fails.py").write_text("import sys; print('about to fail'); sys.exit(3)")
    (package / "stages" / "waits.py").write_text("import time; print('waiting', flush=True); time.sleep(600)")
    for image in ("film.dcm", "films.parquet", "film.jpeg"):
        (package / "stages" / image).write_bytes(b"a patient")
    caller = tmp_path / "caller"
    caller.mkdir()
    monkeypatch.chdir(caller)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token))
    return package


def test_a_job_joins_the_heads_cluster_and_writes_where_its_caller_stands(head, project, capsys):
    flags = ["--address", head.dashboard, "--working-dir", str(project), "--env", "GREETING=hello"]
    assert main([*flags, "stages.connects"]) == 0
    assert "LOG 1 hello ['connects.py', 'fails.py', 'waits.py']" in capsys.readouterr().out  # and no image
    assert Path("answer.txt").read_text() == "word0 word1"


def test_the_exit_status_and_the_log_are_the_jobs_own_and_a_name_serves_once(head, project, capsys):
    words = ["--address", head.dashboard, "--working-dir", str(project), "--submission-id", "once", "stages.fails"]
    assert main(words) == 3
    assert "about to fail" in capsys.readouterr().out
    assert main(words) == 2
    assert "once already" in capsys.readouterr().err


def test_a_detached_job_can_be_followed_and_stopped_as_the_message_says(head, project, capsys):
    assert main(["--address", head.dashboard, "--working-dir", str(project), "--detach", "stages.waits"]) == 0
    printed = capsys.readouterr()
    stop = re.search(r"`(ray job stop [^`]*)`", printed.err)
    assert stop
    environment = os.environ | {"RAY_AUTH_MODE": "token"}
    command = [Path(sys.executable).parent / "ray", *stop[1].split()[1:]]
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert printed.out.strip() in stopped.stdout + stopped.stderr


def test_without_the_token_the_head_refuses_and_the_message_says_where_to_put_it(head, project, capsys, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(project / "no-token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert main(["--address", head.dashboard, "--working-dir", str(project), "stages.fails"]) == 2
    assert "RAY_AUTH_TOKEN_PATH" in capsys.readouterr().err
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"), connect(ClusterConfig(address=head.address)):
        pass
