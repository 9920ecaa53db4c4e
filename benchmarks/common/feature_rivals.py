"""Networks as a user of torch-fidelity or clean-fid would write them, and the same weights for ours."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_fidelity
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True)
class Network:
    """One network in two forms."""

    name: str
    spec: str
    """Ours."""
    build: Callable[[], Callable[[Tensor], tuple[Tensor, Tensor | None]]]
    """Theirs: loads the weights, gives a function from uint8 (B, 3, H, W) to features and logits or None."""


def squeezenet(folder: Path) -> Network:
    """SqueezeNet 1.1 with its ImageNet weights where AUGRAY_SHARED has them, else with random ones: equally quick."""
    path = _shared("squeezenet1_1_imagenet.safetensors") or folder / "squeezenet1_1.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)

    def build() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        network = torchvision.models.squeezenet1_1(weights=None).eval()
        network.load_state_dict(load_file(path))

        def forward(images: Tensor) -> tuple[Tensor, Tensor]:
            x = F.interpolate(images.float() / 255, size=(224, 224), mode="bilinear", antialias=True)
            features = network.features((x - MEAN) / STD)
            return features.mean(dim=(2, 3)), network.classifier(features).flatten(1)

        return forward

    return Network("squeezenet", f"torchvision:squeezenet1_1={path}", build)


def inception_trunk(folder: Path) -> Network:
    """torch-fidelity's Inception v3 to layer 768, with the Keras weights where AUGRAY_SHARED has them."""
    path = _shared("inception_v3_imagenet_to_mixed7_fp16.safetensors") or folder / "inception_768.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file({name: value.contiguous() for name, value in Trunk({}).state_dict().items()}, path)

    def build() -> Callable[[Tensor], tuple[Tensor, None]]:
        network = Trunk(load_file(path))
        return lambda images: (network(images)[0], None)

    return Network("inception", f"inception:768={path}", build)


class Trunk(FeatureExtractorInceptionV3):
    """torch-fidelity's network up to layer 768, from weights in memory; without any they stay random."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        super().__init__("trunk", ["768"], feature_extractor_weights_path=buffer)

    def load_state_dict(self, state_dict, *args, **kwargs):  # type: ignore[no-untyped-def]
        for unused in ("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool", "fc"):
            delattr(self, unused)
        return super().load_state_dict(state_dict, strict=True) if state_dict else None


def register(network: Network) -> str:
    """Make a network known to torch-fidelity; the name it has there."""

    class Registered(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_options: object) -> None:
            super().__init__(name, features_list)
            self.network = network.build()

        def forward(self, images: Tensor) -> tuple[Tensor | None, ...]:
            features, logits = self.network(images)
            return tuple({"pooled": features, "logits": logits}[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "pooled"

    name = f"benchmark-{network.name}"
    torch_fidelity.register_feature_extractor(name, Registered)
    return name


def _shared(name: str) -> Path | None:
    path = Path(os.environ.get("AUGRAY_SHARED", "/nowhere")) / "weights" / name
    return path if path.exists() else None
