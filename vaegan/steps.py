"""One update of the three networks: Rguibi et al. 2023, Algorithm 1, routed as Larsen et al. 2016 do."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vaegan import losses
from vaegan.augment import NUM_DRAWS, diff_augment
from vaegan.collectives import start_average
from vaegan.losses import LossConfig
from vaegan.networks import Networks, has_batch_statistics
from vaegan.optimizers import Optimizers
from vaegan.tensors import to_device


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

        def draw(sample: Callable[..., Tensor], count: int, purpose: int) -> Tensor:
            noise = torch.Generator().manual_seed((seed * 1_000_003 + step) * 4 + purpose)
            return to_device(sample(total, count, generator=noise)[rows], x.device)

        return Batch(
            x,
            labels,
            posterior_noise=draw(torch.randn, latent_dim, 0),
            prior=draw(torch.randn, latent_dim, 1),
            recon_draws=draw(torch.rand, NUM_DRAWS, 2),
            sample_draws=draw(torch.rand, NUM_DRAWS, 3),
        )


def train_step(
    networks: Networks,
    optimizers: Optimizers,
    batch: Batch,
    config: LossConfig,
    *,
    beta: float | Tensor,
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
        kind of image, gradient norms, spread_real and spread_sample (standard deviation of a pixel over the batch, mean
        over pixels), and kl_per_dimension (D,); those that the model's kind lacks are absent.
    """
    with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        done = forward(networks, batch, config, augment)
    gradients, waits = {}, []
    for name, gradient in route_gradients(networks, optimizers.parameters, done, config, beta):
        gradients[name] = gradient
        waits.append(start_average(gradient))  # on its way while the next network's backward pass runs
    for wait in waits:
        wait()
    optimizers.step(gradients)  # only now: every gradient above belongs to the same weights
    norms = {f"gradient_norm_{name}": torch.stack(torch._foreach_norm(g)).norm() for name, g in gradients.items()}
    return {name: value.detach() for name, value in (done.terms | done.stats | norms).items()}


@dataclass
class Forward:
    """What one forward pass leaves for the backward ones. The graph is cut at the images, so that each pass ends there.

    Kinds of images: "real", "recon" (reconstructions), "sample" (from the prior), as far as the model's kind has them.
    """

    generated: dict[str, Tensor] = field(default_factory=dict)
    """The decoder's images by kind, each (N, C, H, W): where its graph ends."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """The same images as leaves: where the graphs of L_like and of the discriminator begin."""
    logits: dict[str, Tensor] = field(default_factory=dict)
    """The discriminator's, (N,), of the kinds that play the game."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """prior, like, fool, catch, scalars with their graphs; and r1, the penalty, weight applied."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Figures worth logging, without a graph."""


def forward(networks: Networks, batch: Batch, config: LossConfig, augment: float = 0.0) -> Forward:
    """Every image once through every network that sees it, and the objective's terms."""
    done = Forward()
    labels = networks.condition(batch.labels)
    latents: dict[str, Tensor] = {}
    if networks.encoder is not None:
        mu, log_var = networks.encoder(batch.x, labels)
        done.terms["prior"] = losses.kl_divergence(mu, log_var)
        done.stats["kl_per_dimension"] = losses.kl_divergence_per_dimension(mu, log_var)
        latents["recon"] = mu + (0.5 * log_var).exp() * batch.posterior_noise
    if networks.discriminator is not None:
        latents["sample"] = batch.prior  # with the batch's own labels: samples follow the classes' frequencies
    together: list[tuple[str, ...]] = (
        [tuple(latents)] if has_batch_statistics(networks.decoder) else [(kind,) for kind in latents]
    )
    done.generated = _by_kind(networks.decoder, latents, labels, together)
    done.images = {kind: image.detach().requires_grad_() for kind, image in done.generated.items()}
    if networks.encoder is not None:
        weight = config.pixel_weight if networks.discriminator is not None else config.pixel_weight or 1.0
        num_pixels = batch.x[0].numel()
        done.terms["like"] = weight * losses.reconstruction(done.images["recon"], batch.x, num_pixels)
        done.stats["pixel_error"] = (done.generated["recon"] - batch.x).square().mean()
    if networks.discriminator is not None:
        _judge(networks.discriminator, batch, labels, done, config, augment)
    return done


def _judge(
    discriminator: nn.Module, batch: Batch, labels: Tensor, done: Forward, config: LossConfig, augment: float
) -> None:
    """Show all images to the discriminator, and add what it says to `done`."""
    real = batch.x.detach().requires_grad_(config.r1_weight > 0)
    shown = {"real": real} | done.images
    if augment:  # a reconstruction and its original get the same draws, so that Dis_l compares like with like
        draws = {"real": batch.recon_draws if "recon" in shown else batch.sample_draws, "recon": batch.recon_draws}
        shown = {kind: diff_augment(x, draws.get(kind, batch.sample_draws), augment) for kind, x in shown.items()}
    if has_batch_statistics(discriminator):
        together = [tuple(shown)]
    elif config.r1_weight:
        together = [(kind,) for kind in shown]  # R1's second derivative is of the real images alone
    else:  # L_like's backward pass is through the reconstructions alone
        together = [("real", "sample"), ("recon",)] if "recon" in shown else [("real", "sample")]
    with parametrize.cached():  # one power iteration of a spectral norm a step, however many calls
        verdicts = _by_kind(discriminator, shown, labels, together)
    done.logits = {kind: logits for kind, (logits, _) in verdicts.items()}
    for kind, logits in done.logits.items():
        done.stats[f"d_{kind}"] = logits.sigmoid().mean()
    if "recon" in shown:
        target = verdicts["real"][1].detach()
        likeness = losses.reconstruction(verdicts["recon"][1], target, batch.x[0].numel())
        done.terms["like"] = done.terms["like"] + likeness
        if not config.adversarial_recon:
            del done.logits["recon"]
    logits_real, *generated = (done.logits[kind] for kind in ("real", "recon", "sample") if kind in done.logits)
    done.terms["fool"] = losses.generator_loss(*generated, kind=config.adversarial)
    done.terms["catch"] = losses.discriminator_loss(logits_real, *generated)
    if config.r1_weight:
        done.terms["r1"] = config.r1_weight * losses.r1_penalty(logits_real, real)
    done.stats["spread_real"] = batch.x.std(dim=0, correction=0).mean()
    done.stats["spread_sample"] = done.generated["sample"].std(dim=0, correction=0).mean()


def _by_kind(
    network: nn.Module, inputs: dict[str, Tensor], labels: Tensor, together: list[tuple[str, ...]]
) -> dict[str, Any]:
    """A network's outputs (a tensor or several, rows first) for each kind of input, in one call per group of kinds.

    Batch statistics want all kinds in one call; else a backward pass that starts from one group passes no other.
    """
    outputs: dict[str, Any] = {}
    for kinds in together:
        found = network(torch.cat([inputs[kind] for kind in kinds]), labels.repeat(len(kinds), 1))
        if isinstance(found, Tensor):
            outputs |= dict(zip(kinds, found.chunk(len(kinds)), strict=True))
        else:
            outputs |= dict(zip(kinds, zip(*(part.chunk(len(kinds)) for part in found), strict=True), strict=True))
    return outputs


def route_gradients(
    networks: Networks,
    parameters: Mapping[str, list[Tensor]],
    done: Forward,
    config: LossConfig,
    beta: float | Tensor,
) -> Iterator[tuple[str, list[Tensor]]]:
    """Each network's name and the gradients of its own loss with respect to its own parameters, one after the other.

    encoder: beta L_prior + L_like; decoder: gamma L_like + fooling; discriminator: catching. A loss reaches no network
    that does not ask for it: no L_GAN in the encoder, no L_like in the discriminator, no L_prior in the decoder.

    The losses are taken back to the images first. From there the decoder gets both pulls, the encoder L_like's alone.
    """
    pulls = {kind: torch.zeros_like(image) for kind, image in done.images.items()}  # what the decoder is to follow
    mixed = networks.discriminator is not None and has_batch_statistics(networks.discriminator)
    if networks.encoder is not None:
        # in a batch statistic the samples take part in the reconstructions' features too
        concerned = {kind: image for kind, image in done.images.items() if mixed or kind == "recon"}
        found = _gradients([done.terms["like"]], list(concerned.values()), keep=True)
        like = dict(zip(concerned, found, strict=True))
        prior = done.terms["prior"]
        outputs = [prior, *(done.generated[kind] for kind in like)]
        # first, since its dense layer has most of all weights: they travel to other workers while the rest goes on
        yield (
            "encoder",
            _gradients(outputs, parameters["encoder"], [torch.ones_like(prior) * beta, *like.values()], keep=True),
        )
        gamma = config.gamma if networks.discriminator is not None else 1.0
        pulls |= {kind: gamma * pull for kind, pull in like.items()}
    if networks.discriminator is not None:
        play = _one_game_of_all if mixed else _game_of_each
        gradient, fool = play(parameters["discriminator"], done, config)
        yield "discriminator", gradient
        pulls |= {kind: pulls[kind] + pull for kind, pull in fool.items()}
    yield "decoder", _gradients(list(done.generated.values()), parameters["decoder"], list(pulls.values()))


def _game_of_each(
    parameters: list[Tensor], done: Forward, config: LossConfig
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The discriminator's gradients and what would fool it, per kind of image, from one backward pass.

    For discriminators that judge an image by itself: see `losses.fool_over_catch`.
    """
    images = {kind: done.images[kind] for kind in done.logits if kind != "real"}
    penalty = [done.terms["r1"]] if "r1" in done.terms else []
    slopes = [losses.catch_slope(logits.detach(), real=kind == "real") for kind, logits in done.logits.items()]
    found = _gradients(
        [*done.logits.values(), *penalty], [*parameters, *images.values()], [*slopes, *map(torch.ones_like, penalty)]
    )
    caught = dict(zip(images, found[len(parameters) :], strict=True))
    ratios = {kind: losses.fool_over_catch(done.logits[kind].detach(), config.adversarial) for kind in images}
    return found[: len(parameters)], {kind: ratios[kind][:, None, None, None] * caught[kind] for kind in images}


def _one_game_of_all(
    parameters: list[Tensor], done: Forward, config: LossConfig
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same for a discriminator with batch statistics, where every logit depends on every image: two passes."""
    fool = _gradients([done.terms["fool"]], list(done.images.values()), keep=True)
    penalty = [done.terms["r1"]] if "r1" in done.terms else []
    gradient = _gradients([done.terms["catch"], *penalty], parameters)
    return gradient, dict(zip(done.images, fool, strict=True))


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], slopes: list[Tensor] | None = None, *, keep: bool = False
) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, slopes, retain_graph=keep, materialize_grads=True))
