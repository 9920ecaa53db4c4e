import itertools
import json
import multiprocessing
import runpy
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.errors import UserError
from cluster.storage import read_json
from vaegan.checkpoint import bests, checkpoints
from vaegan.export import labelled_for
from vaegan.loop import Training, batches, train_loop
from vaegan.networks import NetworkConfig
from vaegan.optimizers import OptimizerConfig, Optimizers
from vaegan.recipe import Recipe, TrainConfig, choose_dtype
from vaegan.runs import SoloRun, TrainingFailedError
from vaegan.sampler import Sampler
from vaegan.shards import read_manifest, read_split
from vaegan.tensors import to_tensor
from vaegan.validation import ValidationConfig
from vaegan.watchdog import WatchdogConfig

METRIC = "validation_sliced_wasserstein"


class KilledError(RuntimeError):
    pass


def state(folder):
    return load_file(folder / "state.safetensors")


def lines_of(config):
    return list(map(json.loads, (config.run_dir / "stats.jsonl").read_text().splitlines()))


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


def test_divergence_stops_with_a_sentence_after_two_rollbacks(config):
    reckless = replace(config, optimizer=replace(config.optimizer, learning_rate=1e30))
    with pytest.raises(
        TrainingFailedError, match=r"NaN or infinite; it was taken back 2 times.* reached no checkpoint"
    ):
        train_loop(reckless)
    events = [line for line in lines_of(config) if "event" in line]
    assert [event["rollbacks"] for event in events] == [1, 2]
    assert not checkpoints(config.run_dir)  # nothing worth coming back to was ever reached


def glitch(monkeypatch, *batches_with_nan: int) -> None:
    """Let the n-th batches that are loaded, counted from 0, arrive as NaN."""
    counter = itertools.count()

    def loaded(pixels, device="cpu"):
        x = to_tensor(pixels, device)
        return x * float("nan") if next(counter) in batches_with_nan else x

    monkeypatch.setattr("vaegan.loop.to_tensor", loaded)


def test_a_batch_of_nan_costs_a_rollback_and_not_the_run(config, monkeypatch):
    glitch(monkeypatch, 4)
    train_loop(config)
    lines = lines_of(config)
    (event,) = (line for line in lines if "event" in line)
    assert event == {"images": 64, "event": "rollback", "rollbacks": 1, "reason": event["reason"]}
    assert "became NaN or infinite" in event["reason"]
    assert [line["images"] for line in lines] == [16, 32, 48, 64, 64, 80, 96]
    assert all(value.isfinite().all() for value in state(checkpoints(config.run_dir)[-1]).values())


def test_the_third_batch_of_nan_ends_the_run_and_the_last_good_checkpoint_stays(config, monkeypatch):
    glitch(monkeypatch, 4, 5, 6)
    with pytest.raises(TrainingFailedError, match=r"failed at image 80: .* 64 is kept; .* look for damaged images"):
        train_loop(config)
    assert checkpoints(config.run_dir)[-1].name.endswith("64")
    monkeypatch.undo()
    train_loop(config)  # the disk was at fault and is repaired: nothing but the sentence was lost
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    train_loop(whole)
    first, second = (state(checkpoints(run.run_dir)[-1]) for run in (config, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_rollback_lowers_the_learning_rates_and_a_resumed_run_keeps_them_low(config, monkeypatch):
    glitch(monkeypatch, 4)
    train_loop(config)
    broken = replace(config, run_dir=config.run_dir.with_name("broken"))

    def kill(line):
        if line["images"] == 80 and line["like"] is not None:
            raise KilledError

    glitch(monkeypatch, 4)
    with pytest.raises(KilledError):
        train_loop(broken, progress=kill)
    assert checkpoints(broken.run_dir)[-1].name.endswith("64")
    glitch(monkeypatch, 0)  # the batch after the checkpoint is still the one that fails
    train_loop(broken)
    first, second = (state(checkpoints(run.run_dir)[-1]) for run in (config, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines_of(config)[-1]["like"] == lines_of(broken)[-1]["like"]
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    monkeypatch.undo()
    train_loop(whole)
    moved = {}
    for run in (config, whole):
        start, end = (state(folder) for folder in checkpoints(run.run_dir))
        moved[run.run_dir] = (end["networks.decoder.dense.weight"] - start["networks.decoder.dense.weight"]).norm()
    assert 0.15 < moved[config.run_dir] / moved[whole.run_dir] < 0.35  # watchdog.rate_factor is a quarter


def test_no_checkpoint_is_made_while_a_fault_may_be_building_up(config):
    never = WatchdogConfig(patience=100, min_spread=1e9)  # every log is suspicious, none is enough
    train_loop(replace(config, watchdog=never))
    assert [folder.name for folder in checkpoints(config.run_dir)] == ["checkpoint_000000096"]  # the end, in any case


def test_the_exported_model_is_the_best_checkpoint_on_the_validation_split(config):
    model = train_loop(replace(config, keep_checkpoints=0))
    values = {line["images"]: line[METRIC] for line in lines_of(config) if METRIC in line}
    assert list(values) == [32, 64, 96]
    best = min(values, key=values.__getitem__)
    about = read_json(model / "model.json")
    assert about["images_seen"] == best
    assert about["chosen"].startswith("best of 3 on the validation split: sliced_wasserstein")
    tensors, checkpoint = load_file(model / "model.safetensors"), config.run_dir / f"checkpoint_{best:09d}"
    for name, value in state(checkpoint).items():
        if name.startswith("average."):
            assert torch.equal(value, tensors[name.replace("average.", "decoder.")]), name
    assert bests(config.run_dir)[-1].name == f"best_{best:09d}"


def test_a_best_checkpoint_that_a_kill_came_before_is_kept_after_all(config, monkeypatch):
    def kill(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("vaegan.loop.Training.keep_best", lambda self: kill() if self.progress.images_seen == 32 else 0)
        with pytest.raises(KilledError):
            train_loop(config)
    assert checkpoints(config.run_dir)
    assert not bests(config.run_dir)
    broken = train_loop(config)
    whole = train_loop(replace(config, run_dir=config.run_dir.with_name("whole")))
    first, second = (load_file(model / "model.safetensors") for model in (broken, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_stands_still_stops_early_and_exports_its_best(config, monkeypatch):
    values = iter([5.0, 4.0, 4.5, 6.0, 3.0])
    monkeypatch.setattr("vaegan.loop.Validation.value", lambda *_: next(values))
    patient = replace(config, total_images=320, validation=ValidationConfig(patience=2))
    about = read_json(train_loop(patient) / "model.json")
    assert about["images_seen"] == 64
    assert lines_of(config)[-1]["images"] == 128


def test_without_a_metric_the_last_state_is_exported(config):
    about = read_json(train_loop(replace(config, validation=ValidationConfig(metric="none"))) / "model.json")
    assert (about["images_seen"], about["chosen"]) == (96, "last")
    assert not bests(config.run_dir)


def test_a_warm_start_begins_with_the_models_weights(config):
    model = train_loop(config)
    warm = replace(config, run_dir=config.run_dir.with_name("warm"), warm_start=model, optimizer=OptimizerConfig(
        learning_rate=1e-12, discriminator_learning_rate=1e-12))  # fmt: skip
    before, after = (load_file(train_loop(run) / "model.safetensors") for run in (config, warm))
    for name in before:
        if not name.startswith("mixture"):
            assert torch.allclose(before[name], after[name], atol=1e-6), name


def test_the_card_of_a_model_that_began_with_another_names_that_and_its_images(config):
    first = train_loop(config)
    warm = replace(config, run_dir=config.run_dir.with_name("warm"), warm_start=first, name="second")
    second = train_loop(warm)
    third = train_loop(replace(config, run_dir=config.run_dir.with_name("third"), warm_start=second, seed=4))
    digest = read_json(first / "model.json")["data_sha256"][:16]
    told = (
        f"begun with | model/1 (tensors {read_json(first / 'model.json')['tensors_sha256'][:16]}), trained on 48 images"
    )
    assert told in (second / "card.md").read_text()
    begun_with = read_json(third / "model.json")["begun_with"]
    assert begun_with.startswith("second/1 ")
    assert "; it began with model/1 (tensors" in begun_with
    assert begun_with.count(digest) == 2
    assert "begun with | random weights" in (first / "card.md").read_text()


def test_a_run_goes_on_without_the_model_that_it_began_with(config):
    first = train_loop(config)
    warm = replace(config, run_dir=config.run_dir.with_name("warm"), warm_start=first, average_half_life_images=0)

    def kill(line):
        if line["images"] == 80:
            raise KilledError

    with pytest.raises(KilledError):
        train_loop(warm, progress=kill)
    first.rename(first.with_name("moved"))
    assert read_json(train_loop(warm) / "model.json")["begun_with"].startswith("model/1 ")


def test_a_warm_start_from_another_shape_is_refused(config):
    model = train_loop(config)
    wider = replace(config.model, width=8)
    with pytest.raises(UserError, match=r"can't start this run .* it is a vaegan of width 4 for 32 pixels and 2"):
        train_loop(replace(config, run_dir=config.run_dir.with_name("warm"), warm_start=model, model=wider))


def test_tensorboard_has_losses_norms_latents_and_grids(config):
    train_loop(config)
    board = EventAccumulator(str(config.run_dir / "tensorboard")).Reload()
    scalars, images = set(board.Tags()["scalars"]), set(board.Tags()["images"])
    assert {"like", "prior", "fool", "catch", "d_real", "gradient_norm_encoder", "images_per_s", METRIC} <= scalars
    assert {"samples", "reconstructions"} <= images
    assert {"kl_per_dimension", "latents/mean", "latents/standard_deviation"} <= set(board.Tags()["histograms"])
    assert [event.step for event in board.Scalars("like")] == [16, 32, 48, 64, 80, 96]


def test_mlflow_gets_the_curves_and_no_real_film(config):
    store = f"sqlite:///{config.run_dir.parent}/mlflow.db"
    train_loop(replace(config, mlflow=store))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.get_run(read_json(config.run_dir / "mlflow.json")["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.params["optimizer.learning_rate"] == "0.0002"
    assert [entry.step for entry in client.get_metric_history(found.info.run_id, "like")] == [16, 32, 48, 64, 80, 96]
    grids = [Path(each.path).name for each in client.list_artifacts(found.info.run_id, "grids")]
    assert sorted(grids) == [f"samples_{images:09d}.png" for images in (0, 32, 64, 96)]


def test_total_images_must_be_whole_batches():
    with pytest.raises(
        ValueError, match=r"total_images \(100\) must be a multiple of batch_size \(32\); the nearest is 96"
    ):
        Recipe(total_images=100)


def test_a_batch_must_divide_among_the_workers(tmp_path):
    with pytest.raises(ValueError, match="must be a multiple of num_workers"):
        TrainConfig(data=tmp_path, run_dir=tmp_path, batch_size=32, num_workers=3)


def test_a_size_that_the_networks_lack_is_told_before_training(config):
    with pytest.raises(ValueError, match="feature_layers has 7"):
        train_loop(replace(config, model=NetworkConfig(width=4, feature_layers=(7,))))


def test_precision_that_is_asked_for_is_taken():
    assert choose_dtype("float32", torch.device("cpu")) is torch.float32
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


EVERYTHING = dict(
    augment=1.0,
    augment_target=0.01,
    augment_ramp_images=160,
    balance_classes=True,
    optimizer=OptimizerConfig(schedule="cosine", final_rate=0.1, warmup_images=48),
)


def figures_of(config, name):
    return [line[name] for line in lines_of(config) if "event" not in line]


def uneven(config, few=5):
    """The training images with few of the second class."""
    images = read_split(config.data, "train")
    return images.take(np.concatenate([np.flatnonzero(images.labels[:, 0]), np.flatnonzero(images.labels[:, 1])[:few]]))


def told(monkeypatch, sign):
    """Let the discriminator's mean sign on real images be a function of images seen, less the batch."""

    def step(self, x, labels, real=Training.step):
        make, seen = self._step, self.progress.images_seen
        self._step = lambda *args: make(*args) | {"real_sign": torch.tensor(sign(seen))}
        try:
            return real(self, x, labels)
        finally:
            self._step = make

    monkeypatch.setattr("vaegan.loop.Training.step", step)


def test_a_run_with_ada_cosine_and_balance_that_was_killed_ends_bit_equal_to_one_that_was_not(config, tmp_path):
    config = replace(config, **EVERYTHING, total_images=192, checkpoint_images=48)
    whole, broken = replace(config, run_dir=tmp_path / "whole"), replace(config, run_dir=tmp_path / "broken")
    images = uneven(config)
    train_loop(whole, images)

    def kill(line):
        if line["images"] == 128:  # past the checkpoint at 96
            raise KilledError

    with pytest.raises(KilledError):
        train_loop(broken, images, progress=kill)
    assert read_json(checkpoints(broken.run_dir)[-1] / "state.json")["augment_probability"] > 0
    train_loop(broken, images)
    first, second = (state(checkpoints(run.run_dir)[-1]) for run in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("augment", "learning_rate", "like"):
        assert figures_of(whole, name) == figures_of(broken, name)
    assert len(set(figures_of(whole, "augment"))) > 2


@pytest.mark.parametrize(
    "settings",
    [
        dict(augment_target=0.01),
        dict(augment_policy=("cutout",)),
        dict(balance_classes=True),
        dict(optimizer=OptimizerConfig(schedule="cosine")),
        dict(optimizer=OptimizerConfig(warmup_images=96)),
    ],
    ids=["ada", "policy", "balance", "cosine", "warm-up"],
)
def test_each_switch_changes_what_is_learned(config, settings):
    images = uneven(config, few=16)
    other = replace(config, run_dir=config.run_dir.with_name("other"), **settings)
    train_loop(config, images)
    train_loop(other, images)
    first, second = (state(checkpoints(run.run_dir)[-1])["networks.decoder.dense.weight"] for run in (config, other))
    assert not torch.equal(first, second)
    logged = {"augment_target": {"augment"}, "optimizer": {"learning_rate"}}
    new = set().union(*lines_of(other)) - set().union(*lines_of(config))
    assert new == set().union(*(logged.get(name, set()) for name in settings))


def test_more_images_are_augmented_while_the_discriminator_knows_the_real_ones_and_fewer_while_it_does_not(
    config, monkeypatch
):
    told(monkeypatch, lambda seen: 0.9 if seen < 64 else 0.2)
    train_loop(replace(config, augment_target=0.6, augment_ramp_images=160))
    assert figures_of(config, "images") == [16, 32, 48, 64, 80, 96]
    assert figures_of(config, "augment") == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.3, 0.2])


def test_a_discriminator_that_learns_the_images_by_heart_drives_augmentation_up_and_one_that_learns_nothing_does_not(
    config,
):
    images = read_split(config.data, "train").take(np.arange(16))
    ends = {}
    for rate in (1e-3, 1e-12):
        run = replace(config, run_dir=config.run_dir.with_name(f"run{rate}"), total_images=1600, checkpoint_images=1600,
            augment=1.0, augment_target=0.6, augment_ramp_images=2000, watchdog=WatchdogConfig(enabled=False),
            optimizer=OptimizerConfig(learning_rate=1e-12, discriminator_learning_rate=rate),
        )  # fmt: skip
        train_loop(run, images)
        ends[rate] = figures_of(run, "augment")[-1]
    assert ends[1e-3] > 0.3
    assert ends[1e-12] < 0.05


def test_augmentation_is_adjusted_every_four_steps_and_at_logs_wherever_a_run_resumes(config, monkeypatch):
    """A log every 7 steps, a checkpoint every 70: adjustments after 4 and 3 steps in turn."""
    told(monkeypatch, lambda seen: 1.0)
    seen = []
    real = Training.step

    def step(self, x, labels):
        figures = real(self, x, labels)
        seen.append((self.progress.images_seen // 16, self.progress.augment_probability))
        return figures

    monkeypatch.setattr("vaegan.loop.Training.step", step)
    train_loop(replace(config, augment_target=0.6, augment_ramp_images=16 * 1000, total_images=16 * 80,
        checkpoint_images=16 * 70))  # fmt: skip
    values = [value for _, value in seen]
    changes = [step for (step, value), before in zip(seen, [0.0, *values], strict=False) if value != before]
    assert changes == [step for step in range(1, 81) if step % 7 in (0, 4)] + [80] * (80 % 7 not in (0, 4))
    assert values[-1] == pytest.approx(0.08)


def test_a_rollback_takes_augmentation_back_and_lowers_rates_that_a_schedule_lowers_too(config, monkeypatch):
    schedule = OptimizerConfig(schedule="cosine")
    config = replace(config, augment_target=0.6, augment_ramp_images=160, optimizer=schedule)
    with monkeypatch.context() as patch:
        told(patch, lambda seen: 1.0)
        train_loop(replace(config, run_dir=config.run_dir.with_name("whole")))
        glitch(patch, 5)  # after the log at 80, which is dropped
        train_loop(config)
    lines = [line for line in lines_of(config) if "event" not in line]
    assert "rollback" in {line.get("event") for line in lines_of(config)}
    whole = {line["images"]: line for line in lines_of(replace(config, run_dir=config.run_dir.with_name("whole")))}
    for line in lines:
        assert line["augment"] == whole[line["images"]]["augment"]
        factor = 0.25 if line["images"] > 64 else 1.0
        assert line["learning_rate"] == pytest.approx(whole[line["images"]]["learning_rate"] * factor)
    assert lines[0]["learning_rate"] == 2e-4


def test_the_rates_that_a_step_takes_are_those_of_the_schedule(config, monkeypatch):
    taken = []

    def step(self, gradients, real=Optimizers.step):
        taken.append([optimizer.param_groups[0]["lr"] for optimizer in self.by_name.values()])
        real(self, gradients)

    monkeypatch.setattr(Optimizers, "step", step)
    schedule = OptimizerConfig(schedule="cosine", warmup_images=32, discriminator_learning_rate=1e-4)
    train_loop(replace(config, optimizer=schedule))
    cosine = [0.5 + 0.5 * np.cos(np.pi * i / 6) for i in range(6)]
    warm = [0.5, 1, 1, 1, 1, 1]
    expected = [[rate * a * b for rate in (2e-4, 2e-4, 1e-4)] for a, b in zip(cosine, warm, strict=True)]
    assert np.array(taken) == pytest.approx(np.array(expected))


def test_a_balanced_run_shows_each_class_equally_often(config):
    images = uneven(config, few=5)
    shown = [
        labels for _, labels in batches(images, replace(config, balance_classes=True), 0, SoloRun(config.run_dir, 1))
    ]
    assert torch.cat(shown).sum(dim=0).tolist() == [48, 48]


class Share(SoloRun):
    """One of several workers' part of a run, without Ray; only the first one writes."""

    def __init__(self, config, rank, size):
        super().__init__(config.run_dir, config.keep_checkpoints)
        self.world_rank, self.world_size, self.augment = rank, size, []

    def save(self, write, images_seen, metrics):
        self.augment.append(metrics["augment"])
        if not self.world_rank:
            super().save(write, images_seen, metrics)


def work(config, rank, size, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    run = Share(config, rank, size)
    try:
        train_loop(config, uneven(config), run=run)
        results.put((rank, run.augment))
    except Exception as error:
        results.put((rank, repr(error)))  # at once, not after a wait for what never comes
    dist.destroy_process_group()


def test_two_workers_augment_as_many_images_as_one_does_and_see_the_same_balanced_batches(config):
    config = replace(
        config, **EVERYTHING, total_images=192, checkpoint_images=48, validation=ValidationConfig(metric="none")
    )
    alone = replace(config, run_dir=config.run_dir.with_name("alone"))
    train_loop(alone, uneven(config))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # not forked from a process with threads
    context.set_forkserver_preload(["torch", "vaegan.loop", "pytest"])
    results = context.Queue()
    jobs = [dict(config=config, rank=rank, size=2, port=port, results=results) for rank in (0, 1)]
    processes = [context.Process(target=runpy.run_path, args=(__file__, {"JOB": job}, "a worker")) for job in jobs]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert found[0] == found[1] == [value for seen, value in logged(alone, "augment") if seen % 48 == 0]
    assert len(set(found[0])) > 2
    likes = [figures_of(run, "like") for run in (alone, config)]
    assert likes[0] == pytest.approx(likes[1], rel=1e-3)


def logged(config, name):
    return list(zip(figures_of(config, "images"), figures_of(config, name), strict=True))


if __name__ == "a worker":  # a child can't import this file by a name, as pytest does not
    work(**globals()["JOB"])


def semi(config, name, **changes):
    """A run whose networks infer the labels of three images of four."""
    changes = dict(labelled_fraction=0.25) | changes
    return replace(
        config, run_dir=config.run_dir.with_name(name), model=replace(config.model, label_head=True), **changes
    )


def test_a_run_that_infers_labels_and_was_killed_ends_bit_equal_to_one_that_was_not(config):
    whole, broken = semi(config, "whole"), semi(config, "broken")
    train_loop(whole)

    def kill(line):
        if line["images"] == 80:
            raise KilledError

    with pytest.raises(KilledError):
        train_loop(broken, progress=kill)
    train_loop(broken)
    first, second = (state(checkpoints(run.run_dir)[-1]) for run in (whole, broken))
    assert any("label_head" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_how_many_labels_there_are_changes_what_is_learned_and_is_told_in_the_card(config):
    some, all_of_them = semi(config, "some"), semi(config, "all", labelled_fraction=1.0)
    cards, weights = [], []
    for each in (some, all_of_them):
        model = train_loop(each)
        info = read_json(model / "model.json")
        cards.append((model / "card.md").read_text())
        weights.append(state(checkpoints(each.run_dir)[-1])["networks.encoder.label_head.weight"])
        assert sum(info["class_counts"]) + info["num_unlabelled"] == info["num_training_images"] == 48
    assert not torch.equal(*weights)
    assert "48 images, 12 of them labelled" in cards[0]
    assert "was not measured" in cards[0]
    assert "labelled" not in cards[1]


def test_the_same_images_have_labels_whatever_the_seed_and_more_labels_are_more_of_the_same(config):
    images, manifest = read_split(config.data, "train"), read_manifest(config.data)

    def known(**changes):
        return set(np.flatnonzero(labelled_for(semi(config, "x", **changes), images, manifest).has_label))

    assert known(seed=1) == known(seed=2)
    assert known(labelled_fraction=0.1) < known(labelled_fraction=0.5) < set(range(48))
    patients = images.patient_id[sorted(known())]
    assert len(set(patients)) * 2 == len(patients)  # all images of a patient


def test_what_stands_in_a_row_without_a_label_is_never_looked_at(config):
    found = []
    for name, garbage in (("zeros", [0, 0]), ("lies", [1, 0])):
        images = read_split(config.data, "train")
        images.labelled = np.arange(48) % 3 == 0
        images.labels[~images.labelled] = garbage
        run = semi(config, name, labelled_fraction=1.0)
        model = train_loop(run, images)
        found.append(state(checkpoints(run.run_dir)[-1]) | load_file(model / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_images_without_labels_teach_a_head_that_tells_classes_it_was_hardly_told(config):
    run = semi(
        config, "learns", labelled_fraction=0.25, total_images=1280, checkpoint_images=640, augment=0.0,
        loss=replace(config.loss, label_weight=100.0), optimizer=OptimizerConfig(learning_rate=1e-3),
    )  # fmt: skip
    sampler = Sampler.from_model(train_loop(run))
    test = read_split(config.data, "test")
    assert (sampler.predicted_labels(test.pixels) == test.labels).all()
    alone = np.concatenate([sampler.predicted_labels(image[None]) for image in test.pixels])
    assert np.array_equal(alone, sampler.predicted_labels(test.pixels))


def test_what_needs_a_label_for_every_image_says_so(config):
    images = read_split(config.data, "train")
    images.labelled = np.arange(48) % 3 == 0
    with pytest.raises(UserError, match=r"32 of 48 training images have no label, .* set model.label_head"):
        train_loop(config, images)
    with pytest.raises(ValueError, match=r"labelled_fraction is 0.5, .* set model.label_head"):
        replace(config, labelled_fraction=0.5)
    with pytest.raises(ValueError, match="expected more than 0 and at most 1"):
        replace(config, labelled_fraction=0)
    with pytest.raises(ValueError, match="balance_classes needs the class of every image"):
        semi(config, "x", balance_classes=True)
    with pytest.raises(UserError, match="none of them of class"):
        train_loop(semi(config, "none", labelled_fraction=0.001), read_split(config.data, "train"))
    assert train_loop(replace(config, model=replace(config.model, conditional=False)), images)  # takes all as they are
