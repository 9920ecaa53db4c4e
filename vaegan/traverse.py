"""Command line: which latent dimensions a model uses, and a picture of what each does.

    python -m vaegan.traverse --model runs/gen/model --data data/real --out traversal.png

Two rows for each dimension: the decoded images, and how each differs from the one in the middle.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.storage import atomic_file
from vaegan.images import encode_png
from vaegan.sampler import Sampler
from vaegan.shards import Images, read_manifest, read_split
from vaegan.traversal import LatentUse, changes, conditioning, latent_use, sheet, traverse, typical


@dataclass(frozen=True, kw_only=True)
class TraverseConfig:
    """Count the latent dimensions that a model uses on real images, and draw what the most used ones do.

    The picture starts from a patient's image, the one nearest to the mean of all: treat it as your data.
    """

    model: Path
    """Model folder: a run's model/, or NAME/VERSION in a registry; it has an encoder."""
    data: Path
    """Dataset whose images are encoded."""
    out: Path
    """PNG file to write."""
    split: str = "train"
    """Of the dataset."""
    dimensions: int = 8
    """How many are drawn, those with most KL divergence."""
    steps: int = 9
    """Images in a row, an odd number."""
    reach: float = 2.5
    """A row goes from minus this to this; under the prior the standard deviation of a dimension is 1."""

    def __post_init__(self) -> None:
        if self.dimensions < 1 or self.steps < 3 or self.steps % 2 == 0 or self.reach <= 0:
            raise ValueError(
                f"dimensions {self.dimensions}, steps {self.steps}, reach {self.reach}: expected at least 1, an odd "
                "number from 3 and more than 0"
            )


def run(config: TraverseConfig) -> int:
    """The command: print a row for each dimension and write the picture."""
    sampler = Sampler.from_model(config.model)
    images = read_split(config.data, config.split)
    if sampler.info.classes:
        images = images.labelled_only()
    if not len(images):
        raise UserError(f"{config.data} has no labelled image in {config.split}: choose another --split")
    labels = conditioning(sampler.info.classes, images.labels, read_manifest(config.data).classes)
    _check_size(sampler, images, config)
    mu, log_var = sampler.encode(images.pixels, labels)
    use = latent_use(mu, log_var)
    film = typical(mu)
    shown = use.order[: config.dimensions]
    pixels = traverse(sampler, mu[film], labels[film], shown, np.linspace(-config.reach, config.reach, config.steps))
    about = f"synthetic; dimensions {' '.join(map(str, shown))} from -{config.reach:g} to {config.reach:g}"
    with atomic_file(config.out) as temporary:
        temporary.write_bytes(encode_png(sheet(pixels), {"Comment": about}))
    print(table(use, shown, pixels))
    print(f"\nFrom image {images.image_id[film]}, the nearest to the mean of {len(images)}; the largest change is "
          f"{changes(pixels)[1]} grey levels", config.out, sep="\n")  # fmt: skip
    return 0


def table(use: LatentUse, shown: np.ndarray, pixels: np.ndarray) -> str:
    """How many dimensions are used, and a line for each that is drawn, top to bottom."""
    lines = [
        f"{use.active.sum()} of {len(use.kl)} dimensions are active, {use.informative.sum()} carry more than 0.1 nats; "
        f"{use.kl.sum():.1f} nats in all",
        "",
        f"{'dimension':>9}{'KL, nats':>10}{'variance of mu':>16}{'change, grey levels':>21}",
    ]
    for dimension, images in zip(shown, pixels, strict=True):
        ends = np.abs(images[-1].astype(float) - images[0]).mean()
        lines.append(f"{dimension:>9}{use.kl[dimension]:>10.2f}{use.variance[dimension]:>16.3f}{ends:>21.1f}")
    return "\n".join(lines)


def _check_size(sampler: Sampler, images: Images, config: TraverseConfig) -> None:
    expected = (sampler.info.size, sampler.info.size, sampler.info.channels)
    if images.pixels.shape[1:] != expected:
        raise UserError(
            f"{config.data} has images of {images.pixels.shape[1:]} (height, width, channels) and model "
            f"{sampler.info.address_prefix} takes {expected}: give the dataset it was trained on"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m vaegan.traverse --model MODEL --data DATASET --out FILE.png`."""
    return run_command(TraverseConfig, run, prog="python -m vaegan.traverse", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
