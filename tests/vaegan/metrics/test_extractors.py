"""Extractors, and their numbers beside torch-fidelity's on the same images with the same network."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from cluster.errors import UserError
from vaegan.images import encode_png
from vaegan.metrics.domain import domain_extractor
from vaegan.metrics.extraction import extract
from vaegan.metrics.features import make_extractor
from vaegan.metrics.folding import fold_batch_norms
from vaegan.metrics.frechet import frechet_distance_of_features
from vaegan.metrics.inception import enlarge
from vaegan.metrics.inception_score import inception_score
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics
from vaegan.metrics.sources import open_source
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


def write_pngs(folder, pixels):
    folder.mkdir()
    for number, image in enumerate(pixels):
        (folder / f"{number:04d}.png").write_bytes(encode_png(image))
    return folder


def fidelity_of_folders(real, synthetic, name, **options):
    """All that torch-fidelity says of two folders of PNG files, read by its own loader."""
    count = len(list(real.iterdir()))
    return torch_fidelity.calculate_metrics(
        input1=str(synthetic), input2=str(real), cuda=False, fid=True, kid=True, prc=True, kid_subsets=3,
        kid_subset_size=count - 2, feature_extractor=name, cache=False, verbose=False, save_cpu_ram=True, **options,
    )  # fmt: skip


def assert_same_as_fidelity(found, real, synthetic, subset_size):
    x, y = real.features, synthetic.features
    overlap = manifold_metrics(x, y)
    ours = {
        "frechet_inception_distance": frechet_distance_of_features(x, y),
        "kernel_inception_distance_mean": kernel_distance(x, y, subsets=3, subset_size=subset_size).value,
        "precision": overlap.precision,
        "recall": overlap.recall,
    }
    for key, value in ours.items():
        assert value == pytest.approx(found[key], rel=1e-4), key


@needs_trunk
def test_distances_on_the_keras_trunk_are_torch_fidelitys_from_the_files_on_and_are_never_called_fid(tmp_path):
    torch_fidelity.register_feature_extractor("test-keras-768", KerasTrunk)
    real = write_pngs(tmp_path / "real", pictures(10, seed=0))
    synthetic = write_pngs(tmp_path / "synthetic", pictures(10, seed=1)[:, ::-1] // 2 + 20)
    path = str(KERAS_TRUNK)
    theirs = fidelity_of_folders(real, synthetic, "test-keras-768", feature_extractor_weights_path=path)
    extractor = make_extractor(f"inception={path}", device="cpu")
    x, y = (extract(open_source(folder), extractor, batch_size=3) for folder in (real, synthetic))
    assert_same_as_fidelity(theirs, x, y, subset_size=8)
    assert x.probabilities is None
    assert (extractor.name, extractor.layer) == ("Inception-768 (Keras ImageNet trunk)", "768")
    assert not extractor.is_fid_network
    with pytest.raises(UserError, match="ends before layer 2048"):
        make_extractor(f"inception:2048={path}")


@pytest.fixture(scope="module")
def untrained_inception(tmp_path_factory):
    """A file of a whole network with random weights, whose classes differ enough for a score above 1."""

    class Untrained(FeatureExtractorInceptionV3):
        def __init__(self):
            super().__init__("untrained", ["2048"], feature_extractor_weights_path=saved({}))

        def load_state_dict(self, *args, **kwargs):
            return None

    torch.manual_seed(0)
    network = Untrained()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # random, so that folding them has something to get wrong
            module.running_mean.normal_(std=0.05)
            module.running_var.uniform_(0.12, 0.24)  # keeps the scale through ninety layers
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
    images = torch.from_numpy(np.concatenate([pictures(3, seed=7, channels=3), pictures(3, seed=8, channels=3) // 2]))
    with torch.inference_mode():
        features = network(images.permute(0, 3, 1, 2))[0]
    mean = features.mean(dim=0)
    across = network.fc.weight - torch.outer(network.fc.weight @ mean, mean) / (
        mean @ mean
    )  # what images share cancels
    state = network.state_dict()
    state["fc.weight"] = 2 * across / (features @ across.T).std()
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"  # the name is not enough
    torch.save(state, path)
    return path


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def test_a_whole_inception_network_gives_torch_fidelitys_numbers_and_score_but_other_weights_no_fid(
    untrained_inception, tmp_path
):
    real = write_pngs(tmp_path / "real", pictures(8, seed=0, channels=3))
    synthetic = write_pngs(tmp_path / "synthetic", pictures(8, seed=1, channels=3) // 2)
    theirs = fidelity_of_folders(
        real, synthetic, "inception-v3-compat", feature_extractor_weights_path=str(untrained_inception), isc=True,
        isc_splits=2,
    )  # fmt: skip
    extractor = make_extractor("inception", weights=untrained_inception, device="cpu")
    x, y = (extract(open_source(folder), extractor) for folder in (real, synthetic))
    assert_same_as_fidelity(theirs, x, y, subset_size=6)
    score = inception_score(y.probabilities, splits=2).value
    assert score > 1.05, "else this says nothing"
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert (x.features.shape, x.probabilities.shape, extractor.layer) == ((8, 2048), (8, 1008), "2048")
    assert not extractor.is_fid_network
    assert untrained_inception.name in extractor.name


@pytest.mark.parametrize("layer", ["64", "192", "768", "2048"])
def test_every_layer_is_torch_fidelitys_with_the_same_classes_and_grey_images_are_three_equal_channels(
    untrained_inception, layer
):
    network = FeatureExtractorInceptionV3("x", [layer, "logits_unbiased"], str(untrained_inception))
    extractor = make_extractor(f"inception:{layer}={untrained_inception}", device="cpu")
    grey = pictures(2, seed=0)
    images = torch.from_numpy(grey).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        features, logits = network(images)
    for pixels in (grey, np.repeat(grey, 3, axis=3)):
        found = extractor.features(pixels)
        assert np.abs(found.features - features.numpy()).max() < 1e-5 * features.abs().max()
        np.testing.assert_allclose(found.probabilities, logits.softmax(dim=1), rtol=1e-3, atol=1e-6)
    assert (extractor.dim, extractor.layer) == (int(layer), layer)


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (299, 299), (512, 400)])
def test_the_resize_is_tensorflow_1s_as_torch_fidelity_has_it(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(enlarge(x, 299), expected, rtol=0, atol=2e-6)


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


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "googlenet"])
def test_folding_batch_norms_into_convolutions_moves_features_by_rounding_alone(arch, tmp_path):
    torch.manual_seed(0)
    options = {"init_weights": False} if arch == "googlenet" else {}
    network = torchvision.models.get_model(arch, weights=None, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.rand(2, 3, 96, 96)
    folded = fold_batch_norms(network, x)
    with torch.inference_mode():
        expected, found = network(x), folded(x)
    assert folded is not network
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    if arch != "densenet121":  # its batch norms come before the convolutions
        assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules()) == 0


def test_a_network_that_can_not_be_folded_is_left_as_it_is():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Unstable(torch.nn.Sequential):
        """Folding is fine here, but what it is compared by isn't."""

        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    for network in (Branches().eval(), Unstable(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)).eval()):
        assert fold_batch_norms(network, torch.rand(1, 3, 4, 4)) is network


class MeanAndSpread(torch.nn.Module):
    """Six features of an RGB image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)


class WithLogits(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = x.float().mean(dim=(2, 3))
        return means, means[:, :2] / 100


class FloatOfOneSize(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 64 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


class LikeNvidias(torch.nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = img.float().mean(dim=(2, 3))
        return means if return_features else means.softmax(dim=1)


class NoFeatures(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean()


def scripted(path, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 deprecates all of torch.jit
        torch.jit.save(torch.jit.script(module), path)
    return path


def test_a_torchscript_module_is_called_in_the_form_it_takes(tmp_path):
    pixels = pictures(5, seed=0, size=64)
    means = np.repeat(pixels.mean(axis=(1, 2)), 3, axis=1)
    for module, dim in ((MeanAndSpread(), 6), (WithLogits(), 3), (LikeNvidias(), 3), (FloatOfOneSize(), 5)):
        path = scripted(tmp_path / f"{type(module).__name__}.pt", module)
        extractor = make_extractor(f"torchscript={path}", device="cpu")
        found = extractor.features(pixels, batch_size=2)
        assert found.features.shape == (5, dim) == (5, extractor.dim)
        if dim != 5:
            np.testing.assert_allclose(found.features[:, :3], means, rtol=1e-5)
        assert (found.probabilities is not None) == isinstance(module, WithLogits)
        assert extractor.name == f"TorchScript ({path.name})"
    expected = torch.softmax(torch.from_numpy(means[:, :2]) / 100, dim=1)
    path = tmp_path / "WithLogits.pt"
    np.testing.assert_allclose(
        make_extractor(f"torchscript={path}").features(pixels).probabilities, expected, rtol=1e-5
    )
    with pytest.raises(UserError, match="fails with 48x48 images"):
        make_extractor(f"torchscript={tmp_path / 'FloatOfOneSize.pt'}").features(pictures(1, seed=0))


def test_what_is_no_torchscript_module_of_features_is_told_in_one_sentence(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "state.pth")
    (tmp_path / "text.pt").write_text("no module")
    scripted(tmp_path / "none.pt", NoFeatures())
    for name, expected in {
        "absent.pt": "no TorchScript file",
        "state.pth": "is no TorchScript file",
        "text.pt": "is no TorchScript file",
        "none.pt": r"returns \(\) for 1 images: expected one that maps",
    }.items():
        with pytest.raises(UserError, match=expected) as caught:
            make_extractor(f"torchscript={tmp_path / name}")
        assert "\n" not in str(caught.value)


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
        ("inception:99=file.pth", "unknown extractor"),
        ("inception:768=absent.pth", "no weights file absent.pth"),
        ("torchscript", "type --extractors torchscript=FILE"),
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


def test_gist_needs_no_file_and_sees_blur_and_noise_but_not_brightness():
    extractor = make_extractor("gist", device="cpu")
    assert (extractor.dim, extractor.trained_on_reference) == (512, False)
    real, same = pictures(80, seed=0, size=32), pictures(80, seed=1, size=32)
    noise = np.random.default_rng(0).normal(0, 12, same.shape)
    changed = {
        "same": same,
        "darker": (same * 0.8).astype(np.uint8),
        "blurred": (same // 2 + np.roll(same, 1, axis=2) // 2).astype(np.uint8),
        "noisy": (same + noise).clip(0, 255).astype(np.uint8),
    }
    x = extractor.features(real)
    assert x.probabilities is None
    distances = {name: kernel_distance(x.features, extractor.features(y).features).value for name, y in changed.items()}
    assert abs(distances["same"]) < 0.3 * min(distances["blurred"], distances["noisy"])
    assert abs(distances["darker"]) < 0.3 * min(distances["blurred"], distances["noisy"])
    with pytest.raises(UserError, match="takes no file"):
        make_extractor("gist=weights.pth")


def test_gist_finds_the_direction_and_the_place_of_stripes():
    stripes = np.zeros((2, 64, 64, 1), np.uint8)
    wave = (127 + 100 * np.sin(2 * np.pi * 0.16 * np.arange(64))).astype(np.uint8)
    stripes[0, :, :32, 0] = wave[:32]  # upright, left
    stripes[1, 32:, :, 0] = wave[32:, None]  # lying, below
    energies = make_extractor("gist", device="cpu").features(stripes).features.reshape(2, 4, 8, 4, 4)
    for image, (orientation, place) in enumerate(((0, np.s_[:, :2]), (4, np.s_[2:, :]))):
        by_direction = energies[image, 1][:, *place].sum(axis=(1, 2))
        assert by_direction.argmax() == orientation
        assert energies[image, 1, orientation][place].sum() > 0.8 * energies[image, 1, orientation].sum()


def test_gist_of_an_image_is_the_same_alone_and_in_a_batch_and_for_grey_and_its_rgb_copy():
    extractor = make_extractor("gist", device="cpu")
    grey = pictures(5, seed=2, size=32)
    whole = extractor.features(grey).features
    np.testing.assert_allclose(extractor.features(grey[3:4]).features[0], whole[3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(extractor.features(np.repeat(grey, 3, axis=3)).features, whole, rtol=1e-4, atol=1e-4)
