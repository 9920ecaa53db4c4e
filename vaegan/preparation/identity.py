"""Who a patient is stays out of a dataset: salted hashes instead of names, and a list that undoes it, kept apart."""

import csv
import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster.errors import UserError
from cluster.storage import atomic_file

SALT_BYTES = 32


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 under a secret salt, its first 64 bits as hexadecimal digits; the name itself without a salt.

    A plain hash of a patient's number could be undone by trying all numbers.
    """

    salt: bytes | None

    def __call__(self, name: str) -> str:
        if self.salt is None:
            return name
        return hmac.digest(self.salt, name.encode(errors="surrogateescape"), hashlib.sha256)[:8].hex()


def read_or_make_salt(file: Path | None) -> bytes:
    """A user's salt, or a new one: kept in `file` where one is named, with access for its owner alone.

    Raises:
        UserError: the file is there and is no salt.
    """
    if file is None:
        return os.urandom(SALT_BYTES)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary, _private(temporary) as opened:
            opened.write(os.urandom(SALT_BYTES).hex() + "\n")
    try:
        salt = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except ValueError:
        salt = b""
    if len(salt) < SALT_BYTES:
        raise UserError(
            f"{file} isn't a salt: expected {2 * SALT_BYTES} hexadecimal digits or more; name the file that an earlier "
            "--salt wrote, or a new one"
        )
    return salt


def write_linkage(file: Path, rows: Iterable[tuple[str, str, str, str]]) -> None:
    """What each hash stands for, as CSV for its owner's eyes alone.

    Args:
        rows: (image_id, patient_id, name, patient): the dataset's two hashes, then where the image is and who it shows.
    """
    with atomic_file(file) as temporary, _private(temporary) as opened:
        writer = csv.writer(opened)
        writer.writerow(("image_id", "patient_id", "source", "source_patient_id"))
        writer.writerows(rows)


def _private(path: Path) -> IO[str]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline="")
