import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from vaegan import losses


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
    for kind in ("minimax", "nonsaturating"):
        assert losses.generator_loss(certain, kind=kind).isfinite()
    assert losses.discriminator_loss(certain, certain).isfinite()


def test_r1_of_a_linear_discriminator_is_half_its_squared_weights():
    weight, x = torch.randn(1, 4, 4), torch.randn(5, 1, 4, 4, requires_grad=True)
    penalty = losses.r1_penalty((x * weight).sum(dim=(1, 2, 3)), x)
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"loss\.gamma is -1"):
        losses.LossConfig(gamma=-1.0)
