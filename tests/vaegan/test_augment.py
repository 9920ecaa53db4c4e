import math

import pytest
import torch

from vaegan.augment import CHANGES, FIRST_DRAWS, MAX_PROBABILITY, NUM_DRAWS, diff_augment, draw_uniforms, steered
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig
from vaegan.recipe import Recipe, TrainConfig


def films(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draws(count: int, seed: int = 1) -> torch.Tensor:
    return draw_uniforms(count, NUM_DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 5, 16, 33])
def test_later_draws_leave_the_first_six_as_they_were(count):
    alone = torch.rand(count, FIRST_DRAWS, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draws(count)[:, :FIRST_DRAWS], alone)
    x = films(count)
    assert torch.equal(diff_augment(x, draws(count), 0.7), diff_augment(x, alone, 0.7))


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("policy", [("colour", "translation", "cutout"), CHANGES], ids=["reference", "all"])
def test_the_share_of_images_left_untouched_is_one_less_p_and_the_others_are_changed_as_ever(probability, policy):
    count = 4000
    x, uniforms = films(count), draws(count)
    shown = diff_augment(x, uniforms, 1.0, policy, probability)
    untouched = (shown == x).flatten(1).all(dim=1)
    error = math.sqrt(probability * (1 - probability) / count)
    assert untouched.double().mean().item() == pytest.approx(1 - probability, abs=4 * error + 1e-12)
    assert torch.equal(shown[~untouched], diff_augment(x, uniforms, 1.0, policy)[~untouched])
    assert torch.equal(
        shown, diff_augment(x, uniforms, 1.0, policy, torch.tensor(probability))
    )  # as a CUDA graph has it


def test_whether_an_image_is_changed_says_nothing_of_how():
    uniforms = draws(4000)
    for other in (0, 2, 4, 7, 8):
        correlation = torch.corrcoef(torch.stack([uniforms[:, 6], uniforms[:, other]]))[0, 1]
        assert correlation.abs() < 4 / math.sqrt(4000)


def test_without_colour_each_grey_level_stays_and_without_the_others_each_pixel_keeps_its_place():
    x, uniforms = films(64), draws(64)
    moved = diff_augment(x, uniforms, 1.0, ("translation",))
    for before, after in zip(x, moved, strict=True):
        assert torch.isin(
            (after + 1).round(decimals=4), torch.cat([(before + 1).round(decimals=4).flatten(), torch.zeros(1)])
        ).all()
    cut = diff_augment(x, uniforms, 1.0, ("cutout",))
    assert ((cut == x) | (cut == 0)).all()
    assert not torch.equal(cut, x)
    coloured = diff_augment(x, uniforms, 1.0, ("colour",))
    for before, after in zip(x.flatten(1), coloured.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([before, after]))[0, 1] == pytest.approx(1, abs=1e-4)


def test_the_order_in_which_changes_are_named_is_without_effect():
    x, uniforms = films(8), draws(8)
    assert torch.equal(diff_augment(x, uniforms, 1.0, CHANGES), diff_augment(x, uniforms, 1.0, CHANGES[::-1]))


def spot(count: int) -> torch.Tensor:
    """A smooth spot at half of the way from the centre to the right border."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    return (2 * torch.exp(-(rows**2 + (columns - 0.5) ** 2) / 0.02) - 1).repeat(count, 1, 1, 1)


def place(x: torch.Tensor) -> torch.Tensor:
    """Where the spot is, as complex numbers."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    light = (x[:, 0] + 1) / (x[:, 0] + 1).sum(dim=(1, 2), keepdim=True)
    return torch.complex((light * columns).sum(dim=(1, 2)), (light * rows).sum(dim=(1, 2)))


def test_a_rotation_turns_by_its_angle_and_a_zoom_magnifies_by_its_factor():
    u = draws(50)[:, 7:] * 2 - 1
    turned = place(diff_augment(spot(50), draws(50), 0.5, ("rotation",)))
    assert torch.allclose(turned.abs(), torch.tensor(0.5), atol=0.01)
    assert torch.allclose(turned.angle().abs(), (u[:, 0] * 0.5 * math.radians(10)).abs(), atol=0.01)
    zoomed = place(diff_augment(spot(50), draws(50), 0.5, ("zoom",)))
    assert torch.allclose(zoomed.real, 0.5 * 2 ** (u[:, 1] * 0.5 * 0.2), atol=0.01)
    assert torch.allclose(zoomed.imag, torch.tensor(0.0), atol=0.01)


@pytest.mark.parametrize("policy", [(name,) for name in CHANGES])
def test_gradients_reach_the_image_through_every_change(policy):
    x = films(4).requires_grad_()
    (gradient,) = torch.autograd.grad(diff_augment(x, draws(4), 1.0, policy, 0.5).square().sum(), x)
    assert (gradient != 0).double().mean() > 0.5


def test_p_rises_while_the_discriminator_knows_the_real_images_and_falls_while_it_does_not():
    p = 0.0
    for _ in range(20):
        p = steered(p, 0.9, target=0.6, images=64, ramp_images=5000)
    assert p == pytest.approx(20 * 64 / 5000)
    for _ in range(10):
        p = steered(p, 0.1, target=0.6, images=64, ramp_images=5000)
    assert p == pytest.approx(10 * 64 / 5000)
    for _ in range(30):
        p = steered(p, -1.0, target=0.6, images=64, ramp_images=5000)
    assert p == 0
    for _ in range(1000):
        p = steered(p, 1.0, target=0.6, images=64, ramp_images=5000)
    assert p == MAX_PROBABILITY
    assert steered(0.25, 0.6, target=0.6, images=64, ramp_images=5000) == 0.25
    assert steered(0.25, math.nan, target=0.6, images=64, ramp_images=5000) == 0.25


def test_p_settles_where_the_target_is_met():
    """A discriminator whose mean sign falls from 1 to 0 as p goes from 0 to 1, seen through 64 images at a time."""
    noise = torch.Generator().manual_seed(0)
    p, visited = 0.0, []
    for _ in range(1000):
        signs = torch.rand(64, generator=noise) < 1 - p / 2
        p = steered(p, (2 * signs.double() - 1).mean().item(), target=0.6, images=64, ramp_images=5000)
        visited.append(p)
    assert sum(visited[500:]) / 500 == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(augment=1.0, augment_target=0.0), "augment_target is 0.0: expected more than 0 and less than 1"),
        (dict(augment=1.0, augment_target=1.0), "augment_target is 1.0: expected more than 0 and less than 1"),
        (dict(augment_target=0.6), "augment is 0"),
        (dict(augment=1.0, augment_target=0.6, model=NetworkConfig(kind="vae")), "kind vae has none"),
        (dict(augment=1.0, augment_policy=()), "augment_policy is empty"),
        (dict(augment=1.0, augment_policy=("colour", "color")), "color is none; expected some of colour, translation"),
        (dict(augment_policy=("colour", "colour")), "named twice"),
        (dict(augment_ramp_images=0), "augment_ramp_images is 0: expected 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**settings)


def test_the_policy_is_read_from_a_command_line_and_a_file(tmp_path):
    from cluster.cli import parse

    (tmp_path / "recipe.yaml").write_text("augment: 1.0\naugment_policy: [translation, cutout]\naugment_target: 0.6\n")
    words = ["--data", "data", "--run-dir", "run", "--config", str(tmp_path / "recipe.yaml")]
    config = parse(TrainConfig, words, prog="train")
    assert (config.augment_policy, config.augment_target) == (("translation", "cutout"), 0.6)
    config = parse(TrainConfig, [*words, "--augment-policy", "cutout", "zoom"], prog="train")
    assert config.augment_policy == ("cutout", "zoom")
    assert config.loss == LossConfig()
