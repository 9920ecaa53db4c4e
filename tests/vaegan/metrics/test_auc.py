import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vaegan.metrics.auc import area


def drawn(rng, patients, films, shift=0.0, within=0.5):
    """Scores of films, a patient's correlated; and whose they are."""
    own = np.repeat(rng.normal(size=patients), films)
    scores = own + within * rng.normal(size=patients * films) + shift
    return scores, np.repeat(np.arange(patients), films)


def test_equals_scikit_learn_with_and_without_ties():
    rng = np.random.default_rng(0)
    for digits in (0, 1, 9):
        x, y = rng.normal(0.4, 1, 70).round(digits), rng.normal(0, 1, 50).round(digits)
        expected = roc_auc_score(np.r_[np.ones(70), np.zeros(50)], np.r_[x, y])
        assert area(x, y).auc == pytest.approx(expected, abs=1e-12)


def test_standard_error_of_single_films_is_delongs():
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)
    wins = (x[:, None] > y).astype(float)
    expected = wins.mean(axis=1).var(ddof=1) / 40 + wins.mean(axis=0).var(ddof=1) / 30
    assert area(x, y).standard_error ** 2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("films", "shift"), [(1, 0.0), (1, 1.0), (4, 0.0), (4, 1.0)])
def test_standard_error_is_the_spread_over_fresh_patients(films, shift):
    rng = np.random.default_rng(2)
    found = []
    for _ in range(400):
        x, patients_x = drawn(rng, 40, films, shift)
        y, patients_y = drawn(rng, 50, films)
        found.append(area(x, y, patients_x, 1000 + patients_y))
    spread = np.std([each.auc for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.12)


def test_without_clusters_the_films_of_one_patient_would_look_like_many_patients():
    rng = np.random.default_rng(3)
    x, patients_x = drawn(rng, 30, 6, 0.5)
    y, patients_y = drawn(rng, 30, 6)
    clustered = area(x, y, patients_x, 1000 + patients_y).standard_error
    assert clustered > 1.7 * area(x, y).standard_error


def test_patients_on_both_sides_make_a_paired_comparison_sharper():
    rng = np.random.default_rng(4)
    own = rng.normal(size=60)
    x, y = own + 0.2 * rng.normal(size=60) + 0.3, own + 0.2 * rng.normal(size=60)
    patients = np.arange(60)
    assert area(x, y, patients, patients).standard_error < 0.5 * area(x, y).standard_error


def test_perfect_order_and_its_reverse():
    x, y = np.arange(5.0) + 10, np.arange(4.0)
    assert area(x, y).auc == 1
    assert area(y, x).auc == 0
    assert area(x, y).standard_error == 0
