"""The `torchvision:ARCH` extractor: any classification network of torchvision, with weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.metrics.extractor import Extractor, load_weights, read_weights
from vaegan.metrics.folding import fold_batch_norms

KNOWN_FILES = {
    "1dd9a642265acee6b2cdf54fab5cd196bb98e3eb2b923caaf8fc3ca45bdae295": "SqueezeNet 1.1 (Caffe, ImageNet)",
}
"""Names by sha256 of the file; any other file is called by architecture and file name."""


def torchvision_extractor(arch: str, weights: Path, device: str = "cpu") -> Extractor:
    """The last pooled features of a torchvision classifier, and its class probabilities.

    Features are what the last dense (or, in SqueezeNet, 1x1 convolution) layer reads, averaged over space where it has
    any. Input size, mean and standard deviation are those torchvision publishes for the architecture; the whole image
    is resized, not cropped, since a film's edges are part of it. The number of classes is read from the file.

    Args:
        arch: a name of `torchvision.models.list_models(module=torchvision.models)`, such as squeezenet1_1 or resnet50.
        weights: a state dict with that network's keys, .safetensors or .pth.

    Raises:
        UserError: an unknown architecture, a file that is absent or of another network.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise UserError(f"torchvision has no classification network {arch!r}: expected one of {', '.join(known)}")
    network = _build(arch, read_weights(weights), weights)
    sha256 = file_sha256(weights)
    return _extractor(arch, network, KNOWN_FILES.get(sha256, f"{arch} ({weights.name})"), sha256, device)


def _extractor(arch: str, network: nn.Module, name: str, sha256: str, device: str) -> Extractor:
    """What reads a network's last layer's input, with torchvision's preprocessing for the architecture."""
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    size = preset.crop_size[0]
    network = fold_batch_norms(network, torch.linspace(-1, 1, 2 * 3 * size**2).reshape(2, 3, size, size))
    network = network.to(device).to(memory_format=torch.channels_last)
    last_name, last = _last_layer(network)
    mean, std = (torch.tensor(values, device=device) for values in (preset.mean, preset.std))
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def extract(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        x = F.interpolate(batch.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        # channels last from here on, so that the three of a grey image are first written out by the product
        x = (x.permute(0, 2, 3, 1) * (1 / (255 * std))).sub_(mean / std).permute(0, 3, 1, 2)
        seen.clear()
        logits = network(x)
        features = seen.pop()
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features, logits

    return Extractor(
        name=name,
        layer=f"input of {last_name}",
        weights_sha256=sha256,
        resize=f"to {size}x{size}, bilinear, antialiased, whole image, no rounding",
        dim=last.in_channels if isinstance(last, nn.Conv2d) else last.in_features,
        network=extract,
        device=device,
    )


def _build(arch: str, state: dict[str, Tensor], path: Path) -> nn.Module:
    """The architecture with as many classes as the file's last layer has."""
    last_name, last = _last_layer(_untrained(arch))
    last_weight = state.get(f"{last_name}.weight")
    if last_weight is None or last_weight.shape[1:] != last.weight.shape[1:]:
        raise UserError(f"{path} isn't a weights file of torchvision's {arch}: it lacks a matching layer {last_name}")
    network = _untrained(arch, num_classes=len(last_weight))
    load_weights(network, state, path, f"torchvision's {arch}")
    return network.eval().requires_grad_(False)


def _untrained(arch: str, **options: Any) -> nn.Module:
    if arch in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # minutes of random numbers that the file replaces
    return torchvision.models.get_model(arch, weights=None, **options)


def _last_layer(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1]
