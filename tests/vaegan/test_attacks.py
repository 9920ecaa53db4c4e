from dataclasses import replace

import numpy as np
import pytest
import torch

from vaegan.attacks import attack_scores
from vaegan.loop import train_loop
from vaegan.losses import kl_divergence
from vaegan.sampler import Sampler
from vaegan.shards import Images, read_split
from vaegan.tensors import to_tensor


@pytest.fixture
def sampler(config):
    return Sampler.from_model(train_loop(config))


@pytest.fixture
def images(config):
    parts = [read_split(config.data, split) for split in ("train", "val", "test")]
    return Images.concatenate([*parts, parts[0]])  # 112: more than one batch


def test_an_images_scores_depend_on_nothing_it_is_scored_with(sampler, images):
    together = attack_scores(sampler, images)
    order = np.random.default_rng(0).permutation(len(images))
    moved, alone = attack_scores(sampler, images.take(order)), attack_scores(sampler, images.take([100]))
    assert set(together) == {"discriminator", "reconstruction", "elbo", "features"}
    for name, scores in together.items():
        assert scores.shape == (len(images),)
        np.testing.assert_array_equal(moved[name], scores[order])
        np.testing.assert_array_equal(alone[name], scores[100:101])


@torch.inference_mode()
def test_scores_are_what_they_say(sampler, images):
    some = images.take(range(5))
    scores = attack_scores(sampler, some, draws=200)
    x, labels = to_tensor(some.pixels), torch.from_numpy(some.labels).float()
    nets = sampler.networks
    mu, log_var = nets.encoder(x, labels)
    x_recon = nets.decoder(mu, labels)
    logits, (features,) = nets.discriminator(x, labels)
    _, (features_recon,) = nets.discriminator(x_recon, labels)
    error = 0.5 * (x_recon - x).square().sum(dim=(1, 2, 3))
    np.testing.assert_allclose(scores["discriminator"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores["reconstruction"], -error, rtol=1e-4)
    squared = (features_recon - features).square().mean(dim=(1, 2, 3))
    np.testing.assert_allclose(scores["features"], -0.5 * 32 * 32 * squared, rtol=1e-4)
    draws = torch.stack([nets.decoder(mu + (0.5 * log_var).exp() * torch.randn_like(mu), labels) for _ in range(200)])
    sampled = 0.5 * (draws - x).square().sum(dim=(2, 3, 4)).mean(dim=0)
    divergence = torch.stack([kl_divergence(mu[i : i + 1], log_var[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(scores["elbo"], -(sampled + divergence), rtol=0.05)


@pytest.mark.parametrize(("kind", "names"), [("vae", {"reconstruction", "elbo"}), ("gan", {"discriminator"})])
def test_a_model_is_attacked_through_the_networks_it_has(config, images, kind, names):
    sampler = Sampler.from_model(train_loop(replace(config, model=replace(config.model, kind=kind))))
    assert set(attack_scores(sampler, images)) == names


def test_an_unconditional_model_is_scored_without_labels(config, images):
    sampler = Sampler.from_model(train_loop(replace(config, model=replace(config.model, conditional=False))))
    other = replace(images, labels=1 - images.labels)
    first, second = attack_scores(sampler, images), attack_scores(sampler, other)
    for name, scores in first.items():
        np.testing.assert_array_equal(scores, second[name])
