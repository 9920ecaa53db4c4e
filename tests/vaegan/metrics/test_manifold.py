import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from vaegan.metrics import neighbours
from vaegan.metrics.manifold import manifold_metrics
from vaegan.metrics.neighbours import neighbour_distances


def sets(num_real, num_synthetic, dim=5, shift=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_real, dim)), rng.normal(shift, 0.8, size=(num_synthetic, dim))


def prdc(real, synthetic, nearest_k=5):
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compute_prdc(real, synthetic, nearest_k)


@pytest.mark.parametrize("counts", [(80, 80), (100, 37), (23, 150)])
def test_precision_and_recall_are_torch_fidelitys(counts):
    real, synthetic = sets(*counts)
    precision, recall = calculate_precision_recall_full(torch.from_numpy(synthetic), torch.from_numpy(real))
    ours = manifold_metrics(real, synthetic)
    assert (ours.precision, ours.recall) == pytest.approx((precision, recall), rel=1e-6)  # theirs end in float32
    assert 0 < ours.precision < 1
    assert 0 < ours.recall < 1


@pytest.mark.parametrize("counts", [(80, 80), (100, 37), (23, 150)])
def test_density_and_coverage_are_prdcs(counts):
    real, synthetic = sets(*counts)
    theirs = prdc(real, synthetic)
    ours = manifold_metrics(real, synthetic)
    assert (ours.density, ours.coverage) == pytest.approx((theirs["density"], theirs["coverage"]), rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    real, synthetic = sets(70, 50)
    whole = manifold_metrics(real, synthetic)
    monkeypatch.setattr(neighbours, "_BLOCK_ENTRIES", 120)
    assert manifold_metrics(real, synthetic) == whole


def test_order_position_and_scale_change_nothing():
    real, synthetic = sets(70, 50)
    rng = np.random.default_rng(1)
    moved = manifold_metrics(rng.permutation(real) * 8 + 1000, rng.permutation(synthetic) * 8 + 1000)
    assert moved == manifold_metrics(real, synthetic)


def test_neighbour_distances_do_not_count_the_row_itself():
    x = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_allclose(neighbour_distances(x, (1, 2)), [[1, 9], [1, 4], [4, 9], [16, 36]])


def test_copies_of_the_real_images_have_full_precision_recall_and_coverage():
    real, _ = sets(60, 0, dim=300)
    scores = manifold_metrics(real, real.copy())
    assert (scores.precision, scores.recall, scores.coverage) == (1, 1, 1)


def test_real_images_that_are_duplicates_have_balls_of_radius_zero():
    real = np.repeat(sets(10, 0, dim=200)[0] + 50, 8, axis=0)  # every neighbour up to the seventh is at distance 0
    assert manifold_metrics(real, real[:20] + 1e-3).precision == 0
    assert manifold_metrics(real, real[:20]).precision == 1  # on the surface: inside by torch-fidelity's convention
    assert manifold_metrics(real, real[:20]).density == 0  # outside by prdc's


def test_far_apart_sets_share_nothing():
    real, synthetic = sets(40, 40, shift=1000)
    assert vars(manifold_metrics(real, synthetic)) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_fewer_rows_than_neighbours_are_refused():
    with pytest.raises(ValueError, match="6 of each"):
        manifold_metrics(*sets(100, 5))
