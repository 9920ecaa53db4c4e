"""A folder with one subfolder per class, with or without train/, val/, test/ above: Kermany's layout and many more."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import file_sha256, text_sha256
from vaegan.importers.base import SPLIT_NAMES, ImportConfig, Record, Source

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
IGNORED_FOLDERS = {"__MACOSX"}
PATIENT_PRESETS = {
    # personN restarts for bacteria and virus: person1_bacteria and person1_virus are two children
    "kermany": r"(person\d+)_(bacteria|virus)|((?:NORMAL2-)?IM-\d+)",
}


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
    pattern = _patient_pattern(config.patient_regex)
    notes: list[str] = []
    class_folders = _class_folders(root)
    files = [(split, label, file) for split, label, folder in class_folders for file in files_below(folder)]
    images = [found for found in files if found[2].suffix.lower() in SUFFIXES]
    _check_found(root, [file for *_, file in files], len(images), notes)
    stems = Counter(file.stem for *_, file in images)

    def record(split: str | None, label: str, file: Path) -> Record:
        path = file.relative_to(root).as_posix()
        image_id = file.stem if stems[file.stem] == 1 else path.rpartition(".")[0]
        return Record(path, file, image_id, (label,), _patient(pattern, path), split)

    def records() -> Iterator[Record]:
        return (record(*found) for found in images)

    notes.append(_patient_note(pattern, images, root))
    repeated = sum(count for count in stems.values() if count > 1)
    if repeated:
        notes.append(f"{repeated} images share a file name: their image_id is the path in {root.name}/.")
    notes.append("image_id is the file's name: if file names tell who the patient is, use --hash-patients.")
    return Source(
        kind="folder",
        task="multiclass",
        classes=tuple(sorted({label for _, label, _ in class_folders})),
        num_records=len(images),
        records=records,
        inputs={"images": _content_sha256(root, [file for *_, file in images])},
        notes=notes,
    )


def _class_folders(root: Path) -> list[tuple[str | None, str, Path]]:
    """(split or None, class, folder) of every class folder."""
    top = _folders(root)
    splits = [folder for folder in top if folder.name.lower() in SPLIT_NAMES]
    if not splits:
        wrapped = len(top) == 1 and [f for f in _folders(top[0]) if f.name.lower() in SPLIT_NAMES]
        if wrapped:
            raise UserError(f"{root} holds only {top[0].name}/, which holds {wrapped[0].name}/: use --images {top[0]}")
        return [(None, folder.name, folder) for folder in top]
    others = [folder.name for folder in top if folder not in splits]
    if others:
        raise UserError(
            f"{root} holds {splits[0].name}/ beside {others[0]}/: expected either only splits (train, val, test) "
            "or only classes at this level; move the other folders away"
        )
    return [(SPLIT_NAMES[s.name.lower()], folder.name, folder) for s in splits for folder in _folders(s)]


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not _hidden(p.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in IGNORED_FOLDERS


def files_below(folder: Path) -> list[Path]:
    """All files at any depth, sorted, but hidden ones."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [Path(where, name) for name in names if not _hidden(name)]
    return sorted(found)


def _check_found(root: Path, files: Sequence[Path], num_images: int, notes: list[str]) -> None:
    others = Counter(file.suffix.lower() or "no suffix" for file in files if file.suffix.lower() not in SUFFIXES)
    others += Counter(p.suffix.lower() or "no suffix" for p in root.iterdir() if p.is_file() and not _hidden(p.name))
    listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    if not num_images:
        raise UserError(
            f"no images in the subfolders of {root} (found {listed or 'no files'}): expected one subfolder per class "
            "with .png, .jpg or the like in it; check --images"
        )
    if others:
        notes.append(f"Files that are not images, or lie outside a class folder, were ignored: {listed}.")


def _patient_pattern(regex: str | None) -> re.Pattern[str] | None:
    if regex is None:
        return None
    try:
        return re.compile(PATIENT_PRESETS.get(regex, regex))
    except re.error as error:
        raise UserError(
            f"--patient-regex {regex!r} isn't a regular expression ({error}): expected one, or a preset's name "
            f"({', '.join(PATIENT_PRESETS)})"
        ) from None


def _patient(pattern: re.Pattern[str] | None, path: str) -> str | None:
    match = pattern.search(path) if pattern else None
    if not match:
        return None
    return "_".join(group for group in match.groups() if group) or match.group()


def _patient_note(pattern: re.Pattern[str] | None, images: Sequence[tuple[str | None, str, Path]], root: Path) -> str:
    if pattern is None:
        return (
            "Each file counts as a patient of its own, since no --patient-regex was given: if patients have several "
            "films, they may cross the splits."
        )
    missed = [file for *_, file in images if _patient(pattern, file.relative_to(root).as_posix()) is None]
    if missed:
        return (
            f"--patient-regex found no patient in {len(missed)} of {len(images)} file names "
            f"({missed[0].name}, ...): each of these counts as a patient of its own."
        )
    return "Patients were read from the file names by --patient-regex."


def _content_sha256(root: Path, files: Sequence[Path]) -> str:
    """One hash over the paths and contents of all files."""
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_sha256_or_reason, files)
        lines = [f"{file.relative_to(root).as_posix()} {h}" for file, h in zip(files, hashes, strict=True)]
    return text_sha256("\n".join(lines))


def _sha256_or_reason(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:  # it becomes a reject when it is decoded
        return str(error.strerror)
