"""A registry: a folder NAME/VERSION/ of models, each with its sha256 sums. Alone knows that layout."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import atomic_directory, atomic_file, file_sha256, read_json, write_json
from vaegan.checkpoint import MODEL_JSON, is_model, read_info

SUMS = "SHA256SUMS"
CURRENT = "CURRENT"  # beside a model's versions: the one that a request without a version gets, unless it is the newest
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names and versions become addresses and folders: no slashes, no leading dot."""


@dataclass(frozen=True)
class ModelEntry:
    """One version of one model."""

    name: str
    version: str
    path: Path


class Registry:
    """The models under one folder.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(
                f"{root} isn't a registry: no such folder; expected NAME/VERSION/ with a model in it, "
                "write one with: python -m vaegan.train … --publish NAME/VERSION --registry DIR"
            )
        self.root = root

    def models(self) -> list[ModelEntry]:
        """Every model, by name, then by age, oldest first."""
        found = [path for path in self.root.glob("*/*") if is_model(path) and not path.name.startswith(".")]
        found.sort(key=lambda path: (path.parent.name, (path / MODEL_JSON).stat().st_mtime_ns, path.name))
        return [ModelEntry(path.parent.name, path.name, path) for path in found]

    def resolve(self, name: str, version: str | None = None) -> ModelEntry:
        """The model of that name and version; without a version the current one: the newest, or what was chosen.

        Raises:
            UserError: there is none; the message lists what there is.
        """
        models = self.models()
        version = version or self.chosen(name)
        found = [entry for entry in models if entry.name == name and version in (None, entry.version)]
        if not found:
            wanted = name if version is None else f"{name}/{version}"
            there = ", ".join(f"{entry.name}/{entry.version}" for entry in models) or "nothing"
            raise UserError(f"no model {wanted} in the registry: it has {there}")
        return found[-1]

    def chosen(self, name: str) -> str | None:
        """The version of a model that was chosen as its current one; None where that is simply the newest.

        A version that is no longer there counts as not chosen.
        """
        try:
            version = (self.root / name / CURRENT).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return version if NAME.fullmatch(version) and is_model(self.root / name / version) else None

    def choose(self, name: str, version: str | None) -> None:
        """Make a version of a model its current one, whatever is published later; None for the newest again.

        Raises:
            UserError: there is no such version.
        """
        if version is None:
            (self.root / name / CURRENT).unlink(missing_ok=True)
            return
        entry = self.resolve(name, version)
        with atomic_file(self.root / entry.name / CURRENT) as temporary:
            temporary.write_text(f"{entry.version}\n", encoding="utf-8")

    def verify(self, entry: ModelEntry) -> None:
        """Compare a model's files with their sums.

        Raises:
            UserError: a file is missing or differs.
        """
        try:
            sums = [line.split("  ", 1) for line in (entry.path / SUMS).read_text().splitlines()]
            wrong = [name for digest, name in sums if file_sha256(entry.path / name) != digest]
        except (OSError, ValueError) as error:
            raise UserError(f"{entry.path} can't be checked against its {SUMS} ({error}): publish it again") from None
        if wrong:
            raise UserError(f"{entry.path}: {', '.join(wrong)} differ from {SUMS}; publish the model again")


def publish(model: Path, root: Path, address: str) -> ModelEntry:
    """Copy a model folder into a registry as NAME/VERSION, which becomes the first part of its images' addresses.

    Publishing the same model again changes nothing.

    Raises:
        UserError: the folder isn't a model's, the address isn't NAME/VERSION, or another model has it.
    """
    name, _, version = address.partition("/")
    if not (NAME.fullmatch(name) and NAME.fullmatch(version)):
        raise UserError(f"{address!r} isn't an address: expected NAME/VERSION of letters, digits, '.', '_' and '-'")
    info = read_info(model)
    target = root / name / version
    if target.exists():
        if is_model(target) and read_info(target).tensors_sha256 == info.tensors_sha256:
            return ModelEntry(name, version, target)
        raise UserError(f"{target} holds another model, and a published version never changes: choose another version")
    with atomic_directory(target) as temporary:
        for path in sorted(model.iterdir()):
            shutil.copyfile(path, temporary / path.name)
        about = read_json(temporary / MODEL_JSON)
        write_json(temporary / MODEL_JSON, about | {"name": name, "version": version})
        _write_sums(temporary)
    return ModelEntry(name, version, target)


def renew_sums(model: Path) -> None:
    """Write a published model's sums again, after an audit changed its card; a model outside a registry has none."""
    if (model / SUMS).exists():
        _write_sums(model)


def _write_sums(folder: Path) -> None:
    files = [path for path in sorted(folder.iterdir()) if path.name != SUMS]
    with atomic_file(folder / SUMS) as temporary:
        temporary.write_text("".join(f"{file_sha256(path)}  {path.name}\n" for path in files))
