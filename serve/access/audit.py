"""Who took which addresses: one line of JSON for each event, on the disk before the answer leaves."""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.errors import UserError

_FILE = re.compile(r"audit-(\d{4}-\d{2}-\d{2})-[A-Za-z0-9._-]+\.jsonl")

logger = logging.getLogger("augray.audit")


class AuditError(OSError):
    """An event could not be recorded, so that what it is about must not happen."""


class AuditLog:
    """Appends events to FOLDER/audit-YYYY-MM-DD-REPLICA.jsonl: a file for each day, in UTC, of mode 0600.

    Each event is one line, synced to the disk before `record` returns. JSON escapes control characters, so that nobody
    can forge a line. A line that was cut, by a full disk or because the process was killed, ends where the next begins.
    Threads may share a log; processes with the same replica name may follow each other.

    Args:
        folder: made if it is not there; None writes the same lines to the logger "augray.audit", at INFO.
        replica: letters, digits and . _ -; no two that run at once share a name.
        clock: seconds since 1970.

    Raises:
        AuditError: the folder can't be made.
    """

    def __init__(self, folder: Path | None, replica: str, clock: Callable[[], float] = time.time) -> None:
        if not re.fullmatch("[A-Za-z0-9._-]{1,100}", replica):
            raise ValueError(f"replica is {replica!r}, expected 1 to 100 letters, digits and . _ -")
        self.folder, self.replica = folder, replica
        self._clock = clock
        self._lock = threading.Lock()
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise _audit_error(error, folder) from error

    def record(self, event: str, **fields: Any) -> None:
        """Write {"time": ..., "event": event, **fields}, the time as ISO 8601 in UTC with milliseconds.

        Takes as long as the disk needs to sync, often milliseconds.

        Args:
            fields: JSON-ready values, by any name but time.

        Raises:
            AuditError: the line is not on the disk.
        """
        if "time" in fields:
            raise ValueError("a field named time would hide the time of the event; choose another name")
        with self._lock:
            now = datetime.fromtimestamp(self._clock(), UTC)
            stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = json.dumps({"time": stamp, "event": event, **fields}, ensure_ascii=True, allow_nan=False)
            if self.folder is None:
                logger.info("%s", line)
                return
            path = self.folder / f"audit-{now.date().isoformat()}-{self.replica}.jsonl"
            try:
                _append(path, line)
            except OSError as error:
                raise _audit_error(error, path) from error


class Records(Iterator[dict[str, Any]]):
    """The records of a folder, oldest first, from every replica. Made by `read`."""

    def __init__(self, folder: Path) -> None:
        self.torn = 0
        """Lines skipped so far since they were cut off or damaged."""
        self._records = self._read(folder)

    def __next__(self) -> dict[str, Any]:
        return next(self._records)

    def _read(self, folder: Path) -> Iterator[dict[str, Any]]:
        found = sorted((match[1], path) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)))
        for _, files in groupby(found, key=lambda of_day: of_day[0]):
            of_day = [record for _, path in files for record in self._lines(path)]
            yield from sorted(of_day, key=lambda record: record["time"])  # stable: equal times stay as written

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with open(path, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict) and isinstance(record.get("time"), str):
                    yield record
                else:
                    self.torn += 1


def read(folder: Path) -> Records:
    """The records of an audit folder in the order of their times; holds those of one day at a time in memory.

    Returns:
        An iterator; its `torn` counts the damaged lines that it has skipped so far.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}, expected one with files audit-DATE-REPLICA.jsonl; check the path")
    return Records(folder)


def _append(path: Path, line: str) -> None:
    """Add a line to a file and sync it, on a line of its own even if the last was cut.

    The file is opened each time: one that was moved or removed, by a rotation say, is simply begun anew.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(file).st_size
        cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        unwritten = (b"\n" if cut else b"") + line.encode("ascii") + b"\n"
        while unwritten:
            unwritten = unwritten[os.write(file, unwritten) :]
        os.fsync(file)
    finally:
        os.close(file)
    if size == 0:  # new: its name must last as well
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _audit_error(error: OSError, path: Path) -> AuditError:
    return AuditError(error.errno, f"the audit log can't be written ({error.strerror})", str(path))
