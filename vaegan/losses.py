"""The terms of the VAE-GAN's objective, each a pure function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, relu, softplus

Adversarial = Literal["nonsaturating", "minimax", "hinge", "relativistic"]

SMALLEST_SLOPE = 1e-20
LARGEST_GAME_WEIGHT = 1e4  # Esser et al. 2021's own bound
SMALLEST_SQUARE = 1e-6  # mean square over channels below which a place of a map is not scaled up further

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM's scales, finest first, as vaegan.metrics has
WINDOW, SIGMA = 11, 1.5  # them; of its Gaussian, in pixels of its scale
C1, C2 = 0.01**2, 0.03**2  # squares of its constants K1 and K2, for intensities in [0, 1]
SMALLEST_FACTOR = 1e-3  # of its product: a power below 1 has an infinite slope at 0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the objective's terms."""

    beta: float = 1.0
    """Weight of L_prior in the encoder's loss."""
    kl_warmup_images: int = 0
    """Images over which beta grows linearly from 0; 0 uses all of it from the start."""
    free_bits: float = 0.0
    """KL divergence in nats that each latent dimension has free of charge in L_prior (Kingma et al. 2016)."""
    gamma: float = 0.01
    """Weight of L_like in the decoder's loss, against L_GAN (the paper's lambda)."""
    adaptive_weight: bool = False
    """Scale L_GAN in the decoder, anew each step, to pull at its images as hard as L_like does (Esser et al. 2021, Eq.
    7): gamma is then how many times as hard as the game the likeness pulls, and 1 is even."""
    pixel_weight: float = 0.0
    """Weight of the pixel error inside L_like, beside that in Dis_l. A `vae` has nothing else and takes 1 for 0."""
    ms_ssim_weight: float = 0.0
    """Weight inside L_like of 1 - MS-SSIM times half the pixels, in the pixel error's unit (Zhao et al. 2017)."""
    label_weight: float = 1.0
    """Weight of the label head's cross entropy in the encoder's loss, where model.label_head has it."""
    feature_normalised: bool = False
    """Compare Dis_l's maps by their channels' direction at each place, as LPIPS does (Zhang et al. 2018)."""
    feature_layer_weights: tuple[float, ...] = ()
    """Relative weights of model.feature_layers in L_like, one each; none weighs all alike."""
    feature_matching_weight: float = 0.0
    """Weight in the decoder of the difference between Dis_l's mean maps of samples and of real images (Salimans et al.
    2016), in L_like's unit; gamma and adaptive_weight don't touch it."""
    adversarial: Adversarial = "nonsaturating"
    """How the game is scored: the decoder maximises log D, or minimises log(1 - D) as the paper writes; by margins
    (`hinge`, Lim & Ye 2017); or by pairs of a real and a generated image (`relativistic`, Jolicoeur-Martineau 2019)."""
    adversarial_recon: bool = True
    """Whether reconstructions are shown to the discriminator as fakes, as Algorithm 1 does, beside prior samples."""
    r1_weight: float = 0.0
    """Weight of the discriminator's squared gradient at real images (R1, Mescheder et al. 2018); costs a backward."""
    r2_weight: float = 0.0
    """The same at generated images (R2); `relativistic` with both is the game of R3GAN (Huang et al. 2024)."""
    penalty_every: int = 1
    """Apply R1 and R2 at every this many steps only, and that much stronger (Karras et al. 2020)."""
    consistency_weight: float = 0.0
    """Weight of the squared difference of an image's logits with and without augmentation, real and generated (bCR,
    Zhao et al. 2021, who use 10); costs the discriminator a second pass, of the images unchanged where `augment`
    changes all, else of all changed, in full strength without one."""

    def __post_init__(self) -> None:
        for name in (
            "beta", "kl_warmup_images", "free_bits", "gamma", "pixel_weight", "ms_ssim_weight",
            "feature_matching_weight", "r1_weight", "r2_weight", "consistency_weight", "label_weight",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}: expected 0 or more")
        if self.penalty_every < 1:
            raise ValueError(f"loss.penalty_every is {self.penalty_every}: expected 1 or more")
        weights = tuple(self.feature_layer_weights)  # a list where it was read from JSON
        object.__setattr__(self, "feature_layer_weights", weights)
        if weights and (min(weights) < 0 or sum(weights) == 0):
            raise ValueError(f"loss.feature_layer_weights are {list(weights)}: expected 0 or more, and not all 0")


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


def kl_beyond_free_bits(per_dimension: Tensor, everywhere: Tensor, free_bits: float) -> Tensor:
    """Sum over dimensions of max(free_bits, KL): L_prior that doesn't push a dimension below `free_bits` nats.

    Kingma et al. 2016, Eq. 15 (appendix C.8), each dimension a group of its own.

    Args:
        per_dimension: this worker's `kl_divergence_per_dimension`, (D,).
        everywhere: its mean over all workers, (D,), which decides; then the workers' mean of this is one worker's.
    """
    return torch.where(everywhere > free_bits, per_dimension, free_bits).sum()


def reconstruction(recon: Tensor, target: Tensor, num_pixels: int) -> Tensor:
    """Negative log likelihood of `target` under a unit-variance Gaussian at `recon`, up to a constant: L_like.

    Larsen et al. 2016, Eq. 8 for Dis_l's maps; the pixel error for images. Half the squared error, mean over the
    elements and the batch, times `num_pixels`: in nats per image as if every pixel carried its maps' mean error, so
    that one weight means the same for any layer, width and size of Dis_l.

    Args:
        recon, target: (N, C, H, W) each; num_pixels: C x H x W of the image itself.
    """
    return 0.5 * num_pixels * (recon - target).square().mean()


def feature_reconstruction(
    recon: Sequence[Tensor], target: Sequence[Tensor], num_pixels: int, weights: Sequence[float] = ()
) -> Tensor:
    """Mean of `reconstruction` over the layers of Dis_l, so that any number of them keeps its unit.

    Args:
        recon, target: one layer's maps (N, C, H, W) each.
        weights: of the layers in that mean, relative to each other; none weighs all alike.
    """
    weights = weights or [1.0] * len(target)
    terms = [
        weight / sum(weights) * reconstruction(a, b, num_pixels)
        for weight, a, b in zip(weights, recon, target, strict=True)
    ]
    return torch.stack(terms).sum()


def normalise_channels(maps: Tensor) -> Tensor:
    """Each place's channels scaled to length sqrt(C), maps (N, C, H, W): LPIPS's normalisation (Zhang et al. 2018).

    LPIPS scales to length 1. With a mean square of 1 per channel instead, which is about what a normalised layer has
    anyway, `reconstruction` of two such maps stays in its unit: nats per image, num_pixels times 1 - the mean cosine
    between their channels, for any number of channels. A place of nothing but zeros stays that.
    """
    return maps * torch.rsqrt(maps.square().mean(dim=1, keepdim=True) + SMALLEST_SQUARE)


def structural_dissimilarity(recon: Tensor, target: Tensor) -> Tensor:
    """(1 - MS-SSIM) num_pixels / 2, mean over the batch: 0 for equal images, and in the unit of the pixel error.

    Zhao et al. 2017, Eq. 8, with Wang et al. 2003's MS-SSIM (`ms_ssim`). Half the pixels, since `reconstruction` is
    that times the mean squared error: equal weights compare a squared error of 1 with a similarity of 0.

    Args:
        recon, target: images (N, C, H, W) in [-1, 1].
    """
    with torch.autocast(recon.device.type, enabled=False):  # variances are small differences of large numbers
        similarity = ms_ssim((recon.to(target.dtype) + 1) / 2, (target + 1) / 2)
    return 0.5 * target[0].numel() * (1 - similarity).mean()


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of image pairs in [0, 1], (N, C, H, W) twice -> (N,), differentiable.

    Wang et al. 2003, the number that `vaegan.metrics.ms_ssim` gives (Gaussian window of 11 without padding, as many of
    the five scales as hold it: three at 64 pixels), but that a scale's similarity counts as .001 at least.

    Args:
        x, y: sides of 11 or more that halve evenly, down to where the window no longer fits.
    """
    scales = sum(min(x.shape[2:]) // 2**scale >= WINDOW for scale in range(len(SCALE_WEIGHTS)))
    missing = sum(SCALE_WEIGHTS) / sum(SCALE_WEIGHTS[:scales])
    product = torch.ones((), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS[:scales]):
        if scale:
            x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
        factor = _similarity(x, y, with_luminance=scale == scales - 1)
        product = product * factor.clamp_min(SMALLEST_FACTOR) ** (weight * missing)
    return product.mean(dim=1)


def _similarity(x: Tensor, y: Tensor, *, with_luminance: bool) -> Tensor:
    """Mean over the image of contrast and structure, times luminance if asked for: (N, C)."""
    mean_x, mean_y, square_x, square_y, product = _blurred(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    covariance, variances = product - mean_x * mean_y, square_x - mean_x**2 + square_y - mean_y**2
    similarity = (2 * covariance + C2) / (variances + C2)
    if with_luminance:
        similarity = similarity * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return similarity.mean(dim=(2, 3))


def _blurred(images: Tensor) -> Tensor:
    """Gaussian mean around every pixel whose window lies inside the image, (..., H, W) to (..., H - 10, W - 10).

    As two products with banded matrices: a CPU takes these, and their gradients, quicker than convolutions of one
    channel.
    """
    down, across = (_gaussian_band(side, images) for side in images.shape[-2:])
    return down @ images @ across.T


def _gaussian_band(side: int, like: Tensor) -> Tensor:
    """(side - 10, side): row i has the window's weights from column i on."""
    rows = torch.arange(side - WINDOW + 1, device=like.device)[:, None]
    offsets = torch.arange(side, device=like.device)[None] - rows
    weights = torch.exp(-((offsets - WINDOW // 2).to(like.dtype) ** 2) / (2 * SIGMA**2))
    weights = weights * ((offsets >= 0) & (offsets < WINDOW))
    return weights / weights.sum(dim=1, keepdim=True)


def label_loss(logits: Tensor, labels: Tensor, task: str) -> Tensor:
    """Cross entropy of the label head, in nats: Kingma et al. 2014, Eq. 9, whose alpha is `label_weight`.

    Of one class (softmax) or summed over independent ones (sigmoid). The mean is over all rows, with 0 for those
    without a label: so workers whose parts have unequally many labels do together what one would, and a weight of 1
    means less the fewer labels there are.

    Args:
        logits: (N, K). labels: (N, K), NaN in rows without a label.
        task: "multiclass" or "multilabel".
    """
    known = ~labels.isnan()
    target = torch.where(known, labels, 0.0)
    if task == "multiclass":
        return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    each = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(known, each, 0.0).sum(dim=1).mean()


def discriminator_loss(real: Tensor, *generated: Tensor, kind: Adversarial = "nonsaturating") -> Tensor:
    """What the discriminator minimises, from logits (N,), each term a mean over the batch: -L_GAN.

    `nonsaturating`, `minimax`: -log D(x) - sum over generated kinds of log(1 - D) (Rguibi et al. 2023, Algorithm 1;
    Larsen et al. 2016, Eq. 9 with prior samples beside reconstructions).
    `hinge`: max(0, 1 - f(x)) + sum over generated kinds of max(0, 1 + f), f the logits (Lim & Ye 2017; Miyato et al.
    2018, Eq. 16).
    `relativistic`: sum over generated kinds of -log sigmoid(f(x) - f), a real image against the generated one in its
    row: its own reconstruction, a sample with its labels (Jolicoeur-Martineau 2019, RpGAN; Huang et al. 2024, Eq. 2).
    """
    if kind == "hinge":
        return relu(1 - real).mean() + torch.stack([relu(1 + logits).mean() for logits in generated]).sum()
    if kind == "relativistic":
        return torch.stack([softplus(logits - real).mean() for logits in generated]).sum()
    return softplus(-real).mean() + torch.stack([softplus(logits).mean() for logits in generated]).sum()


def generator_loss(*generated: Tensor, kind: Adversarial = "nonsaturating", real: Tensor | None = None) -> Tensor:
    """What the decoder minimises to fool the discriminator, from logits (N,), summed over the generated kinds.

    `nonsaturating`: -log D (Goodfellow et al. 2014, section 3); `minimax`: log(1 - D) (Rguibi et al. 2023, Eq. 8);
    `hinge`: -f, the logits (Miyato et al. 2018, Eq. 17); `relativistic`: -log sigmoid(f - f(x)) with the logits of the
    `real` images in the same rows (Huang et al. 2024).
    """
    return torch.stack([_fooling(logits, kind, real).mean() for logits in generated]).sum()


def _fooling(logits: Tensor, kind: Adversarial, real: Tensor | None) -> Tensor:
    if kind == "minimax":
        return -softplus(logits)
    if kind == "hinge":
        return -logits
    if kind == "relativistic":
        assert real is not None
        return softplus(real - logits)
    return softplus(-logits)


def gradient_penalties(logits: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half the mean squared norm of the discriminator's gradient at each kind of image, from one backward pass.

    Mescheder et al. 2018, Eq. 9: R1 at real images, R2 at generated ones. The kinds' logits must not depend on each
    other's images.

    Args:
        logits: (N,) by kind, computed from images (N, C, H, W) of the same kinds that require gradients.
    """
    total = torch.stack([each.sum() for each in logits.values()]).sum()
    gradients = torch.autograd.grad(total, [images[kind] for kind in logits], create_graph=True)
    return {
        kind: 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()
        for kind, gradient in zip(logits, gradients, strict=True)
    }


def consistency(logits: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference between logits of the same images, augmented and not, (N,) each.

    Balanced consistency regularisation (Zhao et al. 2021, Eqs. 1 and 2), of one kind of image.
    """
    return (logits - other).square().mean()


def catch_slopes(real: Tensor, *generated: Tensor, kind: Adversarial = "nonsaturating") -> list[Tensor]:
    """Derivatives of `discriminator_loss`, but for `hinge`, with respect to each kind's logits: (N,), the real first.

    -(1 - D) / N at real images, D / N at generated ones, with D of the difference in a pair where it is `relativistic`.
    Generated images' is kept from underflowing, far below what float32 resolves beside any other image's, so that
    `fool_over_catch` can divide by it.
    """
    assert kind != "hinge"  # 0 beyond the margin, where the generator's is not: no number makes one of the other
    if kind == "relativistic":
        slopes = [torch.sigmoid(logits - real).clamp_min(SMALLEST_SLOPE) / len(real) for logits in generated]
        return [-torch.stack(slopes).sum(dim=0), *slopes]
    slopes = [torch.sigmoid(logits).clamp_min(SMALLEST_SLOPE) / len(real) for logits in generated]
    return [-torch.sigmoid(-real) / len(real), *slopes]


def fool_over_catch(logits: Tensor, kind: Adversarial = "nonsaturating", real: Tensor | None = None) -> Tensor:
    """Derivative of `generator_loss` over that of `discriminator_loss` with respect to generated images' logits: (N,).

    -sigmoid(-f) / sigmoid(f) at a logit f, or at its difference from the `real` image's for `relativistic`; -1 for
    `minimax`; not for `hinge`. Where an image's logit depends on no other image, the decoder's gradient at the image is
    therefore the discriminator loss's own gradient there times this number: one backward pass through the discriminator
    serves both players.
    """
    assert kind != "hinge"
    if kind == "minimax":
        return -torch.ones_like(logits)
    if kind == "relativistic":
        assert real is not None
        logits = logits - real
    return -torch.sigmoid(-logits) / torch.sigmoid(logits).clamp_min(SMALLEST_SLOPE)


def game_weight(squared_like: Tensor, squared_game: Tensor) -> Tensor:
    """Weight of L_GAN in the decoder at which both losses pull alike: the ratio of their gradients' norms, a scalar.

    Esser et al. 2021, Eq. 7, with norms at the decoder's images where they have its last layer. At most 10,000, as
    theirs.

    Args:
        squared_like, squared_game: squared norms of the gradients of L_like and of `generator_loss`.
    """
    smallest = torch.finfo(squared_game.dtype).tiny
    return (squared_like / squared_game.clamp_min(smallest)).sqrt().clamp_max(LARGEST_GAME_WEIGHT)
