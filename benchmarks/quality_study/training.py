"""A run's model: trained in this process, from its newest checkpoint on, unless it is there already."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from cluster.cli import parse
from cluster.storage import atomic_file
from quality_study.cases import Case
from quality_study.recipes import Recipe
from vaegan.checkpoint import bests, checkpoints, is_model
from vaegan.loop import train_loop
from vaegan.recipe import TrainConfig
from vaegan.runs import model_folder


def train(recipe: Recipe, case: Case, data: Path, run_dir: Path, *, seed: int, images: int) -> Path:
    """The folder of the trained model.

    Raises:
        UserError: a key that the recipe's config doesn't have, or training failed for good.
    """
    if not is_model(model_folder(run_dir)):
        train_loop(config_of(recipe.for_case(case, images), data, run_dir, seed))
    for folder in (*checkpoints(run_dir), *bests(run_dir)):  # many runs: 100 MB each of states that nobody goes back to
        shutil.rmtree(folder)
    return model_folder(run_dir)


def config_of(settings: dict[str, Any], data: Path, run_dir: Path, seed: int) -> TrainConfig:
    """The same config that `vaegan.train --config` would read, checked in the same way."""
    file = run_dir.with_suffix(".yaml")
    with atomic_file(file) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    flags = [f"--data={data}", f"--run-dir={run_dir}", f"--seed={seed}", "--num-workers=0"]
    return parse(TrainConfig, [f"--config={file}", *flags], prog="quality.py")
