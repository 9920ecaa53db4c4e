import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from vaegan.metrics.privacy.membership import (
    Population,
    attack_auc,
    distance_scores,
    most_exposed,
    patient_scores,
    recognised,
    worst_class,
)


def population(members, held_out, films=1):
    """So many patients of either kind, each with `films` images, two classes in turn."""
    patients = np.repeat(np.arange(members + held_out), films)
    labels = np.eye(2, dtype=np.uint8)[patients % 2]
    return Population(patients < members, patients, labels)


def scored(members, held_out, films=1, shift=0.0, seed=0):
    """Normal scores, of which half the variance is the patient's; members' are higher by `shift`."""
    rng = np.random.default_rng(seed)
    people = population(members, held_out, films)
    own = rng.normal(size=members + held_out)[people.patients]
    return np.sqrt(0.5) * (own + rng.normal(size=len(own))) + shift * people.is_member, people


def test_the_auc_is_sklearns():
    scores, people = scored(40, 30, films=2, shift=0.5)
    scores = np.round(scores, 1)  # ties
    assert attack_auc(scores, people).value == pytest.approx(roc_auc_score(people.is_member, scores))


@pytest.mark.parametrize("shift", [0, 0.7])
def test_the_interval_covers_the_auc_where_films_of_a_patient_are_alike(shift):
    truth = norm.cdf(shift / np.sqrt(2))
    intervals = [attack_auc(*scored(60, 40, 4, shift, seed)).interval for seed in range(300)]
    assert 0.92 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.98


def test_an_attack_that_is_always_right_is_not_certain():
    people = population(50, 30)
    found = attack_auc(people.is_member.astype(float), people)
    assert (found.value, found.interval) == (1, (0.9, 1))


@pytest.mark.parametrize(("held_out", "shift"), [(100, 0), (100, 1.5), (600, 0), (600, 1.5)])
def test_the_interval_covers_the_share_of_recognised_patients(held_out, shift):
    """True rates of the threshold that 1 % of the held-out population passes."""
    truth = norm.sf(norm.isf(0.01) - shift)
    intervals = [recognised(*scored(200, held_out, 1, shift, seed), 0.01).interval for seed in range(200)]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.95


def test_what_100_and_600_held_out_patients_can_say_of_one_per_cent_false_alarms():
    null_small, null_large = (recognised(*scored(400, count, seed=1), 0.01) for count in (100, 600))
    assert null_small.interval[0] == 0
    assert null_small.interval[1] < 0.15
    assert null_large.interval[1] < 0.06
    plain = recognised(*scored(400, 600, shift=3), 0.01)
    assert plain.interval[0] > 0.25


def test_a_patient_counts_by_its_most_telling_film():
    people = Population(np.array([True, True, False, False]), np.array([5, 5, 2, 2]), np.zeros((4, 0)))
    members, others = patient_scores(np.array([1.0, 3.0, 2.0, -1.0]), people)
    assert (members.tolist(), others.tolist()) == ([3.0], [2.0])


def test_few_leaked_patients_show_in_the_tail_and_in_the_list_not_in_the_auc():
    scores, people = scored(400, 400)
    leaked = np.arange(0, 400, 20)
    scores[leaked] += 10
    assert attack_auc(scores, people).value < 0.56
    assert recognised(scores, people, 0.01).value >= 0.05
    worst = most_exposed(scores, people, 20)
    assert {exposed.patient for exposed in worst} == set(leaked)
    assert all(exposed.passed_by == 0 and exposed.excess > 5 for exposed in worst)
    assert [exposed.score for exposed in worst] == sorted((exposed.score for exposed in worst), reverse=True)


def test_the_worst_class_is_found_and_small_ones_are_left_out():
    scores, people = scored(100, 100)
    scores[people.is_member & (people.labels[:, 1] > 0)] += 2
    number, found = worst_class(scores, people)
    assert number == 1
    assert found.value > 0.85
    assert worst_class(scores[:50], Population(people.is_member[:50], people.patients[:50], people.labels[:50])) is None


def leaking(seed=0, noise=0.05):
    """Members and others in 6 dimensions, dense and sparse ones, and synthetic points next to members."""
    rng = np.random.default_rng(seed)
    scale = rng.gamma(1, size=(200, 1))
    real = rng.normal(size=(200, 6)) * scale
    chosen = rng.choice(100, 60, replace=False)
    return real, real[chosen] + noise * scale[chosen] * rng.normal(size=(60, 6))


def test_distance_attacks_find_members_and_nothing_where_there_is_nothing():
    people = population(100, 100)
    real, synthetic = leaking()
    for scores in distance_scores(real, people.patients, synthetic).values():
        assert attack_auc(scores, people).value > 0.7
    for scores in distance_scores(real, people.patients, np.random.default_rng(1).normal(size=(60, 6))).values():
        assert attack_auc(scores, people).interval[0] < 0.5 < attack_auc(scores, people).interval[1]


def test_calibration_by_difficulty_recognises_more_patients():
    people = population(100, 100)
    real, synthetic = leaking(noise=0.3)
    scores = distance_scores(real, people.patients, synthetic)
    plain, relative = (attack_auc(scores[name], people).value for name in ("distance", "relative distance"))
    assert relative > plain + 0.05


def test_scores_do_not_depend_on_the_order_of_images():
    real, synthetic = leaking()
    patients = np.arange(200) // 2
    order = np.random.default_rng(3).permutation(200)
    scores, moved = distance_scores(real, patients, synthetic), distance_scores(real[order], patients[order], synthetic)
    for name, values in scores.items():
        np.testing.assert_allclose(moved[name], values[order], rtol=1e-12)
