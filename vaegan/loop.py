"""`train_loop`: the steps, checkpoints and rollbacks of one worker. Plain PyTorch: `vaegan.worker` brings Ray."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.storage import atomic_directory
from vaegan.acceleration import keep_freed_memory, make_step
from vaegan.augment import STEER_EVERY, Augmentation, steered
from vaegan.checkpoint import (
    Progress,
    best_name,
    bests,
    load_state,
    read_model,
    read_state,
    remove_all_but,
    state_tensors,
    write_state,
)
from vaegan.collectives import average_over_workers, broadcast_number
from vaegan.export import ancestor, build, export, labelled_for
from vaegan.journal import Journal
from vaegan.optimizers import DecoderAverage, Optimizers
from vaegan.reading import TrainingImages, check_balance, num_unlabelled, open_split, shuffled
from vaegan.recipe import TrainConfig, choose_dtype
from vaegan.runs import Run, SoloRun, TrainingFailedError, check_run, locked, model_folder, settings, tidy
from vaegan.shards import Manifest, read_manifest
from vaegan.steps import Batch
from vaegan.tensors import to_labels, to_tensor
from vaegan.validation import Validation
from vaegan.watchdog import Fault, Memory, Watchdog

LOGS_PER_CHECKPOINT = 10
WRITER_WAIT_S = 60.0  # for a worker that outlives the command that was killed


def train_loop(
    config: TrainConfig,
    images: TrainingImages | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    run: Run | None = None,
) -> Path:
    """Train in this process until `config.total_images`, resuming from the run's newest checkpoint.

    The result is a function of config, images and the number of workers: noise and order come from (seed, step), so
    a run killed anywhere and started again ends as one that was not.

    Args:
        images: training rows, instead of the train split of `config.data`, which then tells classes and size, and has
            the validation split.
        progress: called with every line of stats.jsonl.
        run: where checkpoints go; by default this process's own `SoloRun`.

    Returns:
        The model folder.

    Raises:
        UserError: see `check_run`, `check_balance` and `labelled_for`; or the run failed (`TrainingFailedError`).
    """
    started_s = time.time()
    manifest = read_manifest(config.data)
    images = open_split(config.data, "train", config.reading) if images is None else images
    images = labelled_for(config, images, manifest)
    if config.balance_classes:
        check_balance(images)
    run = SoloRun(config.run_dir, config.keep_checkpoints) if run is None else run
    if run.world_rank:
        return _train(config, manifest, images, progress, run, started_s)
    if check_run(config, images):
        return model_folder(config.run_dir)
    with locked(config.run_dir, ".writer.lock", WRITER_WAIT_S):
        return _train(config, manifest, images, progress, run, started_s)


def _train(
    config: TrainConfig,
    manifest: Manifest,
    images: TrainingImages,
    progress: Callable[[dict[str, Any]], None] | None,
    run: Run,
    started_s: float,
) -> Path:
    keep_freed_memory()
    training = Training(config, manifest, run)
    latest = run.latest()
    if latest:
        training.resume(latest)
    elif config.warm_start is not None:
        training.begin_with(config.warm_start)
    journal = validation = None
    if run.world_rank == 0:
        tidy(config.run_dir, training.progress.images_seen)
        training.keep_best()  # again, if a sudden end came between a checkpoint and this copy of it
        validation = _validation(config, manifest)
        journal = Journal(config, manifest, images, training.progress, progress)
        if not latest:
            journal.grids(training.networks, training.average, run.device, 0)
    good = training.snapshot()
    with closing(Feed(images, config, run)) as feed:
        while not training.done:
            training.networks.train()
            metrics, fault = _advance(training, feed, run, journal)
            if fault:
                _roll_back(training, good, fault, journal)
            else:
                _checkpoint(training, run, validation, journal, metrics)
                good = training.snapshot()
    if journal:
        _export(training, images, manifest, started_s)
        journal.finished()
    return model_folder(config.run_dir)


class Training:
    """All that training changes, and how far it has come."""

    def __init__(self, config: TrainConfig, manifest: Manifest, run: Run) -> None:
        torch.manual_seed(config.seed)
        self.config, self.run = config, run
        self.networks = build(config, manifest)
        self.networks.to(run.device).to(memory_format=torch.channels_last)
        self.average = DecoderAverage(self.networks.decoder, config.average_half_life_images)
        self.optimizers = Optimizers(self.networks, config.optimizer)
        self.dtype = choose_dtype(config.precision, run.device)
        self._make_step()
        self.watchdog = Watchdog(config.watchdog)
        self.progress = Progress()
        self._signs: list[Tensor] = []  # of the steps since the last adjustment of `probability`

    @property
    def done(self) -> bool:
        """Whether all images were seen, or the validation metric stopped to improve."""
        patience = self.config.validation.patience
        return self.progress.images_seen >= self.config.total_images or 0 < patience <= self.progress.stale

    @property
    def _everything(self) -> tuple[Any, Any, Any]:
        return self.networks, self.average, self.optimizers

    def step(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One update with this worker's part of a batch; returns its figures."""
        config, seen = self.config, self.progress.images_seen
        batch = Batch.draw(
            x, labels, config.model.latent_dim,
            seed=config.seed, step=seen // config.batch_size,
            worker=self.run.world_rank, num_workers=self.run.world_size,
        )  # fmt: skip
        if config.optimizer.varies:
            self.optimizers.scale_rates(self.rate)
        figures = self._step(batch, self.beta, self.probability)
        seen += config.batch_size
        self.average.update(self.networks.decoder, seen, config.batch_size)
        self.progress = replace(self.progress, images_seen=seen)
        if self.probability is not None:
            self._steer(figures["real_sign"].clone())
        return figures

    def _steer(self, real_sign: Tensor) -> None:
        """Adjust how many images are augmented after every few steps.

        A log ends the count, and so a checkpoint does: nothing of it needs to be kept in one.
        """
        config, seen = self.config, self.progress.images_seen
        assert config.augment_target is not None
        self._signs.append(real_sign)
        if len(self._signs) < STEER_EVERY and not _log_due(config, seen):
            return
        mean = torch.stack(self._signs).mean()
        average_over_workers([mean])
        probability = steered(
            self.progress.augment_probability, float(mean), target=config.augment_target,
            images=len(self._signs) * config.batch_size, ramp_images=config.augment_ramp_images,
        )  # fmt: skip
        self.progress = replace(self.progress, augment_probability=probability)
        self._signs = []

    @property
    def beta(self) -> float:
        """The next step's weight of L_prior."""
        loss = self.config.loss
        warm = (self.progress.images_seen + self.config.batch_size) / max(loss.kl_warmup_images, 1)
        return loss.beta * min(1.0, warm)

    @property
    def rate(self) -> float:
        """What the next step's learning rates are, as a share of the configured ones: schedule times rollbacks."""
        config, progress = self.config, self.progress
        schedule = config.optimizer.rate_factor(progress.images_seen, config.batch_size, config.total_images)
        return config.watchdog.rate_factor**progress.rollbacks * schedule

    @property
    def probability(self) -> float | None:
        """Of an image of the next step to be augmented; None where it isn't steered and all are."""
        return None if self.config.augment_target is None else self.progress.augment_probability

    def snapshot(self) -> tuple[dict[str, Tensor], Progress]:
        """A copy of everything, to come back to."""
        tensors = {
            name: value.detach().clone(memory_format=torch.preserve_format)
            for name, value in state_tensors(*self._everything).items()
        }
        return tensors, replace(self.progress, watchdog=asdict(self.watchdog.memory))

    def return_to(self, snapshot: tuple[dict[str, Tensor], Progress]) -> None:
        """Go back to a snapshot, with lower learning rates than the time before."""
        rollbacks = self.progress.rollbacks + 1
        tensors, progress = snapshot
        load_state(tensors, *self._everything)
        self._continue_from(replace(progress, rollbacks=rollbacks))

    def begin_with(self, model: Path) -> None:
        """Take a model's weights for the first ones.

        Raises:
            UserError: it isn't a model, or one of other networks.
        """
        before, _, info = read_model(model)
        try:
            self.networks.load_state_dict(before.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"{model} can't start this run ({' '.join(str(error).split())[:160]}): expected networks of the same "
                f"kind, width, size and classes; it is a {info.kind} of width {info.networks.width} for {info.size} "
                f"pixels and {len(info.classes)} classes"
            ) from None
        self.average.decoder.load_state_dict(before.decoder.state_dict())
        self.progress = Progress(begun_with=ancestor(model))

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        self._continue_from(read_state(checkpoint, *self._everything))

    def _continue_from(self, progress: Progress) -> None:
        self.progress = progress
        self.watchdog.memory = Memory(**progress.watchdog)
        self._signs = []
        self.optimizers.scale_rates(self.rate)
        self._make_step()

    def _make_step(self) -> None:
        config = self.config
        try:
            self._step = make_step(
                config.acceleration, self.networks, self.optimizers, config.loss,
                augment=Augmentation(strength=config.augment, policy=config.augment_policy), dtype=self.dtype,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from None

    def write(self, folder: Path) -> None:
        """Write a checkpoint."""
        progress = replace(self.progress, watchdog=asdict(self.watchdog.memory))
        write_state(folder, state_tensors(*self._everything), progress, settings(self.config))

    def broken(self) -> Fault | None:
        """A fault of the weights themselves: the figures of a step are those of the weights before it."""
        sizes = {
            name: torch.stack(torch._foreach_norm(group)).norm() for name, group in self.optimizers.parameters.items()
        }
        wrong = [name for name, size in sizes.items() if not size.isfinite()]
        if not wrong:
            return None
        return Fault(f"the weights of {', '.join(wrong)} became NaN or infinite", "lower the learning rates")

    def keep_best(self) -> None:
        """Keep this state as the best one, if it is that and isn't there yet."""
        seen, best = self.progress.images_seen, self.progress.best_images
        target = self.config.run_dir / best_name(best)
        if not seen or seen != best or target.exists():
            return
        with atomic_directory(target) as temporary:
            self.write(temporary)
        # the one before stays: a run that is killed now may resume from before this one
        remove_all_but(bests(self.config.run_dir), 2)


def _validation(config: TrainConfig, manifest: Manifest) -> Validation | None:
    if config.validation.metric == "none" or "val" not in manifest.splits:
        return None
    images = open_split(config.data, "val", config.reading)
    needs_labels = config.model.conditional and not config.model.label_head
    if len(images) == (num_unlabelled(images) if needs_labels else 0):
        return None
    return Validation(config.validation, images, labelled_only=needs_labels)


def _advance(
    training: Training, feed: "Feed", run: Run, journal: Journal | None
) -> tuple[dict[str, Any], Fault | None]:
    """Take steps until a checkpoint is due or a log shows a fault; returns the last log's figures, and the fault.

    All logs but that of a checkpoint are written.
    """
    config = training.config
    start = training.progress.images_seen
    window = Window(start)
    metrics: dict[str, Any] = {}
    while True:
        x, labels = feed.batch(training.progress.images_seen)
        beta, rate = training.beta, training.rate
        window.add(training.step(x, labels))
        seen = training.progress.images_seen
        if not _log_due(config, seen):
            continue
        metrics = window.close(seen) | {"beta": beta, "precision": str(training.dtype).removeprefix("torch.")}
        if training.probability is not None:
            metrics["augment"] = training.probability
        if config.optimizer.varies:
            metrics["learning_rate"] = config.optimizer.learning_rate * rate
        if run.device.type == "cuda":
            metrics["gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(run.device))
        fault = training.watchdog.examine(metrics) or training.broken()
        due = seen // config.checkpoint_every > start // config.checkpoint_every
        # a checkpoint is a place to come back to: none is made while a fault may be building up
        if not fault and (seen == config.total_images or (due and not training.watchdog.suspicious)):
            return metrics, None
        if journal:
            journal.log(metrics)
        if fault:
            return metrics, fault


def _roll_back(
    training: Training, good: tuple[dict[str, Tensor], Progress], fault: Fault, journal: Journal | None
) -> None:
    """Return to the last good state with lower learning rates, unless that was done often enough.

    Raises:
        TrainingFailedError: it was.
    """
    config, seen, back = training.config.watchdog, training.progress.images_seen, good[1].images_seen
    if training.progress.rollbacks >= config.max_rollbacks:
        rates = config.rate_factor**config.max_rollbacks
        reason = (
            f"training in {training.config.run_dir} failed at image {seen}: {fault.what}; it was taken back "
            f"{config.max_rollbacks} times, with learning rates down to {rates:.3g} of the configured ones, and "
            + (f"the checkpoint at image {back} is kept" if back else "reached no checkpoint")
            + f"; {fault.remedy}"
        )
        if journal:
            journal.failed(reason)
        raise TrainingFailedError(reason)
    training.return_to(good)
    if journal:
        journal.rewind(training.progress, fault)


def _checkpoint(
    training: Training, run: Run, validation: Validation | None, journal: Journal | None, metrics: dict[str, Any]
) -> None:
    """Validate, log, show, and keep the state; as the best one too, if it is."""
    progress, seen = training.progress, training.progress.images_seen
    training.networks.eval()
    mine = validation.value(training.networks, training.average.decoder.eval()) if validation else math.nan
    value = broadcast_number(mine)
    if not math.isnan(value):
        metrics = metrics | {f"validation_{training.config.validation.metric}": value}
        if progress.best_value is None or value < progress.best_value:
            training.progress = replace(progress, best_images=seen, best_value=value, stale=0)
        else:
            training.progress = replace(progress, stale=progress.stale + 1)
    if journal:
        journal.log(metrics)
        journal.grids(training.networks, training.average, run.device, seen)
    run.save(training.write, seen, {name: value for name, value in metrics.items() if isinstance(value, float)})
    if run.world_rank == 0:
        training.keep_best()


def _export(training: Training, images: TrainingImages, manifest: Manifest, started_s: float) -> None:
    """Export the best checkpoint, or the last state where there is no best one."""
    config, progress = training.config, training.progress
    chosen, last = "last", progress.images_seen
    if progress.best_value is not None:
        training.resume(config.run_dir / best_name(progress.best_images))
        chosen = (
            f"best of {last // config.checkpoint_every} on the validation split: {config.validation.metric} "
            f"{progress.best_value:.4g}"
        )
    export(
        model_folder(config.run_dir), training.networks, training.average, images, manifest,
        recipe=config, seed=config.seed, images_seen=training.progress.images_seen, chosen=chosen,
        begun_with=training.progress.begun_with,
        name=config.name, version=config.version, started_s=started_s,
    )  # fmt: skip


def batches(
    images: TrainingImages, config: TrainConfig, seen: int, run: Run
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """This worker's part of every batch from image `seen` on: x (N, C, H, W) and labels (N, K); see `shuffled`.

    Labels are NaN in rows without one.
    """
    rows = shuffled(
        images, seed=config.seed, batch_size=config.batch_size,
        start=seen // config.batch_size, stop=config.total_images // config.batch_size,
        rank=run.world_rank, world_size=run.world_size, balanced=config.balance_classes,
    )  # fmt: skip
    with closing(rows):
        for pixels, labels in rows:
            x = to_tensor(pixels, run.device).contiguous(memory_format=torch.channels_last)
            yield x, to_labels(labels, run.device)


class Feed:
    """Batches in order that go on over checkpoints: a stream that began anew would let the step wait each time."""

    def __init__(self, images: TrainingImages, config: TrainConfig, run: Run) -> None:
        self.images, self.config, self.run = images, config, run
        self.seen = -1
        self.batches: Generator[tuple[Tensor, Tensor], None, None] | None = None

    def batch(self, seen: int) -> tuple[Tensor, Tensor]:
        """This worker's part of the batch that follows image `seen`: the next one, but after a rollback."""
        if self.batches is None or seen != self.seen:
            self.close()
            self.batches = batches(self.images, self.config, seen, self.run)
        self.seen = seen + self.config.batch_size
        return next(self.batches)

    def close(self) -> None:
        """End the threads that read ahead."""
        if self.batches is not None:
            self.batches.close()


def _log_every(config: TrainConfig) -> int:
    return max(config.checkpoint_every // LOGS_PER_CHECKPOINT // config.batch_size, 1) * config.batch_size


def _log_due(config: TrainConfig, seen: int) -> bool:
    return seen % _log_every(config) == 0 or seen % config.checkpoint_every == 0 or seen == config.total_images


class Window:
    """Running means of a step's figures since the last log, kept on their device: the host waits only at a log."""

    def __init__(self, seen: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.seen, self.steps, self.started_s = seen, 0, time.perf_counter()

    def add(self, figures: dict[str, Tensor]) -> None:
        """Add one step's figures."""
        if not self.steps:
            self.sums = {name: value.clone() for name, value in figures.items()}
        else:
            torch._foreach_add_(list(self.sums.values()), [figures[name] for name in self.sums])
        self.steps += 1

    def close(self, seen: int) -> dict[str, Any]:
        """The means over steps and workers as numbers, with images seen and images/s, and start anew."""
        average_over_workers(self.sums.values())
        means = {name: (value / self.steps).tolist() for name, value in self.sums.items()}
        rate = (seen - self.seen) / (time.perf_counter() - self.started_s)
        self.sums, self.seen, self.steps, self.started_s = {}, seen, 0, time.perf_counter()
        return {"images": seen, "images_per_s": rate} | means
