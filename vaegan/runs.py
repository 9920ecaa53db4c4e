"""A run's folder: who may write into it, and where a worker's checkpoints go."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster import storage
from cluster.cli import as_dict
from cluster.errors import UserError
from cluster.storage import atomic_directory, read_json, write_json
from vaegan.checkpoint import bests, checkpoint_name, checkpoints, images_at, is_checkpoint, is_model, remove_all_but
from vaegan.export import run_sha256
from vaegan.reading import TrainingImages, order_name
from vaegan.recipe import TrainConfig
from vaegan.tracking import without_password

# What may differ between the command that started a run and the one that resumes it: where it runs, not what it makes.
FREE_TO_CHANGE = (
    "num_workers", "min_workers", "max_failures", "gpu", "keep_checkpoints", "cluster", "publish_to", "data", "run_dir",
    "resume", "dry_run", "mlflow", "mlflow_experiment", "reading",
)  # fmt: skip


class Run(Protocol):
    """Where a worker's checkpoints go and come from: this process's disk, or Ray Train."""

    world_rank: int
    world_size: int
    device: torch.device

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""

    def save(self, write: Callable[[Path], None], images_seen: int, metrics: dict[str, float]) -> None:
        """Keep a checkpoint, of which `write` fills a folder; called by every worker, `write` runs on the first."""


class SoloRun:
    """A run in this process alone."""

    world_rank, world_size = 0, 1

    def __init__(self, run_dir: Path, keep: int, device: torch.device | str = "cpu") -> None:
        self.run_dir, self.keep, self.device = run_dir, keep, torch.device(device)

    def latest(self) -> Path | None:
        found = checkpoints(self.run_dir)
        return found[-1] if found else None

    def save(self, write: Callable[[Path], None], images_seen: int, metrics: dict[str, float]) -> None:
        target = self.run_dir / checkpoint_name(images_seen)
        if not target.exists():
            with atomic_directory(target) as temporary:
                write(temporary)
        if self.keep:
            remove_all_but(checkpoints(self.run_dir), self.keep)


class TrainingFailedError(UserError):
    """A run that can't go on, told in one sentence: what happened, what was tried, what to change."""


def model_folder(run_dir: Path) -> Path:
    """Where a finished run's model is."""
    return run_dir / "model"


def settings(config: TrainConfig) -> dict[str, Any]:
    """A run's config as its files hold it: no password of a tracking store."""
    return as_dict(config) | {"mlflow": config.mlflow and without_password(config.mlflow)}


def check_enough(config: TrainConfig, num_images: int) -> None:
    """Raise a `UserError` where there are fewer training images than a batch has."""
    if num_images < config.batch_size:
        raise UserError(
            f"{num_images} training images in {config.data}, fewer than batch_size {config.batch_size}: "
            f"add images or choose a batch_size of at most {num_images}"
        )


def check_run(config: TrainConfig, images: TrainingImages) -> bool:
    """Claim the run's folder for this config; True when its model is there already.

    Raises:
        UserError: too few images, or the folder holds a run of another config or of other images.
    """
    check_enough(config, len(images))
    content = {
        "config": settings(config), "data_sha256": run_sha256(images), "num_training_images": len(images),
        "order": order_name(images),
    }  # fmt: skip
    path = config.run_dir / "config.json"
    begun = checkpoints(config.run_dir) or (config.run_dir / "stats.jsonl").exists()
    if not path.exists() or not begun:  # what failed before its first step, by a mistyped path say, claims nothing
        write_json(path, content)
        return False
    before = read_json(path)
    old, new = _with_todays_keys(before["config"], config), settings(config)
    differ = [name for name in new if name not in FREE_TO_CHANGE and old.get(name) != new[name]]
    order = before.get("order", "permuted")  # earlier versions didn't tell, and had all images in memory
    if order != content["order"]:
        differ.append(f"the order of images ({order})")
    elif before["data_sha256"] != content["data_sha256"]:
        differ.append("the training images")
    if differ:
        raise UserError(
            f"{config.run_dir} holds a run that differs in {', '.join(differ)}: "
            "choose another --run-dir, or repeat the first run's settings to resume it"
        )
    return is_model(model_folder(config.run_dir))


def _with_todays_keys(stored: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Settings that an earlier version stored, by the names that keys have today.

    A key that came later has its default, which is what that version did. What can't be read stays as it is.
    """
    found = as_dict(TrainConfig(data=config.data, run_dir=config.run_dir)) | stored
    for each in fields(config):
        if is_dataclass(getattr(config, each.name)):
            part: Any = type(getattr(config, each.name))
            with suppress(TypeError, ValueError):
                found[each.name] = as_dict(part(**found[each.name]))
    return found


@contextmanager
def locked(run_dir: Path, name: str = ".lock", wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes of this machine out of a run's folder for as long as the context lasts.

    Args:
        name: of the lock, a file in the folder: the command holds `.lock`, the process that trains `.writer.lock`,
            since a command that was killed may leave a worker that lives on for some seconds.
        wait_s: how long to wait for another to end.

    Raises:
        UserError: another holds it.
    """
    busy = f"another process trains in {run_dir}: wait for it, or choose another --run-dir"
    with storage.locked(run_dir / name, busy, wait_s):
        yield


def refuse_old_run(run_dir: Path) -> None:
    """Raise a `UserError` where a folder has a run already."""
    if (run_dir / "config.json").exists():
        raise UserError(
            f"{run_dir} holds a run and --resume is never: choose another --run-dir, or --resume auto to go on with it"
        )


def tidy(run_dir: Path, images_seen: int) -> None:
    """Remove what a run that ended suddenly left: what is half written or half removed, and best checkpoints past here.

    Args:
        images_seen: where the run resumes.
    """
    for path in (*run_dir.glob(".*"), *run_dir.glob("grids/.*")):
        if path.is_dir() and path.name.startswith((".checkpoint_", ".best_", ".model-")):
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"\.\w+\.\d+-[0-9a-f]{8}\.\w+", path.name):  # a file of `atomic_file`
            path.unlink(missing_ok=True)
    for path in run_dir.glob("*_*"):
        if re.fullmatch(r"(checkpoint|best)_\d{9}", path.name) and not is_checkpoint(path):
            shutil.rmtree(path)
    for path in bests(run_dir):
        if images_at(path) > images_seen:
            shutil.rmtree(path)
