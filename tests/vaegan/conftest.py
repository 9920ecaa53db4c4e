from pathlib import Path

import numpy as np
import pytest

from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig
from vaegan.recipe import TrainConfig
from vaegan.shards import DatasetWriter, Images


def made_up(count: int, seed: int = 0, size: int = 32) -> Images:
    """Two classes that a glance can tell apart: a bright left or right half, with noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    pixels = rng.integers(0, 60, (count, size, size, 1), dtype=np.uint8)
    pixels[label == 0, :, : size // 2] += 150
    pixels[label == 1, :, size // 2 :] += 150
    patients, ids = [f"{seed}-p{i // 2}" for i in range(count)], [f"{seed}-i{i}" for i in range(count)]
    return Images.real(pixels, np.eye(2, dtype=np.uint8)[label], patients, ids)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of 48 training and 8 validation and test images at 32 pixels."""
    path = tmp_path / "data"
    with DatasetWriter(path, task="multiclass", classes=["left", "right"], height=32, width=32, channels=1) as writer:
        for split, count, seed in (("train", 48, 0), ("val", 8, 1), ("test", 8, 2)):
            writer.add(split, made_up(count, seed))
        writer.finish()
    return path


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> TrainConfig:
    """A run of six steps of a tiny VAE-GAN."""
    return TrainConfig(
        data=dataset,
        run_dir=tmp_path / "run",
        model=NetworkConfig(width=4, latent_dim=6, hidden=16, feature_layers=(2,)),
        loss=LossConfig(kl_warmup_images=32),
        batch_size=16,
        total_images=96,
        checkpoint_images=32,
        average_half_life_images=32,
        augment=0.5,
        precision="float32",
        num_workers=0,
        seed=3,
    )
