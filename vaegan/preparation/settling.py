"""Where each image belongs: patients, groups and copies on one side of every split, and what was found on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vaegan import duplicates, splits
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.spool import NO_SPLIT, PIXEL_HASH_BYTES, Spool, bytes_of
from vaegan.shards import SPLITS

REMOVED = -2
MAX_LISTED = 200  # names per list in the manifest's report; counts are complete, and findings.parquet is too
MAX_PREVALENCE_SHIFT = 0.05

Indices = NDArray[np.int64]


@dataclass
class Rows:
    """What is in memory of the N images that can be used: about 150 bytes each. Their pixels lie in the spool.

    patients, groups: numbers, equal for rows that belong together (N,); groups is None where nobody asked for them.
    labelled: whether each has a label; where not, `labels` is zeros (N,).
    source_split: index into SPLITS or NO_SPLIT (N,).
    thumbnails: (N, 32, 32), mapped from a file.
    """

    image_id: pa.Array
    patient_id: pa.Array
    patients: Indices
    groups: Indices | None
    labels: NDArray[np.uint8]
    source_split: Indices
    pixel_hashes: NDArray[np.void]
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    heights: Indices
    widths: Indices
    num_in_colour: int
    labelled: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def patients_known(self) -> bool:
        """Whether the source says who the patients are; else each image counts as one."""
        return bool(pc.any(pc.not_equal(self.image_id, self.patient_id)).as_py())

    @staticmethod
    def read(spool: Spool) -> "Rows":
        """What the spool remembers, without pixels."""
        names = ["image_id", "patient_id", "group", "labels", "split", "pixel_hash", "perceptual_hash", "height"]
        table = spool.accepted([*names, "width", "colour", "labelled"]).combine_chunks()
        column = {name: _array(table, name) for name in table.column_names}
        labels = np.frombuffer(bytes_of(column["labels"]), dtype=np.uint8)
        group = column["group"]
        return Rows(
            image_id=column["image_id"],
            patient_id=column["patient_id"],
            patients=_codes(column["patient_id"]),
            groups=None if group.null_count == len(group) else _codes_or_own(group),
            labels=labels.reshape(len(table), -1) if len(table) else labels.reshape(0, len(spool.how.classes)),
            source_split=column["split"].to_numpy().astype(np.int64),
            pixel_hashes=np.frombuffer(bytes_of(column["pixel_hash"]), dtype=f"V{PIXEL_HASH_BYTES}"),
            hashes=column["perceptual_hash"].to_numpy(),
            thumbnails=spool.thumbnails(),
            heights=column["height"].to_numpy().astype(np.int64),
            widths=column["width"].to_numpy().astype(np.int64),
            num_in_colour=pc.sum(column["colour"]).as_py() or 0,
            labelled=column["labelled"].to_numpy(zero_copy_only=False).astype(bool),
        )


def _array(table: pa.Table, name: str) -> pa.Array:
    chunks = table.column(name).chunks
    return chunks[0] if chunks else pa.array([], table.schema.field(name).type)


def _codes(names: pa.Array) -> Indices:
    return names.dictionary_encode().indices.to_numpy().astype(np.int64)


def _codes_or_own(names: pa.Array) -> Indices:
    """As `_codes`; a row without a name has a number of its own."""
    codes = names.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    return np.where(codes < 0, len(codes) + np.arange(len(codes)), codes)


@dataclass(frozen=True)
class Pair:
    """Two images that belong together: `row` is the one that was removed, where one was."""

    kind: str  # exact, near, patient, group
    row: int
    other: int


@dataclass(frozen=True)
class Settlement:
    """split: index into SPLITS of each row, or REMOVED, (N,). before: the same before leaks were removed.

    pairs: leaks first, then copies with conflicting labels, then other copies.
    """

    split: Indices
    before: Indices
    pairs: list[Pair]
    report: dict[str, Any]


def settle(rows: Rows, classes: Sequence[str], config: PrepareConfig) -> Settlement:
    """Find copies and leaks, and decide on each row's split."""
    exact, near = duplicates.find_pairs(rows.pixel_hashes, rows.hashes, rows.thumbnails)
    copies = duplicates.components(len(rows), np.concatenate([exact, near]))
    split, missing = _known_splits(rows, config)
    ties = {"patient": rows.patients} | ({} if rows.groups is None else {"group": rows.groups}) | {"copy": copies}
    leaks, here = _remove_leaks(rows, split, ties, keep=config.leaks == "keep")
    together = _joined(list(ties.values()))[here]
    decision = splits.decide(
        rows.labels[here],
        together,
        split[here],
        labelled=rows.labelled[here],
        fractions=config.fractions,
        val=config.val,
        seed=config.seed,
    )
    split[here] = decision.split
    before = np.where(split == REMOVED, rows.source_split, split)
    report = {
        "split": {"origin": decision.origin, "notes": missing + decision.notes + _shifts(rows, split, classes)},
        "patients": _patient_report(rows),
        "duplicates": _duplicate_report(rows, split, exact, near, copies),
        "leaks": _leak_report(rows, leaks, config.leaks),
    }
    return Settlement(split, before, _pairs(rows, split, leaks, exact, near), report)


def _known_splits(rows: Rows, config: PrepareConfig) -> tuple[Indices, list[str]]:
    """The source's splits as far as they count, and a note on rows that have none beside rows that do."""
    if config.split == "make":
        return np.full(len(rows), NO_SPLIT), []
    split = rows.source_split.copy()
    without = split == NO_SPLIT
    if without.all() or not without.any():
        return split, []
    split[without] = SPLITS.index("train")
    notes = [f"{without.sum()} images to which the source gives no split were put into train."]
    # what nobody labelled goes where its patient is: in train it would be a leak, and be lost
    latest = np.full(int(rows.patients.max()) + 1, NO_SPLIT)
    np.maximum.at(latest, rows.patients[~without], rows.source_split[~without])
    follows = without & ~rows.labelled & (latest[rows.patients] > SPLITS.index("train"))
    if follows.any():
        split[follows] = latest[rows.patients[follows]]
        notes.append(f"{follows.sum()} of them, without a label, follow their patients out of it.")
    return split, notes


def _remove_leaks(
    rows: Rows, split: Indices, ties: dict[str, Indices], *, keep: bool
) -> tuple[list[Pair], NDArray[np.int64]]:
    """Rows that share something with one in a later split become REMOVED in `split`; those that stay are returned."""
    here = np.arange(len(rows))
    leaks: list[Pair] = []
    for kind, tie in ties.items():
        other = splits.crossing(split[here], tie[here])
        crosses = other >= 0
        for row, at in zip(here[crosses].tolist(), here[other[crosses]].tolist(), strict=True):
            leaks.append(Pair(_match(rows, row, at) if kind == "copy" else kind, row, at))
        if not keep:
            split[here[crosses]] = REMOVED
            here = here[~crosses]
    return leaks, here


def _match(rows: Rows, row: int, other: int) -> str:
    return "exact" if rows.pixel_hashes[row] == rows.pixel_hashes[other] else "near"


def _joined(ties: Sequence[Indices]) -> Indices:
    """The finest groups that keep together what any of the ties keeps together."""
    pairs = []
    for groups in ties:
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        pairs.append(np.stack([first[group], np.arange(len(groups))], axis=1))  # each row with the first of its group
    return duplicates.components(len(ties[0]), np.concatenate(pairs))


def _pairs(rows: Rows, split: Indices, leaks: Sequence[Pair], exact: Indices, near: Indices) -> list[Pair]:
    seen = {frozenset((pair.row, pair.other)) for pair in leaks if pair.kind in ("exact", "near")}
    copies = [Pair(kind, b, a) for kind, found in (("exact", exact), ("near", near)) for a, b in found.tolist()]
    copies = [pair for pair in copies if frozenset((pair.row, pair.other)) not in seen]
    copies = [
        p if split[p.other] != REMOVED or split[p.row] == REMOVED else Pair(p.kind, p.other, p.row) for p in copies
    ]
    conflicts = [
        bool(rows.labelled[pair.row] and rows.labelled[pair.other])
        and not np.array_equal(rows.labels[pair.row], rows.labels[pair.other])
        for pair in copies
    ]
    order = sorted(range(len(copies)), key=lambda i: not conflicts[i])
    return [*leaks, *(copies[i] for i in order)]


# ---------------------------------------------------------------------------------------------------------------------
# What is told of it


def _leak_report(rows: Rows, leaks: Sequence[Pair], action: str) -> dict[str, Any]:
    of_kind = {kind: sum(leak.kind == kind for leak in leaks) for kind in ("patient", "group", "exact", "near")}
    return {
        "action": action,
        "images": len({leak.row for leak in leaks}),
        "by_patient": of_kind["patient"],
        "by_group": of_kind["group"],
        "by_copy": of_kind["exact"] + of_kind["near"],
        "listed": [
            {
                "kind": leak.kind if leak.kind in ("patient", "group") else "copy",
                "match": leak.kind,
                "image": rows.image_id[leak.row].as_py(),
                "split": _name(rows.source_split[leak.row]),
                "other_image": rows.image_id[leak.other].as_py(),
                "other_split": _name(rows.source_split[leak.other]),
            }
            for leak in leaks[:MAX_LISTED]
        ],
    }


def _name(split: np.int64) -> str:
    return SPLITS[split] if split >= 0 else "no split"


def _label_codes(labels: NDArray[np.uint8]) -> Indices:
    """Equal numbers for equal rows of labels, (N,)."""
    if not labels.shape[1]:
        return np.zeros(len(labels), dtype=np.int64)
    whole = np.ascontiguousarray(labels).view(f"V{labels.shape[1]}").ravel()
    return np.unique(whole, return_inverse=True)[1]


def _patient_report(rows: Rows) -> dict[str, Any]:
    number = int(rows.patients.max()) + 1
    known = np.stack([rows.patients, _label_codes(rows.labels)], axis=1)[rows.labelled]
    combinations = np.unique(known, axis=0)
    several = np.flatnonzero(np.bincount(combinations[:, 0], minlength=number) > 1)
    first = np.unique(rows.patients, return_index=True)[1]
    names = sorted(rows.patient_id.take(pa.array(first[several])).to_pylist())
    return {
        "known": rows.patients_known,
        "number": number,
        "images_per_patient": round(len(rows) / number, 2),
        "with_several_labels": len(several),
        "listed": names[:MAX_LISTED],
    }


def _duplicate_report(rows: Rows, split: Indices, exact: Indices, near: Indices, groups: Indices) -> dict[str, Any]:
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.bincount(groups)[groups] > 1):
        members.setdefault(int(groups[i]), []).append(int(i))
    conflicts = [m for m in members.values() if len({rows.labels[i].tobytes() for i in m if rows.labelled[i]}) > 1]
    remaining = [[i for i in m if split[i] != REMOVED] for m in members.values()]
    return {
        "groups": len(members),
        "images": sum(map(len, members.values())),
        "exact_copies": len(exact),
        "near_copies": len(near),
        "groups_within_one_split": sum(len(m) > 1 and len({split[i] for i in m}) == 1 for m in remaining),
        "groups_with_conflicting_labels": len(conflicts),
        "listed": [[rows.image_id[i].as_py() for i in m] for m in list(members.values())[:MAX_LISTED]],
        "conflicts_listed": [[rows.image_id[i].as_py() for i in m] for m in conflicts[:MAX_LISTED]],
    }


def _shifts(rows: Rows, split: Indices, classes: Sequence[str]) -> list[str]:
    """Sentences on classes that are missing from a split or whose share differs between train and test."""
    notes = []
    labels, split = rows.labels[rows.labelled], split[rows.labelled]
    present = [s for s in range(len(SPLITS)) if np.any(split == s)]
    share = {s: labels[split == s].mean(axis=0) for s in present}
    two_sides = len(classes) == 2 and bool((labels.sum(axis=1) == 1).all())  # of one coin: said of the second alone
    for k, name in enumerate(classes):
        notes += [f"There is no {name} image in {SPLITS[s]}." for s in present if share[s][k] == 0]
        if two_sides and k == 0:
            continue
        if 0 in share and 2 in share and len(classes) > 1 and abs(share[0][k] - share[2][k]) > MAX_PREVALENCE_SHIFT:
            notes.append(
                f"{name} makes up {share[0][k]:.1%} of train but {share[2][k]:.1%} of test: "
                "thresholds and scores that depend on prevalence do not carry over as they are."
            )
    return notes
