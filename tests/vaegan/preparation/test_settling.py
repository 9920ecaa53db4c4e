"""Who may stand in which split, for random patients, groups, copies and splits of the source."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.settling import REMOVED, Rows, settle
from vaegan.preparation.spool import NO_SPLIT

CLASSES = ("a", "b", "c")


def config(**changes):
    return PrepareConfig(out=Path("nowhere"), **changes)


def rows(patients, films=None, groups=None, split=None, labels=None, labelled=None, seed=0):
    """Rows without files; equal numbers in `films` are exact copies, and no two others are alike."""
    n, rng = len(patients), np.random.default_rng(seed)
    films = np.arange(n) if films is None else np.asarray(films)
    looks = rng.integers(0, 256, (films.max() + 1, 32, 32), dtype=np.uint8)
    labels = np.eye(3, dtype=np.uint8)[np.arange(n) % 3] if labels is None else labels
    labelled = np.ones(n, dtype=bool) if labelled is None else np.asarray(labelled)
    return Rows(
        image_id=pa.array([f"i{k}" for k in range(n)]),
        patient_id=pa.array([f"p{p}" for p in patients]),
        patients=np.unique(patients, return_inverse=True)[1],
        groups=None if groups is None else np.asarray(groups, dtype=np.int64),
        labels=labels * labelled[:, None],
        labelled=labelled,
        source_split=np.full(n, NO_SPLIT) if split is None else np.asarray(split, dtype=np.int64),
        pixel_hashes=[bytes([f % 256, f // 256]) for f in films.tolist()],
        hashes=rng.integers(0, 2**63, films.max() + 1, dtype=np.uint64)[films],
        thumbnails=looks[films],
        heights=np.full(n, 9),
        widths=np.full(n, 9),
        num_in_colour=0,
    )


def together(found, *ties):
    """Whether no value of any tie stands in two splits."""
    return all(
        len(set(found[(tie == value) & (found >= 0)].tolist())) <= 1
        for tie in map(np.asarray, ties)
        for value in set(tie)
    )


def told_why(error):
    """The three things that can be wrong with a random cohort."""
    assert any(why in str(error) for why in ("too few", "no training images", "no training image has a label"))


numbers = st.integers(0, 11)


@st.composite
def cohorts(draw):
    n = draw(st.integers(12, 60))
    column = lambda values: draw(st.lists(values, min_size=n, max_size=n))  # noqa: E731
    return {
        "patients": column(st.integers(0, n // 2)),
        "films": np.where(np.array(column(st.booleans())), np.arange(n) + 12, column(numbers)),
        "groups": column(st.integers(0, n)) if draw(st.booleans()) else None,
        "split": column(st.sampled_from([0, 0, 0, 1, 2])) if draw(st.booleans()) else None,
        "labelled": column(st.sampled_from([True, True, False])) if draw(st.booleans()) else None,
    }


@given(cohorts(), st.integers(0, 3), st.sampled_from(["auto", "keep", "carve"]), st.sampled_from(["source", "make"]))
@settings(max_examples=150, deadline=None)
def test_no_patient_no_group_and_no_copy_is_in_two_splits_and_every_row_has_one_or_was_removed(
    cohort, seed, val, split
):
    table = rows(**cohort)
    try:
        found = settle(table, CLASSES, config(seed=seed, val=val, split=split))
    except UserError as error:
        told_why(error)
        return
    ties = [cohort["patients"], cohort["films"], *([] if cohort["groups"] is None else [cohort["groups"]])]
    assert together(found.split, *ties)
    assert set(found.split.tolist()) <= {0, 1, 2, REMOVED}
    again = settle(table, CLASSES, config(seed=seed, val=val, split=split))
    np.testing.assert_array_equal(found.split, again.split)
    assert found.report["leaks"]["images"] == np.sum(found.split == REMOVED)
    if cohort["split"] is None or split == "make":
        assert found.report["split"]["origin"] == "made"
        assert (found.split >= 0).all()
    else:
        source = np.array(cohort["split"])
        assert (found.split[source == 2] == 2).all()  # never removed, never moved
        assert set(found.split[source == 1].tolist()) <= {1, REMOVED}
        if val == "keep":
            assert set(found.split[source == 0].tolist()) <= {0, REMOVED}


@given(cohorts(), st.sampled_from(["auto", "carve"]))
@settings(max_examples=60, deadline=None)
def test_leaks_that_are_kept_take_nothing_out_and_are_told_all_the_same(cohort, val):
    if cohort["split"] is None:
        return
    try:
        found = settle(rows(**cohort), CLASSES, config(leaks="keep", val=val))
        removed = settle(rows(**cohort), CLASSES, config(leaks="remove", val=val))
    except UserError:
        return
    assert (found.split >= 0).all()
    assert found.report["leaks"]["action"] == "keep"
    assert (found.report["leaks"]["images"] > 0) == (removed.report["leaks"]["images"] > 0)
    assert found.report["leaks"]["images"] >= removed.report["leaks"]["images"]
    source = np.array(cohort["split"])
    assert (found.split[source == 2] == 2).all()


@given(cohorts(), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_that_the_source_puts_nowhere_go_with_their_patients_and_nothing_else_moves(cohort, data):
    if cohort["split"] is None:
        return
    missing = np.array(data.draw(st.lists(st.booleans(), min_size=len(cohort["split"]), max_size=len(cohort["split"]))))
    source = np.where(missing, NO_SPLIT, cohort["split"])
    try:
        found = settle(rows(**cohort | {"split": source}), CLASSES, config(val="keep"))
    except UserError as error:
        told_why(error)
        return
    ties = [cohort["patients"], cohort["films"], *([] if cohort["groups"] is None else [cohort["groups"]])]
    assert together(found.split, *ties)
    assert (found.split[source == 2] == 2).all()
    assert set(found.split.tolist()) <= {0, 1, 2, REMOVED}


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.9, 0.05, 0.05), (0.2, 0.3, 0.5)])
def test_shares_are_met_where_there_are_many_patients(fractions):
    found = settle(rows(np.repeat(np.arange(400), 2)), CLASSES, config(fractions=fractions))
    for i, fraction in enumerate(fractions):
        assert np.mean(found.split == i) == pytest.approx(fraction, abs=0.025)


def test_a_group_in_two_splits_is_a_leak_of_its_own_kind():
    found = settle(
        rows(np.arange(12), groups=[0, *range(10), 0], split=[0] * 9 + [1, 2, 2]), CLASSES, config(val="keep")
    )
    assert (found.split[:2] == REMOVED).all()
    assert found.report["leaks"] | {"listed": None} == {
        "action": "remove", "images": 2, "by_patient": 0, "by_group": 2, "by_copy": 0, "listed": None,
    }  # fmt: skip
    assert [(pair.kind, pair.row, pair.other) for pair in found.pairs] == [("group", 0, 11), ("group", 1, 11)]


def test_pairs_name_leaks_first_then_copies_with_other_labels_and_each_once():
    labels = np.eye(3, dtype=np.uint8)[[0, 0, 1, 1, 1, 2, 2, 2, 0, 0]]
    films = [0, 1, 2, 3, 3, 5, 6, 5, 8, 0]  # 3 = 4 alike, 5 = 7 alike, 0 = 9 in train and test
    split = [0] * 8 + [2, 2]
    found = settle(rows(np.arange(10), films=films, labels=labels, split=split), CLASSES, config(val="keep"))
    assert [(p.kind, p.row, p.other) for p in found.pairs] == [("exact", 0, 9), ("exact", 4, 3), ("exact", 7, 5)]
    labels[4] = [1, 0, 0]
    found = settle(rows(np.arange(10), films=films, labels=labels, split=split), CLASSES, config(val="keep"))
    assert found.report["duplicates"]["groups_with_conflicting_labels"] == 1
    labels[[4, 7]] = labels[[3, 6]]
    labels[7] = [1, 0, 0]
    found = settle(rows(np.arange(10), films=films, labels=labels, split=split), CLASSES, config(val="keep"))
    assert [(p.kind, p.row, p.other) for p in found.pairs] == [("exact", 0, 9), ("exact", 7, 5), ("exact", 4, 3)]


def test_chains_of_ties_stay_together_where_the_split_is_made():
    """Patient 0 shares a film with 1, who shares a hospital with 2."""
    patients = [0, 0, 1, 1, 2, 2, *range(3, 40)]
    films = np.arange(43)
    films[2] = films[1]
    groups = [*range(100, 103), 7, 7, *range(200, 238)]
    for seed in range(8):
        found = settle(rows(patients, films=films, groups=groups), CLASSES, config(seed=seed)).split
        assert len(set(found[:6].tolist())) == 1
