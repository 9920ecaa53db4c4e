import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from downstream.statistics import (
    compare,
    macro,
    paired_gain,
    score_cube,
    verdict,
    weighted_auprc,
    weighted_auroc,
    weighted_brier,
)

RNG = np.random.default_rng


def ties(num: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, truth, and whole-number weights (3, num) with zeros."""
    rng = RNG(seed)
    return rng.integers(0, 8, num) / 8, rng.random(num) < 0.4, rng.integers(0, 4, (3, num)).astype(float)


def experiment(
    rng: np.random.Generator,
    *,
    generators: int = 3,
    pools: int = 2,
    seeds: int = 3,
    patients: int = 100,
    effect: float = 0.0,
    generator_sd: float = 0.2,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of an arm and a control on two films per patient; the arm separates the classes by `effect` more."""
    patient = np.repeat(np.arange(patients), 2)
    y = rng.integers(0, 2, patients)[patient]
    difficulty = rng.normal(size=patients)[patient] * 0.7 + rng.normal(size=2 * patients) * 0.5

    def fit(separation: float) -> np.ndarray:
        noise = rng.normal(size=2 * patients) * 0.6
        return (y * (separation + rng.normal() * 0.05) + difficulty + noise)[:, None]

    control = np.stack([fit(1.2) for _ in range(seeds)])[None, None]
    of_generator = 1.2 + effect + rng.normal(size=generators) * generator_sd
    arm = np.stack([[[fit(of_generator[g]) for _ in range(seeds)] for _ in range(pools)] for g in range(generators)])
    return arm, control, y[:, None], patient


@pytest.mark.parametrize(
    ("fast", "reference"),
    [(weighted_auroc, roc_auc_score), (weighted_auprc, average_precision_score), (weighted_brier, brier_score_loss)],
)
def test_weighted_scores_agree_with_scikit_learn_ties_and_zero_weights_included(fast, reference):
    scores, positive, weights = ties()
    expected = [reference(positive, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(fast(scores, positive, weights), expected, rtol=1e-12)


@pytest.mark.parametrize("fast", [weighted_auroc, weighted_auprc, weighted_brier])
def test_a_weight_of_two_is_an_image_seen_twice(fast):
    scores, positive, weights = ties()
    rows = np.repeat(np.arange(len(scores)), weights[0].astype(int))
    np.testing.assert_allclose(
        fast(scores, positive, weights[:1]), fast(scores[rows], positive[rows], np.ones((1, len(rows)))), rtol=1e-12
    )


def test_scores_that_say_nothing_have_an_area_of_a_half_and_one_class_alone_has_none():
    positive = np.array([True, False, True, False])
    assert weighted_auroc(np.zeros(4), positive, np.ones((1, 4))) == [0.5]
    assert np.isnan(weighted_auroc(np.arange(4.0), positive, positive[None].astype(float))).all()
    assert np.isnan(weighted_auprc(np.arange(4.0), positive, positive[None].astype(float))).all()


def test_a_class_absent_from_the_test_split_does_not_move_the_mean():
    rng = RNG(0)
    labels, scores = rng.integers(0, 2, (50, 3)), rng.random((50, 3))
    labels[:, 2] = 0
    ones = np.ones((1, 50))
    assert macro(scores, labels, ones, "auroc", [0, 1, 2]) == macro(scores, labels, ones, "auroc", [0, 1])
    assert np.isnan(macro(scores, labels, ones, "auroc", [2])).all()


def test_the_gain_is_the_mean_difference_of_the_paired_areas():
    arm, control, labels, patients = experiment(RNG(0))
    area = lambda scores: roc_auc_score(labels[:, 0], scores[:, 0])  # noqa: E731
    expected = [area(arm[g, p, s]) - area(control[0, 0, s]) for g in range(3) for p in range(2) for s in range(3)]
    gain = paired_gain(arm, control, labels, patients, classes=[0], resamples=50)
    assert gain.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert gain.arm_score - gain.control_score == pytest.approx(gain.value)
    assert (gain.num_cells, gain.num_planned, gain.num_patients, gain.num_images) == (18, 18, 100, 200)


def test_an_arm_against_itself_gains_exactly_nothing():
    arm, _, labels, patients = experiment(RNG(0))
    gain = paired_gain(arm, arm, labels, patients, classes=[0], resamples=50)
    assert (gain.value, gain.interval, gain.sd) == (0, (0, 0), 0)


@pytest.mark.parametrize("generators", [2, 4])
@pytest.mark.parametrize("generator_sd", [0.0, 0.2])
def test_under_no_effect_the_interval_holds_zero_about_95_times_in_100(generators, generator_sd):
    rng = RNG(1)
    inside, values, errors = [], [], []
    for trial in range(100):
        arm, control, labels, patients = experiment(
            rng, generators=generators, pools=1, patients=60, generator_sd=generator_sd
        )
        gain = paired_gain(arm, control, labels, patients, classes=[0], resamples=200, seed=trial)
        inside.append(gain.interval[0] <= 0 <= gain.interval[1])
        values.append(gain.value)
        errors.append(gain.sd)
    assert 0.87 <= np.mean(inside) <= 1  # 100 trials: 0.95 ± 0.065 at three sd, and few generators cost a little
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)


def test_a_large_effect_is_found_and_its_reverse_is_harm():
    arm, control, labels, patients = experiment(RNG(2), effect=1.5, generators=4)
    gain = paired_gain(arm, control, labels, patients, classes=[0], resamples=300)
    assert gain.interval[0] > 0
    assert gain.minimum_detectable_effect < gain.value
    harm = paired_gain(-arm, control, labels, patients, classes=[0], resamples=300)
    assert verdict(gain, gain).word == "helps"
    assert verdict(harm, harm).word == "harms"
    assert verdict(gain, harm).word == "no evidence"


def test_a_gain_over_real_images_that_repeats_also_bring_is_no_evidence():
    arm, control, labels, patients = experiment(RNG(2), effect=1.5, generators=4)
    over_real = paired_gain(arm, control, labels, patients, classes=[0], resamples=100)
    over_repeats = paired_gain(arm, arm, labels, patients, classes=[0], resamples=100)
    result = verdict(over_real, over_repeats)
    assert result.word == "no evidence"
    assert "repeats of real images" in result.sentence


def test_films_of_one_patient_are_not_independent_evidence():
    arm, control, labels, patients = experiment(RNG(3), generators=1, pools=1, seeds=1, patients=60)
    copies = np.tile(np.arange(len(labels)), 4)
    once = paired_gain(arm, control, labels, patients, classes=[0], resamples=400)
    tiled = arm[..., copies, :], control[..., copies, :], labels[copies]
    clustered = paired_gain(*tiled, patients[copies], classes=[0], resamples=400)
    as_if_new = paired_gain(*tiled, np.arange(len(copies)), classes=[0], resamples=400)
    assert clustered.sd == pytest.approx(once.sd, rel=0.1)
    assert as_if_new.sd < 0.75 * once.sd


def test_order_of_images_seeds_and_names_of_patients_do_not_move_the_gain():
    arm, control, labels, patients = experiment(RNG(4))
    gain = paired_gain(arm, control, labels, patients, classes=[0], resamples=300)
    rows, seeds = RNG(0).permutation(len(labels)), [2, 0, 1]
    moved = paired_gain(
        arm[::-1, :, seeds][..., rows, :], control[:, :, seeds][..., rows, :], labels[rows], patients[rows] + 1000,
        classes=[0], resamples=300,
    )  # fmt: skip
    assert moved.value == pytest.approx(gain.value)
    assert moved.sd == pytest.approx(gain.sd, rel=0.25)  # another draw of the same bootstrap


def test_any_rising_function_of_the_scores_leaves_the_gain_in_auroc_as_it_is():
    arm, control, labels, patients = experiment(RNG(5))
    squash = lambda x: 1 / (1 + np.exp(-x / 2))  # noqa: E731
    first = paired_gain(arm, control, labels, patients, classes=[0], resamples=50)
    second = paired_gain(squash(arm), squash(control), labels, patients, classes=[0], resamples=50)
    assert second.value == pytest.approx(first.value)
    assert second.sd == pytest.approx(first.sd)


def test_a_smaller_brier_score_is_a_positive_gain():
    arm, control, labels, patients = experiment(RNG(6))
    perfect = np.broadcast_to(labels.astype(float), arm.shape)
    gain = paired_gain(perfect, np.full_like(control, 0.5), labels, patients, classes=[0], metric="brier", resamples=50)
    assert gain.value == pytest.approx(0.25)


def test_missing_cells_are_left_out_and_told():
    arm, control, labels, patients = experiment(RNG(7))
    arm[1, 0, 2] = np.nan
    gain = paired_gain(arm, control, labels, patients, classes=[0], resamples=50)
    assert gain.num_cells == 17
    assert any("1 of 18 cells" in note for note in gain.notes)
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_gain(arm * np.nan, control, labels, patients, classes=[0], resamples=50)


def test_a_single_seed_is_told_since_the_interval_cannot_hold_its_spread():
    arm, control, labels, patients = experiment(RNG(8), generators=1, pools=1, seeds=1)
    notes = " ".join(paired_gain(arm, control, labels, patients, classes=[0], resamples=50).notes)
    assert "Only one classifier seed" in notes


def row(
    arm: str, seed: int, scores: np.ndarray, *, ratio: float = 0.0, generator: int | None = None, status: str = "ok"
) -> dict[str, object]:
    return {
        "arm": arm, "classifier": "small_cnn", "fraction": 0.1, "ratio": ratio, "generator_seed": generator,
        "pool_seed": None if generator is None else 0, "classifier_seed": seed, "status": status,
        "scores": scores.reshape(-1).tolist() if status == "ok" else None,
    }  # fmt: skip


def test_rows_of_results_become_the_same_gain_as_the_arrays_they_were_made_of():
    arm, control, labels, patients = experiment(RNG(9), pools=1)
    rows = [row("real", s, control[0, 0, s]) for s in range(3)]
    rows += [row("synthetic", s, arm[g, 0, s], ratio=1.0, generator=g) for g in range(3) for s in range(3)]
    rows += [row("synthetic", s, arm[0, 0, s] * 0, ratio=2.0, generator=0) for s in range(3)]  # another ratio: not read
    where = {"arm": "synthetic", "against": "real", "fraction": 0.1, "ratio": 1.0, "classifier": "small_cnn"}
    where["classes"] = [0]
    expected = paired_gain(arm, control, labels, patients, classes=[0], resamples=50)
    found = compare(rows, labels, patients, **where, resamples=50)
    assert found.value == pytest.approx(expected.value)
    assert found.interval == pytest.approx(expected.interval)
    rows[4] = row("synthetic", 1, arm[0, 0, 1], ratio=1.0, generator=0, status="failed")
    assert compare(rows, labels, patients, **where, resamples=50).num_cells == 8
    with pytest.raises(ValueError, match="no row of arm classical"):
        compare(rows, labels, patients, **(where | {"arm": "classical"}))


def test_a_cube_puts_each_cell_at_its_seeds_whatever_the_order_of_rows():
    scores = [np.full(4, i, dtype=float) for i in range(4)]
    cube = score_cube([1, 0, 1, 0], [0, 0, 0, 0], [5, 3, 3, 5], scores, num_images=2)
    assert cube.shape == (2, 1, 2, 2, 2)
    assert cube[:, 0, :, 0, 0].tolist() == [[1, 3], [2, 0]]
