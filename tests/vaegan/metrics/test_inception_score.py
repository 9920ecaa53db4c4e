import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from vaegan.metrics.inception_score import inception_score


def test_certain_and_evenly_spread_predictions_score_the_number_of_classes():
    p = np.tile(np.eye(4), (25, 1))
    assert inception_score(p, splits=1).value == pytest.approx(4)


def test_the_same_prediction_for_every_image_scores_one():
    p = np.tile([0.7, 0.2, 0.1], (50, 1))
    assert inception_score(p, splits=5).value == pytest.approx(1)


@pytest.mark.parametrize(("count", "splits"), [(100, 10), (101, 7), (30, 1)])
def test_it_equals_torch_fidelitys_on_the_same_logits(count, splits):
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, size=(count, 12)))
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=2020)
    ours = inception_score(logits.softmax(dim=1).numpy(), splits=splits)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-12)


def test_float32_rows_that_miss_one_by_rounding_do_not_fall_below_one():
    p = np.full((1000, 1000), 1e-3, dtype=np.float32) * np.float32(1 + 1e-6)
    assert inception_score(p, splits=1).value == pytest.approx(1, abs=1e-9)


def test_fewer_rows_than_splits_are_refused():
    with pytest.raises(ValueError, match="3 rows"):
        inception_score(np.eye(3), splits=10)
