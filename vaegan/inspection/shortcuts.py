"""How well a number that needs no radiologist tells classes, or splits, apart: what a classifier may learn instead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vaegan.inspection.contents import Rows
from vaegan.metrics.auc import area

LOOKS = ("mean grey level", "contrast (standard deviation)", "black border")
FEWEST = 20
"""Images on either side; of fewer an AUC says little."""
NOTABLE = 0.15
"""An AUC whose 95 % interval lies further than this from 0.5 is pointed out."""


@dataclass(frozen=True)
class Tell:
    """AUC of telling a class, or a split, from the others by each of `LOOKS`, (3,), with its standard errors.

    Above 0.5 where `subject` has the higher values, below where it has the lower ones.
    """

    subject: str
    against: str
    auc: tuple[float, ...]
    standard_error: tuple[float, ...]

    def notable(self, look: int) -> bool:
        return abs(self.auc[look] - 0.5) - 1.96 * self.standard_error[look] > NOTABLE


def tells(rows: Rows) -> list[Tell]:
    """Of each class against the other labelled images, and of each split against the first; real images only.

    Standard errors take images of one patient for correlated.
    """
    known = np.flatnonzero(~rows.synthetic & np.isfinite(rows.looks[:, 0]))
    patient = pc.dictionary_encode(rows.patient_id.take(known)).indices.to_numpy()
    labels, split, looks = rows.labels[known].astype(bool), rows.split[known], rows.looks[known]
    told = rows.labelled[known]
    found = []
    two = labels.shape[1] == 2 and bool((labels[told].sum(axis=1) == 1).all())
    for k in range(1 if two else 0, labels.shape[1]):
        against = rows.classes[0] if two else "all others"
        found.append(_tell(rows.classes[k], against, labels[:, k], told & ~labels[:, k], looks, patient))
    for s in range(1, len(rows.splits)):
        found.append(_tell(rows.splits[s], rows.splits[0], split == s, split == 0, looks, patient))
    return [each for each in found if each is not None]


def _tell(
    subject: str,
    against: str,
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_],
    looks: NDArray[np.float32],
    patient: NDArray[np.integer],
) -> Tell | None:
    if min(positive.sum(), negative.sum()) < FEWEST:
        return None
    areas = [
        area(looks[positive, column], looks[negative, column], patient[positive], patient[negative])
        for column in range(len(LOOKS))
    ]
    return Tell(subject, against, tuple(a.auc for a in areas), tuple(a.standard_error for a in areas))
