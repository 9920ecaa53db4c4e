"""Pixels as tensors in [-1, 1], which the networks take and give, from uint8 arrays and back."""

import numpy as np
import torch
from torch import Tensor

UNLABELLED = 255
"""Among multi-hot uint8 labels on their way to a step: all of a row without a label, lest it count as one of zeros."""


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on a device. To a GPU it goes through pinned memory: this process need not wait for the copy."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_tensor(pixels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1]: 0 becomes -1 and 255 becomes 1."""
    grey = to_device(torch.from_numpy(np.ascontiguousarray(pixels)), device)  # a quarter of the bytes of floats
    return grey.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_labels(labels: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Multi-hot uint8 (N, K) to float32, with NaN for `UNLABELLED`: what uses it as a label comes to nothing."""
    found = torch.from_numpy(labels.astype(np.float32))
    return to_device(found.masked_fill_(found == UNLABELLED, torch.nan), device)


def to_pixels(x: Tensor) -> np.ndarray:
    """Float (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), rounded to the nearest grey level; values outside clip."""
    grey = x.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
