"""`vaegan.steps` against Algorithm 1 as one would first write it: a forward pass per loss, in float64, nothing shared.

The step itself takes one pass of each image through each network, and one backward pass through the discriminator for
both players. Nothing of that may show in the numbers.
"""

import itertools

import pytest
import torch

from vaegan.augment import diff_augment
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import OptimizerConfig, Optimizers
from vaegan.steps import Batch, forward, route_gradients, train_step

LATENT, COUNT = 6, 4
BETA = 0.7


def build(kind: str = "vaegan", **settings) -> Networks:
    torch.manual_seed(0)
    shape = dict(width=4, latent_dim=LATENT, hidden=16, feature_layers=(2,)) | settings
    return Networks(NetworkConfig(kind=kind, **shape), size=32, channels=1, num_classes=2).double()


def batch(count: int = COUNT) -> Batch:
    noise = torch.Generator().manual_seed(7)
    x = torch.rand(count, 1, 32, 32, generator=noise, dtype=torch.float64) * 2 - 1
    drawn = Batch.draw(x, torch.eye(2, dtype=torch.float64).repeat(count // 2, 1), LATENT, seed=3, step=0)
    return Batch(**{name: getattr(drawn, name).double() for name in drawn.__dataclass_fields__})


def naive_terms(
    networks: Networks, batch: Batch, config: LossConfig, augment: float, *, keep: bool = False
) -> dict[str, torch.Tensor]:
    """All terms from formulas and a forward pass of their own. No function of `vaegan.losses`.

    "generated" among them is no term: the decoder's images, by kind.
    """
    x, labels = batch.x, batch.labels[:, : networks.num_classes]
    encoder, decoder, discriminator = networks.encoder, networks.decoder, networks.discriminator
    z, z_labels = [], []
    terms = {}
    if encoder is not None:
        mu, log_var = encoder(x, labels)
        each = (-0.5 * (1 + log_var - mu**2 - torch.exp(log_var))).mean(dim=0)
        terms["prior"] = sum(max(kl, torch.tensor(config.free_bits, dtype=kl.dtype)) for kl in each)
        z.append(mu + torch.exp(log_var / 2) * batch.posterior_noise)
        z_labels.append(labels)
    if discriminator is not None:
        z.append(batch.prior)
        z_labels.append(labels)
    generated = decoder(torch.cat(z), torch.cat(z_labels)).chunk(len(z))
    pixels = x[0].numel()
    if encoder is not None:
        weight = config.pixel_weight if discriminator is not None else (config.pixel_weight or 1.0)
        terms["like"] = weight * ((generated[0] - x) ** 2).flatten(1).sum(dim=1).mean() / 2
        if config.ms_ssim_weight:
            terms["like"] = terms["like"] + config.ms_ssim_weight * pixels / 2 * (1 - naive_ms_ssim(generated[0], x))
    if discriminator is None:
        return terms
    kinds = ["real", "recon", "sample"] if encoder is not None else ["real", "sample"]
    images = dict(zip(kinds, [x.clone().requires_grad_(), *generated], strict=True))
    plain = torch.cat(list(images.values()))
    draws = [batch.recon_draws, batch.recon_draws] if encoder is not None else [batch.sample_draws]
    draws = torch.cat([*draws, batch.sample_draws])
    shown = diff_augment(plain, draws, augment) if augment else plain
    logits, stages = discriminator(shown, labels.repeat(len(kinds), 1))
    f = dict(zip(kinds, logits.chunk(len(kinds)), strict=True))
    real, recon, sample = 0, -2, -1
    shares = config.feature_layer_weights or [1.0] * len(stages)
    for share, maps in zip(shares, stages, strict=True):
        maps = maps.unflatten(0, (len(kinds), len(x)))
        if config.feature_normalised:
            maps = maps / (maps.pow(2).sum(dim=2, keepdim=True) / maps.shape[2] + 1e-6).sqrt()
        share = share / sum(shares) * pixels / 2
        if encoder is not None:
            error = ((maps[recon] - maps[real].detach()) ** 2).flatten(1).mean(dim=1).mean()
            terms["like"] = terms["like"] + share * error
        if config.feature_matching_weight:
            gap = maps[sample].mean(dim=0) - maps[real].detach().mean(dim=0)
            terms["match"] = terms.get("match", 0) + config.feature_matching_weight * share * gap.pow(2).mean()
    players = [kind for kind in kinds[1:] if kind == "sample" or config.adversarial_recon]
    terms["catch"], terms["fool"] = naive_game(f["real"], [f[kind] for kind in players], config.adversarial)
    for name, weight, penalised in (("r1", config.r1_weight, kinds[:1]), ("r2", config.r2_weight, players)):
        for kind in penalised if weight else []:
            (slope,) = torch.autograd.grad(f[kind].sum(), images[kind], create_graph=True)
            squared = (slope**2).flatten(1).sum(dim=1).mean()
            terms[name] = terms.get(name, 0) + weight * config.penalty_every * squared / 2
    if config.consistency_weight:
        other, _ = discriminator(plain if augment else diff_augment(plain, draws, 1.0), labels.repeat(len(kinds), 1))
        other = dict(zip(kinds, other.chunk(len(kinds)), strict=True))
        apart = sum(((f[kind] - other[kind]) ** 2).mean() for kind in ["real", *players])
        terms["consistency"] = config.consistency_weight * apart
    return terms | ({"generated": generated} if keep else {})


def naive_game(real: torch.Tensor, fakes: list[torch.Tensor], kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """catch and fool."""
    if kind == "hinge":
        catch = torch.clamp(1 - real, min=0).mean() + sum(torch.clamp(1 + fake, min=0).mean() for fake in fakes)
        return catch, -sum(fake.mean() for fake in fakes)
    if kind == "relativistic":
        d_pairs = [torch.sigmoid(real - fake) for fake in fakes]
        return -sum(torch.log(d).mean() for d in d_pairs), -sum(torch.log(1 - d).mean() for d in d_pairs)
    d_real, d_fakes = torch.sigmoid(real), [torch.sigmoid(fake) for fake in fakes]
    catch = -torch.log(d_real).mean() - sum(torch.log(1 - d).mean() for d in d_fakes)
    if kind == "minimax":
        return catch, sum(torch.log(1 - d).mean() for d in d_fakes)
    return catch, -sum(torch.log(d).mean() for d in d_fakes)


def naive_ms_ssim(recon: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Of grey images of 32 pixels, which have two scales: every window by itself, with its moments about its means."""
    taps = torch.exp(-((torch.arange(11, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2

    def windows(image):
        return image.unfold(2, 11, 1).unfold(3, 11, 1)

    def mean(values):
        return (values * window).sum(dim=(-1, -2), keepdim=True)

    a, b, similarity = (recon + 1) / 2, (x + 1) / 2, 1.0
    for scale, weight in enumerate((0.0448, 0.2856)):
        p, q = windows(a), windows(b)
        var_p, var_q = mean((p - mean(p)) ** 2), mean((q - mean(q)) ** 2)
        value = (2 * mean((p - mean(p)) * (q - mean(q))) + 0.03**2) / (var_p + var_q + 0.03**2)
        if scale == 1:
            value = value * (2 * mean(p) * mean(q) + 0.01**2) / (mean(p) ** 2 + mean(q) ** 2 + 0.01**2)
        exponent = weight / (0.0448 + 0.2856) * sum((0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
        similarity = similarity * value.flatten(1).mean(dim=1).clamp(min=0.001) ** exponent
        a, b = (image.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5)) for image in (a, b))
    return similarity.mean()


def naive_gradients(networks: Networks, batch: Batch, config: LossConfig, augment: float) -> dict[str, list]:
    """Three forward passes, three backward passes through everything, as Algorithm 1 reads."""
    gradients = {}
    for name, network in networks.present().items():
        terms = naive_terms(networks, batch, config, augment, keep=True)
        if name == "encoder":
            loss = BETA * terms["prior"] + terms["like"]
        elif name == "discriminator":
            loss = terms["catch"] + sum(terms.get(term, 0) for term in ("r1", "r2", "consistency"))
        elif networks.discriminator is None:
            loss = terms["like"]
        else:
            loss = naive_game_weight(terms, config) * terms["fool"] + terms.get("match", 0)
            loss = loss + (config.gamma * terms["like"] if networks.encoder is not None else 0)
        networks.zero_grad()
        loss.backward()
        gradients[name] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]
    networks.zero_grad()
    return gradients


def naive_game_weight(terms: dict, config: LossConfig) -> torch.Tensor | float:
    """What makes both pulls at the decoder's images equally strong."""
    if not (config.adaptive_weight and {"like", "fool"} <= terms.keys()):
        return 1.0
    pulls = {
        term: torch.autograd.grad(terms[term], terms["generated"], retain_graph=True, materialize_grads=True)
        for term in ("like", "fool")
    }
    like, fool = (torch.cat([pull.flatten() for pull in pulls[term]]).norm() for term in ("like", "fool"))
    return like / fool


def step_gradients(networks: Networks, batch: Batch, config: LossConfig, augment: float) -> dict[str, list]:
    done = forward(networks, batch, config, augment)
    return dict(route_gradients(networks, Optimizers(networks, OptimizerConfig()).parameters, done, config, BETA))


NETWORK_OPTIONS = {
    "group norm": {},
    "batch norm": dict(norm="batch"),
    "batch norm in the discriminator": dict(discriminator_norm="batch"),
    "batch norm in all": dict(norm="batch", discriminator_norm="batch"),
    "no norm": dict(norm="none", discriminator_norm="none"),
    "spectral norm": dict(spectral_norm=True),
    "unconditional": dict(conditional=False),
    "last layer": dict(feature_layers=(3,)),
    "residual blocks, modulated": dict(blocks="residual", modulation=True),
}
LOSS_OPTIONS = {
    "plain": (LossConfig(gamma=0.3), 0.0),
    "minimax": (LossConfig(gamma=0.3, adversarial="minimax"), 0.0),
    "samples only": (LossConfig(gamma=0.3, adversarial_recon=False), 0.0),
    "pixels": (LossConfig(gamma=0.3, pixel_weight=2.0), 0.0),
    "augmented": (LossConfig(gamma=0.3), 1.0),
    "r1": (LossConfig(gamma=0.3, r1_weight=5.0), 0.0),
    "everything": (LossConfig(gamma=0.3, r1_weight=5.0, pixel_weight=2.0, adversarial_recon=False), 0.5),
}
EVERY_SWITCH = dict(
    gamma=0.3, free_bits=0.01, adaptive_weight=True, ms_ssim_weight=0.5, feature_normalised=True,
    feature_layer_weights=(1.0, 3.0), feature_matching_weight=0.4, r1_weight=5.0, r2_weight=3.0, penalty_every=2,
    consistency_weight=2.0,
)  # fmt: skip
SWITCHES = {
    "hinge": (LossConfig(gamma=0.3, adversarial="hinge"), 0.0),
    "relativistic": (LossConfig(gamma=0.3, adversarial="relativistic"), 0.0),
    "r1 and r2, lazy": (LossConfig(gamma=0.3, r1_weight=5.0, r2_weight=3.0, penalty_every=3), 0.0),
    "r2, augmented": (LossConfig(gamma=0.3, r2_weight=3.0, adversarial_recon=False), 0.5),
    "free bits": (LossConfig(gamma=0.3, free_bits=0.01), 0.0),
    "weighted layers": (LossConfig(gamma=0.3, feature_layer_weights=(1.0, 3.0)), 0.0),
    "normalised maps": (LossConfig(gamma=0.3, feature_normalised=True), 0.0),
    "ms-ssim": (LossConfig(gamma=0.3, ms_ssim_weight=0.5), 0.0),
    "adaptive": (LossConfig(gamma=0.3, adaptive_weight=True), 0.0),
    "adaptive, samples only": (LossConfig(gamma=0.3, adaptive_weight=True, adversarial_recon=False), 0.0),
    "consistent": (LossConfig(gamma=0.3, consistency_weight=2.0), 0.0),
    "consistent, augmented": (LossConfig(gamma=0.3, consistency_weight=2.0, adversarial_recon=False), 0.5),
    "matched": (LossConfig(gamma=0.3, feature_matching_weight=0.4), 0.0),
    "every switch, relativistic": (LossConfig(**EVERY_SWITCH, adversarial="relativistic"), 0.0),
    "every switch, hinge": (LossConfig(**EVERY_SWITCH, adversarial="hinge"), 0.5),
}
ALL_AT_ONCE = ("every switch, relativistic", "every switch, hinge")
CASES = [
    *itertools.product(["vaegan", "vae", "gan"], NETWORK_OPTIONS, LOSS_OPTIONS),
    *itertools.product(["vaegan"], ["group norm", "batch norm in all"], SWITCHES),
    *itertools.product(["vaegan"], ["batch norm in the discriminator", "spectral norm"], ALL_AT_ONCE),
    *itertools.product(["gan"], ["group norm", "spectral norm"], ALL_AT_ONCE),
    ("vae", "group norm", "every switch, hinge"),
]


@pytest.fixture(params=CASES, ids=lambda case: ", ".join(case))
def case(request):
    kind, network, loss = request.param
    layers = dict(feature_layers=(1, 3)) if loss in SWITCHES else {}
    networks = build(kind, **NETWORK_OPTIONS[network] | layers)
    # A power iteration moves a spectral norm's estimate at every call in training: both sides must see the same one.
    for module in networks.modules():
        if type(module).__name__ == "_SpectralNorm":
            module.eval()
    return networks, *(LOSS_OPTIONS | SWITCHES)[loss]


def test_every_term_is_the_plain_formulas(case):
    networks, config, augment = case
    found = forward(networks, batch(), config, augment).terms
    expected = naive_terms(networks, batch(), config, augment)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-10), name


def test_every_gradient_is_that_of_three_separate_passes(case):
    networks, config, augment = case
    found = step_gradients(networks, batch(), config, augment)
    expected = naive_gradients(networks, batch(), config, augment)
    assert found.keys() == expected.keys()
    for name, gradients in expected.items():
        assert max(gradient.abs().max() for gradient in gradients) > 1e-6, name
        for gradient, other in zip(found[name], gradients, strict=True):
            assert torch.allclose(gradient, other, rtol=1e-8, atol=1e-11), name


# What each network's update is made of, as DESIGN's table has it, with L_GAN as the two players see it.
ROUTES = {
    "encoder": {"prior": BETA, "like": 1.0, "fool": 0.0, "catch": 0.0},
    "decoder": {"prior": 0.0, "like": 0.3, "fool": 1.0, "catch": 0.0, "match": 1.0},
    "discriminator": {"prior": 0.0, "like": 0.0, "fool": 0.0, "catch": 1.0, "r1": 1.0, "r2": 1.0, "consistency": 1.0},
}


def test_each_networks_gradient_is_its_own_mix_of_the_terms_gradients_and_nothing_else(case):
    """The nine cells: the step's gradient is resolved into the terms' gradients; the coefficients are the routing."""
    networks, config, augment = case
    found = step_gradients(networks, batch(), config, augment)
    for name, network in networks.present().items():
        terms = naive_terms(networks, batch(), config, augment, keep=True)
        game_weight = naive_game_weight(terms, config)
        terms.pop("generated", None)
        own = {
            term: torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(
                    value, list(network.parameters()), retain_graph=True, materialize_grads=True
                )]
            )
            for term, value in terms.items()
        }  # fmt: skip
        expected = {term: ROUTES[name].get(term, 0.0) for term in own}
        if networks.encoder is None or networks.discriminator is None:  # halves: one term drives the decoder
            expected |= {"like": 1.0} if name == "decoder" and "like" in own else {}
        if name == "decoder" and "fool" in own:
            expected["fool"] = float(game_weight)
        alone = {term: vector for term, vector in own.items() if vector.abs().max() > 1e-12}
        if config.adversarial in ("minimax", "hinge") and "catch" in alone and name != "discriminator":
            del alone["catch"]  # for the decoder the same thing as "fool", with the other sign
        mix = torch.cat([gradient.reshape(-1) for gradient in found[name]])
        directions = torch.stack([vector / vector.norm() for vector in alone.values()], dim=1)
        coefficients = torch.linalg.lstsq(directions, mix[:, None], driver="gelsd").solution[:, 0]
        assert torch.allclose(directions @ coefficients, mix, atol=1e-9 * float(mix.norm()))
        for term, coefficient in zip(alone, coefficients, strict=True):
            weight = coefficient.item() / alone[term].norm().item()
            assert weight == pytest.approx(expected[term], abs=1e-6), (name, term)


def test_some_terms_would_reach_a_network_that_must_not_get_them():
    """Else the nine cells would hold by themselves: L_like and L_GAN do depend on every network's weights."""
    networks = build(feature_layers=(1, 3))
    terms = naive_terms(networks, batch(), LossConfig(**EVERY_SWITCH), 0.0)
    for network, term in (
        ("discriminator", "like"), ("encoder", "fool"), ("decoder", "catch"), ("discriminator", "match"),
        ("encoder", "r2"), ("decoder", "r2"), ("encoder", "consistency"), ("decoder", "consistency"),
    ):  # fmt: skip
        wanted = list(networks.present()[network].parameters())
        found = torch.autograd.grad(terms[term], wanted, retain_graph=True, materialize_grads=True)
        assert max(gradient.abs().max() for gradient in found) > 1e-6


@pytest.mark.parametrize("logit", [-200.0, -60.0, 60.0, 200.0])
@pytest.mark.parametrize("adversarial", ["nonsaturating", "minimax", "hinge", "relativistic"])
def test_a_sure_discriminator_still_tells_the_decoder_where_to_go(logit, adversarial):
    """Far out, D's own gradient underflows; what the decoder gets from the same backward pass must not."""
    networks = build("gan").float()
    with torch.no_grad():
        networks.discriminator.dense.bias.fill_(logit)
    x = batch()
    single = Batch(**{name: getattr(x, name).float() for name in x.__dataclass_fields__})
    config = LossConfig(adversarial=adversarial)
    found = step_gradients(networks, single, config, 0.0)["decoder"]
    assert all(gradient.isfinite().all() for gradient in found)
    if adversarial == "nonsaturating" and logit < 0:
        other = naive_gradients_by_slope(networks, single, -1.0 / COUNT)
        for gradient, expected in zip(found, other, strict=True):
            assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def naive_gradients_by_slope(networks: Networks, batch: Batch, slope: float) -> list[torch.Tensor]:
    """The decoder's gradient where -log D has this derivative with respect to every logit."""
    images = networks.decoder(batch.prior, batch.labels)
    logits, _ = networks.discriminator(images, batch.labels)
    return list(torch.autograd.grad(logits, list(networks.decoder.parameters()), torch.full_like(logits, slope)))


SECOND_PASS = LossConfig(consistency_weight=1.0)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(
    "config",
    [LossConfig(), LossConfig(r1_weight=1.0, r2_weight=1.0), LossConfig(feature_matching_weight=1.0), SECOND_PASS],
    ids=["plain", "penalties", "matching", "consistency"],
)
def test_each_image_passes_each_network_once_in_a_step_or_the_discriminator_twice_for_consistency(norm, config):
    networks = build(norm=norm, discriminator_norm=norm)
    rows = dict.fromkeys(networks.present(), 0)

    def count(name):
        def hook(_, inputs, __):
            rows[name] += len(inputs[0])

        return hook

    for name, network in networks.present().items():
        network.register_forward_hook(count(name))
    optimizers = Optimizers(networks, OptimizerConfig())
    train_step(networks, optimizers, batch(), config, beta=1.0, augment=1.0)
    times = 2 if config == SECOND_PASS else 1
    assert rows == {"encoder": COUNT, "decoder": 2 * COUNT, "discriminator": times * 3 * COUNT}


@pytest.mark.parametrize("consistency_weight", [0.0, 1.0])
def test_the_spectral_norms_iterate_once_in_a_step(consistency_weight):
    networks = build(spectral_norm=True)
    layer = networks.discriminator.convolutions[1][0].parametrizations.weight
    v, weight = layer[0]._v.clone(), layer.original.detach().flatten(1).clone()
    config = LossConfig(consistency_weight=consistency_weight)
    train_step(networks, Optimizers(networks, OptimizerConfig()), batch(), config, beta=1.0)
    assert torch.allclose(layer[0]._u, torch.nn.functional.normalize(weight @ v, dim=0))
