"""Is it more than chance? Gains of one arm over another, their intervals, and a verdict. Arrays in, numbers out.

A *gain* is a score with minus a score without, on the same test patients and with the same classifier seed (so the same
initial weights), averaged over generator, pool and classifier seeds. Three things make it uncertain: which generators
(with their pools), which classifier seeds and which test patients were drawn. A bootstrap draws them anew, whole:
a generator with its pools, a patient with all images.

- Patients are drawn n of n; of n seeds n - 1, since drawing n of n makes the variance of a mean too small by the factor
  (n - 1)/n, a half for two seeds (Rao & Wu 1988).
- The three cross, and drawing crossed factors at once counts their interactions up to seven times (Owen 2007): a
  fit's own noise on a test image is an interaction of seed and patient, and would widen an interval for nothing. So
  each subset of the three is drawn, and the variance is put together from the parts (`_standard_error`).
- The interval is gain ± t × standard error, Student's t with Satterthwaite's degrees of freedom: near the normal where
  patients dominate, wide where two generators disagree. Percentiles of draws from two generators can't be that honest.
- A level with one seed can't be drawn anew: what would vary there is not in the interval, and the notes say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy import stats

Metric = Literal["auroc", "auprc", "brier"]
"""Scores that need no threshold, whose interval can be computed from the probabilities."""

LOWER_IS_BETTER = frozenset({"brier"})
RESAMPLES = 2000


@dataclass(frozen=True)
class Gain:
    """An arm's gain over a control; positive is better, for the Brier score too.

    value: mean paired gain. interval: of `confidence`. sd: of the bootstrap, which is the gain's standard error.
    minimum_detectable_effect: the true gain that such an experiment would find (5 %, two-sided) four times out of five.
    num_cells: cells that entered, of num_planned; notes: what limits the statement, a sentence each.
    """

    value: float
    interval: tuple[float, float]
    confidence: float
    sd: float
    minimum_detectable_effect: float
    arm_score: float
    control_score: float
    num_generators: int
    num_pools: int
    num_classifier_seeds: int
    num_patients: int
    num_images: int
    num_cells: int
    num_planned: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """word: "helps", "no evidence" or "harms", against both controls; sentence: the same with numbers."""

    word: Literal["helps", "no evidence", "harms"]
    sentence: str


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for many weightings of the same images at once.

    The share of (positive, negative) pairs in which the positive one has the higher score, a tie counting a half, each
    pair weighted by the product of its weights (Mann & Whitney 1947). One sort serves all weightings.

    Args:
        scores: (N,). positive: (N,) bool. weights: (B, N), >= 0; 1 everywhere gives the usual area.

    Returns:
        (B,) in [0, 1]; NaN where a weighting leaves no positive or no negative image.
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)  # groups of equal scores
    weights, positive = weights[:, order], positive[order]
    ups = np.add.reduceat(np.where(positive, weights, 0), starts, axis=1)
    downs = np.add.reduceat(np.where(positive, 0, weights), starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1))


def weighted_auprc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision for many weightings; arguments and result as of `weighted_auroc`.

    Mean of the precision at each score, weighted by the gain in recall there: scikit-learn's `average_precision_score`.
    """
    order = np.argsort(-scores, kind="stable")
    _, starts = np.unique(-scores[order], return_index=True)
    weights, positive = weights[:, order], positive[order]
    ups = np.add.reduceat(np.where(positive, weights, 0), starts, axis=1)
    found, called = np.cumsum(ups, axis=1), np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, found / called, 0)
        area = (ups * precision).sum(axis=1) / found[:, -1]
    return np.where(found[:, -1] < called[:, -1], area, np.nan)


def weighted_brier(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared error of probabilities for many weightings; arguments and result as of `weighted_auroc`."""
    return (weights @ np.square(scores - positive)) / weights.sum(axis=1)


WEIGHTED: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "auroc": weighted_auroc,
    "auprc": weighted_auprc,
    "brier": weighted_brier,
}


def macro(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, metric: Metric, classes: Sequence[int]
) -> np.ndarray:
    """Mean of a score over `classes` for many weightings: scores, labels (N, K), weights (B, N) -> (B,).

    A class without a positive or without a negative image (in the data, or in one weighting) is left out of the mean.
    """
    usable = [k for k in classes if 0 < labels[:, k].sum() < len(labels)]
    if not usable:
        return np.full(len(weights), np.nan)
    values = np.stack([WEIGHTED[metric](scores[:, k], labels[:, k] == 1, weights) for k in usable])
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=0) / there.sum(axis=0)


def score_cube(
    generator_seed: Sequence[int | None],
    pool_seed: Sequence[int | None],
    classifier_seed: Sequence[int],
    scores: Sequence[np.ndarray | Sequence[float] | None],
    *,
    num_images: int,
    classifier_seeds: Sequence[int] | None = None,
) -> np.ndarray:
    """Rows of results as an array (G, P, S, N, K), NaN where a cell is missing or failed (scores None).

    Arms without generator have None as generator and pool seed, and get G = P = 1.

    Args:
        scores: flattened (N, K) probabilities each.
        classifier_seeds: those of the last seed axis in order; default: all found, sorted. Give the same to both arms.
    """
    generators = sorted(set(generator_seed), key=_none_first)
    pools = sorted(set(pool_seed), key=_none_first)
    seeds = sorted(set(classifier_seed)) if classifier_seeds is None else list(classifier_seeds)
    width = next((np.asarray(s).size // num_images for s in scores if s is not None), 1)
    cube = np.full((len(generators), len(pools), len(seeds), num_images, width), np.nan, dtype=np.float32)
    for g, p, s, values in zip(generator_seed, pool_seed, classifier_seed, scores, strict=True):
        if values is not None and s in seeds:
            cube[generators.index(g), pools.index(p), seeds.index(s)] = np.asarray(values).reshape(num_images, width)
    return cube


def _none_first(seed: int | None) -> int:
    return -1 if seed is None else seed


def paired_gain(
    arm: np.ndarray,
    control: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    classes: Sequence[int],
    metric: Metric = "auroc",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:
    """Mean gain of `arm` over `control` with a hierarchical bootstrap interval; see the module.

    Args:
        arm, control: probabilities (G, P, S, N, K) as of `score_cube`, with the same S classifier seeds in order; an
            axis of the control that has length 1 serves all of the arm's. NaN: missing; pairs lacking one side are
            left out.
        labels: (N, K) multi-hot. patients: (N,) any ids.
        classes: the class indices whose scores are averaged (`scores.judged_classes`).

    Raises:
        ValueError: shapes don't fit, or not a single pair is there.
    """
    if arm.shape[2:] != control.shape[2:] or arm.shape[3] != len(labels) or len(labels) != len(patients):
        raise ValueError(
            f"scores {arm.shape}, {control.shape}, labels {labels.shape} and {len(patients)} patients don't fit"
        )
    rng = np.random.default_rng(seed)
    _, patient_of = np.unique(patients.astype(str), return_inverse=True)
    num_patients = int(patient_of.max()) + 1
    drawn = rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=resamples)
    image_weights = np.concatenate([np.ones((1, len(labels))), drawn[:, patient_of]])  # the first row: all as they are
    arm_scores = _cell_scores(arm, labels, image_weights, metric, classes)
    control_scores = _cell_scores(control, labels, image_weights, metric, classes)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    gains = sign * (arm_scores - control_scores)  # (G, P, S, 1 + B)
    there = np.isfinite(gains[..., 0])
    if not there.any():
        raise ValueError("no cell of the arm has a counterpart in the control: nothing to compare")
    value = float(gains[..., 0][there].mean())
    error, freedom = _standard_error(gains, num_patients, rng)
    t = float(stats.t.ppf((1 + confidence) / 2, freedom))
    broadcast = np.broadcast_to(control_scores, gains.shape)[..., 0]
    return Gain(
        value=value,
        interval=(value - t * error, value + t * error),
        confidence=confidence,
        sd=error,
        minimum_detectable_effect=float(stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * error,
        arm_score=float(arm_scores[..., 0][there].mean()),
        control_score=float(broadcast[there].mean()),
        num_generators=there.shape[0],
        num_pools=there.shape[1],
        num_classifier_seeds=there.shape[2],
        num_patients=num_patients,
        num_images=len(labels),
        num_cells=int(there.sum()),
        num_planned=there.size,
        notes=_notes(there, arm.shape[0] > 1 or arm.shape[1] > 1, num_patients),
    )


def _cell_scores(
    cube: np.ndarray, labels: np.ndarray, weights: np.ndarray, metric: Metric, classes: Sequence[int]
) -> np.ndarray:
    """(G, P, S, N, K) -> the score of each cell under each weighting, (G, P, S, B), NaN for missing cells."""
    result = np.full((*cube.shape[:3], len(weights)), np.nan)
    for cell in np.ndindex(*cube.shape[:3]):
        if np.isfinite(cube[cell]).all():
            result[cell] = macro(cube[cell], labels, weights, metric, classes)
    return result


def _standard_error(gains: np.ndarray, num_patients: int, rng: np.random.Generator) -> tuple[float, float]:
    """Standard error of the mean gain, and its degrees of freedom.

    For a set u of factors let J_u be the variance of the mean gain when those are drawn anew and the others kept, and
    I_u the part that only the drawing of all of u together brings (J_u less the I of all smaller sets in u). In a
    crossed design I_u estimates the sum of the variance components of all sets that contain u; the variance of the mean
    is the sum of all components, which is the sum over u of I_u with sign + for one or three factors and - for two.

    Args:
        gains: (G, P, S, 1 + B), the first as observed, the others under B draws of patients; NaN: missing.
    """
    there = np.isfinite(gains[..., 0])
    draws = gains.shape[-1] - 1
    unit = 0 if there.shape[0] > 1 else 1  # what is drawn as a whole: generators, or the pools of the only one
    weights = {
        "generator": np.expand_dims(_draw(there.shape[unit], draws, rng), (1 - unit, 2)),
        "classifier": _draw(there.shape[2], draws, rng)[None, None],
    }

    def joint(factors: frozenset[str]) -> float:
        drawn = np.ones((1, 1, 1, 1))
        for name in factors - {"patient"}:
            drawn = drawn * weights[name]
        values = gains[..., 1:] if "patient" in factors else gains[..., :1]
        return float(np.nanvar(_weighted_means(values, there, drawn)))

    together: dict[frozenset[str], float] = {}  # I_u
    for size in (1, 2, 3):
        for names in combinations(("patient", "generator", "classifier"), size):
            u = frozenset(names)
            together[u] = joint(u) - sum(value for smaller, value in together.items() if smaller < u)
    patient = together[frozenset({"patient"})]
    total = sum((-1) ** (len(u) + 1) * value for u, value in together.items())
    variance = max(total, patient)  # estimates of small components may be negative
    alone = {  # components of one factor only: I_u less what it shares with the others
        name: max(0.0, sum((-1) ** (len(u) + 1) * value for u, value in together.items() if name in u))
        for name in weights
    }
    spread = patient**2 / max(1, num_patients - 1)
    spread += alone["generator"] ** 2 / max(1, there.shape[unit] - 1)
    spread += alone["classifier"] ** 2 / max(1, there.shape[2] - 1)
    return variance**0.5, max(1.0, variance**2 / spread) if spread > 0 else float(num_patients)


def _draw(num: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Counts (num, B) of n - 1 draws with replacement out of n; one draw where there is but one."""
    return rng.multinomial(max(1, num - 1), np.full(num, 1 / num), size=draws).T.astype(np.float64)


def _weighted_means(gains: np.ndarray, there: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over cells of gains (G, P, S, B or 1) with weights that broadcast -> (B,); NaN where nothing was drawn."""
    usable = np.isfinite(gains) & there[..., None]
    total = (weights * np.where(usable, gains, 0)).sum(axis=(0, 1, 2))
    with np.errstate(invalid="ignore"):
        return total / (weights * usable).sum(axis=(0, 1, 2))


def _notes(there: np.ndarray, generated: bool, num_patients: int) -> tuple[str, ...]:
    notes = []
    for name, num in zip(("generator", "pool", "classifier"), there.shape, strict=True):
        if num == 1 and (name == "classifier" or generated):
            notes.append(f"Only one {name} seed: how much the gain varies between {name} seeds is not in the interval.")
        elif 1 < num < 5 and name != "pool":
            notes.append(f"Only {num} {name} seeds: their spread is known poorly; the interval is widened for it.")
    if missing := there.size - int(there.sum()):
        notes.append(f"{missing} of {there.size} cells are missing or failed and left out.")
    if num_patients < 100:
        notes.append(f"Only {num_patients} test patients.")
    return tuple(notes)


def compare(
    rows: Sequence[Mapping[str, Any]],
    labels: np.ndarray,
    patients: np.ndarray,
    *,
    arm: str,
    against: str,
    fraction: float,
    ratio: float,
    classifier: str,
    classes: Sequence[int],
    metric: Metric = "auroc",
    **options: Any,
) -> Gain:
    """`paired_gain` of two arms in rows of results.parquet (with `scores`), at one fraction, ratio and classifier.

    Arms without extra rows have ratio 0 and are found whatever `ratio` is. Only classifier seeds that both arms planned
    count.

    Raises:
        ValueError: one of the arms has no row there, or no pair is complete.
    """
    picked = {
        name: [
            row
            for row in rows
            if row["arm"] == name
            and row["classifier"] == classifier
            and np.isclose(row["fraction"], fraction)
            and (row["ratio"] == 0 or np.isclose(row["ratio"], ratio))
        ]
        for name in (arm, against)
    }
    for name, found in picked.items():
        if not found:
            raise ValueError(f"no row of arm {name} with {classifier} at fraction {fraction:g} and ratio {ratio:g}")
    seeds = sorted(set.intersection(*({row["classifier_seed"] for row in found} for found in picked.values())))
    cubes = [
        score_cube(
            [row["generator_seed"] for row in found],
            [row["pool_seed"] for row in found],
            [row["classifier_seed"] for row in found],
            [row["scores"] if row["status"] == "ok" else None for row in found],
            num_images=len(labels),
            classifier_seeds=seeds,
        )
        for found in picked.values()
    ]
    return paired_gain(cubes[0], cubes[1], labels, patients, classes=classes, metric=metric, **options)


def verdict(against_real: Gain, against_duplicate: Gain, *, metric: str = "AUROC") -> Verdict:
    """In words: synthetic images help (or harm) only if the gain is clear of zero against *both* controls.

    Against real images alone they might help merely by being more rows; repeats of real ones say what that is worth.
    """
    gains = (against_real, against_duplicate)
    parts = " and ".join(
        f"{g.value:+.3f} ({g.confidence:.0%} interval {g.interval[0]:+.3f} to {g.interval[1]:+.3f}) against {name}"
        for g, name in zip(gains, ("the real images alone", "as many repeats of real images"), strict=True)
    )
    first = against_real
    seeds = f"{first.num_generators} generator × {first.num_pools} pool × {first.num_classifier_seeds} classifier seeds"
    basis = f"{seeds}, {first.num_patients} test patients"
    if all(g.interval[0] > 0 for g in gains):
        return Verdict("helps", f"Synthetic images help: {metric} changes by {parts}; {basis}.")
    if all(g.interval[1] < 0 for g in gains):
        return Verdict("harms", f"Synthetic images harm: {metric} changes by {parts}; {basis}.")
    effect = max(g.minimum_detectable_effect for g in gains)
    return Verdict(
        "no evidence",
        f"No evidence that synthetic images help or harm: {metric} changes by {parts}; {basis}; "
        f"a true change below {effect:.3f} would mostly go unseen here.",
    )
