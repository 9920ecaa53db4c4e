"""Command line: images from anywhere to a dataset that every other stage reads.

    python -m vaegan.prepare --out data/phantom
    python -m vaegan.prepare --images chest_xray --patient-regex kermany --out data/kermany

Images are decoded once, in threads, into a temporary file beside the dataset; only labels, hashes and a 1 kB thumbnail
of each stay in memory until splits and leaks are settled and the rows are written in order.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cluster.cli import as_dict, run_command
from cluster.errors import UserError
from cluster.provenance import provenance
from vaegan import duplicates, splits
from vaegan.images import check_pixels, decode, perceptual_hash, pixel_hash, resize
from vaegan.importers import IMPORTERS, ImportConfig, Record, Source, detect
from vaegan.shards import MANIFEST, SPLITS, DatasetWriter, Images, Manifest, read_manifest

CHUNK = 512  # images decoded, or written, at a time
MAX_LISTED = 200  # names per list in the manifest's report; counts are always complete
MAX_PREVALENCE_SHIFT = 0.05


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(ImportConfig):
    """Turn images into a dataset. Without --images, draw the phantom."""

    out: Path
    """Folder of the dataset to write."""
    source: Literal["auto", "phantom", "folder", "parquet"] = "auto"
    """What --images is; auto looks."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for colour."""
    classes: tuple[str, ...] = ()
    """Take only these classes, in this order; all of them by default."""
    allow_one_class: bool = False
    """Accept a single class, as an unconditional generator needs no more."""
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test where the source has no split of its own."""
    val: splits.Val = "auto"
    """Whether to carve a validation split out of train, by patient: if the source's own is too small (auto), never
    (keep), always (carve)."""
    leaks: Literal["remove", "keep"] = "remove"
    """Patients and copies of images in two splits: remove them from train (from val if the other is in test), or keep
    them and only report."""
    hash_patients: bool = False
    """Replace patients and image names by salted hashes; the salt is forgotten, so no two datasets can be matched."""
    strict: bool = False
    """Stop at the first image that can't be used, instead of listing it in rejects.parquet."""
    num_threads: int = 0
    """Threads that decode; 0 means one per core."""

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 1024:
            raise UserError(f"--size is {self.size}: expected 8 to 1024 pixels; the networks take 32, 64, 128 and 256")
        if min(self.fractions) < 0 or self.fractions[0] == 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise UserError(
                f"--fractions is {self.fractions}: expected shares of train (above 0), val and test that sum to 1"
            )


@dataclass
class Rows:
    """What stays in memory of the N accepted images; their pixels lie in a file."""

    names: list[str]
    image_id: NDArray[np.object_]
    patient_id: NDArray[np.object_]
    labels: NDArray[np.uint8]
    source_split: NDArray[np.int64]
    pixel_hashes: list[str]
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One decoded image and what is remembered of it."""

    pixels: NDArray[np.uint8]
    pixel_hash: str
    perceptual_hash: int
    thumbnail: NDArray[np.uint8]


def prepare(config: PrepareConfig) -> Manifest:
    """Write the dataset `config.out` and return its manifest; a finished one of the same inputs is left as it is.

    Raises:
        UserError: nothing to read, fewer than two classes, a bad image under `strict`, or another dataset at `out`.
    """
    started_s = time.time()
    kind = detect(config.images) if config.source == "auto" else config.source
    if kind != "phantom" and config.images is None:
        raise UserError(f"--source {kind} needs --images PATH: found none")
    source = IMPORTERS[kind](config)
    classes = _choose_classes(source, config)
    settings = _settings(config, kind)
    if (config.out / MANIFEST).exists():
        return _existing(config.out, settings, source.inputs)

    config.out.parent.mkdir(parents=True, exist_ok=True)
    shape = {"height": config.size, "width": config.size, "channels": config.channels}
    with (
        DatasetWriter(config.out, task=source.task, classes=classes, **shape) as writer,
        tempfile.TemporaryFile(dir=config.out.parent) as spool,
    ):
        rejects: list[tuple[str, str]] = []
        rows = _decode_all(source, classes, config, spool, rejects)
        _check_enough(rows, classes, rejects, config)
        hide = _salted() if config.hash_patients else str
        split, report = _settle(rows, classes, config, hide)
        for path, reason in rejects:
            writer.reject(hide(path), reason)
        _write(writer, rows, split, spool, config, hide)
        report = {"source": kind, "notes": source.notes, "rejects": dict(Counter(r for _, r in rejects))} | report
        origin = provenance(seed=config.seed, started_s=started_s, inputs=source.inputs) | {"config": settings}
        return writer.finish(report=report, provenance=origin)


# ---------------------------------------------------------------------------------------------------------------------
# Before reading


def _choose_classes(source: Source, config: PrepareConfig) -> tuple[str, ...]:
    unknown = [name for name in config.classes if name not in source.classes]
    if unknown:
        found = ", ".join(source.classes)
        raise UserError(f"no class {unknown[0]!r} in {config.images}: found {found}; correct --classes")
    classes = config.classes or source.classes
    if len(classes) < 2 and not config.allow_one_class:
        raise UserError(
            f"only one class ({', '.join(classes)}) in {config.images}: a classifier needs two, each a subfolder or a "
            "label; pass --allow-one-class to train an unconditional generator on it"
        )
    return classes


def _settings(config: PrepareConfig, kind: str) -> dict[str, Any]:
    """What decides the dataset's content, for comparison with an existing one; `images` and `out` may move."""
    settings = as_dict(config) | {"source": kind}
    for name in ("out", "images", "num_threads", "strict"):
        del settings[name]
    if kind != "phantom":
        del settings["phantom"]
    return settings


def _existing(out: Path, settings: dict[str, Any], inputs: dict[str, str]) -> Manifest:
    manifest = read_manifest(out)
    before = manifest.provenance
    changed = [name for name, value in settings.items() if before.get("config", {}).get(name) != value]
    if changed:
        raise UserError(
            f"{out} holds a dataset prepared with other settings ({', '.join(changed)}): "
            "choose another --out, or remove it to prepare it anew"
        )
    if before.get("inputs") != inputs:
        raise UserError(
            f"{out} holds a dataset prepared from other images: choose another --out, or remove it to prepare it anew"
        )
    return manifest


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _decode_all(
    source: Source, classes: tuple[str, ...], config: PrepareConfig, spool: IO[bytes], rejects: list[tuple[str, str]]
) -> Rows:
    """Decode the records of the wanted classes: pixels to `spool`, the rest to memory, what can't be to `rejects`."""
    position = {name: k for k, name in enumerate(classes)}
    kept: list[tuple[Record, Loaded]] = []
    records = tqdm(source.records(), total=source.num_records, desc="reading", unit="image", file=sys.stderr)
    wanted = (r for r in records if r.labels is None or not r.labels or any(name in position for name in r.labels))
    with ThreadPoolExecutor(config.num_threads or os.cpu_count()) as pool:
        for chunk in _chunks(wanted):
            for record, result in zip(chunk, pool.map(lambda r: _load(r, config), chunk), strict=True):
                if isinstance(result, Loaded):
                    spool.write(result.pixels.tobytes())
                    kept.append((record, Loaded(np.empty(0, np.uint8), *_remembered(result))))
                elif config.strict:
                    raise UserError(f"{record.name}: {result}; mend or remove it, or leave --strict away to skip it")
                else:
                    rejects.append((record.name, result))
    spool.flush()
    labels = np.zeros((len(kept), len(classes)), dtype=np.uint8)
    for i, (record, _) in enumerate(kept):
        labels[i, [position[name] for name in record.labels or () if name in position]] = 1
    return Rows(
        names=[record.name for record, _ in kept],
        image_id=np.array([record.image_id for record, _ in kept], dtype=object),
        patient_id=np.array([record.patient_id or record.image_id for record, _ in kept], dtype=object),
        labels=labels,
        source_split=np.array([SPLITS.index(r.split) if r.split else splits.NO_SPLIT for r, _ in kept], dtype=np.int64),
        pixel_hashes=[loaded.pixel_hash for _, loaded in kept],
        hashes=np.array([loaded.perceptual_hash for _, loaded in kept], dtype=np.uint64),
        thumbnails=np.array([loaded.thumbnail for _, loaded in kept], dtype=np.uint8),
    )


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _remembered(loaded: Loaded) -> tuple[str, int, NDArray[np.uint8]]:
    return loaded.pixel_hash, loaded.perceptual_hash, loaded.thumbnail


def _load(record: Record, config: PrepareConfig) -> Loaded | str:
    """The decoded image, or in words why there is none."""
    if record.problem:
        return record.problem
    try:
        if isinstance(record.image, np.ndarray):
            pixels = check_pixels(record.image)
        else:
            pixels = decode(record.image if isinstance(record.image, bytes) else record.image.read_bytes())
        if pixels.shape != (config.size, config.size, config.channels):
            pixels = resize(pixels, config.size, config.channels)
        check_pixels(pixels)  # again: the centred square can be constant where the whole wasn't
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    except Exception as error:  # one odd file, in whatever way a decoder trips over it, must not end a run of thousands
        return f"the decoder failed ({type(error).__name__}: {error})"
    return Loaded(pixels, pixel_hash(pixels), perceptual_hash(pixels), duplicates.thumbnail(pixels))


def _check_enough(rows: Rows, classes: tuple[str, ...], rejects: list[tuple[str, str]], config: PrepareConfig) -> None:
    first = f"; the first: {rejects[0][0]}: {rejects[0][1]}" if rejects else ""
    if not len(rows):
        raise UserError(f"none of the {len(rejects)} images in {config.images} could be used{first}")
    empty = [name for name, count in zip(classes, rows.labels.sum(axis=0), strict=True) if not count]
    if empty and len(classes) - len(empty) < (1 if config.allow_one_class else 2):
        raise UserError(f"no usable image of class {empty[0]} in {config.images}{first}; a classifier needs two")


# ---------------------------------------------------------------------------------------------------------------------
# Deciding

REMOVED = -2
Indices = NDArray[np.int64]
Rename = Callable[[str], str]


def _settle(
    rows: Rows, classes: tuple[str, ...], config: PrepareConfig, name: Rename
) -> tuple[Indices, dict[str, Any]]:
    """Split of each row (REMOVED for leaks) and the manifest's report."""
    exact, near = duplicates.find_pairs(rows.pixel_hashes, rows.hashes, rows.thumbnails)
    copies = duplicates.components(len(rows), np.concatenate([exact, near]))
    patients = np.unique(rows.patient_id.astype(str), return_inverse=True)[1]

    split = rows.source_split.copy()
    here = np.arange(len(rows))  # not removed so far
    leaks: list[dict[str, Any]] = []
    for kind, groups in (("patient", patients), ("copy", copies)):
        other = splits.crossing(split[here], groups[here])
        crosses = other >= 0
        pairs = zip(here[crosses], here[other[crosses]], strict=True)
        leaks += [_leak(kind, int(i), int(j), rows, split, name) for i, j in pairs]
        if config.leaks == "remove":
            split[here[crosses]] = REMOVED
            here = here[~crosses]
    together = _joined(patients, copies)[here]
    decision = splits.decide(
        rows.labels[here], together, split[here], fractions=config.fractions, val=config.val, seed=config.seed
    )
    split[here] = decision.split
    report = {
        "split": {"origin": decision.origin, "notes": decision.notes + _shifts(rows.labels, split, classes)},
        "patients": _patient_report(rows, patients, name),
        "duplicates": _duplicate_report(rows, split, exact, near, copies, name),
        "leaks": {
            "action": config.leaks,
            "images": len({leak["image"] for leak in leaks}),
            "by_patient": sum(leak["kind"] == "patient" for leak in leaks),
            "by_copy": sum(leak["kind"] == "copy" for leak in leaks),
            "listed": leaks[:MAX_LISTED],
        },
    }
    return split, report


def _joined(a: Indices, b: Indices) -> Indices:
    """The finest groups that keep together what a or b keeps together."""
    pairs = []
    for groups in (a, b):
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        pairs.append(np.stack([first[group], np.arange(len(groups))], axis=1))  # each row with the first of its group
    return duplicates.components(len(a), np.concatenate(pairs))


def _leak(kind: str, i: int, other: int, rows: Rows, split: Indices, name: Rename) -> dict[str, Any]:
    same = "patient" if kind == "patient" else "exact" if rows.pixel_hashes[i] == rows.pixel_hashes[other] else "near"
    return {
        "kind": kind,
        "match": same,
        "image": name(rows.image_id[i]),
        "split": SPLITS[split[i]],
        "other_image": name(rows.image_id[other]),
        "other_split": SPLITS[split[other]],
    }


def _patient_report(rows: Rows, patients: Indices, name: Rename) -> dict[str, Any]:
    labels_of: dict[int, set[bytes]] = {}
    for patient, label in zip(patients, rows.labels, strict=True):
        labels_of.setdefault(int(patient), set()).add(label.tobytes())
    several = {patient for patient, labels in labels_of.items() if len(labels) > 1}
    names = sorted({name(rows.patient_id[i]) for i in range(len(rows)) if int(patients[i]) in several})
    return {
        "number": len(labels_of),
        "images_per_patient": round(len(rows) / len(labels_of), 2),
        "with_several_labels": len(several),
        "listed": names[:MAX_LISTED],
    }


def _duplicate_report(
    rows: Rows, split: Indices, exact: Indices, near: Indices, groups: Indices, name: Rename
) -> dict[str, Any]:
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.bincount(groups)[groups] > 1):
        members.setdefault(int(groups[i]), []).append(int(i))
    conflicts = [m for m in members.values() if len({rows.labels[i].tobytes() for i in m}) > 1]
    remaining = [[i for i in m if split[i] != REMOVED] for m in members.values()]
    return {
        "groups": len(members),
        "images": sum(map(len, members.values())),
        "exact_copies": len(exact),
        "near_copies": len(near),
        "groups_within_one_split": sum(len(m) > 1 and len({split[i] for i in m}) == 1 for m in remaining),
        "groups_with_conflicting_labels": len(conflicts),
        "listed": [[name(rows.image_id[i]) for i in m] for m in members.values()][:MAX_LISTED],
        "conflicts_listed": [[name(rows.image_id[i]) for i in m] for m in conflicts][:MAX_LISTED],
    }


def _shifts(labels: NDArray[np.uint8], split: Indices, classes: tuple[str, ...]) -> list[str]:
    """Sentences on classes that are missing from a split or whose share differs between train and test."""
    notes = []
    present = [s for s in range(len(SPLITS)) if np.any(split == s)]
    share = {s: labels[split == s].mean(axis=0) for s in present}
    for k, name in enumerate(classes):
        notes += [f"There is no {name} image in {SPLITS[s]}." for s in present if share[s][k] == 0]
        if 0 in share and 2 in share and len(classes) > 1 and abs(share[0][k] - share[2][k]) > MAX_PREVALENCE_SHIFT:
            notes.append(
                f"{name} makes up {share[0][k]:.1%} of train but {share[2][k]:.1%} of test: "
                "thresholds and scores that depend on prevalence do not carry over as they are."
            )
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _salted() -> Rename:
    """A hash that nobody can repeat: its salt is new, and stored nowhere."""
    salt = os.urandom(16)
    return lambda name: hashlib.sha256(salt + name.encode()).hexdigest()[:16]


def _write(
    writer: DatasetWriter, rows: Rows, split: Indices, spool: IO[bytes], config: PrepareConfig, hide: Rename
) -> None:
    shape = (len(rows), config.size, config.size, config.channels)
    pixels = np.memmap(spool, dtype=np.uint8, mode="r", shape=shape)
    with tqdm(total=int(np.sum(split >= 0)), desc="writing", unit="image", file=sys.stderr) as progress:
        for s, name in enumerate(SPLITS):
            chosen = np.flatnonzero(split == s)
            for at in range(0, len(chosen), CHUNK):
                part = chosen[at : at + CHUNK]
                patients, names = ([hide(v) for v in column[part]] for column in (rows.patient_id, rows.image_id))
                writer.add(name, Images.real(np.asarray(pixels[part]), rows.labels[part], patients, names))
                progress.update(len(part))


# ---------------------------------------------------------------------------------------------------------------------
# Telling


def summary(manifest: Manifest, out: Path) -> str:
    """What is in the dataset and what was decided on the way, as lines for a terminal."""
    report = manifest.report
    width = max(map(len, ("images", *manifest.classes))) + 2
    lines = [f"{out}: {manifest.height}x{manifest.width}x{manifest.channels}, {manifest.task}"]
    lines.append(f"  {'':6}" + "".join(f"{head:>{width}}" for head in ("images", *manifest.classes)) + "  patients")
    for split, info in manifest.splits.items():
        counts = "".join(f"{count:>{width}}" for count in (info.num_images, *info.per_class.values()))
        lines.append(f"  {split:6}{counts}  {info.num_patients:>8}")
    lines += [f"  {note}" for note in report["notes"] + report["split"]["notes"]]
    patients, copies, leaks = report["patients"], report["duplicates"], report["leaks"]
    if patients["with_several_labels"]:
        lines.append(f"  {patients['with_several_labels']} patients have images with different labels.")
    if copies["groups"]:
        lines.append(
            f"  Duplicates: {copies['groups']} groups of {copies['images']} images ({copies['exact_copies']} exact and "
            f"{copies['near_copies']} near copies), {copies['groups_within_one_split']} of them inside one split; "
            f"{copies['groups_with_conflicting_labels']} with conflicting labels."
        )
    lines += _leak_lines(leaks)
    if manifest.rejects:
        reasons = "; ".join(f"{count} {reason}" for reason, count in list(report["rejects"].items())[:5])
        lines.append(f"  {manifest.rejects} images could not be used (rejects.parquet): {reasons}.")
    else:
        lines.append("  Every image could be read.")
    return "\n".join(lines)


def _leak_lines(leaks: dict[str, Any]) -> list[str]:
    if not leaks["images"]:
        return ["  No patient and no copy of an image is in two splits."]
    done = "removed" if leaks["action"] == "remove" else "KEPT as asked: scores on this dataset will flatter"
    lines = [f"  {leaks['images']} images leak between splits ({done}):"]
    for leak in leaks["listed"][:5]:
        what = "same patient as" if leak["kind"] == "patient" else f"{leak['match']} copy of"
        lines.append(f"    {leak['image']} in {leak['split']}: {what} {leak['other_image']} in {leak['other_split']}")
    return lines + (["    ... more in manifest.json"] if len(leaks["listed"]) > 5 else [])


def command(config: PrepareConfig) -> None:
    """Prepare, and print the summary."""
    there = (config.out / MANIFEST).exists()
    manifest = prepare(config)
    print(summary(manifest, config.out))
    if there:
        print("  It was there already, prepared with the same settings from the same images: nothing was done.")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(PrepareConfig, command, prog="python -m vaegan.prepare", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
