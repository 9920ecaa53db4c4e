"""What every feature extractor has in common: its stamp, and uint8 images in, one row of features per image out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cluster.errors import UserError
from vaegan.tensors import to_device

EXTRACTION_VERSION = 1
"""Raised when a change here, or of a network's preprocessing, moves features beyond rounding: no cache may mix them."""

CPU_BATCH, GPU_BATCH = 8, 256


@dataclass(frozen=True)
class Features:
    """What an extractor says of N images."""

    features: np.ndarray
    """(N, D) float32."""
    probabilities: np.ndarray | None
    """(N, K) float32, each row a softmax over exclusive classes; None where the network has no such classifier."""

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: np.ndarray) -> Features:
        return Features(self.features[rows], None if self.probabilities is None else self.probabilities[rows])


@dataclass(frozen=True)
class Extractor:
    """A network with the stamp that its numbers carry."""

    name: str
    """As it stands in labels, such as "SqueezeNet 1.1 (Caffe, ImageNet)"."""
    layer: str
    weights_sha256: str
    resize: str
    """In words: how an image's size becomes the network's."""
    dim: int
    """D, features per image."""
    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    """uint8 (B, C, H, W), C 1 or 3, to features (B, D) and logits (B, K) or None."""
    device: str = "cpu"
    is_fid_network: bool = False
    """Only then may its numbers be called FID, KID and Inception Score."""
    trained_on_reference: bool = False
    """The network has seen the real images it judges by, so real images it hasn't seen make the fairer floor."""
    spec: str = ""
    """What another process can make it from, by `make_extractor`; "" where that takes more than a spec."""

    @property
    def stamp(self) -> dict[str, str | int]:
        return {
            "name": self.name,
            "layer": self.layer,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "dim": self.dim,
        }

    @property
    def key(self) -> str:
        """All that moves the numbers besides the pixels, the last digits included: what they may be cached under."""
        about = {"stamp": self.stamp, "code": EXTRACTION_VERSION, "torch": torch.__version__, "dtype": "float32"}
        return json.dumps(about | {"device": torch.device(self.device).type}, sort_keys=True)

    def features(self, pixels: np.ndarray, batch_size: int | None = None) -> Features:
        """Features of uint8 (N, H, W, C) images, N >= 1. A row depends on its image alone, but for rounding.

        Args:
            batch_size: images per forward pass; None takes 8 on a CPU, whose caches hold no more, and 256 on a GPU.

        Raises:
            UserError: a feature is not a finite number, as with a damaged weights file.
        """
        batch_size = batch_size or (CPU_BATCH if torch.device(self.device).type == "cpu" else GPU_BATCH)
        rows, classes = [], []
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):  # TF32 keeps three digits
            for start in range(0, len(pixels), batch_size):
                batch = torch.from_numpy(np.array(pixels[start : start + batch_size]))  # Ray's arrays are read-only
                features, logits = self.network(to_device(batch, self.device).permute(0, 3, 1, 2))
                rows.append(features.float())
                if logits is not None:
                    classes.append(logits.float().softmax(dim=1))
            # a GPU is waited for once, here, not once a batch
            result = Features(torch.cat(rows).cpu().numpy(), torch.cat(classes).cpu().numpy() if classes else None)
        if not np.isfinite(result.features).all():
            raise UserError(f"{self.name}: features that are not finite; its weights file is damaged, get it again")
        return result


def as_rgb(batch: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) to (B, 3, H, W): a grey channel is repeated."""
    return batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch


def pick_device(device: str) -> str:
    """The device that "auto" means here: cuda where there is one, else cpu; any other is itself.

    Raises:
        UserError: "cuda" where torch finds none.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch finds no GPU for --device cuda; take --device auto, or install torch's CUDA build")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a .pth/.pt state dict, read without running any pickled code.

    Raises:
        UserError: the file is absent, unreadable or holds something else.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}: expected a .safetensors or .pth state dict; check the path after `=`")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no readable weights file ({_first_line(error)}); get it again") from error
    except Exception as error:  # pickle.UnpicklingError and what a foreign pickle may raise while being refused
        raise UserError(
            f"{path} holds more than tensors ({_first_line(error)}); expected a plain state dict, best as .safetensors"
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict of tensors; write one: torch.save(network.state_dict(), FILE)")
    return state


def load_weights(network: torch.nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    """`load_state_dict` where a mismatch becomes one sentence."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the weights in {path} don't fit {what} ({' '.join(str(error).split())[:200]}); give that network's file"
        ) from error


def state_sha256(state: dict[str, Tensor]) -> str:
    """sha256 of names, shapes and values of a state dict, whatever file it came from or none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
