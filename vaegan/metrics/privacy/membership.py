"""Membership inference: can somebody who holds a patient's film tell whether the generator was trained on it?

An *attack* gives every real image a score, higher for likelier members, without knowing which ones are. Any score will
do: distances to synthetic images (here), or what a model's own networks say (`vaegan.attacks`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom, norm

from vaegan.metrics.auc import area
from vaegan.metrics.neighbours import nearest

MIN_PATIENTS = 20
"""On either side: fewer have no interval worth the name."""
_FEW = 1e-12


@dataclass(frozen=True)
class Population:
    """Real images an attack is tried on: members, then held-out ones."""

    is_member: np.ndarray
    """(N,) bool."""
    patients: np.ndarray
    """(N,) int64 numbers; a patient is a member with all images or with none."""
    labels: np.ndarray
    """(N, K) multi-hot, K may be 0."""

    @property
    def num_patients(self) -> tuple[int, int]:
        """Members and held-out."""
        return len(np.unique(self.patients[self.is_member])), len(np.unique(self.patients[~self.is_member]))


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    interval: tuple[float, float]


def attack_auc(scores: np.ndarray, population: Population, level: float = 0.95) -> Estimate:
    """AUC of an attack over images, P(a member's score exceeds a held-out image's), patients being the units.

    Where every member outranks every held-out image the standard error is 0 and means nothing: the interval's lower end
    is then the rule of three's, 1 - 3 / (the smaller side's patients).
    """
    is_member, patients = population.is_member, population.patients
    found = area(scores[is_member], scores[~is_member], patients[is_member], patients[~is_member])
    half_width = float(norm.ppf((1 + level) / 2)) * found.standard_error
    if half_width < _FEW:
        half_width = 3 / min(population.num_patients)
    return Estimate(found.auc, (max(0.0, found.auc - half_width), min(1.0, found.auc + half_width)))


def recognised(scores: np.ndarray, population: Population, false_alarms: float) -> Estimate:
    """Share of member patients recognised by a threshold that few held-out patients pass: TPR at a low FPR.

    A mean over patients hides the few whom a model gives away; this is what Carlini et al. 2022 ask for. A patient's
    score is that of the most telling film. The interval (95 %) needs no normal approximation for either unknown: where
    the threshold lies (order statistics of held-out patients) and how many members pass it (Clopper & Pearson). With
    few held-out patients no threshold is known to have so few false alarms, and the lower end is 0.

    Args:
        false_alarms: share of held-out patients that may pass, such as 0.01.
    """
    members, others = patient_scores(scores, population)
    falling = np.sort(others)[::-1]
    count = len(others)
    error = 0.0125  # of each of the two steps, on each side

    def passing(rank: int) -> int:
        """Members above the threshold that just keeps the `rank` best held-out patients out."""
        return int((members > falling[rank]).sum()) if rank < count else len(members)

    allowed = int(np.floor(false_alarms * count))
    # with the (r + 1)-th best held-out score as threshold, the false alarms' share is Beta(r + 1, count - r)
    ranks = np.arange(count + 1)
    surely_few = ranks[:count][beta.cdf(false_alarms, ranks[:count] + 1, count - ranks[:count]) >= 1 - error]
    surely_enough = ranks[binom.cdf(ranks, count, false_alarms) >= 1 - error]
    low = clopper_pearson(passing(int(surely_few.max())), len(members), error)[0] if len(surely_few) else 0.0
    high = clopper_pearson(passing(int(surely_enough.min())), len(members), error)[1]
    value = passing(allowed) / len(members)
    return Estimate(value, (min(low, value), max(high, value)))


def worst_class(scores: np.ndarray, population: Population) -> tuple[int, Estimate] | None:
    """The class whose patients an attack tells apart best, and its AUC; None where no class has patients enough.

    The interval is wider by Bonferroni's correction for the number of classes looked at.
    """
    judged = []
    for number in range(population.labels.shape[1]):
        rows = np.flatnonzero(population.labels[:, number])
        part = Population(population.is_member[rows], population.patients[rows], population.labels[rows])
        if min(part.num_patients) >= MIN_PATIENTS:
            judged.append((number, rows, part))
    level = 1 - 0.05 / max(1, len(judged))
    found = [(number, attack_auc(scores[rows], part, level)) for number, rows, part in judged]
    return max(found, key=lambda pair: pair[1].value, default=None)


def patient_scores(scores: np.ndarray, population: Population) -> tuple[np.ndarray, np.ndarray]:
    """Each patient's highest score: of members and of held-out patients, in the order of their numbers."""
    members, others = (_highest(scores[side], population.patients[side])[1] for side in _sides(population))
    return members, others


@dataclass(frozen=True)
class Exposed:
    """A member patient and how far an attack's score stands out."""

    patient: int
    row: int
    """Row of the most telling image in the population."""
    score: float
    excess: float
    """Robust deviations (1.48 median absolute ones) of held-out patients above their median."""
    passed_by: float
    """Share of held-out patients whose score is as high or higher."""


def most_exposed(scores: np.ndarray, population: Population, count: int = 10) -> list[Exposed]:
    """The member patients with the highest scores, worst first."""
    (member_rows, other_rows) = (np.flatnonzero(side) for side in _sides(population))
    _, others, _ = _highest(scores[other_rows], population.patients[other_rows])
    patients, highest, place = _highest(scores[member_rows], population.patients[member_rows])
    centre = np.median(others)
    spread = max(1.4826 * float(np.median(np.abs(others - centre))), _FEW)
    return [
        Exposed(
            int(patients[i]),
            int(member_rows[place[i]]),
            float(highest[i]),
            float((highest[i] - centre) / spread),
            float((others >= highest[i]).mean()),
        )
        for i in np.argsort(-highest, kind="stable")[:count]
    ]


def distance_scores(real: np.ndarray, patients: np.ndarray, synthetic: np.ndarray) -> dict[str, np.ndarray]:
    """Attacks that see nothing but synthetic images, (N,) each.

    `distance`: minus the distance to the nearest synthetic image (GAN-Leaks, Chen et al. 2020, the full black box).
    `relative distance`: the same on a logarithmic scale, less how far the nearest real image of another patient is. An
    ordinary film is near to everything and an odd one to nothing; measured against that, a member shows better
    (calibration by difficulty, Watson et al. 2022; the real images stand for a reference model).

    Args:
        real: features (N, D) of members and held-out together. patients: (N,) numbers. synthetic: features (M, D).
    """
    to_synthetic = nearest(real, synthetic).distances[:, 0]
    to_others = nearest(real, real, groups_x=patients, groups_y=patients).distances[:, 0]
    tiny = _FEW * max(float(np.median(to_others)), _FEW)
    return {
        "distance": -to_synthetic,
        "relative distance": np.log(np.maximum(to_others, tiny)) - np.log(np.maximum(to_synthetic, tiny)),
    }


def _highest(scores: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients, the highest score of each, and its place: (P,) each."""
    order = np.lexsort((-scores, patients))
    numbers, first = np.unique(patients[order], return_index=True)
    return numbers, scores[order[first]], order[first]


def _sides(population: Population) -> tuple[np.ndarray, np.ndarray]:
    return population.is_member, ~population.is_member


def clopper_pearson(successes: int, trials: int, error: float) -> tuple[float, float]:
    """Exact limits of a proportion, each with at most `error` probability of missing it."""
    low = float(beta.ppf(error, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - error, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high
