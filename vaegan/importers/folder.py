"""A folder with one subfolder per class, with or without train/, val/, test/ above: Kermany's layout and many more."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import text_sha256
from vaegan.importers.base import SPLIT_NAMES, Format, ImportConfig, Record, Source, fingerprint

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
IGNORED_FOLDERS = {"__MACOSX"}
PATIENT_PRESETS = {
    # personN restarts for bacteria and virus: person1_bacteria and person1_virus are two children
    "kermany": r"(person\d+)_(bacteria|virus)|((?:NORMAL2-)?IM-\d+)",
}
MIN_RECOGNISED = 0.95
"""Of the file names, for a set of images to be taken for one whose names are known."""


def open_folder(config: ImportConfig) -> Source:
    """Every image file below `config.images`, at any depth below its class.

    image_id is the file's stem, so that a researcher finds the film again, or its path where stems repeat; patient_id
    comes from `config.patient_regex`, else each file is its own patient.

    Raises:
        UserError: no such folder, no classes or no image files in it, or a regular expression that isn't one.
    """
    root = config.images
    if root is None or not root.is_dir():
        raise UserError(f"no folder {root}: expected one with a subfolder of images per class; check --images")
    folders = class_folders(root, config.unlabelled)
    files = [(split, label, path) for split, label, folder in folders for path in files_below(root, folder)]
    images = [found for found in files if suffix(found[2]) in SUFFIXES]
    notes = check_found(root, [path for *_, path in files], len(images), SUFFIXES)
    pattern, note = patient_pattern(config.patient_regex, [path for *_, path in images])
    stems = Counter(_stem(path) for *_, path in images)

    def records() -> Iterator[Record]:
        for split, label, path in images:
            stem = _stem(path)
            image_id = stem if stems[stem] == 1 else path
            who = patient(pattern, path)
            yield Record(
                as_text(path), root / path, as_text(image_id), (label,), None if who is None else as_text(who), split
            )

    notes.append(note)
    repeated = sum(count for count in stems.values() if count > 1)
    if repeated:
        notes.append(f"{repeated} images share a file name: their image_id is the path in {root.name}/.")
    notes.append("image_id is the file's name: if file names tell who the patient is, use --hash-patients.")
    return Source(
        kind="folder",
        task="multiclass",
        classes=tuple(sorted({label for _, label, _ in folders})),
        num_records=len(images),
        records=records,
        fingerprint=paths_fingerprint(root, [path for *_, path in images]),
        inputs={"labels": text_sha256(_lines(f"{split}/{label}" for split, label, _ in images))},
        notes=notes,
    )


def paths_fingerprint(root: Path, paths: Sequence[str]) -> str:
    """As `fingerprint`, of files below `root`, and of where they are: a film in another class's folder is another."""
    return text_sha256(_lines(map(as_text, paths)) + fingerprint(root / path for path in paths))


def _lines(values: Iterable[str]) -> str:
    return "".join(f"{value}\n" for value in values)


def class_folders(root: Path, beside: Collection[str] = ()) -> list[tuple[str | None, str, str]]:
    """(split or None, class, path below `root`) of every class folder.

    Args:
        beside: names of classes that may lie beside the splits, in none of them.

    Raises:
        UserError: splits beside other folders, or one level too high.
    """
    top = _folders(root)
    splits = [folder for folder in top if folder.lower() in SPLIT_NAMES]
    if not splits:
        wrapped = len(top) == 1 and [f for f in _folders(root / top[0]) if f.lower() in SPLIT_NAMES]
        if wrapped:
            raise UserError(f"{root} holds only {top[0]}/, which holds {wrapped[0]}/: use --images {root / top[0]}")
        return [(None, folder, folder) for folder in top]
    own = [folder for folder in top if folder in beside]
    others = [folder for folder in top if folder not in splits and folder not in own]
    if others:
        raise UserError(
            f"{root} holds {splits[0]}/ beside {others[0]}/: expected either only splits (train, val, test) "
            "or only classes at this level; move the other folders away, or if nobody labelled what is in one, name it "
            "with --unlabelled"
        )
    found = [(SPLIT_NAMES[s.lower()], label, f"{s}/{label}") for s in splits for label in _folders(root / s)]
    return [*found, *((None, folder, folder) for folder in own)]


def _folders(path: Path) -> list[str]:
    found = sorted(name for name in os.listdir(path) if not _hidden(name) and (path / name).is_dir())
    if odd := [name for name in found if as_text(name) != name]:
        raise UserError(f"the name of the folder {as_text(odd[0])} in {path} isn't UTF-8 text: rename it")
    return found


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or leads to one; a link that leads to itself is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or leads to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in IGNORED_FOLDERS


def files_below(root: Path, folder: str = "") -> list[str]:
    """Paths below `root` of all files at any depth of `folder`, sorted, but hidden ones."""
    found = []
    for where, folders, names in os.walk(root / folder, onerror=_refuse):
        folders[:] = [name for name in folders if not _hidden(name)]
        below = Path(where).relative_to(root).as_posix()
        found += [name if below == "." else f"{below}/{name}" for name in names if not _hidden(name)]
    return sorted(found)


def _refuse(error: OSError) -> None:
    """A folder that can't be listed must not be taken for an empty one."""
    raise UserError(f"{error.filename} can't be read ({error.strerror}): make it readable, or move it away")


def as_text(path: str) -> str:
    """A path whose bytes are no text, made text: a dataset holds nothing else."""
    return os.fsencode(path).decode(errors="backslashreplace")


def suffix(path: str) -> str:
    """In lower case, with its dot; empty where there is none."""
    return os.path.splitext(path)[1].lower()


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def check_found(root: Path, files: Sequence[str], num_images: int, suffixes: Collection[str]) -> list[str]:
    """A note on what else lies there.

    Args:
        files: paths below the class folders.
        suffixes: those of image files.

    Raises:
        UserError: no images.
    """
    others = Counter(suffix(file) or "no suffix" for file in files if suffix(file) not in suffixes)
    others += Counter(suffix(p.name) or "no suffix" for p in root.iterdir() if p.is_file() and not _hidden(p.name))
    listed = ", ".join(f"{count} {name}" for name, count in others.most_common(5))
    if not num_images:
        raise UserError(
            f"no images in the subfolders of {root} (found {listed or 'no files'}): expected one subfolder per class "
            "with .png, .jpg or the like in it; check --images"
        )
    return [f"Files that are not images, or lie outside a class folder, were ignored: {listed}."] if others else []


def patient_pattern(regex: str | None, paths: Sequence[str]) -> tuple[re.Pattern[str] | None, str]:
    """What finds the patient in a path, and a note on it. Names of a set that is known need no pattern from the user.

    Raises:
        UserError: `regex` isn't a regular expression.
    """
    try:
        pattern = re.compile(PATIENT_PRESETS.get(regex, regex)) if regex is not None else None
    except re.error as error:
        raise UserError(
            f"--patient-regex {regex!r} isn't a regular expression ({error}): expected one, or a preset's name "
            f"({', '.join(PATIENT_PRESETS)})"
        ) from None
    if pattern is None:
        for name, preset in PATIENT_PRESETS.items():
            known = re.compile(preset)
            if sum(known.match(_stem(path)) is not None for path in paths) >= MIN_RECOGNISED * len(paths) > 0:
                return known, f"The file names are those of {name}'s films: patients were read from them as there."
        return None, (
            "Each file counts as a patient of its own, since no --patient-regex was given: if patients have several "
            "films, they may cross the splits."
        )
    missed = [path for path in paths if patient(pattern, path) is None]
    if missed:
        return pattern, (
            f"--patient-regex found no patient in {len(missed)} of {len(paths)} file names: each of these counts as a "
            "patient of its own."
        )
    return pattern, "Patients were read from the file names by --patient-regex."


def patient(pattern: re.Pattern[str] | None, path: str) -> str | None:
    """The groups that match, joined by "_", or the whole match; None where there is no match, or it is empty."""
    match = pattern.search(path) if pattern else None
    if not match:
        return None
    return "_".join(group for group in match.groups() if group) or match.group() or None


FORMAT = Format("folder", "a folder with one subfolder of images per class", Path.is_dir, open_folder)
