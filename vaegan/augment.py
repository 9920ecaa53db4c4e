"""DiffAugment (Zhao et al. 2020): differentiable random changes of everything that the discriminator sees.

With ADA (Karras et al. 2020): only a share of the images is changed, as much as the discriminator's overfitting asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

Change = Literal["colour", "translation", "cutout", "rotation", "zoom"]
CHANGES: tuple[Change, ...] = get_args(Change)
POLICY: tuple[Change, ...] = ("colour", "translation", "cutout")
"""The reference's."""
NUM_DRAWS = 9  # uniforms per image: brightness, contrast, shift (2), centre of the cutout (2), coin, angle, zoom
FIRST_DRAWS = 6  # of them that there were before coin, angle and zoom
STEER_EVERY = 4
"""Steps after which p is adjusted, as in ADA."""
MAX_PROBABILITY = 0.8
"""ADA found that changes leak into the samples above it: too few images are left that show what is a change."""


def draw_uniforms(rows: int, columns: int, *, generator: torch.Generator) -> Tensor:
    """`torch.rand(rows, columns)`, the first six columns on their own: its values depend on the shape asked for."""
    first = torch.rand(rows, FIRST_DRAWS, generator=generator)
    return torch.cat([first, torch.rand(rows, columns - FIRST_DRAWS, generator=generator)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What becomes of the images that the discriminator sees, real and generated ones alike."""

    strength: float = 0.0
    """1 is the reference's, 0 none; see `diff_augment`."""
    policy: tuple[Change, ...] = POLICY
    probability: float | Tensor | None = None
    """Of an image to be changed at all; None changes all, and tosses no coin. A tensor is 0-dim, on their device."""

    @staticmethod
    def of(how: "float | Augmentation") -> "Augmentation":
        """Itself, or the reference's policy in this strength."""
        return how if isinstance(how, Augmentation) else Augmentation(strength=how)

    @property
    def active(self) -> bool:
        """Whether any image may be changed. A probability on a device isn't waited for."""
        return self.strength > 0 and (isinstance(self.probability, Tensor) or self.probability != 0)

    def __call__(self, x: Tensor, uniforms: Tensor) -> Tensor:
        """`diff_augment` with this strength, policy and probability."""
        return diff_augment(x, uniforms, self.strength, self.policy, self.probability)


def diff_augment(
    x: Tensor,
    uniforms: Tensor,
    strength: float,
    policy: Sequence[Change] = POLICY,
    probability: float | Tensor | None = None,
) -> Tensor:
    """Brightness, contrast, translation and a cutout, the same for the same uniforms.

    Real images and their reconstructions must get the same uniforms, or their Dis_l maps can't be compared.

    Args:
        x: images (N, C, H, W) in [-1, 1]; the result may leave that range, as the reference's does.
        uniforms: (N, 9) in [0, 1); the first six are enough without probability, rotation and zoom.
        strength: 1 is the reference's: brightness ±0.5, contrast x0.5 to x1.5, shifts of 1/8, a cutout of half
            the side. Rotation is then by ±10 degrees (ADA turns all the way, and no patient is filmed upside down),
            zoom by 2^±0.2 (the standard deviation of ADA's).
        policy: which changes are made, in whatever order they are named; the reference's first three by default.
        probability: of an image to be changed, all changes at once by one coin (ADA tosses one for each); the others
            stay as they are, bit for bit. None changes all.
    """
    u = (uniforms * 2 - 1)[:, :, None, None, None].to(x.dtype)
    original = x
    if "colour" in policy:
        x = x + u[:, 0] * 0.5 * strength
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * (1 + u[:, 1] * 0.5 * strength) + mean
    height, width = x.shape[2:]
    if not {"translation", "rotation", "zoom"}.isdisjoint(policy):
        # whole pixels, as in the reference: a fraction would blur, and the blur would leak into the samples
        shift = (u[:, 2:4, 0, 0, 0] * strength / 8 * width).round() * 2 / width * ("translation" in policy)
        if "rotation" in policy or "zoom" in policy:
            angle = u[:, 7, 0, 0, 0] * strength * (torch.pi / 18) * ("rotation" in policy)
            x = _turned(x, shift, angle, torch.exp2(u[:, 8, 0, 0, 0] * strength * 0.2 * ("zoom" in policy)))
        else:
            x = _shifted(x, shift)
    if "cutout" in policy:
        x = x * _cutout_mask(u[:, 4:6, 0, 0, 0], height, width, 0.5 * min(strength, 1.0))
    if probability is None:
        return x
    return torch.where((uniforms[:, 6] < probability)[:, None, None, None], x, original)


def _shifted(x: Tensor, shift: Tensor) -> Tensor:
    """Each image moved by (N, 2) halves of its side, black beyond its border."""
    theta = torch.eye(2, 3, device=x.device, dtype=x.dtype).repeat(len(x), 1, 1)
    theta[:, :, 2] = shift
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    # -1 is black, the film's own background; grid_sample pads with 0, so move black there and back
    return grid_sample(x + 1, grid, mode="nearest", align_corners=False) - 1


def _turned(x: Tensor, shift: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """The same with a rotation in radians (N,) and a magnification (N,); between pixels, values are interpolated."""
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 has too few digits for places between pixels
        grid = affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
        return grid_sample(x + 1, grid, mode="bilinear", align_corners=False) - 1


def _cutout_mask(centre: Tensor, height: int, width: int, side: float) -> Tensor:
    """(N, 1, H, W): 0 in a square of `side` (a share of the image's) around a centre (N, 2) in [-1, 1], else 1."""
    rows = torch.linspace(-1, 1, height, device=centre.device, dtype=centre.dtype)
    columns = torch.linspace(-1, 1, width, device=centre.device, dtype=centre.dtype)
    inside_rows = (rows[None] - centre[:, :1]).abs() < side
    inside_columns = (columns[None] - centre[:, 1:]).abs() < side
    return (~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])).to(centre.dtype)


def steered(probability: float, real_sign: float, *, target: float, images: int, ramp_images: int) -> float:
    """ADA's next p (Karras et al. 2020, section 3.1): up while r_t is above its target, down while it is below.

    Args:
        real_sign: r_t, the mean sign of the discriminator's logits of real images, -1 to 1: 1 where it knows them all,
            which it does by heart sooner or later, 0 where it can't tell them from generated ones. NaN leaves p.
        images: that it is the mean over, all workers together.
        ramp_images: in which p goes from 0 to 1 when r_t stays above the target.

    Returns:
        p in [0, `MAX_PROBABILITY`].
    """
    direction = (real_sign > target) - (real_sign < target)
    return min(max(probability + direction * images / ramp_images, 0.0), MAX_PROBABILITY)
