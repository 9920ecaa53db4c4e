"""Records to numbers over seeds: means, intervals, differences paired by seed. Plain numbers in, plain numbers out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from quality_study.records import Record


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    low: float
    high: float
    """95 % Student-t interval over seeds; NaN with one seed."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Of one value a seed; None of no values.

        The interval says how far the mean over *trainings* of this recipe may be, on these films: which films there are
        to train on and to judge by is the same for all seeds.
        """
        if not values:
            return None
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, math.nan, math.nan, len(values))
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        return cls(mean, mean - half, mean + half, len(values))


def value(record: Record, metric: str) -> float | None:
    """A record's number; `coverage_share` and its like are shares of what real films have in the floor."""
    if metric.endswith("_share"):
        name = metric.removesuffix("_share")
        found, real = record["metrics"].get(name), record["floor"].get(name)
        return None if found is None or not real else found / real
    return record["metrics"].get(metric)


def values(records: Iterable[Record], metric: str) -> dict[int, float]:
    """By seed; records with an error or without the metric are left out."""
    found = {record["seed"]: value(record, metric) for record in records if "error" not in record}
    return {seed: each for seed, each in found.items() if each is not None}


def estimate(records: Iterable[Record], metric: str) -> Estimate | None:
    """Over the seeds that have the metric."""
    return Estimate.of(list(values(records, metric).values()))


def paired(new: Mapping[int, float], base: Mapping[int, float]) -> Estimate | None:
    """New minus base over the seeds that both have; None where they share none.

    Paired: with the same seed two recipes begin with the same weights, where they have the same ones, and see the same
    films in the same order.
    """
    return Estimate.of([new[seed] - base[seed] for seed in sorted(set(new) & set(base))])
