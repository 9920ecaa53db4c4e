"""A run's weights to a model folder: what `Sampler` and the service load. Also a command, for earlier checkpoints."""

import copy
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import read_json, text_sha256
from vaegan import latents
from vaegan.card import card
from vaegan.checkpoint import STATE, STATE_JSON, ModelInfo, export_model, is_checkpoint, read_info, read_state
from vaegan.images import pixel_hash
from vaegan.latents import Mixture
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import DecoderAverage, OptimizerConfig, Optimizers
from vaegan.reading import ReadingConfig, TrainingImages, files_sha256, open_split, pixel_blocks
from vaegan.recipe import Recipe
from vaegan.sampler import CHUNK, Sampler
from vaegan.shards import Manifest, read_manifest
from vaegan.validation import ValidationConfig
from vaegan.watchdog import WatchdogConfig

MIXTURE_SEED = 0
MAX_ENCODED = 20_000
"""Training images of a class, and of all classes, that a mixture of ten components is fitted to: evenly spaced ones."""
BLOCK = 16 * CHUNK
"""Images in memory at a time while they are encoded."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Turn a checkpoint of a run into a model folder, to sample from it or to evaluate it."""

    checkpoint: Path
    """A checkpoint_* folder of a run."""
    out: Path
    """Model folder to write."""
    name: str = "model"
    """First part of the model's address."""
    version: str = "1"
    """Second part of the model's address."""


def data_sha256(images: TrainingImages) -> str:
    """SHA-256 of the sorted hashes of training images: the same for the same images in any order."""
    return hashes_sha256(pixel_hash(image) for block in pixel_blocks(images) for image in block)


def run_sha256(images: TrainingImages) -> str:
    """What tells a run's images from others: `data_sha256` or, of a stream, a hash for which nothing has to be read."""
    return files_sha256(images) or data_sha256(images)


def hashes_sha256(pixel_hashes: Iterable[str]) -> str:
    """`data_sha256` of images whose hashes are known."""
    return text_sha256("\n".join(sorted(pixel_hashes)))


def build(recipe: Recipe, manifest: Manifest) -> Networks:
    """The networks of a recipe for a dataset.

    Raises:
        UserError: images that are not square, or of a size the networks don't take.
    """
    if manifest.height != manifest.width:
        raise UserError(f"images of {manifest.height}x{manifest.width}: the networks take squares; prepare with --size")
    try:
        return Networks(
            recipe.model, size=manifest.height, channels=manifest.channels, num_classes=len(manifest.classes)
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def export(
    folder: Path,
    networks: Networks,
    average: DecoderAverage,
    images: TrainingImages,
    manifest: Manifest,
    *,
    recipe: Recipe,
    seed: int,
    images_seen: int,
    chosen: str,
    begun_with: str,
    name: str,
    version: str,
    started_s: float,
) -> None:
    """Write a model folder: the averaged decoder, a Gaussian mixture per class over encoded training images, a card."""
    networks = copy.copy(networks)
    networks._modules = dict(networks._modules) | {"decoder": average.decoder}
    networks.eval()
    classes = manifest.classes if networks.num_classes else ()
    labels = images.labels[:, : len(classes)]
    digest = data_sha256(images)
    info = ModelInfo(
        name=name,
        version=version,
        networks=recipe.model,
        size=manifest.height,
        channels=manifest.channels,
        task=manifest.task,
        classes=classes,
        class_counts=tuple(map(int, labels.sum(axis=0))),
        latents=("prior", "mixture") if networks.encoder is not None else ("prior",),
        images_seen=images_seen,
        num_training_images=len(images),
        data_sha256=digest,
        chosen=chosen,
        begun_with=begun_with,
        provenance=provenance(seed=seed, started_s=started_s, inputs={"training images": digest}),
    )
    export_model(folder, networks, fit_mixtures(networks, images, labels, info), info, card(info))


def ancestor(model: Path) -> str:
    """What a model is, in a line: its training images live on in every model that began with its weights."""
    info = read_info(model)
    line = (
        f"{info.address_prefix} (tensors {info.tensors_sha256[:16]}), trained on {info.num_training_images} images "
        f"(data {info.data_sha256[:16]})"
    )
    return f"{line}; it began with {info.begun_with}" if info.begun_with else line


def fit_mixtures(
    networks: Networks, images: TrainingImages, labels: np.ndarray, info: ModelInfo, max_encoded: int = MAX_ENCODED
) -> dict[int, Mixture]:
    """A mixture over posterior samples of training images (-1) and of each class that has at least two.

    Args:
        max_encoded: of all images, and of each class, so many at most are encoded.
    """
    if networks.encoder is None:
        return {}
    groups = {-1: np.arange(len(images))} | {k: np.flatnonzero(labels[:, k]) for k in range(labels.shape[1])}
    groups = {k: _evenly(rows, max_encoded) for k, rows in groups.items()}
    chosen = np.unique(np.concatenate(list(groups.values())))
    sampler = Sampler(networks, {}, info, next(networks.parameters()).device)
    z = np.empty((len(chosen), networks.config.latent_dim), dtype=np.float32)
    for at in range(0, len(chosen), BLOCK):
        rows = chosen[at : at + BLOCK]
        mu, log_var = sampler.encode(images.take(rows).pixels, labels[rows])
        z[at : at + BLOCK] = mu + np.exp(0.5 * log_var) * latents.prior(MIXTURE_SEED, rows, mu.shape[1])
    return {
        k: Mixture.fit(z[np.searchsorted(chosen, rows)], MIXTURE_SEED) for k, rows in groups.items() if len(rows) > 1
    }


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them at even distances."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def export_checkpoint(config: ExportConfig) -> None:
    """Rebuild a run's networks, restore a checkpoint, write a model.

    Raises:
        UserError: no checkpoint, or the run's dataset changed since.
    """
    started_s = time.time()
    if not is_checkpoint(config.checkpoint):
        raise UserError(
            f"{config.checkpoint} isn't a checkpoint: expected a run's checkpoint_* folder, "
            f"with {STATE_JSON} and {STATE} in it"
        )
    run = read_json(config.checkpoint.parent / "config.json")
    settings = run["config"]
    nested = {
        "model": NetworkConfig, "loss": LossConfig, "optimizer": OptimizerConfig,
        "validation": ValidationConfig, "watchdog": WatchdogConfig,
    }  # fmt: skip
    plain = {name: settings[name] for name in Recipe.__dataclass_fields__ if name not in nested}
    recipe = Recipe(**plain, **{name: kind(**settings[name]) for name, kind in nested.items()})
    manifest = read_manifest(Path(settings["data"]))
    images = open_split(Path(settings["data"]), "train", ReadingConfig(**settings.get("reading", {})))
    if run_sha256(images) != run["data_sha256"]:
        raise UserError(
            f"{settings['data']} isn't what the run {config.checkpoint.parent} was trained on: its images changed"
        )
    torch.manual_seed(settings["seed"])
    networks = build(recipe, manifest)
    average = DecoderAverage(networks.decoder, recipe.average_half_life_images)
    progress = read_state(config.checkpoint, networks, average, Optimizers(networks, recipe.optimizer))
    export(
        config.out, networks, average, images, manifest,
        recipe=recipe, seed=settings["seed"], images_seen=progress.images_seen, chosen=config.checkpoint.name,
        begun_with=progress.begun_with,
        name=config.name, version=config.version, started_s=started_s,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m vaegan.export --checkpoint RUN/checkpoint_N --out MODEL`."""

    def command(config: ExportConfig) -> None:
        export_checkpoint(config)
        print(config.out)

    return run_command(ExportConfig, command, prog="python -m vaegan.export", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
