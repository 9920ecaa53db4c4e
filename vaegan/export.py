"""A run's weights to a model folder: what `Sampler` and the service load. Also a command, for earlier checkpoints."""

import copy
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import read_json, text_sha256
from vaegan.card import card
from vaegan.checkpoint import STATE, STATE_JSON, ModelInfo, export_model, is_checkpoint, read_info, read_state
from vaegan.images import pixel_hash
from vaegan.latents import LatentsConfig, LatentSource, Posterior, SourceName, fit_latents
from vaegan.latents.fit import groups_of
from vaegan.networks import Networks
from vaegan.optimizers import DecoderAverage, Optimizers
from vaegan.reading import (
    ReadingConfig,
    TrainingImages,
    files_sha256,
    num_unlabelled,
    open_split,
    pixel_blocks,
    with_labelled,
)
from vaegan.recipe import Recipe
from vaegan.sampler import CHUNK, Sampler
from vaegan.shards import Images, Manifest, read_manifest
from vaegan.splits import nested_subset

MAX_ENCODED = 20_000
"""Training images of a class, and of all classes, that latent sources are fitted to: evenly spaced ones."""
BLOCK = 16 * CHUNK
"""Images in memory at a time while they are encoded."""
LABELLED_SEED = 0
"""Of the patients whose labels `labelled_fraction` leaves, the same for runs of any seed."""


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
    latents: tuple[SourceName, ...] = ()
    """Latent sources to fit, such as mixture gaussian flow; without it, those of the run's recipe."""

    def __post_init__(self) -> None:
        LatentsConfig(sources=self.latents)  # refuses what is none


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
        UserError: images that are not square, or of a size the networks don't take, or a label head without classes.
    """
    if manifest.height != manifest.width:
        raise UserError(f"images of {manifest.height}x{manifest.width}: the networks take squares; prepare with --size")
    try:
        return Networks(
            recipe.model, size=manifest.height, channels=manifest.channels, num_classes=len(manifest.classes),
            task=manifest.task,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from None


def labelled_for(recipe: Recipe, images: TrainingImages, manifest: Manifest) -> TrainingImages:
    """Training images with the labels that a recipe lets its networks see: all, or those of `labelled_fraction`.

    Raises:
        UserError: some have no label and the model needs them all, or a class is left without any.
    """
    if not recipe.model.conditional:
        return images
    if isinstance(images, Images) and num_unlabelled(images):
        images = with_labelled(images, images.has_label)  # whatever is in memory for a label that nobody gave
    if recipe.labelled_fraction < 1:
        rows, labels = np.flatnonzero(images.has_label), images.labels
        kept = rows[nested_subset(labels[rows], images.patient_id[rows], recipe.labelled_fraction, seed=LABELLED_SEED)]
        lost = np.flatnonzero(labels.any(axis=0) & ~labels[kept].any(axis=0))
        if len(lost):
            raise UserError(
                f"labelled_fraction {recipe.labelled_fraction:g} leaves {len(kept)} of {len(rows)} labelled images, "
                f"none of them of class {manifest.classes[lost[0]]}: choose a larger one"
            )
        images = with_labelled(images, np.isin(np.arange(len(images)), kept))
    if (count := num_unlabelled(images)) and not recipe.model.label_head:
        raise UserError(
            f"{count} of {len(images)} training images have no label, and a conditional model needs one for each: set "
            "model.label_head, which infers them, or model.conditional false, or prepare without them"
        )
    return images


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
    """Write a model folder: the averaged decoder, latent sources fitted to encoded training images, a card."""
    networks = copy.copy(networks)
    networks._modules = dict(networks._modules) | {"decoder": average.decoder}
    networks.eval()
    classes = manifest.classes if networks.num_classes else ()
    labels, unlabelled = images.labels[:, : len(classes)], num_unlabelled(images) if classes else 0
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
        num_unlabelled=unlabelled,
        latents=("prior",),
        images_seen=images_seen,
        num_training_images=len(images),
        data_sha256=digest,
        chosen=chosen,
        begun_with=begun_with,
    )
    sampler = Sampler(networks, {}, info, _device(networks))
    if unlabelled and recipe.latents.sources:
        labels = completed_labels(sampler, images)
    sources = fit_sources(sampler, images, labels, recipe.latents)
    about = provenance(seed=seed, started_s=started_s, inputs={"training images": digest})
    info = replace(info, latents=("prior", *sources), provenance=about)
    export_model(folder, networks, sources, info, card(info))


def completed_labels(sampler: Sampler, images: TrainingImages) -> np.ndarray:
    """Labels of images, and where they have none what the model's label head takes them for: uint8 (N, K).

    Raises:
        UserError: the model has no label head.
    """
    labels = images.labels.copy()
    missing = np.flatnonzero(~images.has_label)
    for at in range(0, len(missing), BLOCK):
        rows = missing[at : at + BLOCK]
        labels[rows] = sampler.predicted_labels(images.take(rows).pixels)
    return labels


def ancestor(model: Path) -> str:
    """What a model is, in a line: its training images live on in every model that began with its weights."""
    info = read_info(model)
    line = (
        f"{info.address_prefix} (tensors {info.tensors_sha256[:16]}), trained on {info.num_training_images} images "
        f"(data {info.data_sha256[:16]})"
    )
    return f"{line}; it began with {info.begun_with}" if info.begun_with else line


def fit_sources(
    sampler: Sampler,
    images: TrainingImages,
    labels: np.ndarray,
    config: LatentsConfig,
    max_encoded: int = MAX_ENCODED,
) -> dict[str, LatentSource]:
    """Latent sources fitted to the posteriors of training images; none without an encoder.

    For a model that is there already, `sampler.with_sources(fit_sources(sampler, images, labels, config))` draws from
    them without another export.

    Args:
        labels: those that the networks take, (N, K).
        max_encoded: of all images, and of each class, so many at most are encoded.
    """
    if sampler.networks.encoder is None or not config.sources:
        return {}
    groups = {k: _evenly(rows, max_encoded) for k, rows in groups_of(labels).items()}
    chosen = np.unique(np.concatenate(list(groups.values())))
    among = {k: np.searchsorted(chosen, rows) for k, rows in groups.items()}
    return fit_latents(encoded(sampler, images, labels, chosen), config, among)


def encoded(sampler: Sampler, images: TrainingImages, labels: np.ndarray, rows: np.ndarray) -> Posterior:
    """The posteriors of these rows of images with labels (N, K)."""
    blocks = (rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK))
    parts = [sampler.encode(images.take(block).pixels, labels[block]) for block in blocks]
    mu, log_var = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Posterior(mu, log_var, labels[rows], rows)


def _device(networks: Networks) -> torch.device:
    return next(networks.parameters()).device


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them at even distances."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _recipe(settings: dict[str, Any]) -> Recipe:
    """The recipe in a run's config.json; keys that a run of an earlier version lacks have their defaults."""
    values = {field.name: settings[field.name] for field in fields(Recipe) if field.name in settings}
    for field in fields(Recipe):
        kind = field.default_factory
        if field.name in values and kind is not MISSING and is_dataclass(kind):
            values[field.name] = kind(**values[field.name])
    return Recipe(**values)


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
    recipe = _recipe(settings | ({"latents": {"sources": config.latents}} if config.latents else {}))
    manifest = read_manifest(Path(settings["data"]))
    images = open_split(Path(settings["data"]), "train", ReadingConfig(**settings.get("reading", {})))
    images = labelled_for(recipe, images, manifest)
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
