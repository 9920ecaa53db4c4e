import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import UserError
from cluster.storage import read_json
from vaegan.checkpoint import checkpoints
from vaegan.loop import SoloRun, batches, train_loop
from vaegan.networks import NetworkConfig
from vaegan.recipe import Recipe, TrainConfig, choose_dtype
from vaegan.shards import read_split


class KilledError(RuntimeError):
    pass


def state(folder):
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("kind", ["vaegan", "vae", "gan"])
def test_a_run_killed_between_checkpoints_ends_bit_equal_to_one_that_was_not(config, tmp_path, kind):
    config = replace(config, model=replace(config.model, kind=kind))
    whole, broken = replace(config, run_dir=tmp_path / "whole"), replace(config, run_dir=tmp_path / "broken")
    train_loop(whole)

    def kill(line):
        if line["images"] == 80:  # past the checkpoint at 64
            raise KilledError

    with pytest.raises(KilledError):
        train_loop(broken, progress=kill)
    assert checkpoints(broken.run_dir)[-1].name.endswith("64")
    train_loop(broken)

    first, second = state(checkpoints(whole.run_dir)[-1]), state(checkpoints(broken.run_dir)[-1])
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = [list(map(json.loads, (run.run_dir / "stats.jsonl").read_text().splitlines())) for run in (whole, broken)]
    assert [line["images"] for line in lines[0]] == [line["images"] for line in lines[1]]
    assert lines[0][-1].get("like") == lines[1][-1].get("like")


def test_a_finished_run_is_left_alone(config):
    model = train_loop(config)
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert train_loop(config) == model
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_folder_refuses_another_config_and_names_the_difference(config):
    train_loop(config)
    with pytest.raises(UserError, match="differs in seed"):
        train_loop(replace(config, seed=4))


def test_a_run_folder_refuses_other_images(config):
    images = read_split(config.data, "train")
    train_loop(config, images)
    images.pixels[0] ^= 1
    with pytest.raises(UserError, match="the training images"):
        train_loop(config, images)


def test_fewer_images_than_the_batch_are_refused_before_anything_is_written(config):
    with pytest.raises(UserError, match=r"48 training images .* fewer than batch_size 64"):
        train_loop(replace(config, batch_size=64, total_images=64))
    assert not config.run_dir.exists()


def test_a_run_leaves_what_the_documentation_lists(config):
    train_loop(config)
    names = {path.name for path in config.run_dir.iterdir()}
    assert {"config.json", "stats.jsonl", "tensorboard", "grids", "model"} < names
    assert {path.name for path in (config.run_dir / "model").iterdir()} == {
        "model.safetensors",
        "model.json",
        "card.md",
    }
    assert len(list((config.run_dir / "grids").glob("samples_*.png"))) == 4  # the start, and three checkpoints
    assert len(checkpoints(config.run_dir)) == 2
    last = json.loads((config.run_dir / "stats.jsonl").read_text().splitlines()[-1])
    assert len(last["kl_per_dimension"]) == 6
    assert sum(last["kl_per_dimension"]) == pytest.approx(last["prior"], rel=1e-4)
    assert read_json(config.run_dir / "config.json")["num_training_images"] == 48


def test_images_given_replace_those_of_the_dataset(config):
    images = read_split(config.data, "train").take(np.arange(16))
    model = train_loop(config, images)
    assert read_json(model / "model.json")["num_training_images"] == 16


def test_an_epoch_shows_every_image_once_but_the_incomplete_batch(config):
    images = read_split(config.data, "train").take(np.arange(40))  # 2 batches of 16, 8 left over
    images.pixels[:, 0, 0, 0] = np.arange(40)
    shown = [x[:, 0, 0, 0] for x, _ in batches(images, config, 0, SoloRun(config.run_dir, 1))]
    first = torch.cat(shown[:2])
    assert len(first.unique()) == 32
    assert not torch.equal(first, torch.cat(shown[2:4]))


def test_workers_divide_each_batch(config):
    images = read_split(config.data, "train")

    def part(rank, size):
        run = SoloRun(config.run_dir, 1)
        run.world_rank, run.world_size = rank, size
        return [x for x, _ in batches(images, config, 32, run)]

    for whole, first, second in zip(part(0, 1), part(0, 2), part(1, 2), strict=True):
        assert torch.equal(whole, torch.cat([first, second]))


def test_divergence_stops_with_a_sentence(config):
    reckless = replace(config, optimizer=replace(config.optimizer, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match="training diverged before image"):
        train_loop(reckless)


def test_total_images_must_be_whole_batches():
    with pytest.raises(
        ValueError, match=r"total_images \(100\) must be a multiple of batch_size \(32\); the nearest is 96"
    ):
        Recipe(total_images=100)


def test_a_batch_must_divide_among_the_workers(tmp_path):
    with pytest.raises(ValueError, match="must be a multiple of num_workers"):
        TrainConfig(data=tmp_path, run_dir=tmp_path, batch_size=32, num_workers=3)


def test_a_size_that_the_networks_lack_is_told_before_training(config):
    with pytest.raises(ValueError, match="feature_layer is 7"):
        train_loop(replace(config, model=NetworkConfig(width=4, feature_layer=7)))


def test_precision_that_is_asked_for_is_taken():
    assert choose_dtype("float32", torch.device("cpu")) is torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
