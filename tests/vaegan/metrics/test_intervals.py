import numpy as np
import pytest

from vaegan.metrics.frechet import frechet_distance_of_features
from vaegan.metrics.intervals import Subsampling, disjoint_halves, draw_units, interval, standard_errors
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics

MANY = Subsampling(replicates=400)


def errors_of(statistic, x, y, settings=MANY, groups=None):
    return standard_errors(
        lambda a, b: statistic(x[a], y[b]),
        np.arange(len(x)) if groups is None else groups,
        np.arange(len(y)),
        seed=0,
        settings=settings,
    )


@pytest.mark.parametrize("max_rows", [1500, 30])
def test_the_standard_error_of_a_difference_of_means_is_the_textbooks(max_rows):
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, size=200), rng.normal(0, 3, size=300)
    errors = errors_of(lambda a, b: {"gap": a.mean() - b.mean()}, x, y, Subsampling(2000, max_rows))
    assert errors["gap"] == pytest.approx(np.sqrt(x.var(ddof=1) / 200 + y.var(ddof=1) / 300), rel=0.08)


def test_rows_of_one_patient_count_as_one():
    rng = np.random.default_rng(0)
    once = rng.normal(size=100)
    y = np.zeros(400)

    def statistic(a, b):
        return {"mean": a.mean()}

    alone = errors_of(statistic, once, y)["mean"]
    repeated, patients = np.repeat(once, 4), np.repeat(np.arange(100), 4)
    assert errors_of(statistic, repeated, y, groups=patients)["mean"] == pytest.approx(alone, rel=0.15)
    assert errors_of(statistic, repeated, y)["mean"] < 0.7 * alone  # what ignoring the patients would claim


def test_the_intervals_width_is_how_far_the_metrics_move_from_one_sample_to_the_next():
    rng = np.random.default_rng(0)

    def draw():
        return rng.normal(size=(120, 4)), rng.normal(0.6, 1.2, size=(120, 4))

    def statistic(x, y):
        return {
            "frechet": frechet_distance_of_features(x, y),
            "kernel": kernel_distance(x, y).value,
            "coverage": manifold_metrics(x, y).coverage,
        }

    samples = [statistic(*draw()) for _ in range(150)]
    errors = [errors_of(statistic, *draw(), settings=Subsampling(replicates=40)) for _ in range(8)]
    for name in samples[0]:
        spread = np.std([sample[name] for sample in samples], ddof=1)
        assert np.mean([error[name] for error in errors]) == pytest.approx(spread, rel=0.3), name


def test_where_the_distributions_are_equal_the_kernel_distances_interval_is_not_too_narrow():
    rng = np.random.default_rng(0)

    def statistic(x, y):
        return {"kernel": kernel_distance(x, y).value}

    def draw():
        return rng.normal(size=(100, 4)), rng.normal(size=(100, 4))

    spread = np.std([statistic(*draw())["kernel"] for _ in range(200)], ddof=1)
    for max_rows in (50, 20):
        errors = [errors_of(statistic, *draw(), settings=Subsampling(60, max_rows))["kernel"] for _ in range(10)]
        assert np.mean(errors) > 0.8 * spread


def test_the_interval_is_centred_on_the_number_and_cut_at_what_it_can_reach():
    assert interval(0.5, 0.1) == pytest.approx([0.304, 0.696], abs=1e-3)
    assert interval(0.95, 0.1, 0, 1) == pytest.approx([0.754, 1.0], abs=1e-3)


def test_a_drawn_patient_comes_with_all_of_its_rows():
    groups = np.array(["a", "b", "a", "c", "b", "d"])
    rows = draw_units(np.random.default_rng(0), groups, 0.5)
    assert len(set(groups[rows])) == 2
    assert set(groups[rows]).isdisjoint(np.delete(groups, rows))


def test_halves_share_no_patient_lose_no_row_and_have_about_equal_size():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, size=200).astype(str)
    first, second = disjoint_halves(rng, groups)
    assert set(groups[first]).isdisjoint(groups[second])
    assert sorted([*first, *second]) == list(range(200))
    assert abs(len(first) - len(second)) <= 12


def test_very_unequal_counts_still_leave_enough_rows_on_the_smaller_side():
    assert Subsampling().share(100_000, 60) * 60 >= 12
