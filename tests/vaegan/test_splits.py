import numpy as np
import pytest

from cluster.errors import UserError
from vaegan.splits import NO_SPLIT, crossing, decide, make_split, nested_subset, strata

FRACTIONS = (0.7, 0.15, 0.15)


def cohort(num_patients, seed=0, num_classes=3):
    """One-hot labels and patients with one to three images, one diagnosis each."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    label = rng.choice(num_classes, p=[0.6, 0.3, 0.1][:num_classes], size=num_patients)[patient]
    return np.eye(num_classes, dtype=np.uint8)[label], patient


@pytest.mark.parametrize("num_patients", [4, 12, 40, 400])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_patient_is_in_two_splits_and_no_split_is_empty(num_patients, seed):
    labels, patients = cohort(num_patients, seed)
    split = make_split(labels, patients, FRACTIONS, seed)
    assert all(len(set(split[patients == p])) == 1 for p in np.unique(patients))
    assert set(split) == {0, 1, 2}


def test_shares_and_classes_are_met():
    labels, patients = cohort(600)
    split = make_split(labels, patients, FRACTIONS, seed=0)
    for i, fraction in enumerate(FRACTIONS):
        assert np.mean(split == i) == pytest.approx(fraction, abs=0.02)
        np.testing.assert_allclose(labels[split == i].mean(axis=0), labels.mean(axis=0), atol=0.03)


def test_seed_decides_and_nothing_else_does():
    labels, patients = cohort(50)
    split = [make_split(labels, patients, FRACTIONS, seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(split[0], split[1])
    assert (split[0] != split[2]).any()


def test_a_share_of_zero_gets_nothing():
    labels, patients = cohort(60)
    assert set(make_split(labels, patients, (0.8, 0.0, 0.2), seed=0)) == {0, 2}


def test_too_few_patients_are_told_so():
    with pytest.raises(UserError, match="2 patients are too few to make 3 splits"):
        make_split(np.eye(2, dtype=np.uint8), np.arange(2), FRACTIONS, seed=0)


def test_strata_follow_the_rarest_finding():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=np.uint8)
    assert list(strata(labels)) == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_fraction_is_inside_a_larger_one_and_never_cuts_a_patient(seed):
    labels, patients = cohort(400)
    smaller = nested_subset(labels, patients, 0.05, seed)
    larger = nested_subset(labels, patients, 0.3, seed)
    assert set(smaller) < set(larger)
    assert not set(patients[larger]) & set(np.delete(patients, larger))


def test_a_fraction_holds_that_share_of_every_class_and_all_is_all():
    labels, patients = cohort(400)
    rows = nested_subset(labels, patients, 0.2, seed=0)
    np.testing.assert_allclose(labels[rows].sum(axis=0) / labels.sum(axis=0), 0.2, atol=0.05)
    assert nested_subset(labels, patients, 1.0, seed=0).tolist() == list(range(len(labels)))


def test_the_seed_decides_the_subset_and_the_order_of_patients_names_does_not_matter():
    labels, patients = cohort(400)
    first, again, other = (nested_subset(labels, patients, 0.2, seed=s).tolist() for s in (1, 1, 2))
    assert first == again != other


def test_crossing_names_the_row_in_the_later_split_and_spares_test():
    split = np.array([0, 0, 2, 1, 0, 1, 0])
    group = np.array([0, 1, 0, 0, 2, 2, 1])
    assert list(crossing(split, group)) == [2, -1, -1, 2, 5, -1, -1]


def test_removing_what_crosses_leaves_every_group_in_one_split():
    rng = np.random.default_rng(0)
    split, group = rng.integers(0, 3, 300), rng.integers(0, 120, 300)
    left = crossing(split, group) < 0
    assert all(len(set(split[left & (group == g)])) == 1 for g in np.unique(group))
    assert left[split == 2].all()


def source_split(labels, patients, num_val):
    """Last fifth of the patients is test, some before it val."""
    order = patients / patients.max()
    split = np.where(order > 0.8, 2, 0)
    train = np.flatnonzero(split == 0)
    return np.where(patients >= patients[train[-num_val]], np.where(split == 2, 2, 1), split) if num_val else split


def settle(labels, patients, split, val="auto", seed=0):
    return decide(labels, patients, split, fractions=FRACTIONS, val=val, seed=seed)


@pytest.mark.parametrize("num_val", [0, 8])
def test_a_validation_split_too_small_is_carved_out_of_train_by_patient(num_val):
    labels, patients = cohort(400)
    before = source_split(labels, patients, num_val)
    decision = settle(labels, patients, before)
    after = decision.split
    assert (after[before == 2] == 2).all()
    assert (after[before == 1] == 1).all()
    assert np.sum(after == 1) > 0.1 * np.sum(before == 0)
    assert all(len(set(after[patients == p])) == 1 for p in np.unique(patients))
    assert any("carved out for val" in note for note in decision.notes)


def test_a_validation_split_that_is_large_enough_or_wanted_stays():
    labels, patients = cohort(400)
    large, small = source_split(labels, patients, 80), source_split(labels, patients, 8)
    np.testing.assert_array_equal(settle(labels, patients, large).split, large)
    np.testing.assert_array_equal(settle(labels, patients, small, val="keep").split, small)
    assert np.sum(settle(labels, patients, large, val="carve").split == 1) > np.sum(large == 1)


def test_without_a_source_split_one_is_made_with_the_seed():
    labels, patients = cohort(100)
    decision = settle(labels, patients, np.full(len(labels), NO_SPLIT), seed=5)
    np.testing.assert_array_equal(decision.split, make_split(labels, patients, FRACTIONS, seed=5))
    assert decision.origin == "made"


def test_a_missing_test_split_is_carved_too():
    labels, patients = cohort(200)
    after = settle(labels, patients, np.zeros(len(labels), dtype=np.int64)).split
    assert np.mean(after == 2) == pytest.approx(0.15, abs=0.03)


def test_a_source_without_training_images_is_refused():
    labels, patients = cohort(10)
    with pytest.raises(UserError, match="no training images"):
        settle(labels, patients, np.full(len(labels), 2))


@pytest.mark.parametrize("fractions", [(0.01, 0.01, 0.98), (0.02, 0.96, 0.02), (1.0, 0.0, 0.0), (0.05, 0.0, 0.95)])
@pytest.mark.parametrize("num_patients", [3, 5, 19, 40])
def test_every_share_above_zero_gets_patients_however_odd_the_shares(fractions, num_patients):
    labels, patients = cohort(num_patients)
    split = make_split(labels, patients, fractions, seed=0)
    assert set(split) == {i for i, fraction in enumerate(fractions) if fraction}
    assert all(len(set(split[patients == p])) == 1 for p in np.unique(patients))


def test_one_patient_is_enough_for_one_split_and_images_need_no_labels():
    assert list(make_split(np.eye(2, dtype=np.uint8), np.zeros(2, np.int64), (1.0, 0.0, 0.0), seed=0)) == [0, 0]
    split = make_split(np.zeros((60, 0), np.uint8), np.arange(60), FRACTIONS, seed=0)
    assert set(split) == {0, 1, 2}


def test_labels_are_spread_where_each_patient_has_several_findings():
    rng = np.random.default_rng(0)
    labels = (rng.random((900, 4)) < [0.5, 0.3, 0.1, 0.03]).astype(np.uint8)
    split = make_split(labels, np.arange(900) // 2, FRACTIONS, seed=0)
    rare = labels[:, 3] == 1
    assert set(split[rare]) == {0, 1, 2}
    assert np.mean(split[rare] == 0) == pytest.approx(0.7, abs=0.15)


def test_images_without_a_label_go_into_train_but_with_their_patients_and_move_no_other():
    labels, patients = cohort(100)
    plain = settle(labels, patients, np.full(len(labels), NO_SPLIT)).split
    known = np.arange(len(labels) + 40) < len(labels)  # 20 of strangers, 20 of patients who are there already
    more = np.concatenate([patients, np.arange(20) + 1000, patients[:20]])
    nothing = np.zeros((40, labels.shape[1]), dtype=np.uint8)
    decision = decide(
        np.concatenate([labels, nothing]), more, np.full(len(more), NO_SPLIT),
        labelled=known, fractions=FRACTIONS, val="auto", seed=0,
    )  # fmt: skip
    np.testing.assert_array_equal(decision.split[known], plain)
    assert (decision.split[len(labels) : len(labels) + 20] == 0).all()
    assert all(len(set(decision.split[more == p])) == 1 for p in np.unique(more))
    assert "Images without a label" in decision.notes[-1]


def test_a_validation_split_of_images_without_labels_is_too_small_to_choose_on():
    labels, patients = cohort(400)
    before = source_split(labels, patients, 80)
    decision = decide(
        labels, patients, before, labelled=before != 1, fractions=FRACTIONS, val="auto", seed=0
    )  # fmt: skip
    assert np.sum((decision.split == 1) & (before == 0)) > 20


def test_no_split_is_made_of_images_that_nobody_labelled():
    labels, patients = cohort(30)
    with pytest.raises(UserError, match="no training image has a label"):
        decide(
            labels, patients, np.full(len(labels), NO_SPLIT),
            labelled=np.zeros(len(labels), dtype=bool), fractions=FRACTIONS, val="auto", seed=0,
        )  # fmt: skip
