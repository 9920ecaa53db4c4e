"""The cases of the study: which images a generator is trained on, and the datasets that hold them.

A case is a part of a *whole*: a source prepared once, split by patient. Its training images are some of the whole's
training part, its validation and test images all of the same classes there, so that every case of a source has one
judge, and no patient is on both sides of any case.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.storage import atomic_file
from vaegan.importers.base import ColumnsConfig
from vaegan.phantom import PhantomConfig
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.shards import DatasetWriter, Images, is_dataset, read_manifest, read_split
from vaegan.splits import nested_subset

ROOT = Path(__file__).resolve().parents[2]
SUBSET_SEED = 0
"""Which patients a small case holds: the same for every recipe and every seed, which vary the training alone."""
PHANTOM = "phantom"
FINDINGS = ("PNEUMONIA", "CALLED_NORMAL")
"""Of the NIH films: what reports say, and what radiologists said who looked again."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a generator is given."""

    name: str
    words: str
    """For tables."""
    source: str
    """Folder of `$AUGRAY_SHARED/data`, `NIH_FINDINGS`, or `PHANTOM`."""
    size: int = 64
    """Pixels."""
    classes: tuple[str, ...] = ()
    """Films of these classes alone; none means all."""
    num_images: int | None = None
    """So many of the training part's films, by patient and stratified by class; None takes all of these classes."""
    conditional: bool = True
    """Whether labels enter the networks, whatever a recipe says: TSTR needs images whose class is known."""

    @property
    def deciding(self) -> dict[str, Any]:
        """What of it moves a number."""
        return {name: value for name, value in asdict(self).items() if name not in ("name", "words")} | {
            "classes": list(self.classes)
        }


KERMANY = "kermany_cxr_224"
NIH = "nih_cxr_1000_256"
NIH_FINDINGS = f"{NIH}+findings"
CASES = {
    case.name: case
    for case in (
        Case(name="n100", words="100 films, both classes", source=KERMANY, num_images=100),
        Case(name="n400", words="400 films, both classes", source=KERMANY, num_images=400),
        Case(
            name="normal", words="NORMAL alone, nominally 1,341 films, unconditional: the paper's case",
            source=KERMANY, classes=("NORMAL",), conditional=False,
        ),
        Case(name="all", words="both classes, nominally 5,216 films", source=KERMANY),
        Case(
            name="normal128", words="NORMAL alone at 128 px, unconditional",
            source=KERMANY, size=128, classes=("NORMAL",), conditional=False,
        ),
        Case(name="all128", words="both classes at 128 px", source=KERMANY, size=128),
        Case(
            name="nih128", words="films of adults at 128 px, No Finding or Pneumonia",
            source=NIH, size=128,
        ),
        Case(
            name="nih-findings", words="films of adults at 128 px, two findings that may be together",
            source=NIH_FINDINGS, size=128,
        ),
        Case(name="phantom", words="the phantom at 32 px, for --quick", source=PHANTOM, size=32),
    )
}  # fmt: skip


def shared_folder() -> Path:
    """`$AUGRAY_SHARED`, or the folder `shared` beside the repository."""
    return Path(os.environ.get("AUGRAY_SHARED") or ROOT.parent / "shared")


@dataclass(frozen=True)
class CaseData:
    """A case's images, and those of the whole that judge it."""

    case: Case
    path: Path
    """The case's dataset."""
    task: str
    train: Images
    """What generators are trained on."""
    pool: Images
    """All of the whole's training films of the case's classes: what the floor is drawn from."""
    rows: np.ndarray
    """Of `pool`, those that `train` has, in its order."""
    reference: Images
    """Held-out films of the case's classes."""


def load_case(case: Case, work: Path, reference: str) -> CaseData:
    """A prepared case.

    Args:
        reference: the split that generators are compared with, "val" or "test".
    """
    path = case_folder(case, work)
    whole = read_split(whole_folder(case, work), "train")
    columns = _columns(case, read_manifest(whole_folder(case, work)).classes)
    pool = _of_classes(whole, columns, case)
    held_out = _of_classes(read_split(whole_folder(case, work), reference), columns, case)
    rows = chosen_rows(case, pool)
    return CaseData(case, path, read_manifest(path).task, pool.take(rows), pool, rows, held_out)


def prepare_case(case: Case, work: Path) -> Path:
    """The case's dataset in the work folder, made if it isn't there.

    Raises:
        UserError: the source isn't in the shared folder.
    """
    whole = whole_folder(case, work)
    if not is_dataset(whole):
        prepare(_prepare_config(case, whole))
    path = case_folder(case, work)
    if path == whole or is_dataset(path):
        return path
    manifest = read_manifest(whole)
    columns = _columns(case, manifest.classes)
    parts = {name: _of_classes(read_split(whole, name), columns, case) for name in manifest.splits}
    parts["train"] = parts["train"].take(chosen_rows(case, parts["train"]))
    classes = tuple(manifest.classes[k] for k in columns)
    shape = dict(height=manifest.height, width=manifest.width, channels=manifest.channels)
    with DatasetWriter(path, task=manifest.task, classes=classes, **shape) as writer:
        for name, images in parts.items():
            writer.add(name, images)
        writer.finish(report={"part_of": whole.name, "case": asdict(case)}, provenance=manifest.provenance)
    return path


def whole_folder(case: Case, work: Path) -> Path:
    """Where the source that a case is a part of lies prepared."""
    return work / "data" / f"{case.source}_{case.size}"


def case_folder(case: Case, work: Path) -> Path:
    """Where a case's dataset lies: that of the whole, where the case takes all of it."""
    return work / "data" / case.name if case.classes or case.num_images else whole_folder(case, work)


def chosen_rows(case: Case, pool: Images) -> np.ndarray:
    """Rows of the training films that a case takes, ascending."""
    if case.num_images is None:
        return np.arange(len(pool))
    if case.num_images > len(pool):
        raise UserError(f"case {case.name} wants {case.num_images} films, and the training part has {len(pool)}")
    low, high = 0.0, 1.0  # the least share of patients that has enough films; a share's films are among a larger one's
    for _ in range(30):
        middle = (low + high) / 2
        enough = len(nested_subset(pool.labels, pool.patient_id, middle, SUBSET_SEED)) >= case.num_images
        low, high = (low, middle) if enough else (middle, high)
    return nested_subset(pool.labels, pool.patient_id, high, SUBSET_SEED)[: case.num_images]


def _prepare_config(case: Case, out: Path) -> PrepareConfig:
    common = PrepareConfig(out=out, size=case.size, val="carve", fractions=(0.7, 0.15, 0.15), num_workers=1)
    if case.source == PHANTOM:
        return replace(common, source="phantom", phantom=PhantomConfig(patients=220), val="auto")
    folder = case.source.partition("+")[0]
    images = shared_folder() / "data" / folder
    if not images.is_dir():
        raise UserError(f"{case.name}: no {images}: set AUGRAY_SHARED to the folder that has data/{folder}")
    if case.source == NIH_FINDINGS:
        images = _with_findings(images, out.with_name(f"{out.name}_films"))
        return replace(common, images=images, columns=ColumnsConfig(findings=FINDINGS))
    return replace(common, images=images)


def _with_findings(images: Path, out: Path) -> Path:
    """The NIH films with `FINDINGS` in place of their label, as a Parquet file for the importer; its folder.

    The label was mined from reports, and for some films it is known that radiologists called them normal: that is a
    second finding, with and without the first.
    """
    films = ds.dataset(images, format="parquet").to_table()
    found = (pc.equal(films["label_name"], "PNEUMONIA"), pc.fill_null(pc.equal(films["rsna_says"], "normal"), False))
    films = films.drop_columns(["label", "label_name", "rsna_says"])
    for name, column in zip(FINDINGS, found, strict=True):
        films = films.append_column(name, pc.cast(column, "int8"))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(out / "films.parquet") as temporary:
        pq.write_table(films, temporary)
    return out


def _columns(case: Case, classes: tuple[str, ...]) -> list[int]:
    return [classes.index(name) for name in case.classes or classes]


def _of_classes(images: Images, columns: list[int], case: Case) -> Images:
    rows = np.flatnonzero(images.labels[:, columns].any(axis=1)) if case.classes else np.arange(len(images))
    return replace(images.take(rows), labels=images.labels[rows][:, columns])
