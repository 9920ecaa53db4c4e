import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from cluster.errors import UserError
from downstream.arms import (
    ARMS,
    EXTRA_ARMS,
    class_weight,
    classical_augmentation,
    extra_rows,
    matching_rows,
    training_rows,
)


def labels_and_patients(seed: int = 0, patients: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive classes in 5 : 3 : 2, one to three films per patient."""
    rng = np.random.default_rng(seed)
    films = rng.integers(1, 4, patients)
    patient = np.repeat(np.arange(patients), films)
    kinds = rng.choice(3, patients, p=[0.5, 0.3, 0.2])
    return np.eye(3, dtype=np.uint8)[kinds[patient]], np.array([f"p{i}" for i in patient], dtype=object)


def counts(labels: np.ndarray) -> list[int]:
    return labels.sum(axis=0).tolist()


def test_extra_rows_follow_the_real_classes_and_use_every_row_equally_often():
    labels, _ = labels_and_patients(patients=40)
    rows = extra_rows(labels, 2 * len(labels), "as_real", seed=0)
    assert np.bincount(rows).tolist() == [2] * len(labels)
    half = extra_rows(labels, len(labels) // 2, "as_real", seed=0)
    np.testing.assert_allclose(labels[half].mean(axis=0), labels.mean(axis=0), atol=0.05)


@pytest.mark.parametrize("classes", ["as_real", "balanced"])
def test_extra_rows_of_a_smaller_ratio_begin_those_of_a_larger_one(classes):
    labels, _ = labels_and_patients(patients=40)
    many = extra_rows(labels, 300, classes, seed=0)
    assert extra_rows(labels, 77, classes, seed=0).tolist() == many[:77].tolist()


def test_balanced_extra_rows_hold_each_class_equally_often():
    labels, _ = labels_and_patients(patients=40)
    assert counts(labels[extra_rows(labels, 300, "balanced", seed=0)]) == [100, 100, 100]


@pytest.mark.parametrize("classes", ["as_real", "balanced"])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
def test_repeats_and_synthetic_images_have_the_same_labels_one_for_one(ratio, classes):
    labels, _ = labels_and_patients(patients=40)
    pool = np.eye(3, dtype=np.uint8)[np.random.default_rng(1).permutation(np.repeat(np.arange(3), 300))]
    make = lambda arm: training_rows(arm, labels, pool, ratio=ratio, task="multiclass", extra_classes=classes)  # noqa: E731
    repeats, synthetic, alone = make("duplicate_real"), make("synthetic"), make("synthetic_only")
    assert labels[repeats.real[len(labels) :]].tolist() == pool[synthetic.synthetic].tolist()
    assert alone.synthetic.tolist() == synthetic.synthetic.tolist()
    assert len(alone.real) == 0
    assert repeats.num_extra == synthetic.num_extra == round(ratio * len(labels))
    assert repeats.num_real == len(labels)
    assert len(set(synthetic.synthetic)) == len(synthetic.synthetic)


def test_every_arm_is_known_and_only_those_with_extra_rows_have_any():
    labels, _ = labels_and_patients(patients=40)
    for arm in ARMS:
        rows = training_rows(arm, labels, np.tile(labels, (2, 1)), ratio=1.0, task="multiclass")
        assert (rows.num_extra > 0) == (arm in EXTRA_ARMS)
        assert rows.augment == arm.startswith("classical")
        assert (rows.class_weight is not None) == (arm == "class_weights")


def test_a_pool_that_lacks_a_class_is_an_error_with_both_counts():
    wanted = np.eye(2, dtype=np.uint8)[[0, 1, 1]]
    with pytest.raises(UserError, match=r"hold 1 images with labels \[0, 1\] and 2 are needed"):
        matching_rows(np.eye(2, dtype=np.uint8)[[0, 0, 1]], wanted)


def test_class_weights_make_every_class_count_the_same():
    labels, _ = labels_and_patients()
    weight = class_weight(labels, "multiclass")
    np.testing.assert_allclose(weight * labels.sum(axis=0), len(labels) / 3)
    findings = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], dtype=np.uint8)
    np.testing.assert_allclose(class_weight(findings, "multilabel"), [3, 1])  # 3 negatives to 1; never seen


def test_augmentation_changes_each_image_differently_keeps_the_range_and_never_mirrors():
    half_dark = torch.full((16, 1, 32, 32), -1.0)
    half_dark[:, :, 8:24, 4:14] = 1.0
    torch.manual_seed(0)
    changed = classical_augmentation()(half_dark)
    assert changed.shape == half_dark.shape
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert len({image.sum().item() for image in changed}) == 16
    left, right = changed[:, :, :, :16].sum(dim=(1, 2, 3)), changed[:, :, :, 16:].sum(dim=(1, 2, 3))
    assert (left > right).all()
    assert not torch.equal(transforms.horizontal_flip(half_dark), half_dark)  # the pattern would show a mirror image
