import numpy as np
import pytest
import scipy.linalg

from vaegan.metrics.frechet import frechet_distance, frechet_distance_of_features, needs_shrinkage


def covariance(dim, seed, rank=None):
    a = np.random.default_rng(seed).normal(size=(dim, rank or dim))
    return a @ a.T


def test_equal_covariances_leave_the_squared_distance_of_the_means():
    rng = np.random.default_rng(0)
    cov, shift = covariance(8, 1), rng.normal(size=8)
    assert frechet_distance(np.zeros(8), cov, shift, cov) == pytest.approx(shift @ shift, rel=1e-6)


def test_commuting_covariances_give_the_squared_distance_of_standard_deviations():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([16.0, 4.0, 0.0])
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(expected, rel=1e-9)


def test_the_symmetric_form_equals_scipys_matrix_square_root():
    a, b = covariance(10, 1), covariance(10, 2)
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(root).real
    assert frechet_distance(np.zeros(10), a, np.zeros(10), b) == pytest.approx(expected, rel=1e-8)


def test_exchanging_the_two_changes_nothing():
    a, b, shift = covariance(12, 1), covariance(12, 2, rank=5), np.ones(12)
    forth, back = frechet_distance(np.zeros(12), a, shift, b), frechet_distance(shift, b, np.zeros(12), a)
    assert forth == pytest.approx(back, rel=1e-6)


def test_rotating_the_features_changes_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)), rng.normal(1, 2, size=(50, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    turned = frechet_distance_of_features(x @ rotation, y @ rotation)
    assert turned == pytest.approx(frechet_distance_of_features(x, y), rel=1e-9)


@pytest.mark.parametrize("covariance", ["sample", "ledoit-wolf"])
def test_singular_covariances_give_a_real_number_and_none_below_zero(covariance):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 40)), rng.normal(0.5, 1, size=(12, 40))
    assert 0 < frechet_distance_of_features(x, y, covariance=covariance) < 200
    assert 0 <= frechet_distance_of_features(x, x, covariance=covariance) < 1e-5


def test_the_order_of_the_images_changes_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    shuffled = frechet_distance_of_features(rng.permutation(x), rng.permutation(y))
    assert shuffled == pytest.approx(frechet_distance_of_features(x, y), rel=1e-10)


def test_shrinkage_is_needed_exactly_where_the_rank_must_fall_short():
    rng = np.random.default_rng(0)
    for count in (5, 6):
        rank = np.linalg.matrix_rank(np.cov(rng.normal(size=(count, 5)), rowvar=False))
        assert needs_shrinkage(count, 5) == (rank < 5)
