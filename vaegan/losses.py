"""The terms of the VAE-GAN's objective, each a pure function."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

SMALLEST_SLOPE = 1e-20


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the objective's terms."""

    beta: float = 1.0
    """Weight of L_prior in the encoder's loss."""
    kl_warmup_images: int = 0
    """Images over which beta grows linearly from 0; 0 uses all of it from the start."""
    gamma: float = 0.01
    """Weight of L_like in the decoder's loss, against L_GAN (the paper's lambda)."""
    pixel_weight: float = 0.0
    """Weight of the pixel error inside L_like, beside that in Dis_l. A `vae` has nothing else and takes 1 for 0."""
    adversarial: Literal["nonsaturating", "minimax"] = "nonsaturating"
    """How the decoder is told to fool: maximise log D, or minimise log(1 - D) as the paper writes."""
    adversarial_recon: bool = True
    """Whether reconstructions are shown to the discriminator as fakes, as Algorithm 1 does, beside prior samples."""
    r1_weight: float = 0.0
    """Weight of the discriminator's squared gradient at real images (R1, Mescheder et al. 2018); costs a backward."""

    def __post_init__(self) -> None:
        for name in ("beta", "kl_warmup_images", "gamma", "pixel_weight", "r1_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}: expected 0 or more")


def kl_divergence_per_dimension(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL divergence of each latent dimension from N(0, 1), mean over the batch, in nats: (D,)."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).mean(dim=0)


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL divergence from the posterior N(mu, diag(exp(log_var))) to the prior N(0, I): L_prior.

    Rguibi et al. 2023, Eq. 4. Sum over latent dimensions, mean over the batch, in nats.

    Args:
        mu, log_var: posterior means and log variances (not log standard deviations), each (N, D).
    """
    return kl_divergence_per_dimension(mu, log_var).sum()


def reconstruction(recon: Tensor, target: Tensor, num_pixels: int) -> Tensor:
    """Negative log likelihood of `target` under a unit-variance Gaussian at `recon`, up to a constant: L_like.

    Larsen et al. 2016, Eq. 8 for Dis_l's maps; the pixel error for images. Half the squared error, mean over the
    elements and the batch, times `num_pixels`: in nats per image as if every pixel carried its maps' mean error, so
    that one weight means the same for any layer, width and size of Dis_l.

    Args:
        recon, target: (N, C, H, W) each; num_pixels: C x H x W of the image itself.
    """
    return 0.5 * num_pixels * (recon - target).square().mean()


def discriminator_loss(real: Tensor, *generated: Tensor) -> Tensor:
    """-L_GAN: -log D(x) - sum over generated kinds of log(1 - D), each a mean over the batch, from logits (N,).

    Rguibi et al. 2023, Algorithm 1; Larsen et al. 2016, Eq. 9 with prior samples beside reconstructions.
    """
    return softplus(-real).mean() + torch.stack([softplus(logits).mean() for logits in generated]).sum()


def generator_loss(*generated: Tensor, kind: str = "nonsaturating") -> Tensor:
    """What the decoder minimises to fool the discriminator, from logits (N,), summed over the generated kinds.

    `nonsaturating`: -log D (Goodfellow et al. 2014, section 3); `minimax`: log(1 - D) (Rguibi et al. 2023, Eq. 8).
    """
    terms = [softplus(-logits).mean() if kind == "nonsaturating" else -softplus(logits).mean() for logits in generated]
    return torch.stack(terms).sum()


def r1_penalty(logits_real: Tensor, x: Tensor) -> Tensor:
    """Half the mean squared norm of the discriminator's gradient at real images (Mescheder et al. 2018, Eq. 9).

    Args:
        logits_real: (N,), computed from x with x.requires_grad.
    """
    (gradient,) = torch.autograd.grad(logits_real.sum(), x, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()


def catch_slope(logits: Tensor, *, real: bool) -> Tensor:
    """Derivative of `discriminator_loss` with respect to one kind's logits (N,): -(1 - D) / N if real, else D / N.

    Generated images' is kept from underflowing, far below what float32 resolves beside any other image's, so that
    `fool_over_catch` can divide by it.
    """
    if real:
        return -torch.sigmoid(-logits) / len(logits)
    return torch.sigmoid(logits).clamp_min(SMALLEST_SLOPE) / len(logits)


def fool_over_catch(logits: Tensor, kind: str = "nonsaturating") -> Tensor:
    """Derivative of `generator_loss` over that of `discriminator_loss` with respect to generated images' logits: (N,).

    -sigmoid(-f) / sigmoid(f) at a logit f, or -1 for `minimax`. Where an image's logit depends on no other image, the
    decoder's gradient at the image is therefore the discriminator loss's own gradient there times this number: one
    backward pass through the discriminator serves both players.
    """
    if kind == "minimax":
        return -torch.ones_like(logits)
    return -torch.sigmoid(-logits) / torch.sigmoid(logits).clamp_min(SMALLEST_SLOPE)
