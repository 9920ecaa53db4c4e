import numpy as np
import pytest

from vaegan.metrics import neighbours
from vaegan.metrics.neighbours import nearest, nearest_in_subsets


def brute_force(x, y, k, allowed=None):
    distances = np.sqrt(((x[:, None].astype(np.float64) - y[None]) ** 2).sum(axis=2))
    if allowed is not None:
        distances[~allowed] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1)


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("k", [1, 7])
def test_nearest_is_brute_force_however_far_from_the_origin(k, offset):
    """At 10,000 times the spread float32 alone would get the order wrong."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)) + offset, rng.normal(size=(90, 40)) + offset
    found = nearest(x, y, k)
    rows, distances = brute_force(x, y, k)
    assert np.array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


def test_rows_that_float32_cannot_tell_apart_are_told_apart():
    """A hundred neighbours that differ in the ninth digit: more than are proposed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 30)).astype(np.float64)
    y = np.concatenate([x[0] + 1 + 1e-9 * rng.permutation(100)[:, None], rng.normal(size=(50, 30))])
    rows, _ = brute_force(x, y, 3)
    assert np.array_equal(nearest(x, y, 3).rows, rows)


def test_duplicates_are_at_distance_zero_and_the_first_comes_first():
    y = np.repeat(np.random.default_rng(0).normal(size=(10, 20)) + 50, 8, axis=0)
    found = nearest(y[::8], y, 8)
    assert np.array_equal(found.rows, np.arange(80).reshape(10, 8))
    assert not found.distances.any()


def test_own_groups_do_not_count_and_missing_neighbours_are_marked():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    groups = np.arange(30) // 3
    found = nearest(x, x, 4, groups_x=groups, groups_y=groups)
    assert np.array_equal(found.rows, brute_force(x, x, 4, groups[:, None] != groups)[0])
    few = nearest(x[:4], x[:4], 2, groups_x=groups[:4], groups_y=groups[:4])
    assert few.rows.tolist() == [[3, -1], [3, -1], [3, -1], brute_force(x[3:4], x[:3], 2)[0][0].tolist()]
    assert np.isinf(few.distances[:3, 1]).all()


def test_blocks_and_other_rows_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8)), rng.normal(size=(70, 8))
    whole = nearest(x, y, 3)
    monkeypatch.setattr(neighbours, "_BLOCK_ENTRIES", 120)
    monkeypatch.setattr(neighbours, "_COLUMNS", 9)
    blocks = nearest(x, y, 3)
    alone = nearest(x[7:8], y, 3)
    assert np.array_equal(blocks.rows, whole.rows)
    assert np.array_equal(blocks.distances, whole.distances)
    assert np.array_equal(alone.distances[0], whole.distances[7])


def test_nearest_in_subsets_is_nearest_in_each():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(50, 6))
    subsets = rng.random((4, 50)) < 0.3
    found = nearest_in_subsets(x, y, subsets)
    np.testing.assert_allclose(found, [nearest(x, y[subset]).distances[:, 0] for subset in subsets], rtol=1e-9)
