import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from vaegan.metrics import kernel
from vaegan.metrics.kernel import kernel_distance, polynomial_kernel


def sets(num_real, num_synthetic, dim=7, shift=0.5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_real, dim)), rng.normal(shift, 1, size=(num_synthetic, dim))


def naive(x, y):
    """Gretton et al. 2012, Eq. 3, term by term."""

    def within(a):
        return np.mean([polynomial_kernel(a, a)[i, j] for i in range(len(a)) for j in range(len(a)) if i != j])

    return within(x) + within(y) - 2 * polynomial_kernel(x, y).mean()


def test_whole_sets_give_the_unbiased_estimate_term_by_term():
    real, synthetic = sets(9, 9)
    result = kernel_distance(real, synthetic)
    assert result.value == pytest.approx(naive(real, synthetic), rel=1e-12)
    assert (result.subsets, result.subset_size, result.std) == (1, 9, 0)


@pytest.mark.parametrize(("subsets", "size"), [(100, 20), (3, 5)])  # kernels shared by all subsets; computed for each
def test_subsets_give_torch_fidelitys_number(subsets, size):
    real, synthetic = sets(60, 45)
    theirs = kid_features_to_metric(
        torch.from_numpy(synthetic), torch.from_numpy(real), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    ours = kernel_distance(real, synthetic, subsets=subsets, subset_size=size)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_both_ways_to_sum_agree_and_blocks_change_nothing(monkeypatch):
    x, y = sets(40, 30)
    draws = [(np.arange(0, 20), np.arange(10, 30)), (np.arange(5, 25), np.arange(0, 20))]
    expected = kernel._per_subset(x, y, draws)
    monkeypatch.setattr(kernel, "_BLOCK_ENTRIES", 100)
    np.testing.assert_allclose(kernel._shared(x, y, draws), expected, rtol=1e-10)


def test_fewer_rows_than_a_subset_make_the_subset_smaller_and_say_so():
    result = kernel_distance(*sets(50, 30))
    assert (result.subsets, result.subset_size) == (100, 30)


def test_its_expectation_is_zero_for_equal_distributions_at_any_count():
    rng = np.random.default_rng(0)
    for count in (10, 40):
        values = [kernel_distance(rng.normal(size=(count, 3)), rng.normal(size=(count, 3))).value for _ in range(300)]
        assert abs(np.mean(values)) < 3.5 * np.std(values) / np.sqrt(300)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="needs 2"):
        kernel_distance(*sets(1, 10))
