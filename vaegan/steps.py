"""One update of the three networks: Rguibi et al. 2023, Algorithm 1, routed as Larsen et al. 2016 do."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vaegan import losses
from vaegan.augment import NUM_DRAWS, Augmentation, draw_uniforms
from vaegan.collectives import average_over_workers, num_workers, start_average
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks, has_batch_statistics
from vaegan.optimizers import Optimizers
from vaegan.tensors import to_device


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step: its images and all of the step's randomness, drawn beforehand.

    x (N, C, H, W) in [-1, 1]; labels (N, K), a row of NaN where an image has none, which asks for a label head;
    posterior_noise and prior (N, D), standard normal; recon_draws and sample_draws (N, 9), uniform: what `diff_augment`
    does to x with its reconstruction, and to prior samples.
    step (), a whole number on the CPU: which step it is, from 0, for what is done in some of them only.
    """

    x: Tensor
    labels: Tensor
    posterior_noise: Tensor
    prior: Tensor
    recon_draws: Tensor
    sample_draws: Tensor
    step: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

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
            recon_draws=draw(draw_uniforms, NUM_DRAWS, 2),
            sample_draws=draw(draw_uniforms, NUM_DRAWS, 3),
            step=torch.tensor(step),
        )


def check_losses(config: LossConfig, model: NetworkConfig, *, captured: bool = False) -> None:
    """Refuse an objective that these networks, or a step captured as a CUDA graph, can't have.

    Raises:
        ValueError: layer weights that aren't one for each layer; penalties at some steps only, which a graph, the same
            at every replay, has no way to leave out.
    """
    weights, layers = config.feature_layer_weights, model.feature_layers
    if weights and len(weights) != len(layers):
        raise ValueError(
            f"loss.feature_layer_weights has {len(weights)} and model.feature_layers {len(layers)}: "
            "expected a weight for each layer, or none"
        )
    if captured and config.penalty_every > 1 and (config.r1_weight or config.r2_weight):
        raise ValueError(
            f"acceleration graphs replays the same step, and loss.penalty_every is {config.penalty_every}: "
            "expected 1; or choose another acceleration"
        )


def train_step(
    networks: Networks,
    optimizers: Optimizers,
    batch: Batch,
    config: LossConfig,
    *,
    beta: float | Tensor,
    augment: float | Augmentation = 0.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """One update of every network: all gradients from one forward pass of each, then all steps.

    Args:
        beta: this step's weight of L_prior, warm-up applied.
        augment: strength of DiffAugment on what the discriminator sees, or all about it; 0 is none.
        dtype: bfloat16 runs the forward pass under autocast; weights, losses and updates stay float32.

    Returns:
        Scalars, on the images' device, not yet synchronised with the host: prior, like, fool, catch, the mean D of each
        kind of image, real_sign (mean sign of the real images' logits), gradient norms, spread_real and spread_sample
        (standard deviation of a pixel over the batch, mean over pixels), and kl_per_dimension (D,); those that the
        model's kind lacks are absent. With their switches: r1, r2 (0 in a step without them), consistency, match, all
        weighted, ms_ssim of reconstructions, and game_weight, `losses.game_weight`. With a label head: label, its loss.

        A relativistic game knows no D of one image: d_real and real_sign are then of the difference between real
        images' logits and samples', d_recon and d_sample of theirs from the real images'.
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
    """prior, like, fool, catch and, with a label head, label: scalars with their graphs; and with their weights
    applied, where the configuration has them, r1, r2 and consistency (the discriminator's alone) and match (the
    decoder's alone)."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Figures worth logging, without a graph."""


def forward(networks: Networks, batch: Batch, config: LossConfig, augment: float | Augmentation = 0.0) -> Forward:
    """Every image once through every network that sees it, and the objective's terms."""
    done = Forward()
    labels = networks.condition(batch.labels)
    latents: dict[str, Tensor] = {}
    if networks.encoder is not None:
        infer = networks.config.label_head
        mu, log_var, *inferred = networks.encoder(batch.x, labels, infer=infer)
        if infer:
            logits, complete = inferred
            done.terms["label"] = losses.label_loss(logits, labels, networks.encoder.task)
            labels = complete  # from here on for every network, and for samples from the prior
        done.terms["prior"] = losses.kl_divergence(mu, log_var)
        done.stats["kl_per_dimension"] = losses.kl_divergence_per_dimension(mu, log_var)
        if config.free_bits:
            own = done.stats["kl_per_dimension"]
            done.terms["prior"] = losses.kl_beyond_free_bits(own, _over_workers(own.detach()), config.free_bits)
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
        if config.ms_ssim_weight:
            dissimilarity = losses.structural_dissimilarity(done.images["recon"], batch.x)
            done.terms["like"] = done.terms["like"] + config.ms_ssim_weight * dissimilarity
            done.stats["ms_ssim"] = 1 - dissimilarity * 2 / num_pixels
    if networks.discriminator is not None:
        _judge(networks.discriminator, batch, labels, done, config, Augmentation.of(augment))
    return done


def _judge(
    discriminator: nn.Module, batch: Batch, labels: Tensor, done: Forward, config: LossConfig, augment: Augmentation
) -> None:
    """Show all images to the discriminator, and add what it says to `done`."""
    mixed = has_batch_statistics(discriminator)
    penalised = _penalised(batch, done, config)
    plain = {"real": batch.x.detach().requires_grad_("real" in penalised)} | done.images
    # a reconstruction and its original get the same draws, so that Dis_l compares like with like
    draws = {"real": batch.recon_draws if "recon" in plain else batch.sample_draws, "recon": batch.recon_draws}
    draws["sample"] = batch.sample_draws
    shown = {kind: augment(x, draws[kind]) for kind, x in plain.items()} if augment.active else plain
    together = _groups(shown, penalised, config, mixed)
    with parametrize.cached():  # one power iteration of a spectral norm a step, however many calls
        verdicts = _by_kind(discriminator, shown, labels, together)
        done.logits = {kind: logits for kind, (logits, _) in verdicts.items()}
        _describe(done, config)
        if not config.adversarial_recon:
            done.logits.pop("recon", None)
        if config.consistency_weight:
            again = {kind: plain[kind].detach() for kind in (shown if mixed else done.logits)}
            if not (augment.active and augment.probability is None):  # else all were augmented, and these are plain
                full = replace(augment, strength=augment.strength or 1.0, probability=None)
                again = {kind: full(x, draws[kind]) for kind, x in again.items()}
            others = _by_kind(discriminator, again, labels, [tuple(again)])
            apart = [losses.consistency(logits, others[kind][0]) for kind, logits in done.logits.items()]
            done.terms["consistency"] = config.consistency_weight * torch.stack(apart).sum()
    _compare_maps({kind: maps for kind, (_, maps) in verdicts.items()}, batch.x[0].numel(), done, config)
    real, *generated = (done.logits[kind] for kind in ("real", "recon", "sample") if kind in done.logits)
    done.terms["fool"] = losses.generator_loss(*generated, kind=config.adversarial, real=real)
    done.terms["catch"] = losses.discriminator_loss(real, *generated, kind=config.adversarial)
    _penalise(penalised, plain, done, config, mixed)
    done.stats["spread_real"] = batch.x.std(dim=0, correction=0).mean()
    done.stats["spread_sample"] = done.generated["sample"].std(dim=0, correction=0).mean()


def _penalised(batch: Batch, done: Forward, config: LossConfig) -> list[str]:
    """The kinds of images at which this step penalises the discriminator's gradient."""
    if config.penalty_every > 1 and int(batch.step) % config.penalty_every:
        return []
    players = [kind for kind in done.images if kind == "sample" or config.adversarial_recon]
    return ["real"] * (config.r1_weight > 0) + players * (config.r2_weight > 0)


def _groups(
    shown: Mapping[str, Tensor], penalised: list[str], config: LossConfig, mixed: bool
) -> list[tuple[str, ...]]:
    """Which kinds go through the discriminator in one call: as few calls as don't make a backward pass any longer."""
    if mixed:
        return [tuple(shown)]
    reconstructions = [("recon",)] if "recon" in shown else []  # L_like's backward pass is through them alone
    # a penalty's second derivative may be of one kind, and that which matches features is through samples alone
    if ("real" in penalised) != ("sample" in penalised) or config.feature_matching_weight:
        return [("real",), *reconstructions, ("sample",)]
    return [("real", "sample"), *reconstructions]


def _describe(done: Forward, config: LossConfig) -> None:
    """The figures of what the discriminator takes each kind for."""
    for kind, logits in done.logits.items():
        if config.adversarial == "relativistic":
            logits = logits - done.logits["sample" if kind == "real" else "real"]
        done.stats[f"d_{kind}"] = logits.sigmoid().mean()
        if kind == "real":
            done.stats["real_sign"] = logits.sign().mean()


def _compare_maps(maps: dict[str, tuple[Tensor, ...]], num_pixels: int, done: Forward, config: LossConfig) -> None:
    """L_like of reconstructions, and what pulls samples' mean maps to those of real images with the same labels."""
    if config.feature_normalised:
        maps = {kind: tuple(map(losses.normalise_channels, layers)) for kind, layers in maps.items()}
    target, weights = [layer.detach() for layer in maps["real"]], config.feature_layer_weights
    if "recon" in maps:
        likeness = losses.feature_reconstruction(maps["recon"], target, num_pixels, weights)
        done.terms["like"] = done.terms["like"] + likeness
    if config.feature_matching_weight:
        gaps = [(layer - real).mean(dim=0, keepdim=True) for layer, real in zip(maps["sample"], target, strict=True)]
        # the mean is that of all workers, and each follows its gradient with its own part
        gaps = [gap + (_over_workers(gap.detach()) - gap.detach()) for gap in gaps]
        nothing = [torch.zeros_like(gap) for gap in gaps]
        match = losses.feature_reconstruction(gaps, nothing, num_pixels, weights)
        done.terms["match"] = config.feature_matching_weight * match


def _penalise(penalised: list[str], images: dict[str, Tensor], done: Forward, config: LossConfig, mixed: bool) -> None:
    """R1 and R2, as much stronger as they are rarer; 0 among the figures of a step without them."""
    calls = [[kind] for kind in penalised] if mixed else [penalised] * bool(penalised)
    found: dict[str, Tensor] = {}
    for kinds in calls:  # a logit that depends on other kinds' images must not count for these
        found |= losses.gradient_penalties({kind: done.logits[kind] for kind in kinds}, images)
    for name, weight in (("r1", config.r1_weight), ("r2", config.r2_weight)):
        parts = [penalty for kind, penalty in found.items() if (kind == "real") == (name == "r1")]
        if weight and parts:
            done.terms[name] = weight * config.penalty_every * torch.stack(parts).sum()
        elif weight:
            done.stats[name] = torch.zeros((), device=images["real"].device)


def _over_workers(value: Tensor) -> Tensor:
    """The mean of all workers' values, which have no gradient; the tensor itself for one worker."""
    if num_workers() == 1:
        return value
    mean = value.clone()
    average_over_workers([mean])
    return mean


def _by_kind(
    network: nn.Module, inputs: dict[str, Tensor], labels: Tensor, together: list[tuple[str, ...]]
) -> dict[str, Any]:
    """A network's outputs (a tensor or several, rows first) for each kind of input, in one call per group of kinds.

    Batch statistics want all kinds in one call; else a backward pass that starts from one group passes no other.
    """
    outputs: dict[str, Any] = {}
    for kinds in together:
        found = network(torch.cat([inputs[kind] for kind in kinds]), labels.repeat(len(kinds), 1))
        outputs |= dict(zip(kinds, _rows_apart(found, len(kinds)), strict=True))
    return outputs


def _rows_apart(output: Any, parts: int) -> list[Any]:
    """A tensor, or tuples of them however deep, cut into equal parts of its rows."""
    if isinstance(output, Tensor):
        return list(output.chunk(parts))
    return list(zip(*(_rows_apart(part, parts) for part in output), strict=True))


def route_gradients(
    networks: Networks,
    parameters: Mapping[str, list[Tensor]],
    done: Forward,
    config: LossConfig,
    beta: float | Tensor,
) -> Iterator[tuple[str, list[Tensor]]]:
    """Each network's name and the gradients of its own loss with respect to its own parameters, one after the other.

    encoder: beta L_prior + L_like (and its label head's loss); decoder: gamma L_like + fooling (and matching);
    discriminator: catching (and what restrains it: penalties, consistency). A loss reaches no network that does not ask
    for it: no L_GAN in the encoder, no L_like in the discriminator, no L_prior in the decoder.

    The losses are taken back to the images first. From there the decoder gets all pulls, the encoder L_like's alone.
    """
    pulls = {kind: torch.zeros_like(image) for kind, image in done.images.items()}  # what the decoder is to follow
    like: dict[str, Tensor] = {}
    mixed = networks.discriminator is not None and has_batch_statistics(networks.discriminator)
    if networks.encoder is not None:
        # in a batch statistic the samples take part in the reconstructions' features too
        concerned = {kind: image for kind, image in done.images.items() if mixed or kind == "recon"}
        found = _gradients([done.terms["like"]], list(concerned.values()), keep=True)
        like = dict(zip(concerned, found, strict=True))
        prior = done.terms["prior"]
        outputs = [prior, *(done.generated[kind] for kind in like)]
        slopes = [torch.ones_like(prior) * beta, *like.values()]
        if "label" in done.terms:
            outputs.append(done.terms["label"])
            slopes.append(torch.full_like(prior, config.label_weight))
        # first, since its dense layer has most of all weights: they travel to other workers while the rest goes on
        yield "encoder", _gradients(outputs, parameters["encoder"], slopes, keep=True)
        gamma = config.gamma if networks.discriminator is not None else 1.0
        pulls |= {kind: gamma * pull for kind, pull in like.items()}
    if networks.discriminator is not None:
        if "match" in done.terms:
            found = _gradients([done.terms["match"]], list(done.images.values()), keep=True)
            pulls = {kind: pulls[kind] + pull for kind, pull in zip(done.images, found, strict=True)}
        together = mixed or config.adversarial == "hinge" or not done.terms.keys().isdisjoint(("r2", "consistency"))
        play = _game_in_two_passes if together else _game_in_one_pass
        gradient, fool = play(parameters["discriminator"], done, config)
        yield "discriminator", gradient
        if config.adaptive_weight and like:
            squares = torch.stack([_squared_norm(like.values()), _squared_norm(fool.values())])
            done.stats["game_weight"] = weight = losses.game_weight(*_over_workers(squares))
            fool = {kind: weight * pull for kind, pull in fool.items()}
        pulls |= {kind: pulls[kind] + pull for kind, pull in fool.items()}
    yield "decoder", _gradients(list(done.generated.values()), parameters["decoder"], list(pulls.values()))


def _game_in_one_pass(
    parameters: list[Tensor], done: Forward, config: LossConfig
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The discriminator's gradients and what would fool it, per kind of image, from one backward pass.

    For discriminators that judge an image by itself: see `losses.fool_over_catch`. Whatever else moves the
    discriminator must not depend on the generated images, or the decoder would follow it.
    """
    real = done.logits["real"]
    generated = {kind: logits for kind, logits in done.logits.items() if kind != "real"}
    penalty = [done.terms["r1"]] if "r1" in done.terms else []
    values = {kind: logits.detach() for kind, logits in done.logits.items()}
    fakes = {kind: values[kind] for kind in generated}
    slopes = losses.catch_slopes(values["real"], *fakes.values(), kind=config.adversarial)
    found = _gradients(
        [real, *generated.values(), *penalty],
        [*parameters, *(done.images[kind] for kind in generated)],
        [*slopes, *map(torch.ones_like, penalty)],
    )
    caught = dict(zip(generated, found[len(parameters) :], strict=True))
    ratios = {
        kind: losses.fool_over_catch(logits, config.adversarial, values["real"]) for kind, logits in fakes.items()
    }
    return found[: len(parameters)], {kind: ratios[kind][:, None, None, None] * caught[kind] for kind in caught}


def _game_in_two_passes(
    parameters: list[Tensor], done: Forward, config: LossConfig
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same where that can't be: each player's loss for itself.

    Batch statistics make every logit depend on every image, a hinge's slope may be 0, and R2 and consistency depend on
    the generated images, though they move the discriminator alone.
    """
    fool = _gradients([done.terms["fool"]], list(done.images.values()), keep=True)
    restraints = [done.terms[name] for name in ("r1", "r2", "consistency") if name in done.terms]
    gradient = _gradients([done.terms["catch"], *restraints], parameters)
    return gradient, dict(zip(done.images, fool, strict=True))


def _squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], slopes: list[Tensor] | None = None, *, keep: bool = False
) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, slopes, retain_graph=keep, materialize_grads=True))
