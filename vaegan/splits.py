"""Who is in train, val and test: never one patient in two of them, never one picture in two of them."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.shards import SPLITS

Val = Literal["auto", "keep", "carve"]

MAX_FOLDS = 20  # shares are met to 1/20, or as finely as there are patients
MIN_VAL_IMAGES = 50
MIN_VAL_SHARE = 0.05
NO_SPLIT = -1


@dataclass(frozen=True)
class Decision:
    """split: index into SPLITS for each row, (N,). notes: sentences that say what was done and why."""

    split: NDArray[np.int64]
    origin: str
    notes: list[str]


def strata(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What to balance the splits on, (N,): each row's rarest class, or K where it has none."""
    if not labels.shape[1]:
        return np.zeros(len(labels), dtype=np.int64)
    order = np.argsort(labels.sum(axis=0), kind="stable")
    positive = labels[:, order].astype(bool)
    return np.where(positive.any(axis=1), order[positive.argmax(axis=1)], labels.shape[1])


def nested_subset(labels: np.ndarray, patients: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of a random `fraction` of the patients, in the data's order.

    A smaller fraction's rows are among those of a larger one with the same seed. Stratified by each patient's rarest
    class.

    Args:
        labels: multi-hot (N, K). patients: (N,) ids.
    """
    _, patient_of = np.unique(patients.astype(str), return_inverse=True)
    union = np.zeros((patient_of.max() + 1, labels.shape[1]), np.uint8)
    np.maximum.at(union, patient_of, labels)
    position = stratified_position(strata(union), np.random.default_rng(seed))
    return np.flatnonzero(position[patient_of] < fraction)


def stratified_position(stratum: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A number in [0, 1) for each row, (N,): those below any f are a share f of every stratum, rounded at random."""
    position = np.empty(len(stratum))
    for value in np.unique(stratum):
        rows = rng.permutation(np.flatnonzero(stratum == value))
        position[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return position


def make_split(
    labels: NDArray[np.uint8], groups: NDArray[np.int64], fractions: tuple[float, ...], seed: int
) -> NDArray[np.int64]:
    """Deal groups of rows into len(fractions) parts, stratified by label; returns the part of each row (N,).

    scikit-learn's StratifiedGroupKFold makes up to 20 folds, which are handed out by share: every part with a share
    above zero gets at least one.

    Args:
        labels: multi-hot (N, K).
        groups: rows of one group stay together (N,).
    """
    from sklearn.model_selection import StratifiedGroupKFold  # only here: every process that decodes loads this file

    key = strata(labels)
    num_groups = len(np.unique(groups))
    folds = min(MAX_FOLDS, num_groups, int(np.bincount(key).max()))
    wanted = sum(fraction > 0 for fraction in fractions)
    if folds < wanted:
        raise UserError(
            f"{num_groups} patients are too few to make {wanted} splits: expected at least {wanted}, and many more for "
            "a useful test; add images, or bring splits of your own (train/, val/, test/)"
        )
    if wanted == 1:  # and there may be one patient, too few for folds
        return np.full(len(key), np.argmax(fractions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "least populated class": spread as well as can be
        dealer = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        held_out = [rows for _, rows in dealer.split(np.zeros(len(key)), key, groups)]
    part = np.empty(len(key), dtype=np.int64)
    for rows, share in zip(held_out, np.repeat(np.arange(len(fractions)), _apportion(fractions, folds)), strict=True):
        part[rows] = share
    return part


def _deal(
    labels: NDArray[np.uint8],
    groups: NDArray[np.int64],
    labelled: NDArray[np.bool_],
    fractions: tuple[float, ...],
    seed: int,
) -> NDArray[np.int64]:
    """As `make_split`, of the rows that have a label; those without go where their group is, or else into the first
    part, since nothing can be tested on them."""
    if labelled.all():
        return make_split(labels, groups, fractions, seed)
    if not labelled.any():
        raise UserError(
            "no training image has a label, so that no split can be made of them: bring splits of your own with "
            "labelled images (train/, val/, test/) and --val keep"
        )
    _, group = np.unique(groups, return_inverse=True)
    part_of = np.zeros(group.max() + 1, dtype=np.int64)
    part_of[group[labelled]] = make_split(labels[labelled], groups[labelled], fractions, seed)
    return part_of[group]


def _apportion(fractions: tuple[float, ...], folds: int) -> NDArray[np.int64]:
    """Whole folds per part that sum to `folds`: rounded, but one for any share above 0; the first takes the rest."""
    shares = np.array(fractions) / sum(fractions)
    counts = np.where(shares > 0, np.maximum(1, np.round(shares * folds)), 0).astype(np.int64)
    counts[0] += folds - counts.sum()
    while counts[0] < 1 and fractions[0] > 0:  # tiny sets: rounding up took everything from the first part
        counts[counts.argmax()] -= 1
        counts[0] += 1
    return counts


def crossing(split: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row, -1, or the row that makes it a leak: one of the same group in a later split (train < val < test).

    Taking out the rows that aren't -1 leaves no group in two splits, never touches test, and val only for test's sake.
    """
    unique, group = np.unique(groups, return_inverse=True)
    last = np.full(len(unique), -1)
    np.maximum.at(last, group, split)
    at_last = np.flatnonzero(split == last[group])
    keeper = np.zeros(len(unique), dtype=np.int64)
    keeper[group[at_last[::-1]]] = at_last[::-1]  # reversed: the first of several wins
    return np.where(split < last[group], keeper[group], -1)


def decide(
    labels: NDArray[np.uint8],
    groups: NDArray[np.int64],
    source_split: NDArray[np.int64],
    *,
    labelled: NDArray[np.bool_] | None = None,
    fractions: tuple[float, float, float],
    val: Val,
    seed: int,
) -> Decision:
    """Keep the source's split, mend it where parts are missing, or make one where there is none.

    Args:
        labels: multi-hot (N, K).
        groups: what must stay together, patients joined by duplicates (N,).
        source_split: index into SPLITS, or NO_SPLIT, (N,).
        labelled: whether each row has a label, (N,); by default all have. Where splits are made here, rows without one
            go into train, but for those of groups that others of the group bring elsewhere: shares are of the others.
        fractions: shares of train, val and test; those of val and test are also the shares of train that are carved out
            of it where the source has none.
        val: "auto" carves a validation split out of train if the source's is too small to choose on (fewer than 50
            images or 5 % of train), "carve" always, "keep" never.
    """
    labelled = np.ones(len(labels), dtype=bool) if labelled is None else labelled
    if (source_split == NO_SPLIT).all():
        part = _deal(labels, groups, labelled, fractions, seed)
        met = " / ".join(f"{np.mean(part[labelled] == i):.0%}" for i in range(len(SPLITS)))
        notes = [f"Split made here, by patient and stratified by label, seed {seed}: {met}."]
        return Decision(part, "made", notes + _where_unlabelled(part[~labelled]))
    counts = np.bincount(source_split, minlength=len(SPLITS))
    known = np.bincount(source_split[labelled], minlength=len(SPLITS))  # what can be chosen and tested on
    if not counts[0]:
        raise UserError(
            f"the source has no training images ({counts[1]} val, {counts[2]} test): expected some in train; "
            "check the split names (train, val, test)"
        )
    notes = [f"The source's own split was kept: {counts[0]} train, {counts[1]} val, {counts[2]} test."]
    carve_val = val == "carve" or (val == "auto" and known[1] < max(MIN_VAL_IMAGES, MIN_VAL_SHARE * known[0]))
    shares = (fractions[1] if carve_val else 0.0, fractions[2] if not known[2] and val != "keep" else 0.0)
    split = source_split.copy()
    if any(shares):
        train = np.flatnonzero(split == 0)
        part = _deal(labels[train], groups[train], labelled[train], (1 - sum(shares), *shares), seed)
        split[train] = part
        why = "too few to choose anything on" if val == "auto" else "asked for"
        for i in (1, 2):
            if np.any(part == i):
                own = f"the source's own {counts[i]} stay in it, {why}" if counts[i] else "the source has none"
                notes.append(f"{np.sum(part == i)} train images were carved out for {SPLITS[i]}, by patient ({own}).")
    return Decision(split, "source", notes + _where_unlabelled(split[~labelled]))


def _where_unlabelled(split: NDArray[np.int64]) -> list[str]:
    """A sentence on rows without a label."""
    if not len(split):
        return []
    away = [f"{count} in {name}" for name, count in zip(SPLITS, np.bincount(split, minlength=3), strict=True) if count]
    return [f"Images without a label: {', '.join(away)}."]
