import math

import pytest
import torch

from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import OptimizerConfig, Optimizers
from vaegan.recipe import Recipe, TrainConfig

TOTAL, BATCH = 1600, 16


def factors(config: OptimizerConfig) -> list[float]:
    return [config.rate_factor(seen, BATCH, TOTAL) for seen in range(0, TOTAL, BATCH)]


def test_rates_are_constant_by_default_and_exactly_the_configured_ones():
    assert set(factors(OptimizerConfig())) == {1.0}
    assert not OptimizerConfig().varies


def test_a_cosine_falls_from_the_whole_rate_over_a_half_to_its_end():
    found = factors(OptimizerConfig(schedule="cosine"))
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)
    assert found[25] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert 0 < found[-1] < 1e-3
    assert found == sorted(found, reverse=True)
    floored = factors(OptimizerConfig(schedule="cosine", final_rate=0.1))
    assert floored == pytest.approx([0.1 + 0.9 * each for each in found])


def test_a_warm_up_rises_in_a_straight_line_and_multiplies_the_schedule():
    warm = factors(OptimizerConfig(warmup_images=160))
    assert warm[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert set(warm[10:]) == {1.0}
    both = factors(OptimizerConfig(schedule="cosine", warmup_images=160))
    assert both == pytest.approx(
        [a * b for a, b in zip(warm, factors(OptimizerConfig(schedule="cosine")), strict=True)]
    )


def test_the_schedule_means_the_same_images_at_any_batch_size():
    config = OptimizerConfig(schedule="cosine")
    assert config.rate_factor(800, 16, TOTAL) == config.rate_factor(800, 100, TOTAL)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_a_weight_moves_in_proportion_to_the_factor(name):
    moved = []
    for factor in (1.0, 0.25):
        torch.manual_seed(0)
        networks = Networks(NetworkConfig(kind="vae", width=4, hidden=16), size=32, channels=1, num_classes=0)
        optimizers = Optimizers(networks, OptimizerConfig(name=name))
        before = networks.encoder.dense.weight.detach().clone()
        optimizers.scale_rates(factor)
        optimizers.step({key: [torch.ones_like(p) for p in some] for key, some in optimizers.parameters.items()})
        moved.append((networks.encoder.dense.weight.detach() - before).norm())
    assert moved[1] / moved[0] == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(final_rate=1.0, schedule="cosine"), "final_rate is 1.0: expected 0 or more, and less than 1"),
        (dict(final_rate=0.1), "optimizer.schedule is constant"),
        (dict(warmup_images=-1), "warmup_images is -1: expected 0 or more"),
    ],
)
def test_schedules_that_make_no_sense_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        OptimizerConfig(**settings)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_images is 200, more than total_images \(160\)"):
        Recipe(total_images=160, batch_size=16, optimizer=OptimizerConfig(warmup_images=200))


@pytest.mark.parametrize("settings", [dict(schedule="cosine"), dict(warmup_images=10)])
def test_a_captured_step_can_not_have_changing_rates(tmp_path, settings):
    with pytest.raises(ValueError, match="graphs captures the learning rates"):
        TrainConfig(data=tmp_path, run_dir=tmp_path, acceleration="graphs", optimizer=OptimizerConfig(**settings))
