"""The `inception` extractor: torch-fidelity's FID network, or a trunk of it, from a file or its own download."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, BasicConv2d, FeatureExtractorInceptionV3

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.metrics.extractor import Extractor, read_weights
from vaegan.metrics.folding import ConvReLU

FID_SHA256_PREFIX = "6726825d"
"""Of the network of 2015-12-05 as torch-fidelity converted it: the only one whose numbers are FID, KID and IS."""
KERAS_TRUNK_SHA256 = "40b25ecf9fba6e6d02f8a4d1ce4db7b67cbf1354af122c21308f10baf684221e"
SIDE = 299
RESIZE = "to 299x299, bilinear as in TensorFlow 1, no antialiasing, no rounding (torch-fidelity)"
STAGES = {
    "64": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    "192": ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    "768": ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    "2048": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}
"""Layers by their number of features, and the modules that each adds to the one before. Each is averaged over space."""
_HEAD = (*STAGES["2048"], "AvgPool", "fc")


def inception_extractor(weights: Path | None = None, device: str = "cpu", layer: str | None = None) -> Extractor:
    """Inception v3 with the layers that its weights file holds.

    A file of the whole network gives any layer and the classes of `logits_unbiased`, as torch-fidelity uses them; one
    that ends at Mixed_6e gives layers up to 768 and no classes. The file's sha256 decides on the name.

    Args:
        weights: .pth or .safetensors; None downloads the FID network into torch's cache, or finds it there.
        layer: "64", "192", "768" or "2048"; None takes the deepest that the file has.

    Raises:
        UserError: no file and no network to get it from; a file of something else, or without that layer.
    """
    path = weights or fid_weights()
    state = read_weights(path)
    sha256 = file_sha256(path)
    whole = "fc.weight" in state
    layer = layer or ("2048" if whole else "768")
    if layer not in STAGES:
        raise UserError(f"Inception has no layer {layer!r}: expected one of {', '.join(STAGES)}")
    if layer == "2048" and not whole:
        raise UserError(f"{path} ends before layer 2048: expected a whole network; type inception:768={path}")
    network = Inception(_build(state, path), layer).to(device).to(memory_format=torch.channels_last)
    return Extractor(
        name=_name(sha256, whole, layer, path),
        layer=layer,
        weights_sha256=sha256,
        resize=RESIZE,
        dim=int(layer),
        network=network,
        device=device,
        is_fid_network=sha256.startswith(FID_SHA256_PREFIX) and layer == "2048",
    )


class Inception(nn.Module):
    """The numbers of torch-fidelity's network, but for rounding, in about 60 % of its time on a CPU core.

    Batch norms are folded into convolutions; images are scaled to [-1, 1) before they are enlarged, not after; a grey
    image goes through one channel, with the sum of the first convolution's weights, since all three would be equal.
    """

    def __init__(self, network: FeatureExtractorInceptionV3, layer: str) -> None:
        super().__init__()
        _fold(network)
        names = [name for stage in STAGES.values() for name in stage]
        depth = names.index(STAGES[layer][-1]) + 1
        whole = hasattr(network, "fc")
        self.first = getattr(network, names[0])
        self.to_layer = nn.Sequential(*(getattr(network, name) for name in names[1:depth]))
        self.to_classes = nn.Sequential(*(getattr(network, name) for name in names[depth:])) if whole else None
        self.class_weight = nn.Parameter(network.fc.weight, requires_grad=False) if whole else None
        self.first_of_grey = copy.deepcopy(self.first)
        self.first_of_grey.conv.in_channels = 1
        self.first_of_grey.conv.weight = nn.Parameter(self.first.conv.weight.sum(1, keepdim=True), False)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, 1 or 3, H, W) to features (B, D) and, of a whole network, logits (B, 1008)."""
        x = enlarge((batch.float() - 128) / 128, SIDE).contiguous(memory_format=torch.channels_last)
        x = self.to_layer(self.first_of_grey(x) if x.shape[1] == 1 else self.first(x))
        features = x.mean(dim=(2, 3))
        if self.to_classes is None or self.class_weight is None:
            return features, None
        return features, self.to_classes(x).mean(dim=(2, 3)) @ self.class_weight.T


def enlarge(x: Tensor, side: int) -> Tensor:
    """Bilinear resize as in TensorFlow 1: output pixel i looks at i times the ratio of sizes, not at its centre.

    (B, C, H, W) float to (B, C, side, side). Equal to torch-fidelity's `interpolate_bilinear_2d_like_tensorflow1x` but
    for rounding: rows are mixed first, so that only columns are mixed at full size.
    """
    for dim in (2, 3):
        count = x.shape[dim]
        at = torch.arange(side, device=x.device, dtype=torch.float32) * torch.tensor(count / side, dtype=torch.float32)
        low = at.long()
        share = (at - low).view((-1, 1) if dim == 2 else (-1,))
        before, after = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(count - 1))
        x = after.sub_(before).mul_(share).add_(before)
    return x


def fid_weights() -> Path:
    """The FID network's file in torch's cache (`TORCH_HOME`), downloaded and checked by hash if it isn't there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=FID_SHA256_PREFIX, progress=False)
    except (OSError, RuntimeError) as error:  # no network; a hash that doesn't match
        raise UserError(
            f"the Inception weights can't be downloaded here ({error}): get {URL_INCEPTION_V3} on another machine and "
            f"put it at {path}, or give its place as --extractors inception=FILE"
        ) from error
    return path


class _Trunk(FeatureExtractorInceptionV3):
    """torch-fidelity's network from tensors in memory, so that no pickled code runs; without a head if they lack it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        super().__init__("augray-inception", ["64"], feature_extractor_weights_path=buffer)

    def load_state_dict(self, state_dict, *args, **kwargs):  # type: ignore[no-untyped-def]
        if "fc.weight" not in state_dict:
            for unused in _HEAD:
                delattr(self, unused)
        return super().load_state_dict(state_dict, strict=True)


def _build(state: dict[str, Tensor], path: Path) -> FeatureExtractorInceptionV3:
    try:
        return _Trunk(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:160]
        raise UserError(f"the weights in {path} don't fit torch-fidelity's Inception v3 ({problem})") from error


def _fold(network: nn.Module) -> None:
    """Each convolution with its batch norm as one `ConvReLU`, in place."""
    for name, child in network.named_children():
        if isinstance(child, BasicConv2d):
            setattr(network, name, ConvReLU(child.conv, child.bn))
        else:
            _fold(child)


def _name(sha256: str, whole: bool, layer: str, path: Path) -> str:
    if sha256.startswith(FID_SHA256_PREFIX):
        return "Inception v3 (FID network, 2015-12-05)"
    if sha256 == KERAS_TRUNK_SHA256:
        return f"Inception-{layer} (Keras ImageNet trunk)"
    return f"Inception v3 ({path.name})" if whole else f"Inception-{layer} ({path.name})"
