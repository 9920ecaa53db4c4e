"""The service under Ray Serve, over HTTP: the same images as in process, from either command line."""

import hashlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from cluster.session import free_port
from serve.client import Client, Retry
from vaegan.registry import Registry
from vaegan.sampler import Sampler
from vaegan.shards import from_table

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
KEY, LIMITED = "a-key-for-the-integration-test", "a-key-with-a-quota-of-its-own"
KEYS = """
[keys.operator]
sha256 = "{operator}"
scopes = ["sample", "reconstruct", "operate"]

[keys.limited]
sha256 = "{limited}"
images_per_day = 40
"""
START_TIMEOUT_S = 240  # seconds on an idle machine, minutes on a crowded one


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    publish = runpy.run_path(str(ROOT / "tests" / "serve" / "untrained.py"))["publish_untrained"]
    root = tmp_path_factory.mktemp("service") / "registry"
    publish(root, "chest/1", ("normal", "effusion"))
    return root


@contextmanager
def running(arguments: list[str], url: str, log: Path) -> Iterator[subprocess.Popen]:
    """A command that serves at `url`, in a session of its own; interrupted at the end, as Ctrl-C would."""
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    with open(log, "w") as file:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready(url):
            assert process.poll() is None, f"ended at once:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not ready in {START_TIMEOUT_S} s:\n{log.read_text()[-3000:]}"
            time.sleep(0.5)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(180)  # Ray takes its time where many tests share two cores
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def hear_ctrl_c() -> None:
    """A shell has what it starts in the background ignore SIGINT, these tests perhaps, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def service(registry, tmp_path_factory) -> Iterator[tuple[str, int, subprocess.Popen]]:
    """Two replicas with keys, started by our own command line: URL, the replicas' own port, the process."""
    folder = tmp_path_factory.mktemp("run")
    digests = {
        name: hashlib.sha256(key.encode()).hexdigest() for name, key in (("operator", KEY), ("limited", LIMITED))
    }
    (folder / "keys.toml").write_text(KEYS.format(**digests))
    port, direct = free_port(), free_port()
    command = [sys.executable, "-m", "serve.app", "--registry", str(registry), "--port", str(port)]
    command += ["--api-keys", str(folder / "keys.toml"), "--max-waiting", "4", "--cluster.num-cpus", "2"]
    command += ["--num-replicas", "2", "--direct-port", str(direct), "--state", str(folder / "state")]
    command += ["--refresh-s", "0.5"]
    with running(command, f"http://127.0.0.1:{port}", folder / "log") as process:
        yield f"http://127.0.0.1:{port}", direct, process
    assert process.returncode == 0
    assert "stopped" in (folder / "log").read_text()


@pytest.fixture(scope="module")
def url(service) -> str:
    return service[0]


@pytest.fixture(scope="module")
def expected(registry):
    sampler = Sampler.from_model(Registry(registry).resolve("chest").path)
    return lambda count, seed, start=0: sampler.sample(sampler.labels_of(["effusion"], count), seed, start)


@pytest.fixture
def http(url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=120) as client:
        yield client


def test_png_npz_and_parquet_over_http_equal_the_sampler_in_process(http, expected):
    def ask(accept: str, count: int) -> bytes:
        body = {"model": "chest", "class": "effusion", "count": count, "seed": 21, "start": 2}
        answer = http.post("/v1/samples", json=body, headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-augray-synthetic"] == "true"
        return answer.content

    images = expected(70, 21, 2)
    png = np.asarray(Image.open(io.BytesIO(ask("image/png", 1))))
    np.testing.assert_array_equal(png, images.pixels[0, :, :, 0])
    arrays = np.load(io.BytesIO(ask("application/x-npz", 70)), allow_pickle=False)
    np.testing.assert_array_equal(arrays["pixels"], images.pixels)
    table = pq.read_table(io.BytesIO(ask("application/vnd.apache.parquet", 70)))
    np.testing.assert_array_equal(from_table(table).pixels, images.pixels)


def test_the_client_gets_what_the_sampler_makes(url, expected):
    with Client(url, api_key=KEY, per_request=16) as client:
        np.testing.assert_array_equal(
            client.samples("chest", "effusion", count=40, seed=5).pixels, expected(40, 5).pixels
        )


def test_a_request_without_a_key_or_with_a_bad_body_is_a_problem(http, url):
    assert httpx.get(f"{url}/v1/models").status_code == 401
    for content, status in [(b"{", 422), (b'{"model": "chest", "count": 1000000000}', 422), (b" " * 10_000_000, 413)]:
        answer = http.post("/v1/samples", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_an_address_is_the_same_bytes_from_every_replica_and_by_either_port(url, service, expected):
    path = "/v1/models/chest/1/images/effusion/5/3.png"
    headers = {"X-API-Key": KEY, "Connection": "close"}  # the kernel shares out connections, not requests
    bodies = set()
    for base in (url, f"http://127.0.0.1:{service[1]}"):
        for _ in range(30):
            answer = httpx.get(base + path, headers=headers)
            bodies.add(answer.content)
            assert len(answer.headers.get_list("x-request-id")) == 1
    (body,) = bodies
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), expected(4, 5).pixels[3, :, :, 0])
    pattern = re.compile(r'^augray_images_total\{format="png",.*replica="(\w+)".*\} (\d+)', re.MULTILINE)
    deadline = time.monotonic() + 60
    while True:  # a replica tells the others of its numbers every few seconds
        counts = {replica: int(n) for replica, n in pattern.findall(httpx.get(f"{url}/metrics", headers=headers).text)}
        if sum(counts.values()) >= 60:
            break
        assert time.monotonic() < deadline, counts
        time.sleep(0.5)
    assert len(counts) == 2  # both took part, and either tells of both


def test_a_quota_is_one_for_all_replicas(url, service):
    body = {"model": "chest", "class": "normal", "count": 4}
    headers = {"X-API-Key": LIMITED, "Connection": "close"}
    answers = [
        httpx.post(f"http://127.0.0.1:{service[1]}/v1/samples", json=body, headers=headers).status_code
        for _ in range(14)
    ]
    assert sorted(answers) == [200] * 10 + [429] * 4


def test_a_version_comes_and_goes_back_under_load_without_a_lost_request(url, registry):
    """Published, current, and back to the one before, while clients without retries go on asking."""
    publish = runpy.run_path(str(ROOT / "tests" / "serve" / "untrained.py"))["publish_untrained"]
    body = {"model": "chest", "class": "normal"}
    versions: list[str] = []
    end = threading.Event()

    def ask(_: int) -> list[int]:
        statuses = []
        with httpx.Client(base_url=url, headers={"X-API-Key": KEY}, timeout=60) as client:
            while not end.is_set():
                answer = client.post("/v1/samples", json=body)
                statuses.append(answer.status_code)
                versions.append(answer.headers.get("x-augray-version", ""))
        return statuses

    def until(version: str) -> None:
        deadline = time.monotonic() + 120
        while versions[-8:] != [version] * 8:
            assert time.monotonic() < deadline, versions[-20:]
            time.sleep(0.1)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, i) for i in range(2)]
        try:
            until("1")
            publish(registry, "chest/2", ("normal", "effusion"), seed=7)
            until("2")
            Registry(registry).choose("chest", "1")
            until("1")
        finally:
            end.set()
            Registry(registry).choose("chest", "1")
        assert {status for future in asking for status in future.result()} == {200}


def replicas(process: subprocess.Popen) -> list[int]:
    """Process ids of the service's replicas: descendants of the command, by the title that Ray gives them."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, ValueError):
            continue  # it has ended meanwhile

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid, title in titles.items() if "ServeReplica:augray:SamplingService" in title and is_ours(pid)]


def test_a_replica_killed_under_load_costs_the_clients_nothing_but_retries(url, service, expected):
    killed = replicas(service[2])
    assert len(killed) == 2
    end = threading.Event()

    def ask(seed: int) -> int:
        count = 0
        with Client(url, api_key=KEY, retry=Retry(attempts=30)) as client:
            while not (end.is_set() and count):
                images = client.samples("chest", "effusion", count=64, seed=seed, version="1")
                np.testing.assert_array_equal(images.pixels, expected(64, seed).pixels)
                count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, seed) for seed in range(3)]
        try:
            time.sleep(1)
            os.kill(killed[0], signal.SIGKILL)
            deadline = time.monotonic() + 120
            while len(set(replicas(service[2])) - set(killed)) < 1:  # Serve has put another in its place
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            end.set()
        assert all(future.result() >= 1 for future in asking)


def test_the_page_and_a_cached_address_come_through(http):
    assert "Synthetic" in http.get("/").text
    assert http.get("/static/page.js").status_code == 200
    address = "/v1/models/chest/1/images/normal/1/0.png"
    etag = http.get(address).headers["etag"]
    assert http.get(address, headers={"If-None-Match": etag}).status_code == 304


def test_more_requests_than_the_service_takes_get_503_and_the_clients_retries_get_all(http, url, expected):
    """Sixteen clients at once where four may wait: some are turned away, none fails."""
    body = {"model": "chest", "class": "effusion", "count": 512, "seed": 6}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/samples", json=body), range(16)))
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1

    def ask(seed: int) -> np.ndarray:
        with Client(url, api_key=KEY, retry=Retry(attempts=21)) as client:
            return client.samples("chest", "effusion", count=64, seed=seed).pixels

    with ThreadPoolExecutor(8) as pool:
        for seed, pixels in enumerate(pool.map(ask, range(8))):
            np.testing.assert_array_equal(pixels, expected(64, seed).pixels)


def test_rays_command_line_serves_a_config_file(registry, tmp_path, expected):
    """`serve run FILE`; the same builder as `serve run serve.app:build_app registry=…`, at a port of our choice."""
    port = free_port()
    application = {
        "name": "augray",
        "route_prefix": "/",
        "import_path": "serve.app:build_app",
        "args": {"registry": str(registry)},
    }
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(tmp_path / "service.yaml")]
    with running(command, f"http://127.0.0.1:{port}", tmp_path / "log"), Client(f"http://127.0.0.1:{port}") as client:
        np.testing.assert_array_equal(client.image("chest/1/effusion/5/3"), expected(4, 5).pixels[3])
