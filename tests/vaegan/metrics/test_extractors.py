"""Extractors, and their numbers beside torch-fidelity's on the same images with the same network."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cluster.errors import UserError
from vaegan.metrics.domain import domain_extractor
from vaegan.metrics.features import make_extractor
from vaegan.metrics.frechet import frechet_distance_of_features
from vaegan.metrics.inception_score import inception_score
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics
from vaegan.metrics.torchvision_net import torchvision_extractor
from vaegan.shards import Images

SHARED = Path(os.environ.get("AUGRAY_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
SQUEEZENET = SHARED / "weights" / "squeezenet1_1_imagenet.safetensors"
KERAS_TRUNK = SHARED / "weights" / "inception_v3_imagenet_to_mixed7_fp16.safetensors"
needs_squeezenet = pytest.mark.skipif(not SQUEEZENET.is_file(), reason=f"no {SQUEEZENET}; set AUGRAY_SHARED")
needs_trunk = pytest.mark.skipif(not KERAS_TRUNK.is_file(), reason=f"no {KERAS_TRUNK}; set AUGRAY_SHARED")


def pictures(count, seed, size=48, channels=1):
    """Smooth random blobs: neighbouring pixels are alike, as in photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(count, channels, 6, 6)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(size, size), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def images(pixels, labels):
    ids = [str(i) for i in range(len(pixels))]
    return Images.real(pixels, np.asarray(labels, dtype=np.uint8), ids, ids)


def two_classes(count=80, size=16):
    """Dark and bright pictures, by turns."""
    pixels = pictures(count, seed=0, size=size) // 2
    pixels[1::2] += 120
    return images(pixels, np.eye(2)[np.arange(count) % 2])


class Rows(torch.utils.data.Dataset):
    """What torch-fidelity takes as input: uint8 (3, H, W) tensors."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return torch.from_numpy(self.pixels[i]).permute(2, 0, 1).expand(3, -1, -1).contiguous()


def fidelity(real, synthetic, name, **options):
    """torch-fidelity's FID, KID and precision/recall, whole sets as KID's subsets."""
    found = torch_fidelity.calculate_metrics(
        input1=Rows(synthetic), input2=Rows(real), cuda=False, fid=True, kid=True, prc=True, kid_subsets=1,
        kid_subset_size=len(real), feature_extractor=name, cache=False, verbose=False, save_cpu_ram=True, **options,
    )  # fmt: skip
    keys = ("frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall")
    return [found[key] for key in keys], found.get("inception_score_mean")


def ours(real, synthetic):
    x, y = real.features, synthetic.features
    overlap = manifold_metrics(x, y)
    return [
        frechet_distance_of_features(x, y),
        kernel_distance(x, y).value,
        overlap.precision,
        overlap.recall,
    ]


@needs_squeezenet
def test_all_of_torch_fidelitys_metrics_are_the_same_on_squeezenet():
    extractor = torchvision_extractor("squeezenet1_1", SQUEEZENET)

    class Registered(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        def forward(self, x):
            features, logits = extractor.network(x)
            return tuple({"pooled": features, "logits": logits}[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list():
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "pooled"

    torch_fidelity.register_feature_extractor("test-squeezenet", Registered)
    real, synthetic = pictures(24, seed=0), pictures(24, seed=1)[:, ::-1] // 2
    theirs, their_score = fidelity(real, synthetic, "test-squeezenet", isc=True, isc_splits=3)
    x, y = extractor.features(real), extractor.features(np.ascontiguousarray(synthetic))
    assert ours(x, y) == pytest.approx(theirs, rel=1e-4)
    assert inception_score(y.probabilities, splits=3).value == pytest.approx(their_score, rel=1e-4)


class KerasTrunk(FeatureExtractorInceptionV3):
    """The trunk as its own README loads it: a second reading of the same file."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        buffer = io.BytesIO()
        torch.save(load_file(feature_extractor_weights_path), buffer)
        buffer.seek(0)
        super().__init__(name, features_list, feature_extractor_weights_path=buffer, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        for unused in ("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool", "fc"):
            delattr(self, unused)
        return super().load_state_dict(state_dict, strict=True)

    @staticmethod
    def get_provided_features_list():
        return "64", "192", "768"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "768"


@needs_trunk
def test_distances_on_the_keras_trunk_are_torch_fidelitys_and_are_never_called_fid():
    torch_fidelity.register_feature_extractor("test-keras-768", KerasTrunk)
    real, synthetic = pictures(6, seed=0), pictures(6, seed=1) // 2
    path = str(KERAS_TRUNK)
    theirs, _ = fidelity(real, synthetic, "test-keras-768", feature_extractor_weights_path=path)
    extractor = make_extractor(f"inception={path}", device="cpu")
    x, y = extractor.features(real), extractor.features(synthetic)
    assert ours(x, y) == pytest.approx(theirs, rel=1e-4)
    assert x.probabilities is None
    assert (extractor.name, extractor.layer) == ("Inception-768 (Keras ImageNet trunk)", "768")
    assert not extractor.is_fid_network


def test_a_whole_inception_network_of_other_weights_is_not_called_the_fid_network(tmp_path):
    class Untrained(FeatureExtractorInceptionV3):
        def __init__(self):
            buffer = io.BytesIO()
            torch.save({}, buffer)
            buffer.seek(0)
            super().__init__("untrained", ["2048"], feature_extractor_weights_path=buffer)

        def load_state_dict(self, *args, **kwargs):
            return None

    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"  # the name alone must not be enough
    torch.save(Untrained().state_dict(), path)
    extractor = make_extractor("inception", weights=path, device="cpu")
    result = extractor.features(pictures(1, seed=0, size=32))
    assert result.features.shape == (1, 2048)
    assert result.probabilities.shape == (1, 1008)
    assert not extractor.is_fid_network
    assert path.name in extractor.name


def test_without_network_and_file_inception_says_in_one_line_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="6726825d") as caught:
        make_extractor("inception")
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in message
    assert "inception=FILE" in message
    assert "\n" not in message


@needs_squeezenet
def test_the_caffe_squeezenet_is_known_by_its_bytes_not_by_its_name(tmp_path):
    copy = tmp_path / "some_name.safetensors"
    copy.write_bytes(SQUEEZENET.read_bytes())
    assert make_extractor(f"torchvision:squeezenet1_1={copy}").name == "SqueezeNet 1.1 (Caffe, ImageNet)"
    state = load_file(SQUEEZENET)
    state["features.0.bias"] += 1e-3
    save_file(state, copy)
    assert make_extractor(f"torchvision:squeezenet1_1={copy}").name == "squeezenet1_1 (some_name.safetensors)"


@needs_squeezenet
def test_squeezenets_features_are_the_mean_of_its_last_fire_module():
    network = torchvision.models.squeezenet1_1(weights=None).eval()
    network.load_state_dict(load_file(SQUEEZENET))
    pixels = pictures(3, seed=0, size=224, channels=3)  # of the network's size, so that nothing is resized
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    result = torchvision_extractor("squeezenet1_1", SQUEEZENET).features(pixels)
    with torch.inference_mode():
        features, probabilities = network.features(x).mean(dim=(2, 3)), network(x).softmax(dim=1)
    np.testing.assert_allclose(result.features, features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.probabilities, probabilities, atol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_networks_own_number_of_classes_is_read_from_its_file(tmp_path, suffix):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None, num_classes=3).eval()
    path = tmp_path / f"ours{suffix}"
    torch.save(network.state_dict(), path) if suffix == ".pth" else save_file(network.state_dict(), path)
    extractor = make_extractor("torchvision:resnet18", weights=path, device="cpu")
    result = extractor.features(pictures(2, seed=0))
    assert (result.features.shape, result.probabilities.shape) == ((2, 512), (2, 3))
    np.testing.assert_allclose(
        result.probabilities, torch.softmax(network.fc(torch.from_numpy(result.features)), dim=1).detach(), atol=1e-5
    )
    assert extractor.name == f"resnet18 ({path.name})"


def test_features_do_not_depend_on_the_batch(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "mobilenet.pth"
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), path)
    extractor = make_extractor(f"torchvision:mobilenet_v3_small={path}", device="cpu")
    pixels = pictures(7, seed=0)
    whole = extractor.features(pixels, batch_size=7)
    parts = extractor.features(pixels[::-1].copy(), batch_size=2)
    np.testing.assert_allclose(parts.features[::-1], whole.features, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(parts.probabilities[::-1], whole.probabilities, rtol=1e-3)


def test_the_domain_network_learns_the_classes_and_is_a_function_of_images_and_seed():
    real = two_classes()
    one, again = (domain_extractor(real, "multiclass", seed=3, steps=60) for _ in range(2))
    other = domain_extractor(real, "multiclass", seed=4, steps=60)
    assert one.weights_sha256 == again.weights_sha256 != other.weights_sha256
    result = one.features(real.pixels)
    assert (result.probabilities.argmax(axis=1) == real.labels.argmax(axis=1)).mean() > 0.95
    assert result.features.shape == (len(real), one.dim)
    assert one.trained_on_reference


def test_classes_that_may_occur_together_give_no_probabilities_to_score():
    extractor = domain_extractor(two_classes(), "multilabel", steps=2)
    assert extractor.features(two_classes().pixels).probabilities is None


@pytest.mark.parametrize("labels", [np.tile([1, 0], (30, 1)), np.zeros((30, 0))])
def test_one_class_alone_can_not_train_a_domain_network(labels):
    with pytest.raises(UserError, match="all 30 real images have the same labels"):
        make_extractor("domain", real_train=images(pictures(30, seed=0, size=16), labels))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("inceptoin", "unknown extractor 'inceptoin': expected inception"),
        ("torchvision:", "unknown extractor"),
        ("torchvision:resnet18=", "unknown extractor"),
        ("domain=file.pth", "takes no file"),
        ("torchvision:resnet18", "type --extractors torchvision:resnet18=FILE"),
        ("torchvision:resnet18=absent.pth", "no weights file absent.pth"),
        ("torchvision:resnet19=weights.pth", "torchvision has no classification network 'resnet19'"),
    ],
)
def test_what_cannot_be_an_extractor_is_told_in_one_sentence(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        make_extractor(spec)
    assert "\n" not in str(caught.value)


def test_files_that_hold_something_else_are_told_in_one_sentence(tmp_path):
    def attempt(spec, name):
        with pytest.raises(UserError) as caught:
            make_extractor(f"{spec}={tmp_path / name}")
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    torch.save({"model": Path("x")}, tmp_path / "object.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    resnet = "torchvision:resnet18"
    assert "no readable weights file" in attempt(resnet, "text.safetensors")
    attempt(resnet, "text.pth")
    attempt(resnet, "empty.pth")
    assert "more than tensors" in attempt(resnet, "object.pth")
    assert "no state dict" in attempt(resnet, "list.pth")
    assert "lacks a matching layer" in attempt("torchvision:squeezenet1_1", "resnet18.pth")
    assert "don't fit" in attempt("torchvision:resnet34", "resnet18.pth")
    assert "don't fit" in attempt("inception", "resnet18.pth")


def test_a_damaged_file_that_gives_nan_is_refused(tmp_path):
    network = torchvision.models.resnet18(weights=None)
    with torch.no_grad():
        network.conv1.weight[0] = float("nan")
    torch.save(network.state_dict(), tmp_path / "nan.pth")
    extractor = make_extractor(f"torchvision:resnet18={tmp_path / 'nan.pth'}")
    with pytest.raises(UserError, match="not finite"):
        extractor.features(pictures(2, seed=0))
