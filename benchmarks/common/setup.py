"""The networks, optimisers and batches of a preset in configs/, on made-up images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import OptimizerConfig, Optimizers
from vaegan.steps import Batch, forward, route_gradients, train_step

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_CLASSES = 2  # of a conditional preset: normal and pneumonia


@dataclass(frozen=True)
class Preset:
    """What of a YAML preset a training step depends on."""

    model: NetworkConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    augment: float

    @staticmethod
    def read(name: str) -> "Preset":
        """`configs/NAME.yaml`."""
        content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        return Preset(
            model=NetworkConfig(**content["model"]),
            loss=LossConfig(**content["loss"]),
            optimizer=OptimizerConfig(**content["optimizer"]),
            augment=content.get("augment", 0.0),
        )

    def networks(self, size: int = 64, device: torch.device | str = "cpu") -> Networks:
        """New networks for grey images of `size` pixels, channels_last, the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = Networks(self.model, size=size, channels=1, num_classes=NUM_CLASSES)
        return networks.train().to(device, memory_format=torch.channels_last)

    def batch(
        self,
        count: int,
        size: int = 64,
        device: torch.device | str = "cpu",
        *,
        worker: int = 0,
        num_workers: int = 1,
    ) -> Batch:
        """A worker's `count` of a step's images, channels_last: uniform noise in [-1, 1], which costs what films do."""
        x = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(worker)) * 2 - 1
        labels = torch.nn.functional.one_hot(torch.arange(count) % NUM_CLASSES, NUM_CLASSES).float()
        return Batch.draw(
            x.to(device, memory_format=torch.channels_last),
            labels.to(device),
            self.model.latent_dim,
            seed=0,
            step=0,
            worker=worker,
            num_workers=num_workers,
        )


class OurStep:
    """`train_step` with its networks, optimisers and one batch: call it to take a step."""

    def __init__(
        self,
        preset: Preset,
        batch: Batch,
        dtype: torch.dtype,
        size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.preset, self.batch, self.dtype = preset, batch, dtype
        self.networks = preset.networks(size, device)
        self.optimizers = Optimizers(self.networks, preset.optimizer)

    def __call__(self) -> dict[str, Tensor]:
        """One update of every network; the step's figures, not synchronised with the host."""
        return train_step(
            self.networks,
            self.optimizers,
            self.batch,
            self.preset.loss,
            beta=self.preset.loss.beta,
            augment=self.preset.augment,
            dtype=self.dtype,
        )

    def gradients(self) -> dict[str, list[Tensor]]:
        """Each network's gradients as `train_step` would take them, without the update."""
        device = self.batch.x.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            done = forward(self.networks, self.batch, self.preset.loss, self.preset.augment)
        loss = self.preset.loss
        return dict(route_gradients(self.networks, self.optimizers.parameters, done, loss, loss.beta))
