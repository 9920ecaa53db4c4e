import json
import logging
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.errors import UserError
from serve.access.audit import AuditError, AuditLog, read

LATE = datetime(2026, 5, 4, 23, 59, 59, 500_000, UTC).timestamp()


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, now: float = LATE) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_record_is_one_line_with_its_time_its_event_and_its_fields_in_the_order_given(tmp_path):
    AuditLog(tmp_path, "r1", Clock()).record("sample", key="lab", first="chest/1/normal/0/0", count=64)
    line = only_file(tmp_path).read_text()
    assert line == (
        '{"time": "2026-05-04T23:59:59.500Z", "event": "sample", "key": "lab", '
        '"first": "chest/1/normal/0/0", "count": 64}\n'
    )


def test_files_are_the_owners_alone(tmp_path):
    AuditLog(tmp_path / "audit", "r1").record("sample")
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(tmp_path / "audit").stat().st_mode) == 0o600


def test_days_and_replicas_have_files_of_their_own_and_are_read_in_the_order_of_time(tmp_path):
    clock = Clock()
    logs = [AuditLog(tmp_path, name, clock) for name in ("b", "a")]
    for number in range(20):
        logs[number % 2].record("sample", number=number)
        clock.now += 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"audit-2026-05-0{day}-{name}.jsonl" for day in (4, 5) for name in ("a", "b")
    ]
    assert [record["number"] for record in read(tmp_path)] == list(range(20))


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_line_cut_anywhere_spoils_itself_alone(tmp_path, cut):
    log = AuditLog(tmp_path, "r1")
    log.record("sample", number=1)
    log.record("sample", number=2)
    path = only_file(tmp_path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[: min(cut, len(second) - 2)])
    AuditLog(tmp_path, "r1").record("sample", number=3)
    records = read(tmp_path)
    assert [record["number"] for record in records] == [1, 3]
    assert records.torn == 1


def test_a_line_that_only_lost_its_end_of_line_counts(tmp_path):
    log = AuditLog(tmp_path, "r1")
    log.record("sample", number=1)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    log.record("sample", number=2)
    records = read(tmp_path)
    assert [record["number"] for record in records] == [1, 2]
    assert records.torn == 0


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"5\n", b"{}\n", b'{"time": 5}\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_skipped_and_counted(tmp_path, damage):
    log = AuditLog(tmp_path, "r1")
    log.record("sample")
    with open(only_file(tmp_path), "ab") as file:
        file.write(damage)
    records = read(tmp_path)
    assert len(list(records)) == 1
    assert records.torn == 1


@pytest.mark.parametrize(
    "text", ['a\n{"event": "forged"}', "a\r\u2028\u2029\x85b", "\0\x1b[2J", "\ud800", 'é "quoted" \\']
)
def test_no_text_can_forge_a_line_and_all_come_back_as_they_were(tmp_path, text):
    AuditLog(tmp_path, "r1").record("sample", key=text)
    written = only_file(tmp_path).read_bytes()
    assert written.isascii()
    assert written.count(b"\n") == 1
    assert [record["key"] for record in read(tmp_path)] == [text]


def test_threads_do_not_mix_their_lines(tmp_path):
    log = AuditLog(tmp_path, "r1")

    def work(name: str) -> None:
        for number in range(50):
            log.record("sample", of=name, number=number, addresses=["x" * 200] * 20)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = read(tmp_path)
    numbers: dict[str, list[int]] = {name: [] for name in "abcd"}
    for record in records:
        numbers[record["of"]].append(record["number"])
    assert set(map(tuple, numbers.values())) == {tuple(range(50))}
    assert records.torn == 0


def test_a_record_that_can_not_be_written_is_an_error_and_the_next_begins_a_line(tmp_path):
    folder = tmp_path / "audit"
    log = AuditLog(folder, "r1")
    folder.rmdir()
    with pytest.raises(AuditError, match="can't be written"):
        log.record("sample", number=1)
    folder.mkdir()
    log.record("sample", number=2)
    assert [record["number"] for record in read(folder)] == [2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error(tmp_path):
    log = AuditLog(tmp_path, "r1", Clock())
    (tmp_path / "audit-2026-05-04-r1.jsonl").symlink_to("/dev/full")
    with pytest.raises(AuditError, match="No space left"):
        log.record("sample")


def test_a_folder_that_can_not_be_made_is_found_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="can't be written"):
        AuditLog(tmp_path / "file" / "audit", "r1")


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path):
    log = AuditLog(tmp_path, "r1")
    log.record("sample", number=1)
    os.rename(only_file(tmp_path), tmp_path / "rotated.jsonl.1")
    log.record("sample", number=2)
    assert [record["number"] for record in read(tmp_path)] == [2]


def test_without_a_folder_the_same_lines_go_to_the_log(caplog):
    with caplog.at_level(logging.INFO, "augray.audit"):
        AuditLog(None, "r1", Clock()).record("sample", key="100%s\n")
    (message,) = [record.getMessage() for record in caplog.records]
    assert json.loads(message) == {"time": "2026-05-04T23:59:59.500Z", "event": "sample", "key": "100%s\n"}


@pytest.mark.parametrize("replica", ["", "../r1", "a/b", "a\nb"])
def test_a_replica_whose_name_is_no_file_name_is_refused(tmp_path, replica):
    with pytest.raises(ValueError, match="replica is"):
        AuditLog(tmp_path, replica)


def test_no_field_can_hide_the_time(tmp_path):
    with pytest.raises(ValueError, match="named time"):
        AuditLog(tmp_path, "r1").record("sample", time="1999")


def test_reading_no_folder_is_a_mistake_and_not_an_empty_log(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read(tmp_path / "nowhere")
    assert list(read(tmp_path)) == []
