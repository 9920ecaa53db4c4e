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
    shape = dict(width=4, latent_dim=LATENT, hidden=16, feature_layer=2) | settings
    return Networks(NetworkConfig(kind=kind, **shape), size=32, channels=1, num_classes=2).double()


def batch(count: int = COUNT) -> Batch:
    noise = torch.Generator().manual_seed(7)
    x = torch.rand(count, 1, 32, 32, generator=noise, dtype=torch.float64) * 2 - 1
    drawn = Batch.draw(x, torch.eye(2, dtype=torch.float64).repeat(count // 2, 1), LATENT, seed=3, step=0)
    return Batch(**{name: getattr(drawn, name).double() for name in drawn.__dataclass_fields__})


def naive_terms(networks: Networks, batch: Batch, config: LossConfig, augment: float) -> dict[str, torch.Tensor]:
    """prior, like, fool, catch and r1 from formulas and a forward pass of its own. No function of `vaegan.losses`."""
    x, labels = batch.x, batch.labels[:, : networks.num_classes]
    encoder, decoder, discriminator = networks.encoder, networks.decoder, networks.discriminator
    z, z_labels = [], []
    terms = {}
    if encoder is not None:
        mu, log_var = encoder(x, labels)
        terms["prior"] = (-0.5 * (1 + log_var - mu**2 - torch.exp(log_var))).sum(dim=1).mean()
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
    if discriminator is None:
        return terms
    kinds = ["real", "recon", "sample"] if encoder is not None else ["real", "sample"]
    real = x.clone().requires_grad_()
    shown = torch.cat([real, *generated])
    if augment:
        draws = [batch.recon_draws, batch.recon_draws] if encoder is not None else [batch.sample_draws]
        shown = diff_augment(shown, torch.cat([*draws, batch.sample_draws]), augment)
    logits, maps = discriminator(shown, labels.repeat(len(kinds), 1))
    f = dict(zip(kinds, logits.chunk(len(kinds)), strict=True))
    maps = dict(zip(kinds, maps.chunk(len(kinds)), strict=True))
    if encoder is not None:
        error = ((maps["recon"] - maps["real"].detach()) ** 2).flatten(1).mean(dim=1).mean()
        terms["like"] = terms["like"] + pixels * error / 2
    fakes = [f[kind] for kind in kinds[1:] if kind == "sample" or config.adversarial_recon]
    d_real, d_fakes = torch.sigmoid(f["real"]), [torch.sigmoid(fake) for fake in fakes]
    terms["catch"] = -torch.log(d_real).mean() - sum(torch.log(1 - d).mean() for d in d_fakes)
    if config.adversarial == "minimax":
        terms["fool"] = sum(torch.log(1 - d).mean() for d in d_fakes)
    else:
        terms["fool"] = -sum(torch.log(d).mean() for d in d_fakes)
    if config.r1_weight:
        (slope,) = torch.autograd.grad(f["real"].sum(), real, create_graph=True)
        terms["r1"] = config.r1_weight * (slope**2).flatten(1).sum(dim=1).mean() / 2
    return terms


def naive_gradients(networks: Networks, batch: Batch, config: LossConfig, augment: float) -> dict[str, list]:
    """Three forward passes, three backward passes through everything, as Algorithm 1 reads."""
    gradients = {}
    for name, network in networks.present().items():
        terms = naive_terms(networks, batch, config, augment)
        if name == "encoder":
            loss = BETA * terms["prior"] + terms["like"]
        elif name == "discriminator":
            loss = terms["catch"] + terms.get("r1", 0)
        elif networks.discriminator is None:
            loss = terms["like"]
        else:
            loss = terms["fool"] + (config.gamma * terms["like"] if networks.encoder is not None else 0)
        networks.zero_grad()
        loss.backward()
        gradients[name] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]
    networks.zero_grad()
    return gradients


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
    "last layer": dict(feature_layer=3),
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
CASES = list(itertools.product(["vaegan", "vae", "gan"], NETWORK_OPTIONS, LOSS_OPTIONS))


@pytest.fixture(params=CASES, ids=lambda case: ", ".join(case))
def case(request):
    kind, network, loss = request.param
    networks = build(kind, **NETWORK_OPTIONS[network])
    # A power iteration moves a spectral norm's estimate at every call in training: both sides must see the same one.
    for module in networks.modules():
        if type(module).__name__ == "_SpectralNorm":
            module.eval()
    return networks, *LOSS_OPTIONS[loss]


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
    "decoder": {"prior": 0.0, "like": 0.3, "fool": 1.0, "catch": 0.0},
    "discriminator": {"prior": 0.0, "like": 0.0, "fool": 0.0, "catch": 1.0},
}


def test_each_networks_gradient_is_its_own_mix_of_the_terms_gradients_and_nothing_else(case):
    """The nine cells: the step's gradient is resolved into the terms' gradients; the coefficients are the routing."""
    networks, config, augment = case
    found = step_gradients(networks, batch(), config, augment)
    for name, network in networks.present().items():
        terms = naive_terms(networks, batch(), config, augment)
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
        if name == "discriminator" and "r1" in own:
            expected["r1"] = 1.0
        alone = {term: vector for term, vector in own.items() if vector.abs().max() > 1e-12}
        if config.adversarial == "minimax" and "catch" in alone and name != "discriminator":
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
    networks = build()
    terms = naive_terms(networks, batch(), LossConfig(), 0.0)
    for network, term in (("discriminator", "like"), ("encoder", "fool"), ("decoder", "catch")):
        wanted = list(networks.present()[network].parameters())
        found = torch.autograd.grad(terms[term], wanted, retain_graph=True, materialize_grads=True)
        assert max(gradient.abs().max() for gradient in found) > 1e-6


@pytest.mark.parametrize("logit", [-200.0, -60.0, 60.0, 200.0])
@pytest.mark.parametrize("adversarial", ["nonsaturating", "minimax"])
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


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("r1_weight", [0.0, 1.0])
def test_each_image_passes_each_network_once_in_a_step(norm, r1_weight):
    networks = build(norm=norm, discriminator_norm=norm)
    rows = dict.fromkeys(networks.present(), 0)

    def count(name):
        def hook(_, inputs, __):
            rows[name] += len(inputs[0])

        return hook

    for name, network in networks.present().items():
        network.register_forward_hook(count(name))
    optimizers = Optimizers(networks, OptimizerConfig())
    train_step(networks, optimizers, batch(), LossConfig(r1_weight=r1_weight), beta=1.0, augment=1.0)
    assert rows == {"encoder": COUNT, "decoder": 2 * COUNT, "discriminator": 3 * COUNT}


def test_the_spectral_norms_iterate_once_in_a_step():
    networks = build(spectral_norm=True)
    layer = networks.discriminator.convolutions[1][0].parametrizations.weight
    v, weight = layer[0]._v.clone(), layer.original.detach().flatten(1).clone()
    train_step(networks, Optimizers(networks, OptimizerConfig()), batch(), LossConfig(), beta=1.0)
    assert torch.allclose(layer[0]._u, torch.nn.functional.normalize(weight @ v, dim=0))
