import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from cluster.errors import UserError
from downstream.classifiers import LogisticOnFeatures, build_network, image_features


def blobs(num: int = 120, num_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, num)
    features = 3 * np.eye(num_classes)[y] + rng.normal(size=(num, num_classes))
    return features, np.eye(num_classes, dtype=np.uint8)[y]


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_one_seed_are_equal_and_fit_the_channels(name, channels):
    x = torch.zeros(2, channels, 32, 32)
    first, again, other = (build_network(name, channels=channels, num_outputs=4, seed=s).eval() for s in (0, 0, 1))
    assert first(x + 0.5).shape == (2, 4)
    assert torch.equal(first(x + 0.5), again(x + 0.5))
    assert not torch.equal(first(x + 0.5), other(x + 0.5))


def test_a_resnet_for_grey_images_answers_as_the_file_s_does_for_three_equal_channels(tmp_path):
    source = resnet18(num_classes=7).eval()
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    grey = build_network(
        "resnet18", channels=1, num_outputs=7, weights=tmp_path / "resnet18.safetensors", seed=0
    ).eval()  # fmt: skip
    grey.fc = source.fc
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(x), source(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="resnet18"):
        build_network("resnet18", channels=1, num_outputs=2, weights=tmp_path / "other.safetensors", seed=0)


def test_pixel_features_are_means_of_image_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    blocks = pixels.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4)) / 127.5 - 1
    np.testing.assert_allclose(image_features("pixels", pixels), blocks.reshape(3, -1), atol=1e-6)


def test_logistic_regression_learns_and_its_probabilities_sum_to_one():
    (x, y), (val_x, val_y) = blobs(), blobs(seed=1)
    model = LogisticOnFeatures.fit(x, y, None, val_x, val_y, task="multiclass", reduce=True)
    p = model.predict(val_x, 3)
    assert (p.argmax(1) == val_y.argmax(1)).mean() > 0.8
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


def test_a_class_weight_raises_that_class_s_probability():
    (x, y), (val_x, val_y) = blobs(), blobs(seed=1)
    fit = lambda weight: LogisticOnFeatures.fit(x, y, weight, val_x, val_y, task="multiclass", reduce=False)  # noqa: E731
    plain, weighted = (fit(w).predict(val_x, 3)[:, 2].mean() for w in (None, np.array([1.0, 1.0, 5.0])))
    assert weighted > plain + 0.02


def test_a_label_that_training_never_shows_is_predicted_as_never_there():
    (x, y), (val_x, val_y) = blobs(), blobs(seed=1)
    y[:, 1] = 0
    model = LogisticOnFeatures.fit(x, y, np.ones(3), val_x, val_y, task="multilabel", reduce=False)
    p = model.predict(val_x, 3)
    assert p.shape == (len(val_x), 3)
    assert (p[:, 1] == 0).all()
    assert p[val_y[:, 0] == 1, 0].mean() > p[val_y[:, 0] == 0, 0].mean()
