from dataclasses import replace

import numpy as np
import pytest
import torch

from vaegan.export import build
from vaegan.recipe import Recipe
from vaegan.shards import read_manifest, read_split
from vaegan.tensors import to_pixels, to_tensor
from vaegan.validation import Validation, ValidationConfig


class Constant(torch.nn.Module):
    """A "decoder" that knows the answers: image i whatever the latents, in the order of the calls."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__()
        self.x, self.at = to_tensor(pixels), 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.at += len(z)
        return self.x[self.at - len(z) : self.at]


@pytest.fixture
def networks(config):
    torch.manual_seed(0)
    return build(config, read_manifest(config.data)).eval()


@pytest.mark.parametrize("metric", ["sliced_wasserstein", "reconstruction"])
def test_the_real_images_themselves_are_as_good_as_can_be_and_noise_is_worse(config, networks, metric):
    images = read_split(config.data, "val")
    validation = Validation(ValidationConfig(metric=metric), images)
    noise = np.random.default_rng(0).integers(0, 256, images.pixels.shape, dtype=np.uint8)
    grey = np.full_like(images.pixels, 128)
    values = [validation.value(networks, Constant(pixels)) for pixels in (images.pixels, grey, noise)]
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[0] < min(values[1:])


def test_reconstruction_is_the_mean_squared_error_of_posterior_means_in_the_networks_unit(config, networks):
    images = read_split(config.data, "val")
    value = Validation(ValidationConfig(metric="reconstruction"), images).value(networks, networks.decoder)
    with torch.inference_mode():
        labels = torch.from_numpy(images.labels).float()
        mu, _ = networks.encoder(to_tensor(images.pixels), labels)
        recon = to_tensor(to_pixels(networks.decoder(mu, labels)))
    assert value == pytest.approx((recon - to_tensor(images.pixels)).square().mean().item(), rel=1e-5)


def test_the_same_weights_have_the_same_value(config, networks):
    images = read_split(config.data, "val")
    values = {Validation(ValidationConfig(), images).value(networks, networks.decoder) for _ in range(3)}
    assert len(values) == 1


def test_the_images_looked_at_are_spread_over_the_split(config):
    images = read_split(config.data, "train")
    few = Validation(ValidationConfig(max_images=5), images).images
    assert few.image_id.tolist() == [images.image_id[i] for i in (0, 12, 24, 35, 47)]
    assert len(Validation(ValidationConfig(max_images=0), images).images) == len(images)


def test_settings_that_contradict_each_other_are_refused(config):
    with pytest.raises(ValueError, match="needs an encoder"):
        Recipe(model=replace(config.model, kind="gan"), validation=ValidationConfig(metric="reconstruction"))
    with pytest.raises(ValueError, match=r"validation\.patience needs a validation\.metric"):
        ValidationConfig(metric="none", patience=2)


def half_labelled(config):
    images = read_split(config.data, "val")
    return replace(images, labelled=np.arange(len(images)) % 2 == 0)


def test_networks_that_can_not_infer_labels_are_compared_on_labelled_images_alone(config, networks):
    images = half_labelled(config)
    validation = Validation(ValidationConfig(metric="reconstruction"), images, labelled_only=True)
    assert validation.images.image_id.tolist() == images.image_id[::2].tolist()
    assert np.isfinite(validation.value(networks, networks.decoder))


def test_whatever_stands_in_a_row_without_a_label_validation_takes_what_the_head_decides(config):
    torch.manual_seed(0)
    networks = build(replace(config, model=replace(config.model, label_head=True)), read_manifest(config.data)).eval()
    values = []
    for garbage in (0, 1):
        images = half_labelled(config)
        images.labels[1::2] = [garbage, 1 - garbage]
        values.append(Validation(ValidationConfig(metric="reconstruction"), images).value(networks, networks.decoder))
    assert values[0] == values[1]
    assert np.isfinite(values[0])
