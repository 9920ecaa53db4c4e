"""What a user can choose when images become a dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.cli import as_dict
from cluster.errors import UserError
from vaegan import splits
from vaegan.images import Aspect
from vaegan.importers import ImportConfig

ELSEWHERE = ("out", "images", "merge", "num_workers", "ray", "strict", "linkage", "salt")
"""Settings that don't decide what is in a dataset, or are compared in another way (what `images` held by its hash)."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(ImportConfig):
    """Turn images into a dataset. Without --images, draw the phantom."""

    out: Path
    """Folder of the dataset to write."""
    source: str = "auto"
    """What --images is: folder (a subfolder per class), table (CSV or Parquet with paths), parquet (with the images in
    it), nih, chexpert, mimic, medmnist (.npz), dicom, dataset (AugRay's own), phantom; auto looks."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for colour."""
    aspect: Aspect = "crop"
    """What becomes of an image that isn't square: its largest centred square is taken (crop), all of it between black
    bars (pad), or all of it without regard to its proportions (squash)."""
    classes: tuple[str, ...] = ()
    """Take only these classes, in this order; all of them by default. Images of other classes alone are left out; with
    several labels an image they stay, as images that have none of these."""
    rename: tuple[str, ...] = ()
    """OLD=NEW for classes that should be called otherwise; two that get the same name become one."""
    allow_one_class: bool = False
    """Accept a single class, as an unconditional generator needs no more."""
    subset: float = 1.0
    """Take about this share of the patients, all images of each; which ones depends on the seed."""
    split: Literal["source", "make"] = "source"
    """Whether to keep the source's own split where it has one, or to make a new one."""
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test where the split is made here."""
    val: splits.Val = "auto"
    """Whether to carve a validation split out of train, by patient: if the source's own is too small (auto), never
    (keep), always (carve)."""
    leaks: Literal["remove", "keep"] = "remove"
    """Patients and copies of images in two splits: remove them from train (from val if the other is in test), or keep
    them and only report."""
    hash_patients: bool = False
    """Replace patients and image names by salted hashes, as is always done for DICOM."""
    salt: Path | None = None
    """File with the salt, made where there is none, readable by you alone: datasets with the same salt call the same
    patient the same. Without it the salt is forgotten, so that no two datasets can be matched."""
    linkage: Path | None = None
    """CSV to write with each hash and what it stands for, readable by you alone. It undoes the hashing: keep it
    elsewhere."""
    strict: bool = False
    """Stop at the first image that can't be used, instead of listing it in rejects.parquet."""
    num_workers: int = 0
    """Processes that decode; 0 means one per core for many images, and threads for few."""
    ray: bool = False
    """Decode in Ray tasks, on the cluster of RAY_ADDRESS or a local one; all its nodes must see --images and --out."""

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 1024:
            raise UserError(f"--size is {self.size}: expected 8 to 1024 pixels; the networks take 32, 64, 128 and 256")
        if min(self.fractions) < 0 or self.fractions[0] == 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise UserError(
                f"--fractions is {self.fractions}: expected shares of train (above 0), val and test that sum to 1"
            )
        if not 0 < self.subset <= 1:
            raise UserError(f"--subset is {self.subset}: expected a share of the patients above 0 and up to 1")
        if self.num_workers < 0:
            raise UserError(f"--num-workers is {self.num_workers}: expected 0 (one per core) or more")
        if odd := [pair for pair in self.rename if not all(pair.partition("="))]:
            raise UserError(f"--rename got {odd[0]!r}: expected OLD=NEW, for instance NORMAL=normal")

    @property
    def new_names(self) -> dict[str, str]:
        """What `rename` says: old to new."""
        return {old: new for old, _, new in (pair.partition("=") for pair in self.rename)}

    def deciding(self, kind: str) -> dict[str, Any]:
        """The settings that decide a dataset's content, for comparison with an existing one's.

        Args:
            kind: the source's format.
        """
        settings = as_dict(self) | {"source": kind}
        for name in ELSEWHERE:
            del settings[name]
        del settings["dicom"]["labels"]  # where a table lies; what it says is compared with all else that is read
        if kind != "phantom":
            del settings["phantom"]
        return settings | {"hash_patients": self.hash_patients or self.salt is not None or self.linkage is not None}
