"""`train_loop`: the epochs, logs, grids and checkpoints of one worker. Plain PyTorch: `vaegan.worker` brings Ray."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cluster.cli import as_dict
from cluster.errors import UserError
from cluster.storage import atomic_directory, atomic_file, read_json, write_json
from vaegan.checkpoint import (
    checkpoint_name,
    checkpoints,
    is_model,
    read_state,
    remove_checkpoints,
    write_state,
)
from vaegan.collectives import average_over_workers
from vaegan.export import build, data_sha256, export
from vaegan.images import encode_png, grid, to_pixels, to_tensor
from vaegan.latents import prior
from vaegan.networks import Networks
from vaegan.optimizers import DecoderAverage, Optimizers
from vaegan.recipe import Recipe, TrainConfig, choose_dtype
from vaegan.shards import Images, Manifest, read_manifest, read_split
from vaegan.steps import Batch, train_step

__all__ = ["Recipe", "SoloRun", "TrainConfig", "check_run", "model_folder", "train_loop"]

GRID_SEED = 1_000_003
LOGS_PER_CHECKPOINT = 10
# What may differ between the command that started a run and the one that resumes it: where it runs, not what it makes.
FREE_TO_CHANGE = ("num_workers", "gpu", "keep_checkpoints", "cluster", "publish_to", "data", "run_dir")


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
            remove_checkpoints(self.run_dir, self.keep)


def model_folder(run_dir: Path) -> Path:
    """Where a finished run's model is."""
    return run_dir / "model"


def check_run(config: TrainConfig, images: Images) -> bool:
    """Claim the run's folder for this config; True when its model is there already.

    Raises:
        UserError: too few images, or the folder holds a run of another config or of other images.
    """
    if len(images) < config.batch_size:
        raise UserError(
            f"{len(images)} training images in {config.data}, fewer than batch_size {config.batch_size}: "
            f"add images or choose a batch_size of at most {len(images)}"
        )
    content = {"config": as_dict(config), "data_sha256": data_sha256(images), "num_training_images": len(images)}
    path = config.run_dir / "config.json"
    if not path.exists():
        write_json(path, content)
        return False
    before = read_json(path)
    old, new = before["config"], as_dict(config)
    differ = [name for name in new if name not in FREE_TO_CHANGE and old.get(name) != new[name]]
    differ += ["the training images"] if before["data_sha256"] != content["data_sha256"] else []
    if differ:
        raise UserError(
            f"{config.run_dir} holds a run that differs in {', '.join(differ)}: "
            "choose another --run-dir, or repeat the first run's settings to resume it"
        )
    return is_model(model_folder(config.run_dir))


def train_loop(
    config: TrainConfig,
    images: Images | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    run: Run | None = None,
) -> Path:
    """Train in this process until `config.total_images`, resuming from the run's newest checkpoint.

    The result is a function of config, images and the number of workers: noise and order come from (seed, step), so
    a run killed anywhere and started again ends as one that was not.

    Args:
        images: training rows, instead of the train split of `config.data`, which then only tells classes and size.
        progress: called with every line of stats.jsonl.
        run: where checkpoints go; by default this process's own `SoloRun`.

    Returns:
        The model folder.

    Raises:
        UserError: see `check_run`.
        FloatingPointError: a loss became NaN or infinite.
    """
    started_s = time.time()
    manifest = read_manifest(config.data)
    images = read_split(config.data, "train") if images is None else images
    run = SoloRun(config.run_dir, config.keep_checkpoints) if run is None else run
    if run.world_rank == 0 and check_run(config, images):
        return model_folder(config.run_dir)

    torch.manual_seed(config.seed)
    networks = build(config, manifest).to(run.device).to(memory_format=torch.channels_last)
    average = DecoderAverage(networks.decoder, config.average_half_life_images)
    optimizers = Optimizers(networks, config.optimizer)
    dtype = choose_dtype(config.precision, run.device)
    latest = run.latest()
    seen = read_state(latest, networks, average, optimizers) if latest else 0

    journal = Journal(config, manifest, images, seen, progress) if run.world_rank == 0 else None
    if journal and not seen:
        journal.grids(networks, average, run.device, dtype, 0)
    since = Window(seen)
    networks.train()
    for x, labels in batches(images, config, seen, run):
        batch = Batch.draw(
            x, labels, config.model.latent_dim,
            seed=config.seed, step=seen // config.batch_size, worker=run.world_rank, num_workers=run.world_size,
        )  # fmt: skip
        beta = config.loss.beta * min(1.0, (seen + config.batch_size) / max(config.loss.kl_warmup_images, 1))
        terms = train_step(networks, optimizers, batch, config.loss, beta=beta, augment=config.augment, dtype=dtype)
        seen += config.batch_size
        average.update(networks.decoder, seen, config.batch_size)
        since.add(terms)
        done = seen == config.total_images
        at_checkpoint = done or seen % config.checkpoint_every == 0
        if not (at_checkpoint or seen % _log_every(config) == 0):
            continue
        metrics = since.close(seen)
        if journal:
            journal.log(metrics | {"beta": beta, "precision": str(dtype).removeprefix("torch.")})
        if at_checkpoint:
            if journal:
                journal.grids(networks, average, run.device, dtype, seen)
                networks.train()
            run.save(
                lambda folder, seen=seen: write_state(  # type: ignore[misc]
                    folder, networks, average, optimizers, images_seen=seen, config=as_dict(config)
                ),
                seen,
                {name: value for name, value in metrics.items() if isinstance(value, float)},
            )
    if journal:
        journal.close()
        export(
            model_folder(config.run_dir), networks, average, images, manifest,
            recipe=config, seed=config.seed, images_seen=seen, name=config.name, version=config.version,
            started_s=started_s,
        )  # fmt: skip
    return model_folder(config.run_dir)


def batches(images: Images, config: TrainConfig, seen: int, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """This worker's part of every batch from image `seen` on: x (N, C, H, W) and labels (N, K).

    Each epoch is a permutation from (seed, epoch), its incomplete last batch dropped; a batch's rows are dealt to the
    workers in equal runs.
    """
    steps_per_epoch = len(images) // config.batch_size
    share = config.batch_size // run.world_size
    labels = torch.from_numpy(images.labels.astype(np.float32))
    epoch = -1
    for step in range(seen // config.batch_size, config.total_images // config.batch_size):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = np.random.default_rng([config.seed, epoch]).permutation(len(images))
        at = step % steps_per_epoch * config.batch_size + run.world_rank * share
        rows = order[at : at + share]
        x = to_tensor(images.pixels[rows]).to(run.device, memory_format=torch.channels_last)
        yield x, labels[rows].to(run.device)


def _log_every(config: TrainConfig) -> int:
    return max(config.checkpoint_every // LOGS_PER_CHECKPOINT // config.batch_size, 1) * config.batch_size


class Window:
    """Running means of a step's figures since the last log, kept on their device: the host waits only at a log."""

    def __init__(self, seen: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.seen, self.steps, self.started_s = seen, 0, time.perf_counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step's figures."""
        self.sums = {name: self.sums[name] + value if self.steps else value.clone() for name, value in terms.items()}
        self.steps += 1

    def close(self, seen: int) -> dict[str, Any]:
        """The means over steps and workers as numbers, with images seen and images/s, and start anew.

        Raises:
            FloatingPointError: one of them is NaN or infinite.
        """
        average_over_workers(self.sums.values())
        means = {name: (value / self.steps).tolist() for name, value in self.sums.items()}
        wrong = [name for name, value in means.items() if isinstance(value, float) and not math.isfinite(value)]
        if wrong:
            raise FloatingPointError(
                f"training diverged before image {seen}: {', '.join(wrong)} is not finite; "
                "lower optimizer.learning_rate, or resume with --precision float32"
            )
        rate = (seen - self.seen) / (time.perf_counter() - self.started_s)
        self.sums, self.seen, self.steps, self.started_s = {}, seen, 0, time.perf_counter()
        return {"images": seen, "images_per_s": rate} | means


class Journal:
    """What a run tells people: stats.jsonl, TensorBoard events and picture grids. One worker writes it."""

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        images: Images,
        seen: int,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.manifest, self.progress = config, manifest, progress
        self.stats = config.run_dir / "stats.jsonl"
        self._forget_after(seen)
        self.board = SummaryWriter(str(config.run_dir / "tensorboard"), purge_step=seen or None)
        self.labels, self.columns = self._grid_labels()
        first = [np.flatnonzero(images.labels[:, k])[:2] for k in range(images.labels.shape[1])]
        self.examples = images.take(np.concatenate(first)[:16] if first else np.arange(min(8, len(images))))

    def _forget_after(self, seen: int) -> None:
        """Drop log lines past the checkpoint a run resumes from: it will write them again."""
        if self.stats.exists():
            lines = [line for line in self.stats.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            with atomic_file(self.stats) as temporary:
                temporary.write_text("".join(line for line in lines if json.loads(line)["images"] <= seen))

    def _grid_labels(self) -> tuple[np.ndarray, int]:
        """Labels of the sample grid: a row of 8 per class (up to 8 classes), or 4 rows without classes."""
        num_classes = len(self.manifest.classes)
        if self.config.model.conditional and num_classes > 1:
            return np.repeat(np.eye(num_classes, dtype=np.uint8)[:8], 8, axis=0), 8
        return np.zeros((32, num_classes), dtype=np.uint8), 8

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a line to stats.jsonl, and its numbers to TensorBoard."""
        with self.stats.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items():
            if isinstance(value, float):
                self.board.add_scalar(name, value, metrics["images"])
        if "kl_per_dimension" in metrics:
            self.board.add_histogram("kl_per_dimension", np.array(metrics["kl_per_dimension"]), metrics["images"])
        if self.progress:
            self.progress(metrics)

    @torch.inference_mode()
    def grids(
        self, networks: Networks, average: DecoderAverage, device: torch.device, dtype: torch.dtype, seen: int
    ) -> None:
        """Fixed-seed samples, and real images above their reconstructions, as PNG files and in TensorBoard.

        Made as the model will make them: averaged decoder, evaluation mode, float32.
        """
        networks.eval()
        decoder = average.decoder.eval()
        z = torch.from_numpy(prior(GRID_SEED, np.arange(len(self.labels)), self.config.model.latent_dim)).to(device)
        labels = networks.condition(torch.from_numpy(self.labels).float().to(device))
        self._picture("samples", grid(to_pixels(decoder(z, labels)), self.columns), seen)
        if networks.encoder is not None:
            labels = networks.condition(torch.from_numpy(self.examples.labels).float().to(device))
            mu, _ = networks.encoder(to_tensor(self.examples.pixels).to(device), labels)
            pairs = np.concatenate([self.examples.pixels, to_pixels(decoder(mu, labels))])
            self._picture("reconstructions", grid(pairs, len(self.examples)), seen)

    def _picture(self, name: str, sheet: np.ndarray, seen: int) -> None:
        with atomic_file(self.config.run_dir / "grids" / f"{name}_{seen:09d}.png") as temporary:
            temporary.write_bytes(encode_png(sheet, {"Comment": f"synthetic; {seen} images seen"}))
        self.board.add_image(name, sheet, seen, dataformats="HWC")

    def close(self) -> None:
        """Flush TensorBoard's events."""
        self.board.close()
