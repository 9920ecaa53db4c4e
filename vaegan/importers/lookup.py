"""Image files by the paths that tables give them: with backslashes, without suffix, or by the bare name."""

import os
import posixpath
from collections.abc import Collection
from pathlib import Path

from vaegan.importers.folder import is_file

NO_FILE = "no such file"


class ImageFiles:
    """Files below a folder, each folder listed once and only if a path leads there.

    Args:
        root: where relative paths begin.
        suffixes: those of image files, in lower case, for paths that leave theirs away.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root = root
        self.suffixes = tuple(suffix for each in suffixes for suffix in (each, each.upper()))
        self._listings: dict[str, frozenset[str]] = {}
        self._everywhere: dict[str, str | None] | None = None

    def find(self, given: str | None) -> tuple[str, str | None]:
        """(path relative to `root`, or absolute, or as given; None or what is wrong with it)."""
        path = (given or "").strip().replace("\\", "/")
        if not path or "\0" in path:
            return path.replace("\0", "?"), "no path"
        path = posixpath.normpath(path)
        if path == ".." or path.startswith("../"):
            return path, "a path that leads out of the table's folder"
        folder, name = posixpath.split(path)
        found, problem = self._with_suffix(name, self._listing(folder))
        if found is None and problem is None and not folder:
            return self._anywhere(name)
        return (posixpath.join(folder, found), None) if found is not None else (path, problem or NO_FILE)

    def _with_suffix(self, name: str, names: Collection[str]) -> tuple[str | None, str | None]:
        if name in names:
            return name, None
        found = [name + suffix for suffix in self.suffixes if name + suffix in names]
        if len(found) > 1:
            return None, f"a name without suffix that fits {len(found)} files"
        return (found[0] if found else None), None

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            self._listings[folder] = _files_in(self.root / folder)
        return self._listings[folder]

    def _anywhere(self, name: str) -> tuple[str, str | None]:
        if self._everywhere is None:
            self._everywhere = _folders_of_names(self.root)
        found, problem = self._with_suffix(name, self._everywhere)
        if found is None:
            return name, problem or NO_FILE
        folder = self._everywhere[found]
        return (
            (posixpath.join(folder, found), None) if folder is not None else (name, "a name that several folders have")
        )


def _files_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if is_file(entry))
    except (OSError, ValueError):
        return frozenset()


def _folders_of_names(root: Path) -> dict[str, str | None]:
    """Folder below `root` of each file by its name; None for a name that is there more than once. No hidden ones."""
    found: dict[str, str | None] = {}
    for where, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and _encodable(name))
        below = Path(where).relative_to(root).as_posix()
        for name in names:
            found[name] = None if name in found else below
    return found


def _encodable(name: str) -> bool:
    """Whether a name is text. Others can't stand in a table, nor in a dataset."""
    return not any("\udc80" <= character <= "\udcff" for character in name)
