"""The `torchscript` extractor: whatever network a TorchScript file holds. Such a file is a program."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.metrics.extractor import Extractor, as_rgb

PROBED_SIDES = (299, 224, 256, 64, 32)
"""Sizes of an image that is tried, until the module takes one: it may be made for one size alone."""
CONVENTION = (
    "expected one that maps uint8 or float32 RGB (N, 3, H, W) of 0 to 255 to features (N, D), or to a tuple of these "
    "and logits (N, K)"
)


def torchscript_extractor(path: Path, device: str = "cpu") -> Extractor:
    """A module saved by `torch.jit.save`, which does its own resizing and scaling.

    It is called with RGB images as uint8 (N, 3, H, W), or, if it refuses, with the same values as float32, and returns
    features (N, D) or a tuple (features, logits (N, K) over exclusive classes). A module whose forward has an argument
    `return_features`, as NVIDIA's inception-2015-12-05.pt, is called with return_features=True; no classes then.

    **The file is a program** that runs as you, with your rights, when it is used. Unlike a state dict it can't be read
    without running it: take it from those alone whose software you would install. `torch.export`'s .pt2 is not read:
    most of them are made for one number of images.

    Raises:
        UserError: no such file, no TorchScript, or a module that isn't of this form.
    """
    if not path.is_file():
        raise UserError(f"no TorchScript file {path}: {CONVENTION}; check the path after `=`")
    try:
        with warnings.catch_warnings():
            # torch 2.14 would have files made anew with torch.export; there is no other reader for those that exist
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
            module = torch.jit.load(path, map_location=device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"{path} is no TorchScript file ({reason}); save one with torch.jit.save") from None
    network = _Module(module.eval(), path)
    return Extractor(
        name=f"TorchScript ({path.name})",
        layer="output",
        weights_sha256=file_sha256(path),
        resize="by the module itself",
        dim=_probe(network, device),
        network=network,
        device=device,
    )


class _Module:
    """The module as an extractor's network."""

    def __init__(self, module: Any, path: Path) -> None:
        self.module, self.path = module, path
        arguments = {argument.name for argument in module.forward.schema.arguments}
        self.options = {"return_features": True} if "return_features" in arguments else {}
        self.dtype = torch.uint8

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, 1 or 3, H, W) to features and logits or None.

        Raises:
            UserError: the module fails with such images, or returns something else.
        """
        try:
            found = self.module(as_rgb(batch).contiguous().to(self.dtype), **self.options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-160:]
            size = "x".join(map(str, batch.shape[2:]))
            raise UserError(f"{self.path} fails with {size} images ({reason}); resize them to what it takes") from None
        features, logits = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        for part in (features,) if logits is None else (features, logits):
            if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(batch):
                shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise UserError(f"{self.path} returns {shape} for {len(batch)} images: {CONVENTION}")
        return features, logits


def _probe(network: _Module, device: str) -> int:
    """Features per image, found by trying; the network goes on with the type of images that it took."""
    problem = ""
    for side in PROBED_SIDES:
        image = torch.arange(side * side, device=device).reshape(1, 1, side, side).remainder(251).to(torch.uint8)
        for dtype in (torch.uint8, torch.float32):
            network.dtype = dtype
            try:
                with torch.inference_mode():
                    return network(image)[0].shape[1]
            except UserError as error:
                problem = problem or str(error)
    raise UserError(problem if CONVENTION in problem else f"{problem}; {CONVENTION}")
