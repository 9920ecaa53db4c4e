import stat
import subprocess
import sys

import pytest

from serve.access.keyfile import Limits, read_keys
from serve.keys import main

COMMENTED = (
    b'# for the lab, ask Ann\r\n[keys.old]\r\nsha256 = "' + b"0" * 64 + b'"  # until May\r\nexpires = 2020-01-01'
)


def test_the_key_on_the_last_line_opens_what_was_asked_for(tmp_path, capsys):
    file = tmp_path / "keys.toml"
    options = ["--scopes", "sample", "reconstruct", "--models", "chest", "--requests-per-minute", "5"]
    options += ["--images-per-minute", "6", "--images-per-day", "7", "--expires", "9999-12-31"]
    assert main(["--file", str(file), "--name", "radiology-lab", *options]) == 0
    printed = capsys.readouterr()
    text = printed.out.splitlines()[-1]
    assert text.startswith("augray_")
    assert text not in printed.err
    assert text not in file.read_text()
    key = read_keys(file, {}).find(text)
    assert (key.name, key.scopes, key.models) == ("radiology-lab", {"sample", "reconstruct"}, {"chest"})
    assert key.limits == Limits(requests_per_minute=5, images_per_minute=6, images_per_day=7)
    assert key.expires.isoformat() == "9999-12-31"


def test_it_runs_as_a_command_and_a_script_can_take_the_key(tmp_path):
    file = tmp_path / "new" / "keys.toml"
    command = [sys.executable, "-m", "serve.keys", "--file", str(file), "--name", "lab"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert read_keys(file, {}).find(done.stdout.strip()).scopes == {"sample"}


def test_a_new_file_is_the_owners_alone_and_an_old_one_keeps_its_mode(tmp_path, capsys):
    file = tmp_path / "keys.toml"
    assert main(["--file", str(file), "--name", "a"]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    assert main(["--file", str(file), "--name", "b"]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["keys.toml"]


def test_what_was_in_the_file_stays_to_the_byte_and_keys_of_before_go_on(tmp_path, capsys):
    file = tmp_path / "keys.toml"
    file.write_bytes(COMMENTED)
    keys = {}
    for name in ("a", "b.c", "0"):
        assert main(["--file", str(file), "--name", name]) == 0
        keys[name] = capsys.readouterr().out.splitlines()[-1]
    assert file.read_bytes().startswith(COMMENTED)
    found = read_keys(file, {})
    assert found.names == ("old", "a", "b.c", "0")
    assert [found.find(text).name for text in keys.values()] == list(keys)


def test_a_link_to_a_file_goes_on_pointing_to_it(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "keys.toml")
    assert main(["--file", str(tmp_path / "link"), "--name", "a"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert read_keys(tmp_path / "keys.toml", {}).names == ("a",)


@pytest.mark.parametrize(
    ("before", "options", "words"),
    [
        (COMMENTED, ["--name", "old"], "has a key old already"),
        (b"[keys.old]\n", ["--name", "new"], "sha256 of [keys.old]"),
        (b"keys = {}\n", ["--name", "new"], "is not TOML"),
        (b"\xff", ["--name", "new"], "not UTF-8"),
        (COMMENTED, ["--name", "New"], "name is 'New'"),
        (COMMENTED, ["--name", "new", "--scopes", "all"], "scopes are all"),
        (COMMENTED, ["--name", "new", "--models", 'a"]\nscopes = ["operate'], "models are"),
        (COMMENTED, ["--name", "new", "--images-per-day", "0"], "images_per_day is 0"),
        (COMMENTED, ["--name", "new", "--expires", "soon"], "expires is 'soon'"),
        (COMMENTED, ["--name", "new", "--expires", "2020-01-01"], "which is over"),
    ],
)
def test_a_mistake_leaves_the_file_as_it_was_and_prints_no_key(tmp_path, capsys, before, options, words):
    file = tmp_path / "keys.toml"
    file.write_bytes(before)
    assert main(["--file", str(file), *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys.toml"]
