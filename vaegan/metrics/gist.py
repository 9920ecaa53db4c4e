"""The `gist` extractor: the spatial layout of edges and textures, by a bank of filters that nothing was fitted to."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cluster.storage import text_sha256
from vaegan.metrics.extractor import Extractor

SCALES, ORIENTATIONS, BLOCKS = 4, 8, 4
CUTOFF = 4  # cycles per image: slower changes of brightness are divided out
BORDER = 8  # px of mirror image around the film, so that the opposite edge doesn't leak in
SCALE = 20.0
"""Energies are a few hundredths, at which the kernel distance's cubic kernel is flat; times this they are about 1."""
RECIPE = (
    f"gist {SCALES} scales {ORIENTATIONS} orientations {BLOCKS}x{BLOCKS} cutoff {CUTOFF} border {BORDER} x{SCALE:g}"
)


def gist_extractor(device: str = "cpu") -> Extractor:
    """GIST of Oliva & Torralba 2001: Gabor energies at four scales and eight orientations on a 4x4 grid, 512 features.

    Filters and local normalisation are those of their LMgist code, but for the border (8 pixels, not 32). Brightness
    and contrast are divided out first. It sees where edges and textures of which width and direction lie, hence blur,
    noise, checkerboards or a misplaced diaphragm; of disease it knows nothing. It needs no weights and takes images at
    their own size, so its numbers compare at one size only.
    """

    def extract(batch: Tensor) -> tuple[Tensor, None]:
        size = (batch.shape[2] + 2 * BORDER, batch.shape[3] + 2 * BORDER)
        energies = _energies(_normalised(batch.float().mean(dim=1), size), gabor_bank(*size).to(batch.device))
        return SCALE * F.adaptive_avg_pool2d(energies, BLOCKS).flatten(1), None

    return Extractor(
        name="GIST filters",
        layer=f"{SCALES} scales, {ORIENTATIONS} orientations, {BLOCKS}x{BLOCKS} places",
        weights_sha256=text_sha256(RECIPE),
        resize="none (as stored)",
        dim=SCALES * ORIENTATIONS * BLOCKS**2,
        network=extract,
        device=device,
    )


@cache
def gabor_bank(height: int, width: int) -> Tensor:
    """Transfer functions (32, H, W), real: Gaussians in log-polar frequency, finest scale first.

    Centres at .3, .16, .088 and .047 cycles per pixel.
    """
    fy, fx = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    radius = (fy[:, None] ** 2 + fx**2).sqrt()
    angle = torch.atan2(fy[:, None], fx.expand(height, -1))
    filters = []
    for scale in range(SCALES):
        frequency = 0.3 / 1.85**scale
        for orientation in range(ORIENTATIONS):
            turned = angle + np.pi / ORIENTATIONS * orientation
            turned = (turned + np.pi) % (2 * np.pi) - np.pi
            spread = 16 * ORIENTATIONS**2 / 32**2
            filters.append(torch.exp(-3.5 * (radius / frequency - 1) ** 2 - 2 * spread * np.pi * turned**2))
    return torch.stack(filters).float()


@cache
def slow_changes(height: int, width: int) -> Tensor:
    """Transfer function (H, W) of a Gaussian that keeps less than `CUTOFF` cycles per image."""
    fy, fx = (torch.fft.fftfreq(side) * side for side in (height, width))
    return torch.exp(-(fy[:, None] ** 2 + fx**2) * np.log(2) / CUTOFF**2)


def _normalised(grey: Tensor, size: tuple[int, int]) -> Tensor:
    """log brightness less its slow changes, divided by its local spread: (B, H, W) to (B, *size)."""
    slow = slow_changes(*size).to(grey.device)
    x = torch.log1p(F.pad(grey, [BORDER] * 4, mode="reflect"))
    x = x - _filtered(x, slow).real
    return x / (0.2 + _filtered(x.square(), slow).real.clamp(min=0).sqrt())


def _energies(x: Tensor, bank: Tensor) -> Tensor:
    """(B, H, W) to magnitudes (B, 32, H - border, W - border)."""
    found = torch.fft.ifft2(torch.fft.fft2(x)[:, None] * bank).abs()
    return found[..., BORDER:-BORDER, BORDER:-BORDER]


def _filtered(x: Tensor, transfer: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(x) * transfer)
