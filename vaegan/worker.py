"""What each Ray Train worker runs: `train_loop` with Ray's ranks and device."""

from collections.abc import Callable
from pathlib import Path

import ray.train
import torch
from ray.train.torch import get_device

from cluster.errors import UserError
from vaegan.checkpoint import checkpoint_name
from vaegan.collectives import average_over_workers, broadcast_number
from vaegan.loop import train_loop
from vaegan.recipe import TrainConfig
from vaegan.runs import SoloRun
from vaegan.shards import is_dataset


class RayRun(SoloRun):
    """The run's folder, as without Ray, shared by all workers: the first one writes, and says where all resume.

    Ray Train's own checkpoints won't do. It copies files one by one to their final names, and keeps its list of them
    in a JSON file that it overwrites in place: after a sudden end in that moment no command could resume the run.
    Here a checkpoint is whole or absent, and a run may go on with Ray where it stopped without, and the reverse.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config.run_dir, config.keep_checkpoints, get_device())
        context = ray.train.get_context()
        self.world_rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._check_storage(config)
        newest = super().latest()
        # asked once and here: all workers come by, whereas one that finds the model finished soon leaves the others
        self._images_seen = int(broadcast_number(int(newest.name.removeprefix("checkpoint_")) if newest else 0))

    def _check_storage(self, config: TrainConfig) -> None:
        """Raise a `UserError`, on all workers alike, unless each sees the files that the command itself has."""
        sees = _sees(config.data) and (config.run_dir / "config.json").exists()
        share = torch.tensor(float(sees), device=self.device)
        average_over_workers([share])
        if share < 1:
            raise UserError(
                f"not every node sees {config.data} and {config.run_dir}: "
                "put both on storage that all nodes have under these paths"
            )

    def latest(self) -> Path | None:
        """The newest complete checkpoint that the first worker saw when this one began."""
        return self.run_dir / checkpoint_name(self._images_seen) if self._images_seen else None

    def save(self, write: Callable[[Path], None], images_seen: int, metrics: dict[str, float]) -> None:
        """Keep a checkpoint, and report its figures from every worker, as Ray wants it."""
        if self.world_rank == 0:
            super().save(write, images_seen, metrics)
        ray.train.report(metrics)


def _sees(dataset: Path) -> bool:
    try:
        return is_dataset(dataset)
    except UserError:  # a URL that this node can't reach
        return False


def train_worker(config: TrainConfig) -> str | None:
    """Ray Train's function of one worker; returns why the run can't go on, if it can't.

    Returned, not raised: every worker comes to the same end, and Ray would begin again what must end the same way.
    """
    torch.backends.cudnn.benchmark = True  # shapes never change within a run
    try:
        train_loop(config, run=RayRun(config))
    except UserError as error:
        return str(error)
    return None
