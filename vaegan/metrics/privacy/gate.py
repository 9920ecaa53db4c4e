"""Verdicts: a number, its interval and a tolerance stated in advance give pass, fail, or too little data to say.

Fail where the whole interval lies beyond the tolerance, pass where the whole of it lies within, else the data can't
tell. No tolerance is a promise to a patient: each says how much an attacker may gain before we call it a leak, and is
argued in `docs/metrics.md`. A pass is no proof of privacy (Stadler et al. 2022): these attacks found nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

Scope = Literal["images", "model"]


class Verdict(StrEnum):
    """What may be said."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    UNKNOWN = "too little data to say"


EXIT_STATUS = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.UNKNOWN: 3}
"""Of a command that ends with a verdict; 2 is a user's mistake."""


@dataclass(frozen=True)
class Tolerances:
    """How much an attacker may gain. Chance is .5 for shares and AUCs, the false-alarm rate for recognised patients."""

    copies: float = 0.01
    """Share of synthetic images that are near copies of members beyond what held-out images explain. 300 without one
    are enough to say so (rule of three). A single one that nothing explains fails whatever the share."""
    share: float = 0.60
    """Of nearest neighbours that are members, at equal counts: reached when a fifth of the images copy a member."""
    ratio: float = 0.80
    """Median nearest-neighbour ratio, at least: members are on average no more than a fifth nearer."""
    auc: float = 0.60
    """Of an attack: in six of ten pairs of a member and another, the member is picked. 100 held-out patients are enough
    to pass where the truth is .5."""
    recognised: float = 0.10
    """Share of member patients recognised at 1 % false alarms: ten times chance, which 100 held-out patients can
    about exclude."""
    significance: float = 0.01
    """Of the permutation test that near copies favour members."""


DEFAULT = Tolerances()


@dataclass(frozen=True)
class Check:
    """One test, judged."""

    name: str
    scope: Scope
    value: float | None
    interval: tuple[float, float] | None
    """95 %."""
    tolerance: float
    verdict: Verdict
    sentence: str
    """For somebody who reads nothing else."""
    needed_to_pass: bool = True
    """Whether the scope can't pass while this check can't say; a check that isn't needed can still fail it."""
    detail: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "verdict": str(self.verdict),
            "interval": None if self.interval is None else list(self.interval),
        }


def judge(interval: tuple[float, float], tolerance: float, *, at_most: bool = True) -> Verdict:
    """Three-way verdict of an interval.

    Args:
        at_most: whether the number should be at most the tolerance, or at least.
    """
    low, high = interval if at_most else (-interval[1], -interval[0])
    limit = tolerance if at_most else -tolerance
    if low > limit:
        return Verdict.FAIL
    return Verdict.PASS if high <= limit else Verdict.UNKNOWN


def overall(checks: Sequence[Check]) -> Verdict:
    """Fail if any check fails; pass if all that are needed pass; no checks, nothing to say."""
    if any(check.verdict == Verdict.FAIL for check in checks):
        return Verdict.FAIL
    needed = [check for check in checks if check.needed_to_pass]
    return Verdict.PASS if needed and all(check.verdict == Verdict.PASS for check in needed) else Verdict.UNKNOWN
