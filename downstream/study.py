"""A study: a config with everything it names read and checked, before hours are spent on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cluster import remote
from cluster.cli import as_dict, parse
from cluster.errors import UserError
from cluster.storage import file_sha256, read_json, text_sha256, write_json
from downstream.arms import extra_rows
from downstream.plan import AblateConfig, Cell, Folder, Generator, check_same, plan_cells, plan_generators
from downstream.tasks import Data, held_out_hashes, training_images
from vaegan.metrics.features import make_extractor, split_spec, weights_file
from vaegan.recipe import Recipe
from vaegan.shards import dataset_sha256, read_manifest, read_split
from vaegan.splits import nested_subset


@dataclass(frozen=True)
class Study:
    """A config with what it names read and checked: what the driver needs to start tasks."""

    config: AblateConfig
    folder: Folder
    data: Data
    subsets: dict[float, np.ndarray]
    """Rows of train, for each fraction."""
    held_out: dict[str, str]
    recipe: Recipe | None
    cells: list[Cell]
    generators: list[Generator]

    @property
    def warnings(self) -> list[str]:
        """What could not be checked, a sentence each."""
        ready = self.config.synthetic
        if ready is None or not self.config.needs_synthetic:
            return []
        return [
            f"{ready} is taken as it is: that its generator saw no patient of the val and test splits, nor more "
            "images than a fraction holds, rests on its manifest alone; only exact copies of val and test images were "
            "looked for"
        ]

    def pool_labels(self, fraction: float) -> np.ndarray:
        """Labels (N, K) of a fraction's pools: what the largest ratio needs, in the order that all ratios share."""
        labels = self.data.train.labels[self.subsets[fraction]]
        num = max(1, round(max(self.config.ratios) * len(labels)))
        return labels[extra_rows(labels, num, self.config.extra_classes, self.config.subset_seed)]

    def pool_path(self, cell: Cell) -> Path | None:
        if cell.pool is None:
            return None
        return self.folder.pool(cell.pool) if cell.pool.generator else self.config.synthetic


def prepare(config: AblateConfig) -> Study:
    """Read and check everything that can be wrong before hours are spent, and claim the folder for this config.

    Raises:
        UserError: a dataset, recipe or weights file that is absent or unsuitable, a fraction that is too small, a
            training image that is also in val or test, or a folder that holds another ablation.
    """
    data = Data.read(config.data)
    held_out = held_out_hashes(data)
    subsets = {fraction: _subset(config, data, fraction) for fraction in config.fractions}
    recipe = _recipe(config) if config.trains_generators else None
    if recipe:
        largest = data.train.take(subsets[max(config.fractions)])  # the smaller ones are inside
        training_images(largest, held_out)
    if config.needs_synthetic and config.synthetic:
        _check_ready(config, data, held_out)
    folder = Folder(config.out)
    config.out.mkdir(parents=True, exist_ok=True)
    _claim(config, folder, data, recipe)
    return Study(config, folder, data, subsets, held_out, recipe, plan_cells(config), plan_generators(config))


def absolute(config: AblateConfig) -> AblateConfig:
    """Paths that mean the same in a Ray worker, whose directory is another."""
    optional: dict[str, Any] = {
        name: remote.absolute(path)
        for name in ("recipe", "synthetic", "weights")
        if (path := getattr(config, name)) is not None
    }
    return replace(
        config,
        data=remote.absolute(config.data),
        out=config.out.absolute(),
        extractors=tuple(map(_absolute_spec, config.extractors)),
        features=_absolute_spec(config.features),
        **optional,
    )


def _absolute_spec(spec: str) -> str:
    """An extractor's spec with an absolute path after its `=`."""
    kind, equals, path = spec.partition("=")
    return f"{kind}={Path(path).absolute()}" if equals else spec


def _subset(config: AblateConfig, data: Data, fraction: float) -> np.ndarray:
    rows = nested_subset(data.train.labels, data.train.patient_id, fraction, config.subset_seed)
    counts = data.train.labels[rows].sum(axis=0)
    scarce = int(counts.argmin())
    if counts[scarce] < config.min_images_per_class:
        total = int(data.train.labels[:, scarce].sum())
        raise UserError(
            f"fraction {fraction:g} of {config.data} holds {counts[scarce]} of its {total} training images of class "
            f"{data.manifest.classes[scarce]}: expected at least {config.min_images_per_class}; "
            "choose a larger fraction, or lower --min-images-per-class"
        )
    return rows


def _recipe(config: AblateConfig) -> Recipe:
    assert config.recipe is not None
    if not config.recipe.is_file():
        raise UserError(f"no recipe {config.recipe}: expected a YAML file such as configs/demo.yaml")
    recipe = parse(Recipe, ["--config", str(config.recipe)], prog=f"{config.recipe}")
    if not recipe.model.conditional:
        raise UserError(
            f"{config.recipe} makes an unconditional generator: pools need labelled images; "
            "set model.conditional: true, or take another recipe"
        )
    return recipe


def _check_ready(config: AblateConfig, data: Data, held_out: dict[str, str]) -> None:
    """Ready synthetic rows must look like the dataset's and repeat none of its val and test images."""
    assert config.synthetic is not None
    there, want = read_manifest(config.synthetic), data.manifest
    for name in ("task", "classes", "height", "width", "channels"):
        if getattr(there, name) != getattr(want, name):
            raise UserError(
                f"{config.synthetic} has {name} {getattr(there, name)} and {config.data} has {getattr(want, name)}: "
                "expected the same; sample from a generator that was trained on this dataset"
            )
    if count := there.splits["train"].num_unlabelled if "train" in there.splits else 0:
        raise UserError(f"{config.synthetic} has {count} images without a label: expected one for each synthetic image")
    training_images(read_split(config.synthetic, "train"), held_out)


def _claim(config: AblateConfig, folder: Folder, data: Data, recipe: Recipe | None) -> None:
    """Write config, identity and named.json, or refuse a folder whose finished parts were made with other settings.

    Which cells there are (arms, fractions, ratios, classifiers, seeds) may grow; what each of them is may not change.
    """
    settled = ("steps", "batch_size", "learning_rate", "extra_classes", "subset_seed")
    identity: dict[str, Any] = {name: getattr(config, name) for name in settled} | {"dataset": data.sha256}
    if config.needs_synthetic:
        identity["latent"] = config.latent
        identity["recipe"] = as_dict(recipe) if recipe else None
        identity["synthetic"] = dataset_sha256(config.synthetic) if config.synthetic else None
    if "resnet18" in config.classifiers:
        identity["weights"] = file_sha256(config.weights) if config.weights else None
    if "logistic" in config.classifiers:
        _, path = split_spec(config.features) if "=" in config.features else ("", None)
        identity["features"] = config.features if path is None else file_sha256(path)
        if path is not None:
            make_extractor(config.features)  # a wrong file is found now, not in a thousand cells
    for spec in config.extractors if config.needs_synthetic else ():
        weights_file(spec)
    identity = json.loads(json.dumps(identity))
    if folder.identity.exists():
        before = read_json(folder.identity)
        both = before.keys() & identity.keys()  # a setting that only one of them has did not touch the other's cells
        check_same({key: before[key] for key in both}, {key: identity[key] for key in both}, config.out)
        identity = before | identity
    elif any(config.out.iterdir()):
        raise UserError(f"{config.out} holds something else than an ablation: choose another --out or empty it")
    if not folder.named.exists():  # once: what a later call names after seeing results was not named in advance
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder.named, {"time": now, "primary": config.resolved_primary()})
    write_json(folder.config, as_dict(config))
    write_json(folder.identity, identity)


def results_sha256(config: AblateConfig) -> str:
    """Of what decides the results: all settings but where they are computed."""
    content = as_dict(config)
    for name in ("cluster", "gpus_per_task", "out"):
        content.pop(name)
    return text_sha256(json.dumps(content, sort_keys=True))
