"""Whether synthetic images lie nearer to members than to other real images: the data-copying question.

Under the null hypothesis, that the generator favours no member, it is chance alone that made one patient a member and
another a held-out one: the labels of patients may be exchanged. So the nearest real image of each synthetic one is
looked up once in members and held-out together, and labels are dealt again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from vaegan.metrics.intervals import Z_95
from vaegan.metrics.neighbours import nearest_in_subsets

PERMUTATIONS = 9999
DRAWS = 20
_PERMUTED_ENTRIES = 4_000_000  # labels dealt at a time


@dataclass(frozen=True)
class Share:
    """How many of some hits fall on members, as if there were as many held-out patients as members."""

    value: float
    """0.5 where members are not favoured, 1 where only members are hit."""
    interval: tuple[float, float]
    """95 %, patients being the units."""
    p_value: float
    """Of the permutation test, one-sided: how often dealt labels give members as many hits or more."""


def share_of_members(hits: np.ndarray, is_member: np.ndarray, *, seed: int, permutations: int = PERMUTATIONS) -> Share:
    """Share of hits on members at equal counts, with an exact test.

    With a and b the hits per member and per held-out patient, the share is a / (a + b). Its interval is symmetric in
    log(a / b), whose variance is that of two independent means over patients (delta method): a patient that is hit a
    hundred times counts as one patient. Student's t has as many degrees of freedom as patients share the hits evenly
    (Kish's effective number), since hubs make the variance itself uncertain. Where only k patients of one side are hit,
    the limit is that of k draws, 0.05^(1/k). The p-value is exact in any number of patients (Phipson & Smyth 2010).

    Args:
        hits: (P,) hits on each patient. is_member: bool (P,), some of either.
    """
    members, others = hits[is_member], hits[~is_member]
    a, b = members.mean(), others.mean()
    if not a + b:
        return Share(0.5, (0.0, 1.0), 1.0)
    value = float(a / (a + b))
    if a and b:
        error = np.sqrt(sum(np.var(side, ddof=1) / len(side) / side.mean() ** 2 for side in (members, others)))
        effective = hits.sum() ** 2 / (hits**2).sum()
        low, high = np.log(a / b) + np.array([-1, 1]) * t.ppf(0.975, max(effective - 1, 1)) * error
        interval = (float(1 / (1 + np.exp(-low))), float(1 / (1 + np.exp(-high))))
    else:
        limit = float(0.05 ** (1 / np.count_nonzero(hits)))
        interval = (limit, 1.0) if a else (0.0, 1 - limit)
    as_many = sum(
        int((total >= members.sum()).sum()) for total in _dealt_totals(hits, len(members), seed, permutations)
    )
    return Share(value, interval, (1 + as_many) / (1 + permutations))


def _dealt_totals(hits: np.ndarray, num_members: int, seed: int, permutations: int) -> Iterator[np.ndarray]:
    """Hits on members after labels of patients were dealt again, block by block; only patients with hits matter."""
    rng = np.random.default_rng(seed)
    hit = hits[hits > 0]
    step = max(1, _PERMUTED_ENTRIES // len(hit))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        # the number of members among the patients with hits, then which ones: the same as dealing to all patients
        among = rng.hypergeometric(len(hit), len(hits) - len(hit), num_members, count)
        order = rng.random((count, len(hit))).argsort(axis=1)
        yield np.where(np.arange(len(hit)) < among[:, None], hit[order], 0).sum(axis=1)


@dataclass(frozen=True)
class Ratio:
    """d(synthetic, nearest member) / d(synthetic, nearest held-out) with equally many patients on both sides."""

    median: float
    interval: tuple[float, float]
    """95 %, over other patients and other synthetic images."""
    quantiles: dict[str, float]
    """Of the ratio over synthetic images, by level: "0.01", "0.05", "0.25", "0.5", "0.75"."""


def neighbour_ratio(
    synthetic: np.ndarray, real: np.ndarray, patients: np.ndarray, is_member: np.ndarray, *, seed: int
) -> Ratio:
    """Nearest-neighbour ratio from `DRAWS` draws of equally many patients, and its interval from halves of them.

    The nearer of many is nearer than that of few, so both sides get the same number of patients: all of the smaller
    side and as many of the larger. The interval's error is the spread over draws of half of the patients of each side
    (see `metrics.intervals` for why halves have the right spread), with half of the synthetic images.

    Args:
        synthetic, real: features (M, D) and (N, D). patients: (N,) numbers. is_member: bool (N,), one per patient.
    """
    rng = np.random.default_rng(seed)
    sides = [np.unique(patients[is_member]), np.unique(patients[~is_member])]
    fewest = min(len(side) for side in sides)
    counts = [fewest] * DRAWS + [max(1, fewest // 2)] * DRAWS
    subsets = np.array(
        [np.isin(patients, rng.choice(side, count, replace=False)) for count in counts for side in sides]
    )
    distances = nearest_in_subsets(synthetic, real, subsets).reshape(len(counts), 2, len(synthetic))
    smallest = np.finfo(np.float64).tiny
    ratios = (distances[:, 0] + smallest) / (distances[:, 1] + smallest)  # 1 where both are copies
    whole, halves = ratios[:DRAWS], ratios[DRAWS:]
    medians = [float(np.median(rng.choice(half, max(1, len(half) // 2), replace=False))) for half in halves]
    error = float(np.std(np.log(np.maximum(medians, 1e-9)), ddof=1))
    typical = np.exp(np.log(np.clip(whole, 1e-9, 1e9)).mean(axis=0))  # per synthetic image, over the draws
    median = float(np.median(typical))
    return Ratio(
        median=median,
        interval=(float(median * np.exp(-Z_95 * error)), float(median * np.exp(Z_95 * error))),
        quantiles={str(level): float(np.quantile(typical, level)) for level in (0.01, 0.05, 0.25, 0.5, 0.75)},
    )
