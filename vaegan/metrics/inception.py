"""The `inception` extractor: torch-fidelity's FID network, or a trunk of it, from a file or its own download."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.metrics.extractor import Extractor, as_rgb, read_weights

FID_SHA256_PREFIX = "6726825d"
"""Of the network of 2015-12-05 as torch-fidelity converted it: the only one whose numbers are FID, KID and IS."""
KERAS_TRUNK_SHA256 = "40b25ecf9fba6e6d02f8a4d1ce4db7b67cbf1354af122c21308f10baf684221e"
RESIZE = "to 299x299, bilinear as in TensorFlow 1, no antialiasing, no rounding (torch-fidelity)"
_HEAD = ("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool", "fc")


def inception_extractor(weights: Path | None = None, device: str = "cpu") -> Extractor:
    """Inception v3 with the layers that its weights file holds.

    A file of the whole network gives layer 2048 and the classes of `logits_unbiased`, as torch-fidelity uses them; one
    that ends at Mixed_6e gives layer 768 and no classes. The file's sha256 decides on the name.

    Args:
        weights: .pth or .safetensors; None downloads the FID network into torch's cache, or finds it there.

    Raises:
        UserError: no file and no network to get it from; or a file of something else.
    """
    path = weights or fid_weights()
    state = read_weights(path)
    sha256 = file_sha256(path)
    whole = "fc.weight" in state
    layers = ["2048", "logits_unbiased"] if whole else ["768"]
    network = _build(state, layers, path).to(device).to(memory_format=torch.channels_last)

    def extract(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs = network(as_rgb(batch).contiguous(memory_format=torch.channels_last))
        return outputs[0], outputs[1] if whole else None

    return Extractor(
        name=_name(sha256, whole, path),
        layer=layers[0],
        weights_sha256=sha256,
        resize=RESIZE,
        dim=int(layers[0]),
        network=extract,
        device=device,
        is_fid_network=sha256.startswith(FID_SHA256_PREFIX),
    )


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

    def __init__(self, features_list: list[str], state: dict[str, Tensor]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        super().__init__("augray-inception", features_list, feature_extractor_weights_path=buffer)

    def load_state_dict(self, state_dict, *args, **kwargs):  # type: ignore[no-untyped-def]
        if "fc.weight" not in state_dict:
            for unused in _HEAD:
                delattr(self, unused)
        return super().load_state_dict(state_dict, strict=True)


def _build(state: dict[str, Tensor], layers: list[str], path: Path) -> torch.nn.Module:
    try:
        return _Trunk(layers, state)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:160]
        raise UserError(f"the weights in {path} don't fit torch-fidelity's Inception v3 ({problem})") from error


def _name(sha256: str, whole: bool, path: Path) -> str:
    if sha256.startswith(FID_SHA256_PREFIX):
        return "Inception v3 (FID network, 2015-12-05)"
    if sha256 == KERAS_TRUNK_SHA256:
        return "Inception-768 (Keras ImageNet trunk)"
    return f"Inception v3 ({path.name})" if whole else f"Inception-768 ({path.name})"
