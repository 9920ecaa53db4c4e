"""What decides a generator: the recipe that `configs/*.yaml` hold, and a run of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from cluster.config import ClusterConfig
from vaegan.acceleration import Acceleration
from vaegan.augment import CHANGES, POLICY, Change
from vaegan.latents import LatentsConfig
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig
from vaegan.optimizers import OptimizerConfig
from vaegan.reading import ReadingConfig
from vaegan.validation import ValidationConfig
from vaegan.watchdog import WatchdogConfig

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a generator is trained, whatever the data."""

    model: NetworkConfig = field(default_factory=NetworkConfig)
    """The networks."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The objective."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights move."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """How the best checkpoint is chosen."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """When a run counts as lost."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """What of the latents of training images the exported model keeps."""
    batch_size: int = 32
    """Images per update summed over all workers, so that it means the same on any number of them."""
    total_images: int = 128_000
    """Images seen, not updates or epochs."""
    augment: float = 0.0
    """Strength of DiffAugment on what the discriminator sees; 1 is the reference's, 0 none."""
    augment_policy: tuple[Change, ...] = POLICY
    """What DiffAugment changes. `rotation` and `zoom`, small ones, are not of its reference."""
    augment_target: float | None = None
    """Mean sign of the discriminator's logits of real images, between 0 and 1, that the share of augmented images is
    steered by (ADA, Karras et al. 2020, who take 0.6); without it, all images are augmented."""
    augment_ramp_images: int = 5000
    """Of ADA: images in which that share can go from 0 to 1. The paper's 500,000 are a fiftieth of its runs; here it
    is a fifth of 25,600, since a discriminator needs some hundred steps to answer."""
    labelled_fraction: float = 1.0
    """Train as if only this share of the labelled images had labels: those of so many patients, stratified by class,
    the same for all seeds, and a smaller share's among a larger one's. A conditional model then needs
    model.label_head."""
    balance_classes: bool = False
    """Draw each class equally often in training, an image of several classes for its rarest one (and those of none as
    one more class). Needs the images in memory."""
    average_half_life_images: int = 0
    """Half-life in images of the moving average of the decoder that samples are drawn from; 0 keeps none."""
    precision: Precision = "auto"
    """`auto` is bfloat16 where the processor or GPU computes in it, else float32."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "total_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.total_images % self.batch_size:
            below = max(self.total_images // self.batch_size, 1) * self.batch_size
            raise ValueError(
                f"total_images ({self.total_images}) must be a multiple of batch_size ({self.batch_size}); "
                f"the nearest is {below}"
            )
        if self.validation.metric == "reconstruction" and self.model.kind == "gan":
            raise ValueError("validation.metric reconstruction needs an encoder, and model.kind gan has none")
        if self.augment < 0 or self.average_half_life_images < 0:
            raise ValueError("augment and average_half_life_images: expected 0 or more")
        self._check_augment()
        self._check_labelled()
        if self.optimizer.warmup_images > self.total_images:
            raise ValueError(
                f"optimizer.warmup_images is {self.optimizer.warmup_images}, more than total_images "
                f"({self.total_images}): the learning rates would never be reached"
            )

    def _check_labelled(self) -> None:
        fraction = self.labelled_fraction
        if not 0 < fraction <= 1:
            raise ValueError(f"labelled_fraction is {fraction}: expected more than 0 and at most 1")
        if fraction == 1:
            return
        if self.model.conditional and not self.model.label_head:
            raise ValueError(
                f"labelled_fraction is {fraction}, and a conditional model needs a label for every image: set "
                "model.label_head, which infers those that are missing"
            )
        if self.balance_classes:
            raise ValueError(
                f"balance_classes needs the class of every image, and labelled_fraction is {fraction}: leave one out"
            )

    def _check_augment(self) -> None:
        policy, target = self.augment_policy, self.augment_target
        unknown = sorted(set(policy) - set(CHANGES))
        if unknown or len(set(policy)) < len(policy):
            found = f"{', '.join(unknown)} is none" if unknown else "one is named twice"
            raise ValueError(f"augment_policy: {found}; expected some of {', '.join(CHANGES)}")
        if self.augment and not policy:
            raise ValueError(f"augment is {self.augment} and augment_policy is empty: name a change, or set augment 0")
        if self.augment_ramp_images < 1:
            raise ValueError(f"augment_ramp_images is {self.augment_ramp_images}: expected 1 or more")
        if target is None:
            return
        if not 0 < target < 1:
            raise ValueError(f"augment_target is {target}: expected more than 0 and less than 1, such as 0.6")
        if not self.augment:
            raise ValueError("augment_target steers how many images are augmented, and augment is 0: set it, to 1 say")
        if self.model.kind == "vae":
            raise ValueError("augment_target needs a discriminator, and model.kind vae has none")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """Train a generator (a VAE-GAN, or its VAE or GAN half) on the train split of a dataset.

    Writes a run: config.json, stats.jsonl, TensorBoard events, grids/, checkpoint_*/ and, when done, model/. The same
    command again resumes a run that was stopped and leaves one that is done.
    """

    data: Path
    """Dataset folder, as vaegan.prepare writes it, or its URL (s3://, gs://, https://, ...)."""
    run_dir: Path
    """Folder of the run. On several nodes it must be on storage that all of them share."""
    seed: int = 0
    """Of the initial weights, the order of the images and the noise."""
    num_workers: int = 1
    """Ray Train workers; 0 trains in this process, without Ray."""
    min_workers: int | None = None
    """Workers to go on with when nodes are gone and no others come; without it, all `num_workers` or none."""
    max_failures: int = 3
    """Times that workers which died are replaced before the command gives up; the same command then goes on."""
    gpu: bool = False
    """Give each worker a GPU."""
    acceleration: Acceleration = "none"
    """`compile` compiles each network's forward pass, `graphs` replays the step as a CUDA graph; try which is quick."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on where a run in run_dir stopped; `never` refuses a folder that has one."""
    warm_start: Path | None = None
    """Model folder whose weights are the run's first ones; its networks must be of the same shapes."""
    dry_run: bool = False
    """Print networks, parameters, steps, and estimates of memory and time; train and write nothing."""
    mlflow: str | None = None
    """Tracking URI of an MLflow store to log to as well, such as sqlite:///mlflow.db. Needs the extra `mlflow`."""
    mlflow_experiment: str = "augray"
    """Name of the experiment there."""
    checkpoint_images: int = 0
    """Images between checkpoints and sample grids; 0 makes ten in a run."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; 0 keeps all."""
    name: str = "model"
    """First part of the model's address."""
    version: str = "1"
    """Second part of the model's address."""
    publish_to: Path | None = None
    """Registry folder into which the finished model goes, as NAME/VERSION."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """How training images get from the dataset into batches."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Which Ray cluster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 0 or self.checkpoint_images < 0 or self.keep_checkpoints < 0 or self.seed < 0:
            raise ValueError("num_workers, checkpoint_images, keep_checkpoints and seed: expected 0 or more")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}: expected 1 to num_workers ({self.num_workers})")
        for count in range(self.min_workers or self.num_workers, self.num_workers + 1):
            if self.batch_size % max(count, 1):
                raise ValueError(
                    f"batch_size ({self.batch_size}) must be a multiple of "
                    + (f"num_workers ({count})" if count == self.num_workers else f"{count}, a possible num_workers")
                    + ": each gets an equal part"
                )
        if self.acceleration == "graphs" and self.optimizer.varies:
            raise ValueError(
                "acceleration graphs captures the learning rates, which optimizer.schedule cosine and "
                "optimizer.warmup_images change at every step: choose another acceleration, or constant rates"
            )

    @property
    def checkpoint_every(self) -> int:
        """Images between checkpoints, a multiple of the batch size."""
        wanted = self.checkpoint_images or self.total_images // 10
        return max(wanted // self.batch_size, 1) * self.batch_size


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The forward pass's dtype: `auto` is bfloat16 on hardware that has instructions for it, else float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        pays = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        pays = bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return torch.bfloat16 if pays else torch.float32
