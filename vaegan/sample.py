"""Command line: synthetic images by address, as a dataset of the same schema as a prepared one."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cluster.cli import as_dict, run_command
from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import file_sha256
from vaegan.checkpoint import MODEL
from vaegan.sampler import Sampler
from vaegan.shards import DatasetWriter, Manifest, read_manifest

ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Draw synthetic images from a model and write them as a dataset (its train split), each with its address.

    A command that was done already is left as it is.
    """

    model: Path
    """Model folder: a run's model/, or NAME/VERSION in a registry."""
    out: Path
    """Dataset folder to write."""
    count: int = 1000
    """Images of each class; of an unconditional model, images in all."""
    classes: tuple[str, ...] = ()
    """Only these classes; without it, every class of the model."""
    seed: int = 0
    """Second-last part of the address."""
    start: int = 0
    """Index of each class's first image; a later range of the same seed holds other images."""
    latent: str = "prior"
    """Source of z: prior, or one fitted to encoded training images that the card lists: mixture, gaussian, ..."""
    truncation: float = 1.0
    """Scales the latents' spread; less than 1 gives more typical, less varied images."""

    candidates: int = 1
    """Images that each is chosen from by the discriminator (Turner et al. 2019); costs as many times the work."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0 or self.start < 0:
            raise ValueError(f"count {self.count}, seed {self.seed}, start {self.start}: expected at least 1, 0 and 0")


def synthesize(config: SampleConfig, sampler: Sampler | None = None) -> Manifest:
    """Write the dataset that `config` describes, or find that it is there.

    Raises:
        UserError: no such model, an unknown class, or another dataset at `config.out`.
    """
    started_s = time.time()
    sampler = sampler or Sampler.from_model(config.model)
    info = sampler.info
    settings = as_dict(config) | {"model": info.address_prefix, "tensors_sha256": info.tensors_sha256}
    del settings["out"]  # a dataset that was moved is still the same
    if config.candidates == 1:
        del settings["candidates"]  # earlier versions knew none
    if (config.out / "manifest.json").exists():
        manifest = read_manifest(config.out)
        if manifest.report.get("sample") != settings:
            raise UserError(f"{config.out} holds another dataset: choose another --out, or remove it")
        return manifest
    sampler.check_candidates(config.candidates)
    classes: Sequence[Sequence[str]] = [(name,) for name in config.classes or info.classes] or [()]
    labels = [sampler.labels_of(names, config.count) for names in classes]  # refuses unknown classes before any work
    with (
        DatasetWriter(
            config.out,
            task=info.task, classes=info.classes, height=info.size, width=info.size, channels=info.channels,
        ) as writer,
        tqdm(total=config.count * len(classes), unit="image", file=sys.stderr, desc=config.out.name) as bar,
    ):  # fmt: skip
        for of_class in labels:
            for at in range(0, config.count, ROWS_AT_A_TIME):
                rows = of_class[at : at + ROWS_AT_A_TIME]
                start = config.start + at
                images = sampler.sample(
                    rows, config.seed, start,
                    latent=config.latent, truncation=config.truncation, candidates=config.candidates,
                )  # fmt: skip
                writer.add("train", images)
                bar.update(len(rows))
        return writer.finish(
            report={"sample": settings},
            provenance=provenance(
                seed=config.seed, started_s=started_s, inputs={"model": file_sha256(config.model / MODEL)}
            ),
        )


def sample(config: SampleConfig) -> int:
    """The command: write the dataset and print its counts and path."""
    manifest = synthesize(config)
    counts = manifest.splits["train"].per_class or {"unconditional": manifest.splits["train"].num_images}
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + " images, synthetic")
    print(config.out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m vaegan.sample --model MODEL --out DATASET`."""
    return run_command(SampleConfig, sample, prog="python -m vaegan.sample", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
