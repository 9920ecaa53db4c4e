"""A small run of `vaegan.train`, and what two runs must have in common to be the same."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vaegan.networks import NetworkConfig
from vaegan.recipe import TrainConfig
from vaegan.shards import DatasetWriter, Images


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Eight steps of tiny networks, a checkpoint every second one; `data` is there, `run_dir` is not."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    with DatasetWriter(
        folder / "data", task="multiclass", classes=["a", "b"], height=32, width=32, channels=1
    ) as writer:
        for split, count in (("train", 64), ("val", 16)):
            pixels = rng.integers(0, 256, (count, 32, 32, 1), dtype=np.uint8)
            names = [f"{split}{number}" for number in range(count)]
            writer.add(split, Images.real(pixels, np.eye(2, dtype=np.uint8)[np.arange(count) % 2], names, names))
        writer.finish()
    return TrainConfig(
        data=folder / "data",
        run_dir=folder / "run",
        model=NetworkConfig(width=4, latent_dim=6, hidden=16, feature_layers=(2,)),
        batch_size=16,
        total_images=128,
        checkpoint_images=32,
        average_half_life_images=32,
        precision="float32",
        num_workers=2,
    )


@pytest.fixture(scope="session")
def log() -> Callable[[TrainConfig], list[dict[str, object]]]:
    """Gives a run's stats.jsonl without what depends on the clock."""
    return _log


@pytest.fixture(scope="session")
def assert_same_end() -> Callable[[TrainConfig, TrainConfig], None]:
    """Compares all that two runs left, bit for bit, but for times; and looks for what a sudden end left behind."""
    return _assert_same_end


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits for a condition, and fails with a sentence when it doesn't come."""
    return _wait_until


@pytest.fixture(scope="session")
def command_line() -> Callable[[TrainConfig], list[str]]:
    """The flags of `vaegan.train` that make a config of `tiny_run`'s kind."""
    return _command_line


def _command_line(config: TrainConfig) -> list[str]:
    named = {name: getattr(config, name) for name in (
        "data", "run_dir", "batch_size", "total_images", "checkpoint_images", "average_half_life_images", "precision",
        "num_workers",
    )}  # fmt: skip
    named |= {f"model.{name}": getattr(config.model, name) for name in ("width", "latent_dim", "hidden")}
    named |= {"model.feature_layers": list(config.model.feature_layers), "cluster.num_cpus": 1, "cluster.num_gpus": 0}
    return [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _log(config: TrainConfig) -> list[dict[str, object]]:
    lines = map(json.loads, (config.run_dir / "stats.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]


def _assert_same_end(one: TrainConfig, other: TrainConfig) -> None:
    assert list(_files(one)) == list(_files(other))
    for path in _files(one):
        if path.suffix == ".safetensors":
            expected, found = load_file(one.run_dir / path), load_file(other.run_dir / path)
            assert list(expected) == list(found)
            different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
            assert not different, f"{path} differs in {different}"
        if path.suffix == ".png":
            assert (one.run_dir / path).read_bytes() == (other.run_dir / path).read_bytes(), path
    assert _log(one) == _log(other)


def _files(config: TrainConfig) -> Iterator[Path]:
    """What a run left, sorted, but for the names of TensorBoard's files, of which each start makes one."""
    for path in sorted(config.run_dir.rglob("*")):
        if "tensorboard" not in path.parts and path.name not in (".lock", ".validate_storage_marker"):
            yield path.relative_to(config.run_dir)


def _wait_until(condition: Callable[[], object], what: str, seconds: float = 120, pause: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(pause)
