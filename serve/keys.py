"""Command line: make an API key, add its hash to a key file, show the key once."""

import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.storage import atomic_file
from serve.access.keyfile import NAME, SCOPES, Limits, parse_keys, parse_sections, read_text

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as vaegan.registry has it


@dataclass(frozen=True, kw_only=True)
class KeysConfig:
    """Make an API key, show it once, and add its hash to a key file.

    The rest of the file stays as it is. To take a key back, remove its section.
    """

    file: Path
    """Key file; made if there is none."""
    name: str
    """Whose key it is: lower-case letters, digits and . _ -; logs and metrics show it."""
    scopes: tuple[str, ...] = ("sample",)
    """What it may do: sample (synthetic images), reconstruct (send real images), operate (metrics)."""
    models: tuple[str, ...] = ()
    """Models it may use, by name; without it, all."""
    requests_per_minute: int | None = None
    """Without it, no limit."""
    images_per_minute: int | None = None
    """Without it, no limit."""
    images_per_day: int | None = None
    """Without it, no limit."""
    expires: str | None = None
    """The last day, in UTC, on which the key is good, such as 2027-01-31; without it, it is good until removed."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {self.name!r}, expected 1 to 64 lower-case letters, digits and . _ -, the first a letter or "
                "digit; choose another"
            )
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise ValueError(f"scopes are {', '.join(self.scopes) or 'none'}, expected some of {', '.join(SCOPES)}")
        if not all(MODEL_NAME.fullmatch(model) for model in self.models):
            raise ValueError(f"models are {', '.join(self.models)}, expected names of models without their versions")
        if self.expires is not None:
            try:
                expires = date.fromisoformat(self.expires)
            except ValueError:
                raise ValueError(f"expires is {self.expires!r}, expected a date such as 2027-01-31") from None
            if expires < datetime.now(UTC).date():
                raise ValueError(f"expires is {self.expires}, which is over, expected today or later; correct it")
        self.limits()

    def limits(self) -> Limits:
        """Raises ValueError where one is below 1."""
        return Limits(
            requests_per_minute=self.requests_per_minute,
            images_per_minute=self.images_per_minute,
            images_per_day=self.images_per_day,
        )


def add_key(config: KeysConfig) -> str:
    """Make a key, add its section to the file, and return the key.

    Raises:
        UserError: the file has a key of that name, or can't be used; it stays as it was.
    """
    file = config.file.resolve()  # the file behind a symbolic link is replaced, not the link
    there = file.exists()
    text = read_text(file) if there else ""
    if config.name in parse_sections(text, str(file)):
        raise UserError(
            f"{file} has a key {config.name} already, expected a new name; choose one, or remove its section"
        )
    key = f"augray_{secrets.token_urlsafe(32)}"
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    text += gap + _section(config, hashlib.sha256(key.encode()).hexdigest())
    parse_keys(text, str(file))
    with atomic_file(file) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(text.encode())
        if there:
            before = file.stat()
            temporary.chmod(stat.S_IMODE(before.st_mode))
            with suppress(PermissionError):  # root adds a key: the service must still be able to read the file
                os.chown(temporary, before.st_uid, before.st_gid)
    return key


def _section(config: KeysConfig, digest: str) -> str:
    name = config.name if "." not in config.name else f'"{config.name}"'  # a bare dot would open a section in it
    lines = [f"[keys.{name}]", f'sha256 = "{digest}"', f"scopes = {_list(config.scopes)}"]
    if config.models:
        lines.append(f"models = {_list(config.models)}")
    lines += [f"{limit} = {value}" for limit, value in vars(config.limits()).items() if value is not None]
    if config.expires is not None:
        lines.append(f"expires = {date.fromisoformat(config.expires).isoformat()}")
    return "\n".join(lines) + "\n"


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def keys(config: KeysConfig) -> int:
    """The command: add a key and print it."""
    key = add_key(config)
    print(
        f"added {config.name} to {config.file}; hand this key to its owner, since it can't be shown again; "
        "a running service sees it within seconds",
        file=sys.stderr,
    )
    print(key)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m serve.keys --file KEYS --name NAME`."""
    return run_command(KeysConfig, keys, prog="python -m serve.keys", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
