import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_curve

from downstream.scores import METRICS, expected_calibration_error, judged_classes, score, thresholds


def split(num: int = 200, num_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One-hot labels and softmax-like probabilities that know a little of them."""
    rng = np.random.default_rng(seed)
    labels = np.eye(num_classes, dtype=np.uint8)[rng.integers(0, num_classes, num)]
    logits = labels + rng.normal(size=labels.shape)
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_of_two_exclusive_classes_only_the_second_is_judged_of_many_all():
    assert judged_classes(2, "multiclass") == [1]
    assert judged_classes(2, "multilabel") == [0, 1]
    assert judged_classes(3, "multiclass") == [0, 1, 2]


def test_the_area_of_the_judged_class_is_that_of_the_other_one():
    (labels, p), (val_labels, val_p) = split(num_classes=2), split(num_classes=2, seed=1)
    names = {"task": "multiclass", "classes": ("normal", "ill")}
    result = score(labels, p, val_labels, val_p, **names)
    other = score(labels[:, ::-1], p[:, ::-1], val_labels[:, ::-1], val_p[:, ::-1], **names)
    assert result["auroc"] == pytest.approx(other["auroc"])
    assert result["brier"] == pytest.approx(other["brier"])
    assert list(result["per_class"]) == ["ill"]


def test_thresholds_come_from_validation_and_test_labels_cannot_move_them():
    (labels, p), (val_labels, val_p) = split(), split(seed=1)
    names = {"task": "multiclass", "classes": "abc"}
    first = score(labels, p, val_labels, val_p, **names)["per_class"]
    second = score(np.roll(labels, 1, axis=0), p, val_labels, val_p, **names)["per_class"]
    for name in first:
        for key in first[name]:
            if key.startswith("threshold"):
                assert first[name][key] == second[name][key]


def test_thresholds_are_the_best_of_all_possible_ones_on_validation():
    labels, p = split(seed=2)
    y, p = labels[:, 0], np.round(p[:, 0], 2)  # with ties
    accuracy_at, f1_at, specific_at = thresholds(y, p)
    tried = np.linspace(-0.005, 1.005, 102)
    for measure, at in ((balanced_accuracy_score, accuracy_at), (f1_score, f1_at)):
        assert measure(y, p >= at) >= max(measure(y, p >= t) for t in tried) - 1e-12
    false_alarms, found, _ = roc_curve(y, p, drop_intermediate=False)
    assert (p[y == 1] >= specific_at).mean() == pytest.approx(found[false_alarms <= 0.1].max())
    assert (p[y == 0] < specific_at).mean() >= 0.9


def test_a_perfect_classifier_gets_perfect_scores():
    labels, _ = split()
    result = score(labels, labels.astype(float), labels, labels.astype(float), task="multiclass", classes="abc")
    assert {metric: result[metric] for metric in METRICS} == dict.fromkeys(METRICS, 1.0) | {"brier": 0.0, "ece": 0.0}


def test_a_class_absent_from_the_test_split_has_no_score_and_does_not_enter_the_mean():
    (labels, p), (val_labels, val_p) = split(), split(seed=1)
    keep = labels[:, 2] == 0
    result = score(labels[keep], p[keep], val_labels, val_p, task="multiclass", classes="abc")
    assert result["per_class"]["c"]["auroc"] is None
    assert result["auroc"] == pytest.approx(np.mean([result["per_class"][name]["auroc"] for name in "ab"]))


def test_without_validation_images_of_a_class_no_threshold_is_made_up():
    (labels, p), (val_labels, val_p) = split(), split(seed=1)
    keep = val_labels[:, 1] == 0
    scores = score(labels, p, val_labels[keep], val_p[keep], task="multiclass", classes="abc")["per_class"]["b"]
    assert scores["auroc"] is not None
    assert scores["f1"] is None
    assert scores["sensitivity_at_90_specificity"] is None


def test_calibration_error_of_probabilities_that_are_frequencies_is_zero_and_of_certainty_one_half():
    assert expected_calibration_error(np.array([1, 0, 0, 0]), np.full(4, 0.25)) == 0
    assert expected_calibration_error(np.array([1, 0]), np.ones(2)) == pytest.approx(0.5)
