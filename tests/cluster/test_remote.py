import http.server
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest

from cluster import remote
from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.metrics.sources.opening import open_source
from vaegan.reading import ReadingConfig, ShardReader
from vaegan.shards import DatasetWriter, Images, dataset_sha256, is_dataset, read_manifest, read_split


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_current", set())
    return tmp_path / "cache"


@pytest.fixture
def stored(tmp_path):
    """A dataset of 30 images in three files."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    names = [f"i{i}" for i in range(30)]
    path = tmp_path / "stored"
    with DatasetWriter(
        path, task="multiclass", classes="ab", height=4, width=4, channels=1, rows_per_file=10
    ) as writer:
        writer.add("train", Images.real(pixels, np.eye(2, dtype=np.uint8)[np.arange(30) % 2], names, names))
        writer.finish()
    return path


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        Handler.asked.append(self.path)
        time.sleep(0.05)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The URL of a web server of `tmp_path`, and what it was asked for."""
    Handler.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}", Handler.asked
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "url"),
    [
        (Path("s3://bucket/films/64"), "s3://bucket/films/64"),
        (Path("s3:/bucket/films"), "s3://bucket/films"),
        (Path("file:///mnt/films"), "file:///mnt/films"),
        (Path("https://hospital.example:8443/films"), "https://hospital.example:8443/films"),
        (Path("memory://films"), "memory://films"),
        (Path("/data/s3:/films"), None),
        (Path("films"), None),
        (Path("C:/films"), None),
    ],
)
def test_a_path_that_was_a_url_is_known_as_one(path, url):
    assert remote.url_of(path) == url
    assert remote.absolute(path) == (path if url else path.absolute())


def addresses(stored: Path, server: str) -> dict[str, Path]:
    memory = fsspec.filesystem("memory")
    for file in stored.iterdir():
        memory.pipe(f"/films/{file.name}", file.read_bytes())
    return dict(file=Path(f"file://{stored}"), http=Path(f"{server}/{stored.name}"), memory=Path("memory://films"))


@pytest.mark.parametrize(("status", "sentence"), [(403, r"ACCESS_DENIED.*credentials"), (404, "found none there")])
def test_an_s3_that_refuses_is_told_from_one_without_the_file(server, status, sentence, monkeypatch):
    monkeypatch.setattr(Handler, "do_HEAD", lambda self: self.send_error(status), raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    options = f"scheme=http&endpoint_override={server[0].removeprefix('http://')}&region=us-east-1"
    with pytest.raises(UserError, match=sentence):
        read_manifest(Path(f"s3://bucket/films?{options}"))


@pytest.mark.parametrize("kind", ["file", "http", "memory"])
def test_a_dataset_at_a_url_reads_as_the_one_in_the_folder(stored, server, kind):
    url = addresses(stored, server[0])[kind]
    here = read_split(stored, "train")
    assert is_dataset(url)
    assert read_manifest(url) == read_manifest(stored)
    assert dataset_sha256(url) == dataset_sha256(stored)
    assert np.array_equal(read_split(url, "train").pixels, here.pixels)
    assert np.array_equal(open_source(url, "train").pixels(range(30)), here.pixels)
    batches = list(ShardReader(url, "train", ReadingConfig()).batches(seed=0, batch_size=10, stop=3))
    assert np.concatenate([pixels for pixels, _ in batches]).sum() == here.pixels.sum()


def test_a_file_is_fetched_once_and_found_under_its_hash_from_any_address(stored, server, tmp_path):
    url = Path(f"{server[0]}/stored")
    for _ in range(3):
        read_split(url, "train")
    assert sorted(names_of(server[1])) == [
        "manifest.json",
        "train-00000.parquet",
        "train-00001.parquet",
        "train-00002.parquet",
    ]
    stored.rename(tmp_path / "moved")
    server[1].clear()
    read_split(Path(f"{server[0]}/moved"), "train")
    assert names_of(server[1]) == ["manifest.json"]


def names_of(asked: list[str]) -> list[str]:
    return [path.rsplit("/", 1)[1] for path in asked]


def test_only_files_that_are_read_are_fetched(stored, server):
    info = read_manifest(Path(f"{server[0]}/stored")).splits["train"]
    remote.locate(Path(f"{server[0]}/stored"), "train-00001.parquet", info.files["train-00001.parquet"])
    assert names_of(server[1]) == ["manifest.json", "train-00001.parquet"]


def test_several_processes_fetch_a_file_once(stored, server):
    name = "train-00000.parquet"
    sha256 = file_sha256(stored / name)
    script = "import sys; from cluster.remote import locate; print(locate(*sys.argv[1:]))"
    command = [sys.executable, "-c", script, f"{server[0]}/stored", name, sha256]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert len(set(found)) == 1
    assert file_sha256(Path(found[0])) == sha256
    assert names_of(server[1]) == [name]


def test_a_file_that_is_not_the_manifests_is_refused_and_not_kept(stored, cache):
    (stored / "train-00001.parquet").write_bytes(b"another upload")
    with pytest.raises(
        UserError, match=r"train-00001.parquet has sha256 .* expected .* upload the whole dataset again"
    ):
        read_split(Path(f"file://{stored}"), "train")
    assert len(list((cache / "files").rglob("*.parquet"))) == 1
    assert not list((cache / "files").rglob(".*"))


def test_a_dataset_that_was_prepared_again_is_read_anew_by_the_next_process(stored, monkeypatch):
    url = Path(f"file://{stored}")
    before = dataset_sha256(url)
    (stored / "manifest.json").write_text((stored / "manifest.json").read_text() + "\n")
    assert dataset_sha256(url) == before
    monkeypatch.setattr(remote, "_current", set())  # as in a process that begins
    assert dataset_sha256(url) != before


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("file:///no/such/folder", "isn't a dataset: expected a manifest.json, found none there"),
        ("http://127.0.0.1:9/films", r"manifest.json can't be read \(.*127.0.0.1:9.*check the address"),
        ("nonsense://films", r"can't be read \(Protocol not known: nonsense"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_in_a_sentence(url, sentence, monkeypatch):
    monkeypatch.setattr(remote, "WAIT_S", 0.01)
    with pytest.raises(UserError, match=sentence):
        read_manifest(Path(url))


def test_a_web_server_without_the_file_is_told_from_one_without_an_answer(server):
    with pytest.raises(UserError, match=r"isn't a dataset: expected a manifest.json, found none there"):
        read_manifest(Path(f"{server[0]}/nothing"))
    with pytest.raises(remote.MissingError, match=r"no file http://.*/nothing/a.parquet"):
        remote.locate(Path(f"{server[0]}/nothing"), "a.parquet")


def test_a_network_that_fails_once_is_asked_again(stored, monkeypatch):
    monkeypatch.setattr(remote, "WAIT_S", 0.01)
    films = addresses(stored, "")["memory"]
    attempts = []

    def flaky(*about):
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionResetError("reset by peer")
        return download(*about)

    download = remote._download
    monkeypatch.setattr(remote, "_download", flaky)
    assert remote.locate(films, "manifest.json").read_bytes() == (stored / "manifest.json").read_bytes()
    assert len(attempts) == 3


def test_a_cache_below_a_file_is_told_with_its_setting(stored, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"can't be written \(Not a directory\): .* AUGRAY_CACHE"):
        read_manifest(Path(f"file://{stored}"))


def test_a_stream_fetches_the_files_of_its_first_windows_and_no_others(tmp_path, server):
    names = [f"i{i}" for i in range(40 * 16)]
    pixels = np.zeros((len(names), 4, 4, 1), dtype=np.uint8)
    with DatasetWriter(
        tmp_path / "many", task="multilabel", classes="a", height=4, width=4, channels=1, rows_per_file=16,
        rows_per_group=2,
    ) as writer:  # fmt: skip
        writer.add("train", Images.real(pixels, np.zeros((len(names), 1), np.uint8), names, names))
        writer.finish()

    class Small(ShardReader):
        window_rows = 32

    reader = Small(Path(f"{server[0]}/many"), "train", ReadingConfig(files_at_once=4))
    assert names_of(server[1]) == ["manifest.json"]
    with closing(reader.batches(seed=0, batch_size=8, stop=80)) as batches:
        next(batches)
    assert len(server[1]) - 1 <= 8  # two windows of at most 4 files each, of 40
