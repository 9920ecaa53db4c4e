import contextlib
import hashlib

import pytest

from cluster.errors import UserError
from cluster.storage import atomic_directory, atomic_file, file_sha256, read_json, write_json


class PowerCutError(RuntimeError):
    pass


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with contextlib.suppress(PowerCutError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise PowerCutError
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_folder_is_not_there(tmp_path):
    with contextlib.suppress(PowerCutError), atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("half")
        raise PowerCutError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_never_replaces_another(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError), atomic_directory(tmp_path / "folder"):
        pass


def test_what_json_can_not_hold_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_json_is_told_as_such(tmp_path):
    (tmp_path / "a.json").write_text('{"a":')
    with pytest.raises(UserError, match="isn't valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="no file"):
        read_json(tmp_path / "b.json")


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
