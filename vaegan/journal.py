"""What a run tells people while it trains: stats.jsonl, TensorBoard events, picture grids and, if asked, MLflow."""

import json
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from cluster.errors import UserError
from cluster.storage import atomic_file
from vaegan.checkpoint import Progress
from vaegan.images import encode_png, grid
from vaegan.latents import prior
from vaegan.networks import Networks
from vaegan.optimizers import DecoderAverage
from vaegan.reading import TrainingImages, first_of_each_class, marked_labels
from vaegan.recipe import TrainConfig
from vaegan.runs import model_folder, settings
from vaegan.shards import Manifest
from vaegan.tensors import to_labels, to_pixels, to_tensor
from vaegan.tracking import Tracker
from vaegan.watchdog import Fault

logger = logging.getLogger(__name__)

GRID_SEED = 1_000_003
MAX_LATENTS = 512  # training images whose latents TensorBoard shows
BATCH = 64  # of them through the encoder at a time


class Journal:
    """What a run tells people: stats.jsonl, TensorBoard events and picture grids. One worker writes it."""

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        images: TrainingImages,
        start: Progress,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.manifest, self.progress = config, manifest, progress
        self.stats = config.run_dir / "stats.jsonl"
        self.board = SummaryWriter(str(config.run_dir / "tensorboard"), purge_step=start.images_seen or None)
        self._forget_after(start)
        self.tracker = _tracker(config, resumed=start.images_seen > 0)
        self.labels, self.columns = self._grid_labels()
        first = first_of_each_class(images, 2)
        self.examples = images.take(np.concatenate(first)[:16] if first else np.arange(min(8, len(images))))
        self.encoded = images.take(np.arange(min(MAX_LATENTS, len(images))))

    def rewind(self, to: Progress, fault: Fault) -> None:
        """Go back to where the watchdog took the run for a fault, which stays in stats.jsonl."""
        self._forget_after(to)
        event = {"images": to.images_seen, "event": "rollback", "rollbacks": to.rollbacks, "reason": fault.what}
        with self.stats.open("a") as file:
            file.write(json.dumps(event) + "\n")
        self.board.close()
        # TensorBoard drops what earlier event files have at this step and later
        self.board = SummaryWriter(str(self.config.run_dir / "tensorboard"), purge_step=to.images_seen)
        self.board.add_text("rollback", f"{fault.what}; went back to image {to.images_seen}", to.images_seen)

    def _forget_after(self, to: Progress) -> None:
        """Drop log lines past where the run goes on: it will write them again."""
        if not self.stats.exists():
            return
        lines = [line for line in self.stats.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        with atomic_file(self.stats) as temporary:
            temporary.write_text("".join(line for line in lines if _before(json.loads(line), to)))

    def _grid_labels(self) -> tuple[np.ndarray, int]:
        """Labels of the sample grid: a row of 8 per class (up to 8 classes), or 4 rows without classes."""
        num_classes = len(self.manifest.classes)
        if self.config.model.conditional and num_classes > 1:
            return np.repeat(np.eye(num_classes, dtype=np.uint8)[:8], 8, axis=0), 8
        return np.zeros((32, num_classes), dtype=np.uint8), 8

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a line to stats.jsonl, in which null stands for NaN, and its numbers to TensorBoard and MLflow."""
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in metrics.items()}
        plain = {name: v for name, v in plain.items() if not isinstance(v, list) or all(map(math.isfinite, v))}
        with self.stats.open("a") as file:
            file.write(json.dumps(plain) + "\n")
        for name, value in plain.items():
            if isinstance(value, float):
                self.board.add_scalar(name, value, metrics["images"])
        if "kl_per_dimension" in plain:
            self.board.add_histogram("kl_per_dimension", np.array(plain["kl_per_dimension"]), metrics["images"])
        if self.tracker:
            self.tracker.log(plain)
        if self.progress:
            self.progress(plain)

    @torch.inference_mode()
    def grids(self, networks: Networks, average: DecoderAverage, device: torch.device, seen: int) -> None:
        """Fixed-seed samples, and real images above their reconstructions, as PNG files and in TensorBoard.

        Made as the model will make them: averaged decoder, evaluation mode, float32.
        """
        networks.eval()
        decoder = average.decoder.eval()
        z = torch.from_numpy(prior(GRID_SEED, np.arange(len(self.labels)), self.config.model.latent_dim)).to(device)
        labels = networks.condition(torch.from_numpy(self.labels).float().to(device))
        self._picture("samples", grid(to_pixels(decoder(z, labels)), self.columns), seen)
        if networks.encoder is not None:
            x = to_tensor(self.examples.pixels, device)
            labels = networks.complete(x, to_labels(marked_labels(self.examples), device))
            mu, _ = networks.encoder(x, labels)
            pairs = np.concatenate([self.examples.pixels, to_pixels(decoder(mu, labels))])
            self._picture("reconstructions", grid(pairs, len(self.examples)), seen)
            self._latents(networks, device, seen)

    def _latents(self, networks: Networks, device: torch.device, seen: int) -> None:
        """Where training images lie in the latent space: the aggregate posterior, which the prior should cover."""
        assert networks.encoder is not None
        parts = []
        for start in range(0, len(self.encoded), BATCH):
            some = self.encoded.take(np.arange(start, min(start + BATCH, len(self.encoded))))
            x = to_tensor(some.pixels, device)
            parts.append(networks.encoder(x, networks.complete(x, to_labels(marked_labels(some), device))))
        mu, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
        if not (mu.isfinite().all() and log_var.isfinite().all()):
            return
        self.board.add_histogram("latents/mean", mu.flatten(), seen)
        self.board.add_histogram("latents/standard_deviation", (0.5 * log_var).exp().flatten(), seen)
        classes = [" + ".join(c for c, on in zip(self.manifest.classes, row, strict=True) if on) or "none"
                   for row in self.encoded.labels]  # fmt: skip
        classes = [name if known else "no label" for name, known in zip(classes, self.encoded.has_label, strict=True)]
        self.board.add_embedding(mu, metadata=classes, global_step=seen, tag="latents")

    def _picture(self, name: str, sheet: np.ndarray, seen: int) -> None:
        path = self.config.run_dir / "grids" / f"{name}_{seen:09d}.png"
        with atomic_file(path) as temporary:
            temporary.write_bytes(encode_png(sheet, {"Comment": f"synthetic; {seen} images seen"}))
        self.board.add_image(name, sheet, seen, dataformats="HWC")
        if self.tracker and name == "samples":  # the other sheet has real patients' films, and MLflow may be elsewhere
            self.tracker.picture(path)

    def failed(self, reason: str) -> None:
        """Close the books of a run that can't go on."""
        self.board.close()
        if self.tracker:
            self.tracker.fail(reason)

    def finished(self) -> None:
        """Close the books of a run whose model is there."""
        self.board.close()
        if self.tracker:
            self.tracker.finish(model_folder(self.config.run_dir))


def _tracker(config: TrainConfig, resumed: bool) -> Tracker | None:
    if config.mlflow is None:
        return None
    try:
        return Tracker.open(
            config.mlflow,
            config.run_dir,
            experiment=config.mlflow_experiment,
            name=config.run_dir.name,
            settings=settings(config),
        )
    except UserError as error:
        if not resumed:
            raise
        logger.warning("warning: %s", error)  # a server that is away must not keep hours of training from going on
        return None


def _before(line: dict[str, Any], to: Progress) -> bool:
    """Whether a log line belongs to what a run had done when it was at `to`."""
    if line.get("event") == "rollback":
        return line["images"] <= to.images_seen and line["rollbacks"] <= to.rollbacks
    return line["images"] <= to.images_seen
