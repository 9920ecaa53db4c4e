"""One update of the three networks: Rguibi et al. 2023, Algorithm 1, routed as Larsen et al. 2016 do."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vaegan import losses
from vaegan.augment import NUM_DRAWS, diff_augment
from vaegan.losses import LossConfig
from vaegan.networks import Networks


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the three networks' weights move."""

    name: Literal["adam", "rmsprop"] = "adam"
    """The paper uses RMSProp."""
    learning_rate: float = 2e-4
    """Of encoder and decoder."""
    discriminator_learning_rate: float | None = None
    """Of the discriminator, if it differs (two time scales, Heusel et al. 2017)."""
    adam_beta1: float = 0.5
    """Adam's first moment decay; 0.5 is the custom for GANs."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "discriminator_learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"optimizer.{name} is {value}: expected more than 0")


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step: its images and all of the step's randomness, drawn beforehand.

    x (N, C, H, W) in [-1, 1]; labels (N, K); posterior_noise and prior (N, D), standard normal; recon_draws and
    sample_draws (N, 6), uniform: what `diff_augment` does to x with its reconstruction, and to prior samples.
    """

    x: Tensor
    labels: Tensor
    posterior_noise: Tensor
    prior: Tensor
    recon_draws: Tensor
    sample_draws: Tensor

    @staticmethod
    def draw(
        x: Tensor, labels: Tensor, latent_dim: int, *, seed: int, step: int, worker: int = 0, num_workers: int = 1
    ) -> "Batch":
        """Noise for rows [worker * N, (worker + 1) * N) of a step's global batch: a function of seed, step and row.

        A run may therefore stop anywhere and resume without stored generator states, and N workers see what one would.
        """
        rows = slice(worker * len(x), (worker + 1) * len(x))
        total = num_workers * len(x)  # every worker draws for all: torch's values depend on how many are asked for

        def noise(purpose: int) -> torch.Generator:
            return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4 + purpose)

        return Batch(
            x,
            labels,
            posterior_noise=torch.randn(total, latent_dim, generator=noise(0))[rows].to(x.device),
            prior=torch.randn(total, latent_dim, generator=noise(1))[rows].to(x.device),
            recon_draws=torch.rand(total, NUM_DRAWS, generator=noise(2))[rows].to(x.device),
            sample_draws=torch.rand(total, NUM_DRAWS, generator=noise(3))[rows].to(x.device),
        )


class Optimizers:
    """One optimiser a network, stepped together once all gradients exist."""

    def __init__(self, networks: Networks, config: OptimizerConfig) -> None:
        def build(name: str, network: nn.Module) -> torch.optim.Optimizer:
            rate = config.learning_rate
            if name == "discriminator" and config.discriminator_learning_rate is not None:
                rate = config.discriminator_learning_rate
            if config.name == "rmsprop":
                return torch.optim.RMSprop(network.parameters(), lr=rate)
            return torch.optim.Adam(network.parameters(), lr=rate, betas=(config.adam_beta1, 0.999))

        self.by_name = {name: build(name, network) for name, network in networks.present().items()}
        self.parameters: dict[str, list[Tensor]] = {
            name: list(network.parameters()) for name, network in networks.present().items()
        }

    def step(self, gradients: dict[str, list[Tensor]]) -> None:
        """Give every parameter its gradient and step every optimiser."""
        for name, optimizer in self.by_name.items():
            for parameter, gradient in zip(self.parameters[name], gradients[name], strict=True):
                parameter.grad = gradient
            optimizer.step()


class DecoderAverage:
    """Exponential moving average of the decoder's weights: what samples are drawn from.

    `half_life_images`: images after which an old weight counts half, so that it means the same for any batch size;
    during the first ones it is a tenth of the images seen, so that the random start is forgotten (Karras et al. 2020,
    ramp-up). 0 keeps no average.
    """

    def __init__(self, decoder: nn.Module, half_life_images: int) -> None:
        self.half_life_images = half_life_images
        self.decoder = copy.deepcopy(decoder).eval().requires_grad_(False) if half_life_images else decoder

    @torch.no_grad()
    def update(self, decoder: nn.Module, images_seen: int, batch_size: int) -> None:
        """Move the average towards `decoder`, after a step of `batch_size` images."""
        if not self.half_life_images:
            return
        half_life = min(self.half_life_images, max(images_seen, batch_size) / 10)
        keep = 0.5 ** (batch_size / half_life)
        for average, now in zip(self.decoder.parameters(), decoder.parameters(), strict=True):
            average.lerp_(now, 1 - keep)
        for kept, buffer in zip(self.decoder.buffers(), decoder.buffers(), strict=True):
            kept.copy_(buffer)


def train_step(
    networks: Networks,
    optimizers: Optimizers,
    batch: Batch,
    config: LossConfig,
    *,
    beta: float,
    augment: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """One update of every network: all gradients from one forward pass of each, then all steps.

    Args:
        beta: this step's weight of L_prior, warm-up applied.
        augment: strength of DiffAugment on what the discriminator sees; 0 is none.
        dtype: bfloat16 runs the forward pass under autocast; weights, losses and updates stay float32.

    Returns:
        Scalars, on the images' device, not yet synchronised with the host: prior, like, fool, catch, the mean D of each
        kind of image, gradient norms, and kl_per_dimension (D,); those that the model's kind lacks are absent.
    """
    with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        terms, stats = forward_terms(networks, batch, config, augment)
    gradients = route_gradients(networks, optimizers.parameters, terms, config, beta)
    average_over_workers(gradient for group in gradients.values() for gradient in group)
    optimizers.step(gradients)  # only now: every gradient above belongs to the same weights
    norms = {f"gradient_norm_{name}": torch.stack(torch._foreach_norm(g)).norm() for name, g in gradients.items()}
    return {name: value.detach() for name, value in (terms | stats | norms).items()}


def forward_terms(
    networks: Networks, batch: Batch, config: LossConfig, augment: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The objective's terms (prior, like, fool, catch) with their graph, and figures worth logging without one."""
    x, labels = batch.x, networks.condition(batch.labels)
    encoder, discriminator = networks.encoder, networks.discriminator
    num_pixels = x[0].numel()
    terms: dict[str, Tensor] = {}
    stats: dict[str, Tensor] = {}

    latents, generated_labels = [], []
    if encoder is not None:
        mu, log_var = encoder(x, labels)
        terms["prior"] = losses.kl_divergence(mu, log_var)
        stats["kl_per_dimension"] = losses.kl_divergence_per_dimension(mu, log_var).detach()
        latents.append(mu + (0.5 * log_var).exp() * batch.posterior_noise)
        generated_labels.append(labels)
    if discriminator is not None:
        latents.append(batch.prior)
        generated_labels.append(labels)  # the batch's own labels: prior samples follow the classes' frequencies
    generated = networks.decoder(torch.cat(latents), torch.cat(generated_labels)).split(len(x))

    if encoder is not None:
        pixel_weight = config.pixel_weight if discriminator is not None else config.pixel_weight or 1.0
        terms["like"] = pixel_weight * losses.reconstruction(generated[0], x, num_pixels)
        stats["pixel_error"] = (generated[0] - x).square().mean().detach()
    if discriminator is None:
        return terms, stats

    draws = ([batch.recon_draws] if encoder is not None else []) + [batch.sample_draws]
    real_draws = draws[0]  # the reconstruction's own, so that Dis_l compares like with like
    seen_real = x.detach().requires_grad_(config.r1_weight > 0)
    seen = torch.cat([seen_real, *generated])
    if augment:
        seen = diff_augment(seen, torch.cat([real_draws, *draws]), augment)
    logits, features = discriminator(seen, labels.repeat(1 + len(generated), 1))
    logits_real, *logits_generated = logits.split(len(x))
    features_real, features_recon, *_ = features.split(len(x))
    if encoder is not None:
        terms["like"] = terms["like"] + losses.reconstruction(features_recon, features_real.detach(), num_pixels)
        stats["d_recon"] = logits_generated[0].sigmoid().mean().detach()
        if not config.adversarial_recon:
            logits_generated = logits_generated[1:]
    terms["fool"] = losses.generator_loss(*logits_generated, kind=config.adversarial)
    terms["catch"] = losses.discriminator_loss(logits_real, *logits_generated)
    if config.r1_weight:
        terms["catch"] = terms["catch"] + config.r1_weight * losses.r1_penalty(logits_real, seen_real)
    stats["d_real"] = logits_real.sigmoid().mean().detach()
    stats["d_sample"] = logits_generated[-1].sigmoid().mean().detach()
    return terms, stats


def route_gradients(
    networks: Networks, parameters: dict[str, list[Tensor]], terms: dict[str, Tensor], config: LossConfig, beta: float
) -> dict[str, list[Tensor]]:
    """Gradients of each network's own loss with respect to its own parameters, which *is* the routing.

    encoder: beta L_prior + L_like; decoder: gamma L_like + fooling; discriminator: catching. A loss reaches no network
    that does not ask for it: no L_GAN in the encoder, no L_like in the discriminator, no L_prior in the decoder.
    """
    own: dict[str, Tensor] = {}
    if "prior" in terms:
        own["encoder"] = beta * terms["prior"] + terms["like"]
    if networks.discriminator is None:
        own["decoder"] = terms["like"]
    elif networks.encoder is None:
        own["decoder"] = terms["fool"]
    else:
        own["decoder"] = config.gamma * terms["like"] + terms["fool"]
    if "catch" in terms:
        own["discriminator"] = terms["catch"]
    gradients = {}
    for name, loss in own.items():
        wanted = parameters[name]
        found = torch.autograd.grad(loss, wanted, retain_graph=name != list(own)[-1], materialize_grads=True)
        gradients[name] = list(found)
    return gradients


def average_over_workers(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over the process group's workers, in place, in one flat all-reduce."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    everything = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in everything])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for tensor in everything:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()
