"""API keys: a TOML file, or the same text in the environment, that holds the keys' hashes and what each may do.

[keys.radiology-lab]
sha256 = "..."                    # 64 hexadecimal digits; `python -m serve.keys` makes the key and this section
scopes = ["sample"]               # sample (default), reconstruct, operate
models = ["chest"]                # by name; without it, all
requests_per_minute = 60          # without a limit, none
images_per_minute = 5000
images_per_day = 100000
expires = 2027-01-31              # the last day, in UTC, on which the key is good

The file may be readable by everybody: our keys are 32 random bytes, which nobody finds from their hash by trying.
"""

import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NoReturn

from cluster.errors import UserError

ENVIRONMENT_VARIABLE = "AUGRAY_API_KEYS"
SCOPES = ("sample", "reconstruct", "operate")
"""sample: synthetic images. reconstruct: encode, reconstruct, anomaly, which take real images. operate: metrics."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile("[0-9a-f]{64}")
_MAKE_ONE = "make one with: python -m serve.keys --file FILE --name NAME"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a key may take; None is without limit."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    images_per_day: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name} is {value}, expected 1 or more; leave it out for no limit")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of the service, without the key itself."""

    name: str
    sha256: str
    """Of the key's UTF-8 bytes, 64 lower-case hexadecimal digits."""
    scopes: frozenset[str] = frozenset({"sample"})
    models: frozenset[str] = frozenset()
    """Names of models; empty is all."""
    limits: Limits = Limits()
    expires: date | None = None
    """The last day, in UTC, on which the key is good."""


@dataclass(frozen=True)
class Keys:
    """Every key of the service."""

    keys: tuple[Key, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(key.name for key in self.keys)

    def find(self, presented: str, today: date | None = None) -> Key | None:
        """The key whose text was presented, unless it has expired, in a time that tells nothing about the others.

        Args:
            today: the day in UTC; the clock's where it is None.
        """
        # A header can hold any bytes, so that the text may not be text: no way of encoding it may raise.
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).hexdigest()
        matches = [hmac.compare_digest(digest, key.sha256) for key in self.keys]  # a list: never stops early
        if not any(matches):
            return None
        found = self.keys[matches.index(True)]
        expired = found.expires is not None and (today or datetime.now(UTC).date()) > found.expires
        return None if expired else found


def read_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> Keys | None:
    """The keys of a file, or of the environment's AUGRAY_API_KEYS; None where neither is given.

    Raises:
        UserError: both are given, or one can't be used. It says which section and field, and quotes no value, since
            that may be a key that somebody put there by mistake, and messages end in logs.
    """
    text = environment.get(ENVIRONMENT_VARIABLE)
    if path is None:
        return None if text is None else parse_keys(text, ENVIRONMENT_VARIABLE)
    if text is not None:
        raise UserError(f"api_keys={path} and {ENVIRONMENT_VARIABLE} are both given, expected one; leave one out")
    return parse_keys(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a key file, its line ends as they are.

    Raises:
        UserError: it can't be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a TOML file of API keys, {_MAKE_ONE}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8, expected a TOML file of API keys; {_MAKE_ONE}") from None


def parse_keys(text: str, source: str) -> Keys:
    """The keys of a TOML text.

    Args:
        source: where the text is from, for messages.

    Raises:
        UserError: see `read_keys`.
    """
    sections = parse_sections(text, source)
    if not sections:
        raise UserError(f"no key in {source}, expected a section [keys.NAME] for each; {_MAKE_ONE}")
    keys = [_key(name, number, section, source) for number, (name, section) in enumerate(sections.items(), start=1)]
    owner: dict[str, str] = {}
    for key in keys:
        if key.sha256 in owner:
            raise UserError(
                f"[keys.{owner[key.sha256]}] and [keys.{key.name}] in {source} have the same sha256, expected a key "
                "of its own for each; remove one"
            )
        owner[key.sha256] = key.name
    return Keys(tuple(keys))


def parse_sections(text: str, source: str) -> dict[str, Any]:
    """What stands below `keys` in a TOML text, unchecked, by name; empty where there is nothing.

    Raises:
        UserError: it is no TOML, or has something beside `keys`.
    """
    try:
        text.encode()  # what the environment holds may not be text
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # tomllib's own words may quote the text, so that only the place is taken from them.
        place = re.search(r"\(at (line \d+, column \d+|end of document)\)", str(error))
        where = f" ({place[1]})" if place else ""
        raise UserError(
            f"{source} is not TOML{where}, expected a section [keys.NAME] for each key; correct it"
        ) from None
    sections = document.pop("keys", {})
    if document or not isinstance(sections, dict):
        raise UserError(f"{source} has something outside of the sections [keys.NAME], expected nothing; remove it")
    return sections


def _key(name: str, number: int, section: Any, source: str) -> Key:
    if not NAME.fullmatch(name):
        raise UserError(
            f"the name of section {number} in {source} can't be used, expected [keys.NAME] with 1 to 64 lower-case "
            "letters, digits and . _ -, the first a letter or digit; rename it"
        )
    where = f"[keys.{name}] in {source}"
    if not isinstance(section, dict):
        raise UserError(f"{where} is not a section, expected fields below it such as sha256; {_MAKE_ONE}")
    limit_names = [field.name for field in fields(Limits)]
    known = ["sha256", "scopes", "models", *limit_names, "expires"]
    for field in section:
        if field not in known:
            # A field's name is quoted where it is a word; 43 random characters are a key in the wrong place.
            found = f"the unknown field {field}" if re.fullmatch("[a-z0-9_]{1,24}", field) else "an unknown field"
            raise UserError(f"{where} has {found}, expected some of {', '.join(known)}; correct it")
    digest = section.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest.lower()):
        found = "missing" if digest is None else "no SHA-256"
        raise UserError(
            f"sha256 of {where} is {found}, expected 64 hexadecimal digits, the key's hash and not the key itself; "
            f"{_MAKE_ONE}"
        )
    scopes = _texts(section, "scopes", where) if "scopes" in section else frozenset({"sample"})
    if not scopes <= set(SCOPES):
        _refuse("scopes", where, f"some of {', '.join(SCOPES)}")
    for field in limit_names:
        value = section.get(field, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            _refuse(field, where, "an integer of 1 or more; leave it out for no limit")
    expires = section.get("expires")
    if expires is not None and (not isinstance(expires, date) or isinstance(expires, datetime)):
        _refuse("expires", where, "a date without quotes, such as 2027-01-31")
    return Key(
        name=name,
        sha256=digest.lower(),
        scopes=scopes,
        models=_texts(section, "models", where) if "models" in section else frozenset(),
        limits=Limits(**{field: section[field] for field in limit_names if field in section}),
        expires=expires,
    )


def _texts(section: dict[str, Any], field: str, where: str) -> frozenset[str]:
    """A list of texts. An empty one is refused: it could be read as none, and as all."""
    values = section[field]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        _refuse(field, where, "a list of one or more names in quotes; leave it out for the default")
    return frozenset(values)


def _refuse(field: str, where: str, expected: str) -> NoReturn:
    raise UserError(f"{field} of {where} can't be used, expected {expected}; correct it")
