"""Files that are either whole or absent: atomic writes, hashes, JSON, locks."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import UserError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it takes the final name at a clean exit and is removed otherwise.

    Keeps the suffix, since some writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a rename may outlive a power cut that the bytes do not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder; it takes the final name at a clean exit and is removed otherwise.

    Raises:
        FileExistsError: `path` is there already; a folder can't be replaced in one step.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    temporary.chmod(0o755)  # mkdtemp's 0700 would hide a shared dataset from colleagues
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(file: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes of this machine that lock the same file out for as long as the context lasts.

    Args:
        busy: the error's sentence where another process holds the lock.
        wait_s: how long to wait for it to end.

    Raises:
        UserError: another holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    give_up_s = time.monotonic() + wait_s
    with file.open("w") as opened:
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_s:
                    raise UserError(busy) from None
                time.sleep(0.2)
            except OSError:
                break  # some network file systems have no locks; nothing else here depends on them
        yield


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused, since they are not JSON."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: there is no such file, or it isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}: expected a JSON file that an earlier stage wrote; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} isn't valid JSON ({error}): it may be cut short or edited; write it again with its stage"
        ) from None
