"""Command line: what is in a dataset, and whether its splits can be trusted, as a page and a sheet of its images.

    python -m vaegan.inspect data/kermany

Everything is counted anew from the files as they are, whoever wrote them; what was recorded when the dataset was
prepared stands beside it.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.remote import url_of
from cluster.storage import atomic_file
from vaegan.inspection.contents import FLAT, read_contents
from vaegan.inspection.page import Inspection, render_html
from vaegan.inspection.pictures import draw_strips, flattest, found_pairs
from vaegan.inspection.reading import open_shards
from vaegan.inspection.recheck import recheck
from vaegan.inspection.recorded import read_recorded
from vaegan.inspection.sheet import contact_sheet
from vaegan.inspection.shortcuts import tells
from vaegan.inspection.table import summary
from vaegan.shards import MANIFEST, Manifest, dataset_sha256, read_manifest
from vaegan.webpage.words import counted

PAGE, SHEET = "inspect.html", "contact_sheet.png"


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Look into a dataset: count it anew, look for patients and copies in two splits, write a page and a contact sheet.

    Both show patients' images: treat them as your data.
    """

    dataset: Path
    """Folder that vaegan.prepare or vaegan.sample wrote; its flag may be left out."""
    out: Path | None = None
    """Folder for inspect.html and contact_sheet.png; by default the dataset's with .inspect behind its name, or
    for one at a URL such a folder here."""
    split: str = "all"
    """Show pictures and grey levels of this split only; patients and copies are looked for in all of them."""
    per_class: int = 8
    """Images of each class and split that are shown."""
    seed: int = 0
    """Which images are shown."""
    max_compared: int = 50_000
    """Near copies are looked for among up to so many images: half a millisecond and 1 kB for each, and then a time that
    grows with the square of their number. Exact copies are looked for among any number."""
    verify: bool = True
    """Compare each file's sha256 with the manifest first, about a second a gigabyte; false looks at the files as they
    are."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_class <= 24:
            raise ValueError(f"--per-class is {self.per_class}: expected 1 to 24 images")
        if self.max_compared < 0 or self.seed < 0:
            raise ValueError(f"--max-compared {self.max_compared}, --seed {self.seed}: expected 0 or more")


def inspect(config: InspectConfig) -> Inspection:
    """Read a dataset and find out everything that the page shows.

    Raises:
        UserError: there is no dataset, a file of it is missing, damaged or of another make, or it has no such split.
    """
    started_s = time.time()
    manifest = read_manifest(config.dataset)
    splits = _splits(config, manifest)
    shards = open_shards(config.dataset, manifest, verify=config.verify)
    count = sum(shard.num_rows for shard in shards)
    if not count:
        raise UserError(f"{config.dataset} holds no images: expected some; prepare it again")
    recorded = read_recorded(config.dataset, manifest)
    with tqdm(total=count, desc="reading", unit="image", file=sys.stderr) as bar:
        contents = read_contents(shards, manifest, near=count <= config.max_compared, progress=bar.update)
    checked = recheck(contents, manifest)
    strips, hidden = draw_strips(
        contents, shards, manifest, splits=splits, per_class=config.per_class, seed=config.seed
    )
    return Inspection(
        name=config.dataset.resolve().name,
        manifest=manifest,
        contents=contents,
        checked=checked,
        recorded=recorded,
        tells=tells(contents.rows),
        strips=strips,
        hidden_strips=hidden,
        pairs=found_pairs(checked, contents, shards, manifest),
        flattest=flattest(contents, shards, manifest, FLAT),
        splits=splits,
        verified=config.verify,
        seed=config.seed,
        provenance=provenance(seed=config.seed, started_s=started_s, inputs={MANIFEST: dataset_sha256(config.dataset)}),
    )


def write(found: Inspection, out: Path) -> list[Path]:
    """The page and the contact sheet, each whole or not at all; returns their paths."""
    title = (
        f"{found.name}: {counted(found.checked.num_images, 'image')}, {found.manifest.height}×{found.manifest.width}"
    )
    hidden = f"{found.hidden_strips} more groups of class and split are not shown. " if found.hidden_strips else ""
    whose = "Generated images." if found.contents.rows.synthetic.all() else "Patients’ images: treat them as your data."
    note = f"{hidden}Drawn at random, seed {found.seed}. {whose}"
    content = {
        PAGE: render_html(found).encode(),
        SHEET: contact_sheet(found.strips, title, note),
    }
    for name, data in content.items():
        with atomic_file(out / name) as temporary:
            temporary.write_bytes(data)
    return [out / name for name in content]


def main(argv: Sequence[str] | None = None) -> int:
    def command(config: InspectConfig) -> None:
        out = _out(config)
        found = inspect(config)
        paths = write(found, out)
        print(
            summary(
                str(config.dataset), found.manifest, found.contents, found.checked, found.recorded, found.tells,
                verified=found.verified,
            )
        )  # fmt: skip
        print("", *paths, sep="\n")
        if not found.contents.rows.synthetic.all():
            print("Both show patients' images: treat them as your data.")

    return run_command(InspectConfig, command, prog="python -m vaegan.inspect", argv=argv, positional="dataset")


def _splits(config: InspectConfig, manifest: Manifest) -> tuple[str, ...]:
    """The splits to show."""
    if config.split == "all":
        return tuple(manifest.splits)
    if config.split not in manifest.splits:
        raise UserError(
            f"{config.dataset} has no {config.split} split: it has {', '.join(manifest.splits) or 'none'}; choose one "
            "of them, or all"
        )
    return (config.split,)


def _out(config: InspectConfig) -> Path:
    """Where to write, which is never inside a dataset: one that has its manifest is complete."""
    if url_of(config.dataset):
        return config.out or Path(f"{config.dataset.name}.inspect")
    dataset = config.dataset.resolve()
    out = config.out or dataset.with_name(f"{dataset.name}.inspect")
    if out.resolve().is_relative_to(dataset):
        raise UserError(
            f"--out {out} lies in the dataset {config.dataset}, which is complete: choose a folder beside it"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: expected a folder, or none yet")
    return out


if __name__ == "__main__":
    sys.exit(main())
