import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from vaegan import losses
from vaegan.metrics import ms_ssim as metric

ADVERSARIAL = ("nonsaturating", "minimax", "hinge", "relativistic")


def test_kl_equals_that_of_torch_distributions():
    mu, log_var = torch.randn(5, 7), torch.randn(5, 7)
    expected = kl_divergence(Normal(mu, (0.5 * log_var).exp()), Normal(torch.zeros(5, 7), torch.ones(5, 7)))
    assert losses.kl_divergence(mu, log_var).item() == pytest.approx(expected.sum(dim=1).mean().item(), rel=1e-5)


def test_kl_of_the_prior_itself_is_zero():
    assert losses.kl_divergence(torch.zeros(3, 4), torch.zeros(3, 4)).item() == 0


def test_reconstruction_of_pixels_is_the_unit_gaussian_log_likelihood_up_to_its_constant():
    recon, x = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    log_likelihood = Normal(recon, 1.0).log_prob(x).sum(dim=(1, 2, 3)).mean()
    constant = 64 * 0.5 * math.log(2 * math.pi)
    assert losses.reconstruction(recon, x, 64).item() == pytest.approx(-log_likelihood.item() - constant, rel=1e-5)


def test_reconstruction_does_not_depend_on_how_many_maps_repeat_the_same_error():
    recon, x = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    once = losses.reconstruction(recon, x, 64)
    assert losses.reconstruction(recon.repeat(1, 5, 1, 1), x.repeat(1, 5, 1, 1), 64).item() == pytest.approx(
        once.item()
    )


def test_discriminator_loss_is_the_sum_of_binary_cross_entropies():
    real, recon, fake = torch.randn(3, 6)
    expected = bce(real, torch.ones(6)) + bce(recon, torch.zeros(6)) + bce(fake, torch.zeros(6))
    assert losses.discriminator_loss(real, recon, fake).item() == pytest.approx(expected.item(), rel=1e-5)


def test_minimax_generator_loss_is_equation_8_and_has_the_same_sign_of_gradient_as_the_nonsaturating():
    logits = torch.randn(9, requires_grad=True)
    minimax = losses.generator_loss(logits, kind="minimax")
    assert minimax.item() == pytest.approx(torch.log1p(-logits.sigmoid()).mean().item(), rel=1e-5)
    (slope,) = torch.autograd.grad(minimax, logits)
    (other,) = torch.autograd.grad(losses.generator_loss(logits), logits)
    assert (slope.sign() == other.sign()).all()


def test_losses_stay_finite_for_a_certain_discriminator():
    certain = torch.tensor([300.0, -300.0])
    for kind in ADVERSARIAL:
        assert losses.generator_loss(certain, kind=kind, real=-certain).isfinite()
        assert losses.discriminator_loss(certain, -certain, kind=kind).isfinite()


def test_hinge_pays_no_discriminator_for_more_than_its_margin_and_every_decoder():
    real, fake = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-3.0, 0.25], requires_grad=True)
    catch = losses.discriminator_loss(real, fake, kind="hinge")
    assert catch.item() == (0.5 + 1.25) / 2
    slopes = torch.autograd.grad(catch, [real, fake])
    assert [slope.tolist() for slope in slopes] == [[0, -0.5], [0, 0.5]]
    (slope,) = torch.autograd.grad(losses.generator_loss(fake, kind="hinge"), fake)
    assert slope.tolist() == [-0.5, -0.5]


def test_a_relativistic_game_is_the_cross_entropy_of_which_of_a_pair_is_real_and_knows_no_level():
    real, recon, fake = torch.randn(3, 6, dtype=torch.float64)
    catch = losses.discriminator_loss(real, recon, fake, kind="relativistic")
    pairs = torch.stack([torch.stack([real, other], dim=1) for other in (recon, fake)])  # (2, 6, 2)
    first = torch.zeros(6, dtype=torch.int64)
    expected = sum(torch.nn.functional.cross_entropy(pair, first) for pair in pairs)
    assert catch.item() == pytest.approx(expected.item(), rel=1e-12)
    fool = losses.generator_loss(recon, fake, kind="relativistic", real=real)
    expected = sum(torch.nn.functional.cross_entropy(pair, 1 - first) for pair in pairs)
    assert fool.item() == pytest.approx(expected.item(), rel=1e-12)
    raised = losses.discriminator_loss(real + 5, recon + 5, fake + 5, kind="relativistic")
    assert raised.item() == pytest.approx(catch.item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["nonsaturating", "minimax", "relativistic"])
def test_slopes_and_their_ratios_are_the_derivatives_of_both_players_losses(kind):
    real, *generated = (3 * torch.randn(3, 5, dtype=torch.float64)).requires_grad_().unbind()
    expected = torch.autograd.grad(losses.discriminator_loss(real, *generated, kind=kind), [real, *generated])
    slopes = losses.catch_slopes(real, *generated, kind=kind)
    for slope, other in zip(slopes, expected, strict=True):
        assert torch.allclose(slope, other, rtol=1e-12)
    fool = torch.autograd.grad(losses.generator_loss(*generated, kind=kind, real=real), generated)
    for logits, slope, other in zip(generated, slopes[1:], fool, strict=True):
        assert torch.allclose(losses.fool_over_catch(logits, kind, real) * slope, other, rtol=1e-12)


def test_r1_and_r2_of_a_linear_discriminator_are_half_its_squared_weights():
    weight = torch.randn(1, 4, 4)
    images = {kind: torch.randn(5, 1, 4, 4, requires_grad=True) for kind in ("real", "sample")}
    logits = {kind: scale * (images[kind] * weight).sum(dim=(1, 2, 3)) for kind, scale in (("real", 1), ("sample", 2))}
    penalties = losses.gradient_penalties(logits, images)
    assert penalties["real"].item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)
    assert penalties["sample"].item() == pytest.approx(2.0 * weight.square().sum().item(), rel=1e-5)


def test_free_bits_push_only_the_dimensions_whose_kl_over_all_workers_is_above_them():
    own = torch.tensor([0.1, 0.3, 2.0], requires_grad=True)
    value = losses.kl_beyond_free_bits(own, everywhere=torch.tensor([0.3, 0.1, 2.0]), free_bits=0.25)
    assert value.item() == pytest.approx(0.1 + 0.25 + 2.0)
    assert torch.autograd.grad(value, own)[0].tolist() == [1, 0, 1]


def test_layers_of_a_likeness_are_averaged_by_their_relative_weights():
    pairs = [torch.randn(2, 4, channels, 8, 8) for channels in (3, 5)]
    recon, target = zip(*pairs, strict=True)
    first, second = (losses.reconstruction(a, b, 64).item() for a, b in pairs)
    assert losses.feature_reconstruction(recon, target, 64).item() == pytest.approx((first + second) / 2)
    weighted = losses.feature_reconstruction(recon, target, 64, (1.0, 3.0)).item()
    assert weighted == pytest.approx((first + 3 * second) / 4)
    alone = losses.feature_reconstruction(recon[:1], target[:1], 64)
    assert torch.equal(alone, losses.reconstruction(recon[0], target[0], 64))
    with pytest.raises(ValueError, match="argument"):
        losses.feature_reconstruction(recon, target, 64, (1.0,))


def test_a_likeness_of_normalised_maps_is_the_pixels_times_one_minus_their_cosine_whatever_their_scale():
    recon, target = torch.randn(2, 4, 6, 8, 8, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(recon, target, dim=1).mean().item()
    for scale in (1.0, 30.0):
        maps = losses.normalise_channels(scale * recon), losses.normalise_channels(target)
        assert losses.reconstruction(*maps, 64).item() == pytest.approx(64 * (1 - cosine), rel=1e-4)
    nothing = torch.zeros(1, 6, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(losses.normalise_channels(nothing).sum(), nothing)
    assert slope.isfinite().all()


def structured(size: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """uint8 (3, size, size, channels) of structure at every scale."""
    noise = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total = sum(
        torch.nn.functional.interpolate(noise[:, :, : size // step, : size // step], size, mode="bilinear")
        for step in (16, 8, 4, 1)
    )
    return (total * 25 + 128).clamp(0, 255).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (64, 3), (256, 1)])
def test_ms_ssim_is_the_metrics(size, channels):
    x, y = structured(size, channels), structured(size, channels, seed=1)
    y = (0.6 * x + 0.4 * y).astype(np.uint8)
    a, b = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 for images in (x, y))
    expected = metric.ms_ssim(x, y)
    assert np.all((expected > 0.1) & (expected < 0.99))
    assert losses.ms_ssim(a, b).numpy() == pytest.approx(expected, rel=1e-10)
    assert losses.ms_ssim(a.float(), b.float()).numpy() == pytest.approx(expected, rel=1e-3)


def test_the_gradient_of_ms_ssim_is_right_and_finite_where_images_have_nothing_in_common():
    x = torch.from_numpy(structured(32)).permute(0, 3, 1, 2).double() / 127.5 - 1
    recon = (0.7 * x + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: losses.structural_dissimilarity(image, x), recon, fast_mode=True)
    opposite = (-x).requires_grad_()
    loss = losses.structural_dissimilarity(opposite, x)
    assert loss.item() < 0.5 * 32 * 32
    assert torch.autograd.grad(loss, opposite)[0].isfinite().all()
    assert losses.structural_dissimilarity(x, x).item() == pytest.approx(0, abs=1e-9)


def test_ms_ssim_keeps_its_digits_under_autocast():
    x = torch.from_numpy(structured(64)).permute(0, 3, 1, 2).float() / 127.5 - 1
    recon = 0.8 * x
    plain = losses.structural_dissimilarity(recon, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(losses.structural_dissimilarity(recon, x), plain)


def test_the_games_weight_makes_its_pull_as_strong_as_the_likeness_and_stays_finite():
    like, game = torch.randn(2, 4, 1, 8, 8)
    weight = losses.game_weight(like.square().sum(), game.square().sum())
    assert (weight * game).norm().item() == pytest.approx(like.norm().item(), rel=1e-5)
    assert losses.game_weight(torch.tensor(1.0), torch.tensor(0.0)).item() == losses.LARGEST_GAME_WEIGHT
    assert losses.game_weight(torch.tensor(0.0), torch.tensor(0.0)).item() == 0


@pytest.mark.parametrize("name", ["gamma", "free_bits", "r2_weight", "ms_ssim_weight", "consistency_weight"])
def test_negative_weights_are_refused(name):
    with pytest.raises(ValueError, match=rf"loss\.{name} is -1"):
        losses.LossConfig(**{name: -1.0})


def test_penalties_at_no_step_and_layers_that_weigh_nothing_are_refused():
    with pytest.raises(ValueError, match=r"loss\.penalty_every is 0: expected 1 or more"):
        losses.LossConfig(penalty_every=0)
    with pytest.raises(ValueError, match=r"loss\.feature_layer_weights are \[0.0, 0.0\]"):
        losses.LossConfig(feature_layer_weights=(0.0, 0.0))
    assert losses.LossConfig(feature_layer_weights=[1.0, 2.0]) == losses.LossConfig(feature_layer_weights=(1.0, 2.0))


def test_the_label_loss_is_torchs_cross_entropy_of_labelled_rows_over_the_number_of_all():
    logits = torch.randn(6, 3)
    classes = torch.tensor([0, 2, 1, 1, 0, 2])
    labels = torch.eye(3)[classes]
    labels[[1, 4]] = torch.nan
    known = [0, 2, 3, 5]
    expected = torch.nn.functional.cross_entropy(logits[known], classes[known], reduction="sum") / 6
    assert losses.label_loss(logits, labels, "multiclass").item() == pytest.approx(expected.item(), rel=1e-6)
    expected = bce(logits[known], labels[known], reduction="sum") / 6
    assert losses.label_loss(logits, labels, "multilabel").item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_rows_without_a_label_pull_at_no_logit(task):
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.eye(3)[[0, 1, 2, 0]]
    labels[2] = torch.nan
    losses.label_loss(logits, labels, task).backward()
    assert logits.grad[[0, 1, 3]].any(dim=1).all()
    assert not logits.grad[2].any()
