"""Measurements to `Check`s: what was measured, how it is judged, and one plain sentence about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vaegan.metrics.intervals import Z_95
from vaegan.metrics.privacy.copies import Matches
from vaegan.metrics.privacy.gate import Check, Scope, Tolerances, Verdict, judge
from vaegan.metrics.privacy.membership import (
    MIN_PATIENTS,
    Estimate,
    Population,
    attack_auc,
    clopper_pearson,
    recognised,
    worst_class,
)
from vaegan.metrics.privacy.proximity import neighbour_ratio, share_of_members
from vaegan.metrics.two_sample import two_sample_auc

MIN_SYNTHETIC = 30
MAX_COMPARED = 2000  # patients a side that `distinguishable` trains on
LOW, VERY_LOW = 0.01, 0.001
MIN_FOR_VERY_LOW = 1000
"""Held-out patients: one of them is the false-alarm rate."""


def check_copies(matches: Matches, population: Population, tolerances: Tolerances, seed: int) -> Check:
    """Copies of members, against copies of held-out images: what the same rule finds where nothing can be copied.

    Fails if there are copies of members and none of held-out images, or if they favour members by the permutation test.
    Passes if the share of copies beyond the control is surely below the tolerance.
    """
    total = len(matches.rows)
    of_member = population.is_member[matches.rows]
    copies = int((matches.copied & of_member).sum())
    control = int((matches.copied & ~of_member).sum())
    share_of_pool = float(population.is_member.mean())
    p_value = _favours_members(matches, population, seed)
    excess = _excess(copies, control, total, share_of_pool)
    if copies and (not control or p_value <= tolerances.significance):
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.PASS if excess.interval[1] <= tolerances.copies else Verdict.UNKNOWN
    patients = len(np.unique(population.patients[matches.rows[matches.copied & of_member]]))
    return Check(
        name="copies",
        scope="images",
        value=excess.value,
        interval=excess.interval,
        tolerance=tolerances.copies,
        verdict=verdict,
        sentence=_copies_sentence(verdict, copies, patients, control, total, excess),
        detail={
            "synthetic_images": total,
            "copies_of_members": copies,
            "copied_member_patients": patients,
            "copies_of_held_out": control,
            "same_pixels": int(matches.same_pixels.sum()),
            "found_by": {name: int((matches.copied & found).sum()) for name, found in matches.proposed.items()},
            "expected_share_on_members": share_of_pool,
            "p_value": p_value,
            "highest_correlation": float(matches.alignment.correlation.max()),
            "highest_gap": float(matches.gap.max()),
        },
    )


def _copies_sentence(verdict: Verdict, copies: int, patients: int, control: int, total: int, excess: Estimate) -> str:
    found = (
        f"{copies} of {total} synthetic images are copies or near copies of images the generator was trained on "
        f"({patients} patients), and {control} resemble images it never saw as closely"
    )
    if verdict == Verdict.FAIL:
        return f"{found}: it gives out its patients' images."
    if verdict == Verdict.PASS:
        return f"{found}: at most {_percent(excess.interval[1])} are copies."
    return f"{found}: with so few images, up to {_percent(excess.interval[1])} of what it makes could be copies."


def _favours_members(matches: Matches, population: Population, seed: int) -> float:
    """p-value of the permutation test that copies fall on members as they fall on others; 1 without held-out images."""
    hits, is_member = _hits(population, matches.rows[matches.copied])
    if is_member.all() or not is_member.any():
        return 1.0
    return share_of_members(hits, is_member, seed=seed).p_value


def _hits(population: Population, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each patient's images are among the rows, and whether it is a member: (P,) each."""
    patients, unit = np.unique(population.patients, return_inverse=True)
    is_member = np.zeros(len(patients), bool)
    is_member[unit[population.is_member]] = True
    return np.bincount(unit[rows], minlength=len(patients)).astype(float), is_member


def _excess(copies: int, control: int, total: int, share_of_pool: float) -> Estimate:
    """Share of synthetic images that copy members beyond what the control explains, 95 % or more.

    If a share q of images copies a member on purpose and others hit members and held-out images alike, as often as
    there are of each, then P(copy) (P(member | copy) - share_of_pool) / (1 - share_of_pool) = q. Both factors have
    exact limits; with no copy at all it is the rule of three: 3 / total.
    """
    any_copy = _limits(copies + control, total)
    if share_of_pool == 1:  # no held-out images, no control
        return Estimate(copies / total, any_copy)
    spare = 1 - share_of_pool
    on_member = [max(0.0, (limit - share_of_pool) / spare) for limit in _limits(copies, copies + control)]
    value = max(0.0, (copies - share_of_pool * (copies + control)) / spare / total)
    return Estimate(value, (min(any_copy[0] * on_member[0], value), max(any_copy[1] * on_member[1], value)))


def _limits(successes: int, trials: int) -> tuple[float, float]:
    """Clopper & Pearson's limits, 95 %; all 5 % go to the one side that can be missed where none or all succeed."""
    if not trials:
        return 0.0, 1.0
    error = 0.05 if successes in (0, trials) else 0.025
    return clopper_pearson(successes, trials, error)


def check_share(
    nearest_rows: np.ndarray, population: Population, extractor: str, tolerances: Tolerances, seed: int
) -> Check:
    """Share of synthetic images whose nearest real image is a member's, at equal counts of patients.

    Not needed to pass: where a few odd real images are nearest to most synthetic ones, it can't tell at any count.

    Args:
        nearest_rows: (M,) row in the population of the real image nearest to each synthetic one.
    """
    hits, is_member = _hits(population, nearest_rows)
    share = share_of_members(hits, is_member, seed=seed)
    verdict = judge(share.interval, tolerances.share)
    return Check(
        name=f"nearest image is a member's, {extractor}",
        scope="images",
        value=share.value,
        interval=share.interval,
        tolerance=tolerances.share,
        verdict=verdict,
        sentence=(
            f"The nearest real image of a synthetic one is a training image in {_percent(share.value)} of cases "
            f"({_range(share.interval, percent=True)}); without favour it would be 50 %{_ending(verdict)}"
        ),
        needed_to_pass=False,
        detail={"p_value": share.p_value, "synthetic_images": len(nearest_rows)},
    )


def check_ratio(
    synthetic: np.ndarray, real: np.ndarray, population: Population, extractor: str, tolerances: Tolerances, seed: int
) -> Check:
    """Median nearest-neighbour ratio. It moves only once half of the images do, so it isn't needed to pass."""
    ratio = neighbour_ratio(synthetic, real, population.patients, population.is_member, seed=seed)
    verdict = judge(ratio.interval, tolerances.ratio, at_most=False)
    return Check(
        name=f"nearest-neighbour ratio, {extractor}",
        scope="images",
        value=ratio.median,
        interval=ratio.interval,
        tolerance=tolerances.ratio,
        verdict=verdict,
        sentence=(
            f"A synthetic image is typically {ratio.median:.2f} times as far from the nearest training image as from "
            f"the nearest image of an equal number of other patients ({_range(ratio.interval)}); without favour it "
            f"would be 1{_ending(verdict)}"
        ),
        needed_to_pass=False,
        detail={"quantiles": ratio.quantiles},
    )


def check_attack(
    name: str, scores: np.ndarray, population: Population, classes: Sequence[str], scope: Scope, tolerances: Tolerances
) -> list[Check]:
    """One attack judged on average, on its most recognisable patients, and on its worst class."""
    auc = attack_auc(scores, population)
    verdict = judge(auc.interval, tolerances.auc)
    checks = [
        Check(
            name=f"membership by {name}",
            scope=scope,
            value=auc.value,
            interval=auc.interval,
            tolerance=tolerances.auc,
            verdict=verdict,
            sentence=(
                f"Of a training image and another one, this attack picks the training image in {_percent(auc.value)} "
                f"of cases ({_range(auc.interval, percent=True)}); guessing gives 50 %{_ending(verdict)}"
            ),
        ),
        _check_recognised(name, scores, population, scope, tolerances),
    ]
    worst = worst_class(scores, population)
    if worst is not None and population.labels.shape[1] > 1:
        number, found = worst
        verdict = judge(found.interval, tolerances.auc)
        checks.append(
            Check(
                name=f"membership by {name}, worst class",
                scope=scope,
                value=found.value,
                interval=found.interval,
                tolerance=tolerances.auc,
                verdict=verdict,
                sentence=(
                    f"Among the images of {classes[number]} the attack picks the training image in "
                    f"{_percent(found.value)} of cases ({_range(found.interval, percent=True)}){_ending(verdict)}"
                ),
                needed_to_pass=False,
                detail={"class": classes[number]},
            )
        )
    return checks


def _check_recognised(
    name: str, scores: np.ndarray, population: Population, scope: Scope, tolerances: Tolerances
) -> Check:
    found = recognised(scores, population, LOW)
    verdict = judge(found.interval, tolerances.recognised)
    detail: dict[str, object] = {"false_alarms": LOW}
    if population.num_patients[1] >= MIN_FOR_VERY_LOW:
        tail = recognised(scores, population, VERY_LOW)
        detail["at_one_in_a_thousand"] = {"value": tail.value, "interval": list(tail.interval)}
    return Check(
        name=f"patients recognised by {name}",
        scope=scope,
        value=found.value,
        interval=found.interval,
        tolerance=tolerances.recognised,
        verdict=verdict,
        sentence=(
            f"Where 1 % of other patients are taken for members, {_percent(found.value)} of the members are recognised "
            f"({_range(found.interval, percent=True)}); guessing gives 1 %{_ending(verdict)}"
        ),
        detail=detail,
    )


def distinguishable(features: np.ndarray, population: Population, seed: int) -> Estimate:
    """AUC of a classifier that tells members from held-out images by the images alone: .5 if they are one population.

    No generator is involved. If it can, then so can an "attack" that knows nothing of the generator, and membership
    tests mean nothing. One film a patient, at most `MAX_COMPARED` patients a side.
    """
    rng = np.random.default_rng(seed)
    sides = []
    for side in (population.is_member, ~population.is_member):
        rows = rng.permutation(np.flatnonzero(side))
        rows = rows[np.unique(population.patients[rows], return_index=True)[1]]
        sides.append(features[np.sort(rng.permutation(rows)[:MAX_COMPARED])])
    found = two_sample_auc(sides[0], sides[1], seed=seed)
    half_width = Z_95 * found.standard_error
    return Estimate(found.auc, (max(0.0, found.auc - half_width), min(1.0, found.auc + half_width)))


def enough(population: Population, num_synthetic: int) -> str:
    """Why comparisons of members with held-out patients can't be made; empty if they can."""
    members, others = population.num_patients
    if min(members, others) < MIN_PATIENTS:
        return f"{members} member and {others} held-out patients: {MIN_PATIENTS} of each are needed"
    if num_synthetic < MIN_SYNTHETIC:
        return f"{num_synthetic} synthetic images: {MIN_SYNTHETIC} are needed"
    return ""


def unknown(check: Check, reason: str) -> Check:
    """The same measurement with nothing to be said about it."""
    return replace(check, verdict=Verdict.UNKNOWN, sentence=f"{check.sentence.rstrip('.')}. But {reason}.")


def _ending(verdict: Verdict) -> str:
    return {
        Verdict.PASS: ": within the tolerance.",
        Verdict.FAIL: ": beyond the tolerance.",
        Verdict.UNKNOWN: ": too few images or patients to tell.",
    }[verdict]


def _percent(share: float) -> str:
    """Two digits of what is rare, three of what is nearly all."""
    return f"{100 * share:.{3 if share > 0.99 else 2}g} %"


def _range(interval: tuple[float, float], *, percent: bool = False) -> str:
    if percent:
        return f"{_percent(interval[0])} to {_percent(interval[1])}"
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
