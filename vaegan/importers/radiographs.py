"""What CheXpert and MIMIC-CXR-JPG share: observations that a program mined from reports, each 1, 0, -1 or blank."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from vaegan.importers.labels import Findings
from vaegan.importers.tabular import listed

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The classes (Irvin et al. 2019, Table 1). "No Finding" is none: it says that the others but devices are absent."""
NO_FINDING = "No Finding"
POLICIES = {"zeros": "not present", "ones": "present", "reject": "a reason to reject the image"}

Uncertain = Literal["zeros", "ones", "reject"]
Views = Literal["frontal", "lateral", "all"]


def observations(names: Sequence[str], uncertain: Uncertain, where: Path) -> Findings:
    """How the columns of observations are read.

    Raises:
        UserError: `names` lacks one of them.
    """
    missing = [name for name in OBSERVATIONS if name not in names]
    if missing:
        raise UserError(
            f"{where} has no column {missing[0]!r} (it has {listed(names)}): expected one for each of the "
            f"{len(OBSERVATIONS)} observations; download the table again, or read it with --source table"
        )
    return Findings(OBSERVATIONS, uncertain)


def uncertain_note(tables: Sequence[pa.Table], uncertain: Uncertain, rows: str) -> str:
    """What -1 became, and how often it stood in each column.

    Args:
        rows: what a row is: "images" or "studies".
    """
    counts = {name: sum(_count_uncertain(table[name]) for table in tables) for name in OBSERVATIONS}
    found = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return (
        f"Uncertain labels (-1) count as {POLICIES[uncertain]} (--radiographs.uncertain {uncertain}); a blank is not "
        f"present. Uncertain {rows} of all in the tables: {found or 'none'}."
    )


def _count_uncertain(column: pa.ChunkedArray) -> int:
    return pc.sum(pc.is_in(column, value_set=pa.array(["-1", "-1.0"]))).as_py() or 0


def not_asked_for(view: str | None, wanted: Views) -> str | None:
    """Why an image is left out.

    Args:
        view: "frontal", "lateral", or None where nobody knows.
    """
    return None if wanted in ("all", view) else f"{'an' if view is None else 'a'} {view or 'unknown'} view"
