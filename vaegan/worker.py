"""What each Ray Train worker runs: `train_loop` with Ray's ranks, device and checkpoints."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import ray.train
import torch
from ray.train import Checkpoint
from ray.train.torch import get_device

from cluster.errors import UserError
from vaegan.checkpoint import checkpoint_name
from vaegan.loop import train_loop
from vaegan.recipe import TrainConfig


class RayRun:
    """Checkpoints through `ray.train.report`, which puts them into the run's folder and restores them from it."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.world_rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        self.restored = tempfile.TemporaryDirectory()

    def latest(self) -> Path | None:
        """The newest checkpoint that Ray knows to be complete, as a local folder."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.to_directory(self.restored.name))

    def save(self, write: Callable[[Path], None], images_seen: int, metrics: dict[str, float]) -> None:
        """Report from every worker, as Ray wants it; the first one brings the checkpoint."""
        name = checkpoint_name(images_seen)
        if self.world_rank:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)


def train_worker(config: TrainConfig) -> str | None:
    """Ray Train's function of one worker; returns why the run can't go on, if it can't.

    Returned, not raised: every worker comes to the same end, and Ray would begin again what must end the same way.
    """
    torch.backends.cudnn.benchmark = True  # shapes never change within a run
    try:
        train_loop(config, run=RayRun())
    except UserError as error:
        return str(error)
    return None
