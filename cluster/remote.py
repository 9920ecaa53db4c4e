"""Files of folders at URLs (s3://, gs://, https://, ...), fetched once into a cache on this machine and checked.

Settings hold such a folder as a `Path`, which makes `s3:/bucket/x` of `s3://bucket/x`; that form is known here too.
What `pyarrow.fs` has a file system for is read with it, all else with fsspec and its plug-ins. Credentials and regions
come from where those look: environment variables, ~/.aws, a machine's role; Arrow also takes options in the URL, as in
`s3://bucket/data?region=eu-west-1`. `file:///mnt/slow/data` is a URL too: a folder of a network file system that is
worth a copy on this machine's disk.

The cache is $AUGRAY_CACHE, or ~/.cache/augray. It has no bound: a machine that trains for days needs room for what it
reads, and what was removed would be fetched again an epoch later. To free the space, remove the folder.
"""

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from cluster.errors import UserError
from cluster.storage import atomic_file, file_sha256, text_sha256

CACHE_VARIABLE = "AUGRAY_CACHE"
ATTEMPTS = 3
"""Per file, with fsspec: a network that failed once may not fail twice. Arrow's clients repeat requests themselves."""
WAIT_S = 0.5
"""Before the second attempt; twice as long before the third."""
CHUNK_BYTES = 4 * 2**20

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)")  # at least two letters: C:/ is a disk
_current: set[Path] = set()  # files without a known hash that this process has fetched


class MissingError(UserError):
    """There is no such file at a URL."""


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for; None for a path of this machine."""
    found = _URL.fullmatch(str(path))
    if found is None:
        return None
    scheme = found[1].lower()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{found[2]}"


def absolute(path: Path) -> Path:
    """An absolute path; a URL as it is."""
    return path if url_of(path) else path.absolute()


def cache_folder() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "augray")


def locate(folder: Path, name: str, sha256: str | None = None) -> Path:
    """Where a file of a folder is on this machine: in the folder itself or, if that is a URL, in the cache.

    A file whose hash is known is kept under it: fetched once whatever its address, by one of several processes while
    the others wait, and never again. One without is fetched once by each process, since it may have changed. Either
    appears whole or not at all.

    Args:
        sha256: what the file's bytes must hash to; not checked in a folder of this machine.

    Raises:
        MissingError: no such file.
        UserError: it can't be fetched, or has another hash.
    """
    url = url_of(folder)
    if url is None:
        return folder / name
    if sha256:
        target = cache_folder() / "files" / sha256[:2] / f"{sha256}{Path(name).suffix}"
        there = target.exists
    else:
        target = cache_folder() / "named" / text_sha256(url)[:32] / name
        there = lambda: target in _current and target.exists()  # noqa: E731
    if not there():
        with _locked(target):
            if not there():  # another process may have fetched it while this one waited
                _fetch(url, name, target, sha256)
                _current.add(target)
    return target


def _fetch(url: str, name: str, target: Path, sha256: str | None) -> None:
    for attempt in range(ATTEMPTS):
        try:
            with atomic_file(target) as temporary:
                _download(url, name, temporary)
                if sha256 and (found := file_sha256(temporary)) != sha256:
                    raise UserError(
                        f"{_join(url, name)} has sha256 {found[:12]}..., expected {sha256[:12]}...: it isn't the file "
                        "that the manifest beside it lists; upload the whole dataset again"
                    )
            return
        except UserError:
            raise
        except FileNotFoundError:
            raise MissingError(f"no file {_join(url, name)}: check the address, and that it was uploaded") from None
        except Exception as error:  # each of a dozen libraries below has its own kinds
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{cache_folder()} is full: make room there, or name another folder in {CACHE_VARIABLE}"
                ) from None
            if attempt + 1 == ATTEMPTS or not _may_pass(error, url):
                raise UserError(
                    f"{_join(url, name)} can't be read ({_reason(error)}): check the address, this machine's network "
                    "and its credentials for that storage"
                ) from None
            time.sleep(WAIT_S * 2**attempt)


def _download(url: str, name: str, file: Path) -> None:
    """Copy a file at a URL."""
    filesystem, path = _filesystem(url)
    if isinstance(filesystem, fs.FileSystem):
        with filesystem.open_input_stream(f"{path}/{name}", compression=None) as source, open(file, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
    else:
        filesystem.get_file(_join(path, name), str(file))


@lru_cache(maxsize=16)  # asking a bucket for its region takes a request
def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of a folder's URL, Arrow's or else fsspec's, and the folder's path there."""
    try:
        return fs.FileSystem.from_uri(url)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if "nrecognized filesystem" not in str(error) and "not built with" not in str(error).lower():
            raise
    import fsspec  # half a second that few need

    return fsspec.core.url_to_fs(url)


def _join(url: str, name: str) -> str:
    """The URL of a file in a folder; options after a question mark stay at the end."""
    folder, question, options = url.partition("?")
    return f"{folder.rstrip('/')}/{name}{question}{options}"


def _may_pass(error: Exception, url: str) -> bool:
    """Whether another attempt may succeed where this one failed."""
    if isinstance(error, ImportError | ValueError | PermissionError):
        return False
    return not isinstance(_filesystem(url)[0], fs.FileSystem)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other processes of this machine from fetching the same file; where there are no locks, both fetch it."""
    path = cache_folder() / "locks" / f"{text_sha256(str(target))[:32]}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(
            f"{cache_folder()} can't be written ({error.strerror}): name another folder in {CACHE_VARIABLE}"
        ) from None
    with file:
        with suppress(OSError):  # some network file systems have none; what both write is the same, and appears whole
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
