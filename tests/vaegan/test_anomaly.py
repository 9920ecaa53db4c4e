from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from vaegan.anomaly import anomaly
from vaegan.attacks import attack_scores
from vaegan.loop import train_loop
from vaegan.losses import kl_divergence, reconstruction
from vaegan.sampler import Sampler
from vaegan.shards import read_split
from vaegan.tensors import to_tensor


@pytest.fixture
def sampler(config):
    return Sampler.from_model(train_loop(config))


@pytest.fixture
def images(config):
    return read_split(config.data, "train")  # 48: several passes


@torch.inference_mode()
def test_the_parts_are_the_terms_of_the_objective_and_the_score_their_sum(sampler, images):
    some, nets = images.take(range(3)), sampler.networks
    found = anomaly(sampler, some.pixels, some.labels)
    for i in range(3):
        x, labels = to_tensor(some.pixels[i : i + 1]), torch.from_numpy(some.labels[i : i + 1]).float()
        mu, log_var = nets.encoder(x, labels)
        x_recon = nets.decoder(mu, labels)
        (_, (features,)), (_, (features_recon,)) = nets.discriminator(x, labels), nets.discriminator(x_recon, labels)
        assert found["kl"][i] == pytest.approx(kl_divergence(mu, log_var).item(), rel=1e-4, abs=1e-5)
        assert found["features"][i] == pytest.approx(reconstruction(features_recon, features, 32 * 32).item(), rel=1e-4)
        assert found["pixels"][i] == pytest.approx(0.5 * (x_recon - x).square().sum().item(), rel=1e-4)
    np.testing.assert_array_equal(found["score"], found["features"] + found["kl"])


def test_an_images_numbers_depend_on_nothing_it_is_scored_with(sampler, images):
    together = anomaly(sampler, images.pixels, images.labels)
    order = np.random.default_rng(0).permutation(len(images))
    moved = anomaly(sampler, images.pixels[order], images.labels[order])
    alone = anomaly(sampler, images.pixels[40:41], images.labels[40:41])
    assert set(together) == {"score", "features", "kl", "pixels"}
    for name, values in together.items():
        assert values.shape == (len(images),)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(moved[name], values[order])
        np.testing.assert_array_equal(alone[name], values[40:41])


def test_several_layers_of_features_count_as_their_mean(sampler, images):
    found = {}
    for layers in ((1,), (3,), (1, 3)):
        sampler.networks.discriminator.feature_layers = layers
        found[layers] = anomaly(sampler, images.pixels, images.labels)["features"]
    np.testing.assert_allclose(found[1, 3], (found[1,] + found[3,]) / 2, rtol=1e-5)
    assert np.abs(found[1,] / found[3,] - 1).min() > 0.01


def test_they_are_the_numbers_that_an_attacker_reads(sampler, images):
    found, attacks = anomaly(sampler, images.pixels, images.labels), attack_scores(sampler, images)
    np.testing.assert_allclose(found["features"], -attacks["features"], rtol=1e-5)
    np.testing.assert_allclose(found["pixels"], -attacks["reconstruction"], rtol=1e-5)


def test_what_training_never_showed_scores_higher_than_what_it_did(config):
    quick = replace(config.optimizer, learning_rate=3e-3)
    sampler = Sampler.from_model(train_loop(replace(config, total_images=960, checkpoint_images=480, optimizer=quick)))
    seen = read_split(config.data, "test")
    noise = np.random.default_rng(0).integers(0, 256, seen.pixels.shape, dtype=np.uint8)
    lying = seen.pixels.transpose(0, 2, 1, 3)  # bright above or below, where training had left or right
    usual = anomaly(sampler, seen.pixels, seen.labels)["score"]
    for strange in (noise, lying):
        assert anomaly(sampler, strange, seen.labels)["score"].min() > usual.max()


def test_a_plain_vae_scores_by_its_pixels(config, images):
    sampler = Sampler.from_model(train_loop(replace(config, model=replace(config.model, kind="vae"))))
    found = anomaly(sampler, images.pixels, images.labels)
    assert set(found) == {"score", "kl", "pixels"}
    np.testing.assert_array_equal(found["score"], found["pixels"] + found["kl"])


def test_a_gan_says_that_it_cannot(config, images):
    sampler = Sampler.from_model(train_loop(replace(config, model=replace(config.model, kind="gan"))))
    with pytest.raises(UserError, match="is a gan and has no encoder"):
        anomaly(sampler, images.pixels, images.labels)


def test_images_of_another_size_are_a_mistake_of_the_caller(sampler, images):
    with pytest.raises(ValueError, match=r"expected \(48, 32, 32, 1\)"):
        anomaly(sampler, images.pixels[:, :16], images.labels)
