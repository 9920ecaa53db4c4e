import itertools

import numpy as np
import pytest
from scipy.stats import kstest

from vaegan.metrics.privacy.proximity import neighbour_ratio, share_of_members


def test_the_permutation_test_is_the_enumeration_of_all_labels():
    hits = np.array([5.0, 0, 3, 1, 0, 2, 0])
    is_member = np.array([True, False, True, False, False, True, False])
    totals = [hits[list(chosen)].sum() for chosen in itertools.combinations(range(7), 3)]
    exact = np.mean([total >= hits[is_member].sum() for total in totals])
    assert share_of_members(hits, is_member, seed=0, permutations=40_000).p_value == pytest.approx(exact, abs=0.01)


def test_the_p_value_is_uniform_where_no_member_is_favoured():
    """Also where a few patients attract most hits."""
    rng = np.random.default_rng(0)
    p_values = []
    for repeat in range(300):
        attraction = rng.gamma(0.3, size=90)
        hits = np.bincount(rng.choice(90, 400, p=attraction / attraction.sum()), minlength=90).astype(float)
        found = share_of_members(hits, rng.permutation(90) < 60, seed=repeat, permutations=199)
        p_values.append(found.p_value)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) <= 0.08


def test_the_interval_of_the_share_covers_one_half_under_the_null():
    rng = np.random.default_rng(1)
    covered = []
    for repeat in range(300):
        attraction = rng.gamma(1.0, size=150)
        hits = np.bincount(rng.choice(150, 600, p=attraction / attraction.sum()), minlength=150).astype(float)
        low, high = share_of_members(hits, rng.permutation(150) < 100, seed=repeat, permutations=9).interval
        covered.append(low <= 0.5 <= high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_the_share_is_at_equal_counts():
    """Three times as many members as others, each patient hit alike."""
    found = share_of_members(np.tile([1.0, 3.0], 40), np.arange(80) < 60, seed=0, permutations=99)
    assert found.value == pytest.approx(0.5)
    assert found.p_value > 0.2


def test_hits_on_members_alone_are_a_share_of_one_and_none_at_all_says_nothing():
    is_member = np.arange(40) < 20
    assert share_of_members(is_member * 2.0, is_member, seed=0, permutations=999).p_value == 1 / 1000
    assert share_of_members(is_member * 2.0, is_member, seed=0, permutations=9).value == 1
    assert share_of_members(np.zeros(40), is_member, seed=0).p_value == 1


def test_a_single_image_nearest_to_everything_proves_nothing():
    hits = np.zeros(60)
    hits[3] = 400
    found = share_of_members(hits, np.arange(60) < 40, seed=0, permutations=999)
    assert found.value == 1
    assert found.interval[0] < 0.1
    assert found.p_value == pytest.approx(2 / 3, abs=0.06)


def ratio(copied, num_members=300, seed=0):
    """Synthetic images of which a share repeats members with a little noise, 5 dimensions."""
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(num_members + 100, 5))
    synthetic = rng.normal(size=(200, 5))
    repeats = int(200 * copied)
    synthetic[:repeats] = real[rng.choice(num_members, repeats)] + 0.01 * rng.normal(size=(repeats, 5))
    return neighbour_ratio(synthetic, real, np.arange(len(real)), np.arange(len(real)) < num_members, seed=seed)


@pytest.mark.parametrize("num_members", [100, 300])
def test_the_ratio_is_one_without_favour_however_many_more_members_there_are(num_members):
    found = ratio(0, num_members)
    assert found.median == pytest.approx(1, abs=0.08)
    assert found.interval[0] < 1 < found.interval[1]


def test_the_ratio_sees_the_share_that_is_copied_in_its_quantiles():
    assert ratio(0.8, 100).median < 0.05
    some = ratio(0.1, 100)
    assert some.median > 0.8
    assert some.quantiles["0.05"] < 0.05


def test_the_interval_of_the_ratio_covers_one_under_the_null():
    covered = [low <= 1 <= high for low, high in (ratio(0, 150, seed).interval for seed in range(60))]
    assert np.mean(covered) >= 0.88
