import numpy as np
import pytest

from vaegan.metrics.extrapolation import frechet_curve, num_parts
from vaegan.metrics.frechet import frechet_distance_of_features


def gaussians(count, seed, dim, shift=0.0, scale=1.0):
    rows = np.random.default_rng(seed).normal(size=(count, dim)) * scale
    rows[:, 0] += shift
    return rows


@pytest.mark.parametrize(("dim", "count", "shift"), [(16, 400, 0.0), (16, 400, 0.5), (64, 300, 0.0), (64, 300, 1.0)])
def test_the_limit_is_the_populations_distance_where_the_distance_at_n_is_not(dim, count, shift):
    curves = [
        frechet_curve(gaussians(count, 2 * i, dim), gaussians(count, 2 * i + 1, dim, shift), seed=i, draws=2)
        for i in range(20)
    ]
    at_n = np.mean([curve.distances[0] for curve in curves])
    at_infinity = np.mean([curve.infinity for curve in curves])
    bias = at_n - shift**2
    assert bias > 0.04
    assert abs(at_infinity - shift**2) < 0.15 * bias
    assert np.mean([curve.slope for curve in curves]) / count == pytest.approx(bias, rel=0.15)


def test_the_first_point_is_the_distance_of_the_whole_sets():
    x, y = gaussians(120, 0, 8), gaussians(120, 1, 8, 1.0)
    curve = frechet_curve(x, y)
    assert curve.counts == (120, 60, 30)
    assert curve.distances[0] == pytest.approx(frechet_distance_of_features(x, y), rel=1e-9)
    assert curve.spreads[0] == 0
    assert np.all(np.diff(curve.distances) > 0)


def test_the_order_of_the_rows_moves_the_limit_less_than_what_it_corrects():
    x, y = gaussians(400, 0, 16), gaussians(300, 1, 16, 0.5)
    rng = np.random.default_rng(3)
    curves = [frechet_curve(rng.permutation(x), rng.permutation(y), draws=8) for _ in range(10)]
    bias = np.mean([curve.slope for curve in curves]) / 300
    assert np.std([curve.infinity for curve in curves]) < 0.6 * bias


def test_parts_keep_full_rank_or_there_is_no_curve():
    assert [num_parts(n, 9) for n in (9, 10, 19, 20, 39, 40, 10_000)] == [0, 1, 1, 2, 2, 4, 4]
    with pytest.raises(ValueError, match="20 needed"):
        frechet_curve(gaussians(19, 0, 9), gaussians(40, 1, 9))


def test_rows_beyond_the_most_that_are_asked_for_are_not_used_at_once():
    x, y = gaussians(500, 0, 8), gaussians(900, 1, 8)
    assert frechet_curve(x, y, max_rows=200).counts[0] == 200
