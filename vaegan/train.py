"""Command line: train a generator on a dataset, with Ray Train or in this process."""

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.remote import absolute
from vaegan.estimate import estimate
from vaegan.export import labelled_for
from vaegan.loop import train_loop
from vaegan.reading import TrainingImages, check_balance, num_unlabelled, open_split
from vaegan.recipe import TrainConfig
from vaegan.registry import publish
from vaegan.runs import check_run, locked, model_folder, refuse_old_run
from vaegan.shards import read_manifest
from vaegan.tracking import absolute_uri

# Ray polls its workers this often; at its default of 2 s every report stalls the loop for as long.
HEALTH_CHECK_INTERVAL_S = "0.2"
# After a node's death Ray waits this long for workers to start before it asks again for what is there.
START_TIMEOUT_S = "30"
COLLECTIVE_TIMEOUT_S = 300  # one worker may validate and write a checkpoint while the others wait for it


def train(config: TrainConfig) -> int:
    """Train, export and, if asked to, publish; prints where the model is."""
    # Ray changes its workers' directory
    config = replace(
        config,
        data=absolute(config.data),
        run_dir=config.run_dir.absolute(),
        warm_start=config.warm_start and config.warm_start.absolute(),
        mlflow=config.mlflow and absolute_uri(config.mlflow),
    )
    images = open_split(config.data, "train", config.reading)
    manifest = read_manifest(config.data)
    learned = labelled_for(config, images, manifest)  # what can't be is found here, not by workers
    if config.balance_classes:
        check_balance(images)
    if config.dry_run:
        device = torch.device("cuda" if config.gpu and torch.cuda.is_available() else "cpu")
        print(estimate(config, manifest, len(images), device).text())
        return 0
    if config.resume == "never":
        refuse_old_run(config.run_dir)
    model = train_here_or_with_ray(config, images)
    if config.publish_to is not None:
        model = publish(model, config.publish_to, f"{config.name}/{config.version}").path
    classes = ", ".join(manifest.classes) if config.model.conditional else "unconditional"
    unlabelled = num_unlabelled(learned) if config.model.conditional else 0
    known = f", {len(images) - unlabelled} of them labelled" if unlabelled else ""
    print(f"trained on {len(images)} images{known} ({classes}); model:\n{model}")
    return 0


def train_here_or_with_ray(config: TrainConfig, images: TrainingImages) -> Path:
    """Train unless that was done; returns the model folder."""
    with locked(config.run_dir):
        if check_run(config, images):
            print(f"{config.run_dir} is trained already", file=sys.stderr)
        elif config.num_workers == 0:
            with progress_bar(config) as bar:
                train_loop(config, images, progress=bar)
        else:
            train_with_ray(config)
    return model_folder(config.run_dir)


def train_with_ray(config: TrainConfig) -> None:
    """Run `train_worker` on every worker of a Ray Train group; a worker that dies is replaced and resumes.

    Raises:
        UserError: the run can't go on, or workers died more often than `max_failures`.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_INTERVAL_S)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    # Ray is imported here, not above: these variables must be set before it is, and `--help` needs none of it
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.session import connect
    from vaegan.worker import train_worker

    with connect(config.cluster):
        threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // config.num_workers)
        workers = (config.min_workers, config.num_workers) if config.min_workers else config.num_workers
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]
            train_loop_config=config,  # type: ignore[arg-type]
            # a lost worker must not leave the others waiting in an all-reduce for Ray's default of half an hour
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]
                use_gpu=config.gpu,
                # Ray sets OMP_NUM_THREADS to this: two workers with two threads each on two cores are slower than one
                resources_per_worker={"CPU": threads if not config.gpu else 1, "GPU": int(config.gpu)},
            ),
            run_config=RunConfig(
                name=config.run_dir.name,
                storage_path=str(config.run_dir.parent),
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
        )
        with progress_bar(config) as bar, watched(config.run_dir / "stats.jsonl", bar):
            try:
                failure = trainer.fit().return_value  # type: ignore[attr-defined]
            except TrainingFailedError as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"training in {config.run_dir} stopped ({reason}); the same command goes on from its last "
                    "checkpoint"
                ) from error
    if failure is not None:
        raise UserError(failure)


class _Bar:
    """A progress bar in images, fed with lines of stats.jsonl."""

    def __init__(self, config: TrainConfig) -> None:
        self.bar = tqdm(
            total=config.total_images, unit="image", file=sys.stderr, desc=config.run_dir.name, smoothing=0.1
        )

    def __call__(self, line: dict[str, Any]) -> None:
        shown: dict[str, object] = {
            name: f"{line[name]:.3g}" for name in ("prior", "like", "d_real", "d_sample") if name in line
        }
        self.bar.set_postfix(shown, refresh=False)
        if not self.bar.n:
            self.bar.initial = line["images"]  # what an earlier attempt did must not count as speed
        self.bar.update(line["images"] - self.bar.n)


@contextmanager
def progress_bar(config: TrainConfig) -> Iterator[_Bar]:
    """A progress bar on stderr for as long as the context lasts."""
    bar = _Bar(config)
    try:
        yield bar
    finally:
        bar.bar.close()


@contextmanager
def watched(path: Path, show: _Bar, interval_s: float = 0.5) -> Iterator[None]:
    """Show the newest line of a growing stats.jsonl from a thread: the workers that write it are other processes."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(interval_s):
            if path.exists():
                lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
                if lines:
                    show(json.loads(lines[-1]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m vaegan.train --data DATASET --run-dir DIR`."""
    return run_command(TrainConfig, train, prog="python -m vaegan.train", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
