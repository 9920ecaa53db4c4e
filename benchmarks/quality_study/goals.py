"""What the study is to reach, computed from its records. A goal is a ratio that must not be below a number."""

import math
from dataclasses import dataclass

from quality_study.cases import CASES
from quality_study.recipes import BUDGET
from quality_study.records import Record
from quality_study.summary import estimate, values

SHIPPED, PAPER = "small", "paper"
EXTRACTORS = ("inception", "squeezenet")
FOUR = ("n100", "n400", "normal", "all")
GAP_SHARE, COVERAGE_SHARE, TSTR, TSTR_SHARE, SEEDS = 1 / 3, 0.8, 0.904, 0.95, 10
COLLAPSED = 0.2
"""A run has collapsed where training failed, or where it covers less than this share of what real films cover."""


@dataclass(frozen=True)
class Goal:
    """One goal and how far the study is."""

    name: str
    words: str
    ratio: float | None
    """None: not measured."""
    goal: float
    detail: str
    """What was compared, or what is missing."""

    @property
    def reached(self) -> bool:
        return self.ratio is not None and self.ratio >= self.goal

    @property
    def line(self) -> str:
        """As benchmarks print it."""
        shown = "nan" if self.ratio is None else f"{self.ratio:.3f}"
        why = f" (not measured: {self.detail})" if self.ratio is None else ""
        return f"{self.name} ratio={shown} goal={self.goal:.4g}{why}"


def all_goals(records: list[Record]) -> list[Goal]:
    """Every goal, from the records at the full budget, judged by test films where there are such records, else by
    validation films."""
    full = [record for record in records if record["images"] == BUDGET]
    goals = [_gap(full, name, kind) for name in EXTRACTORS for kind in ("frechet", "kernel")]
    goals += [_coverage(full, case) for case in FOUR]
    goals += [_copies(full), _collapse(full)]
    goals.append(_tstr(full, "tstr_auroc", TSTR, "TSTR AUC of both classes, nominally 5,216 films"))
    goals.append(_tstr(full, "tstr_over_real", TSTR_SHARE, "TSTR AUC as a share of that after training on real films"))
    return goals


def _gap(records: list[Record], extractor: str, kind: str) -> Goal:
    """How many times smaller than the paper recipe's."""
    name = f"{extractor}_{kind}_distance_gap"
    reference, (ours, theirs) = _judged(records, "normal", SHIPPED, PAPER)
    means = [estimate(each, name) for each in (ours, theirs)]
    shown = {"frechet": "Fréchet", "kernel": "kernel"}[kind]
    words = f"{shown} gap ({extractor}) at most a third of the paper recipe's, {CASES['normal'].words}"
    if means[0] is None or means[1] is None:
        return _unmeasured(f"{extractor}_{kind}_gap", words, 1 / GAP_SHARE, "normal", SHIPPED, PAPER)
    ratio = means[1].mean / means[0].mean if means[0].mean > 0 else math.inf
    detail = f"{means[0].mean:.4g} beside {means[1].mean:.4g}, {reference}, {means[0].count} and {means[1].count} seeds"
    return Goal(f"{extractor}_{kind}_gap", words, ratio, 1 / GAP_SHARE, detail)


def _coverage(records: list[Record], case: str) -> Goal:
    """The lower of the two extractors'."""
    reference, (ours,) = _judged(records, case, SHIPPED)
    found = {name: estimate(ours, f"{name}_coverage_share") for name in EXTRACTORS}
    words = f"coverage as a share of real films' own, {CASES[case].words}"
    if any(each is None for each in found.values()):
        return _unmeasured(f"coverage_{case}", words, COVERAGE_SHARE, case, SHIPPED)
    means = {name: each.mean for name, each in found.items() if each is not None}
    detail = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    detail += f", {reference}, {len(ours)} seeds"
    return Goal(f"coverage_{case}", words, min(means.values()), COVERAGE_SHARE, detail)


def _copies(records: list[Record]) -> Goal:
    """Share of all samples, over cases and seeds, that are no copies."""
    ours = [record for case in FOUR for record in _judged(records, case, SHIPPED)[1][0]]
    words = "no copy of a training film among the samples, all cases and seeds"
    if not ours:
        return _unmeasured("no_copies", words, 1.0, "every case", SHIPPED)
    copies, samples = sum(each["metrics"]["copies"] for each in ours), sum(each["num_synthetic"] for each in ours)
    return Goal("no_copies", words, 1 - copies / samples, 1.0, f"{copies} of {samples} samples of {len(ours)} models")


def _collapse(records: list[Record]) -> Goal:
    words = f"no collapse in {SEEDS} seeds, {CASES['normal'].words}"
    reference = _judged(records, "normal", SHIPPED)[0]
    ours = [r for r in records if (r["case"], r["recipe"], r["reference"]) == ("normal", SHIPPED, reference)]
    if len(ours) < SEEDS:
        return Goal("no_collapse", words, None, 1.0, f"{len(ours)} of {SEEDS} seeds")
    standing = len([record for record in ours if not collapsed(record)])
    return Goal("no_collapse", words, standing / len(ours), 1.0, f"{standing} of {len(ours)} seeds, {reference}")


def collapsed(record: Record) -> bool:
    """See `COLLAPSED`."""
    if "error" in record:
        return True
    covered = [values([record], f"{name}_coverage_share").get(record["seed"]) for name in EXTRACTORS]
    return any(share is not None and share < COLLAPSED for share in covered)


def _tstr(records: list[Record], metric: str, goal: float, words: str) -> Goal:
    reference, (ours,) = _judged(records, "all", SHIPPED)
    mean = estimate(ours, metric)
    if mean is None:
        return _unmeasured(metric, words, goal, "all", SHIPPED)
    return Goal(metric, words, mean.mean, goal, f"{reference}, {mean.count} seeds")


def _judged(records: list[Record], case: str, *recipes: str) -> tuple[str, list[list[Record]]]:
    """The reference, and the good records of each recipe there: the test films, if all of the recipes have met them."""
    good = [record for record in records if record["case"] == case and "error" not in record]
    found: list[list[Record]] = []
    for reference in ("test", "val"):
        found = [[r for r in good if (r["recipe"], r["reference"]) == (name, reference)] for name in recipes]
        if all(found):
            return reference, found
    return "val", found


def _unmeasured(name: str, words: str, goal: float, case: str, *recipes: str) -> Goal:
    return Goal(name, words, None, goal, f"needs {' and '.join(recipes)} on {case} at {BUDGET} images")
