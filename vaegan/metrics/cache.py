"""Features that were computed before, by the content they were computed from and by what computed them."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cluster.storage import atomic_file, text_sha256

DEFAULT_BYTES = 20 * 10**9
"""Six million images with 768 features."""
_KEPT_SHARE = 0.9  # a full cache is cut to this share, so that not every command cuts it


class FeatureCache:
    """Arrays in a folder, one file per block of images and extractor. Several processes may share it.

    A file is whole or absent, holds the hash of its values, and is no pickle. One that is damaged counts as absent. The
    folder is bounded: beyond `max_bytes` the files that were not used for longest go. Nothing in it can't be computed
    again, so a cache that can't be written is left alone: `problem` says why.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.problem: str | None = None
        """Why something could not be kept; None while all could."""

    def get(self, sha256: str, key: str) -> dict[str, np.ndarray] | None:
        """What was put for a block under a key; None where there is nothing, or nothing whole."""
        path = self._path(sha256, key)
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                names = file.keys()
                arrays = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            return None
        if about != _about(sha256, key, arrays):
            return None
        with suppress(OSError):  # another user's cache may be for reading only
            os.utime(path)  # the cut looks at when a file was last of use
        return arrays

    def put(self, sha256: str, key: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays of a block; also what an earlier, damaged file held."""
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        try:
            with atomic_file(self._path(sha256, key)) as temporary:
                save_file(arrays, temporary, _about(sha256, key, arrays))
        except (OSError, SafetensorError) as error:
            self.problem = f"features could not be kept in {self.folder} ({error}): they will be computed again"

    def cut(self) -> None:
        """Remove what was not used for longest, if the folder holds more than `max_bytes`."""
        found = []
        for path in self.folder.glob("*/*.safetensors"):
            try:
                found.append((path.stat().st_mtime, path.stat().st_size, path))
            except OSError:
                continue  # another process was faster
        total = sum(size for _, size, _ in found)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(found):
            path.unlink(missing_ok=True)
            total -= size
            if total <= _KEPT_SHARE * self.max_bytes:
                break

    def _path(self, sha256: str, key: str) -> Path:
        return self.folder / text_sha256(key)[:16] / f"{sha256}.safetensors"


def default_folder() -> Path:
    """AUGRAY_CACHE, or ~/.cache/augray/features."""
    return Path(os.environ.get("AUGRAY_CACHE") or Path.home() / ".cache" / "augray" / "features")


def _about(sha256: str, key: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """What is written beside the arrays, and must be there when they are read: folders hold only half of the key."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return {"block": sha256, "key": key, "values": digest.hexdigest()}
