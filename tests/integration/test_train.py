"""`vaegan.train` on Ray Train: the same result as without Ray, and none lost to a worker that dies."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig
from vaegan.recipe import TrainConfig
from vaegan.shards import DatasetWriter, Images
from vaegan.train import train

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 32, 32, 1), dtype=np.uint8)
    labels = np.eye(2, dtype=np.uint8)[np.arange(64) % 2]
    with DatasetWriter(
        folder / "data", task="multiclass", classes=["a", "b"], height=32, width=32, channels=1
    ) as writer:
        writer.add("train", Images.real(pixels, labels, list(map(str, range(64))), list(map(str, range(64)))))
        writer.finish()
    return TrainConfig(
        data=folder / "data",
        run_dir=folder / "run",
        model=NetworkConfig(width=4, latent_dim=6, hidden=16, feature_layer=2),
        loss=LossConfig(),
        batch_size=16,
        total_images=128,
        checkpoint_images=32,
        precision="float32",
        num_workers=2,
    )


def tensors(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.run_dir / "model" / "model.safetensors")


def test_two_ray_workers_end_where_one_process_does(config: TrainConfig):
    alone = replace(config, run_dir=config.run_dir.with_name("alone"), num_workers=0)
    assert train(alone) == 0
    assert train(config) == 0
    for name, value in tensors(alone).items():
        if name.startswith("mixture"):
            continue  # scikit-learn's start of the mixture amplifies the last digit
        # Adam's division by a root of squares amplifies rounding where a gradient is almost 0
        assert torch.allclose(value, tensors(config)[name], atol=2e-3), name
    lines = [json.loads(line) for line in (config.run_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines][-1] == 128
    assert lines[-1]["like"] == pytest.approx(
        json.loads((alone.run_dir / "stats.jsonl").read_text().splitlines()[-1])["like"], rel=1e-2
    )


def test_a_killed_worker_is_replaced_and_nothing_before_the_checkpoint_is_done_again(config: TrainConfig):
    whole = replace(config, run_dir=config.run_dir.with_name("whole"), num_workers=1, total_images=640)
    broken = replace(whole, run_dir=config.run_dir.with_name("broken"))
    assert train(whole) == 0
    killed: list[int] = []

    def kill_at_a_checkpoint() -> None:
        while not list(broken.run_dir.glob("checkpoint_*")):
            time.sleep(0.02)
        killed.extend(train_workers())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_at_a_checkpoint)
    thread.start()
    assert train(broken) == 0
    thread.join()
    assert killed
    for name, value in tensors(whole).items():
        assert torch.equal(value, tensors(broken)[name]), name


def train_workers() -> list[int]:
    """Process ids of this cluster's Ray Train workers: descendants' names tell them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if name.startswith(b"ray::RayTrainWorker") and belongs_to_us(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def belongs_to_us(pid: int) -> bool:
    """Whether this process is an ancestor of `pid`: other clusters may run on this machine."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False
