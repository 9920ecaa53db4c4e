"""DiffAugment (Zhao et al. 2020): differentiable random changes of everything that the discriminator sees."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

NUM_DRAWS = 6  # uniforms per image that `diff_augment` consumes


def diff_augment(x: Tensor, uniforms: Tensor, strength: float) -> Tensor:
    """Brightness, contrast, translation and a cutout, the same for the same uniforms.

    Real images and their reconstructions must get the same uniforms, or their Dis_l maps can't be compared.

    Args:
        x: images (N, C, H, W) in [-1, 1]; the result may leave that range, as the reference's does.
        uniforms: (N, 6) in [0, 1).
        strength: 1 is the reference's: brightness ±0.5, contrast x0.5 to x1.5, shifts of 1/8, a cutout of half
            the side.
    """
    u = (uniforms * 2 - 1)[:, :, None, None, None].to(x.dtype)
    x = x + u[:, 0] * 0.5 * strength
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + u[:, 1] * 0.5 * strength) + mean
    count, _, height, width = x.shape
    shift = torch.eye(2, 3, device=x.device, dtype=x.dtype).repeat(count, 1, 1)
    # whole pixels, as in the reference: a fraction would blur, and the blur would leak into the samples
    pixels = (u[:, 2:4, 0, 0, 0] * strength / 8 * width).round()
    shift[:, :, 2] = pixels * 2 / width
    grid = affine_grid(shift, list(x.shape), align_corners=False)
    # -1 is black, the film's own background; grid_sample pads with 0, so move black there and back
    x = grid_sample(x + 1, grid, mode="nearest", align_corners=False) - 1
    return x * _cutout_mask(u[:, 4:6, 0, 0, 0], height, width, 0.5 * min(strength, 1.0))


def _cutout_mask(centre: Tensor, height: int, width: int, side: float) -> Tensor:
    """(N, 1, H, W): 0 in a square of `side` (a share of the image's) around a centre (N, 2) in [-1, 1], else 1."""
    rows = torch.linspace(-1, 1, height, device=centre.device, dtype=centre.dtype)
    columns = torch.linspace(-1, 1, width, device=centre.device, dtype=centre.dtype)
    inside_rows = (rows[None] - centre[:, :1]).abs() < side
    inside_columns = (columns[None] - centre[:, 1:]).abs() < side
    return (~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])).to(centre.dtype)
