"""Encoder, decoder and discriminator of Rguibi et al. 2023 (section 4.3) at any width and at 32 to 256 pixels."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vaegan.collectives import num_workers, sum_over_workers

SIZES = (32, 64, 128, 256)
FEW_ROWS = 16
GROUPS = 8  # of a group norm, or one a channel where there are fewer
COARSE = 8  # side of the smallest feature map: 8 x 8, as in the paper


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The networks' shapes; image size and classes come from the dataset."""

    kind: Literal["vaegan", "vae", "gan"] = "vaegan"
    """Which networks there are: `vae` has no discriminator, `gan` no encoder."""
    width: int = 64
    """Filters of the first convolution; deeper ones have 2 and 4 times as many. The paper has 64."""
    latent_dim: int = 128
    """Dimensions of z."""
    hidden: int = 2048
    """Units of the encoder's dense layer before mean and log variance."""
    norm: Literal["group", "batch", "none"] = "group"
    """Normalisation of encoder and decoder."""
    discriminator_norm: Literal["group", "batch", "none"] = "group"
    """Normalisation of the discriminator; `batch` mixes real and generated images in one statistic."""
    spectral_norm: bool = False
    """Divide each of the discriminator's weights by its largest singular value (Miyato et al. 2018)."""
    conditional: bool = True
    """Whether labels enter the networks; the paper's model is unconditional."""
    feature_layer: int = 3
    """Which of the discriminator's convolutions is Dis_l, counted from 1."""

    def __post_init__(self) -> None:
        for name in ("width", "latent_dim", "hidden", "feature_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: expected 1 or more")


class DistributedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose moments cover the batches of all workers, so that N workers equal one with the whole batch.

    nn.SyncBatchNorm refuses CPU tensors. Without a process group this is nn.BatchNorm2d. Equal batches on every worker.
    """

    def forward(self, x: Tensor) -> Tensor:
        workers = num_workers()
        if not self.training or workers == 1:
            return super().forward(x)
        count = x.numel() / x.shape[1] * workers
        wide = _widened(x)
        local = torch.stack([wide.sum(dim=(0, 2, 3)), wide.square().sum(dim=(0, 2, 3))])
        mean, mean_square = sum_over_workers(local) / count
        var = mean_square - mean.square()
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            momentum = self.momentum or 0.1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * count / (count - 1), momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return DistributedBatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(min(GROUPS, channels), channels)
    return nn.Identity()


def _has_bias(kind: str, channels: int) -> bool:
    """Whether a bias before this normalisation does anything.

    One channel per statistic, as in batch norm, subtracts it again: its true gradient is 0, and an optimiser that
    divides by the gradient's size turns that 0's rounding error into steps of a whole learning rate.
    """
    return not (kind == "batch" or (kind == "group" and channels <= GROUPS))


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether an image's result depends on the others in its batch, in training."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _widened(x: Tensor) -> Tensor:
    """What autocast computed in half precision as float32: losses and tanh need its digits."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _filters(width: int, size: int) -> list[int]:
    """Filters of the stride-2 stages between an image of `size` and the coarsest map: 64, 128, 256 at 64 pixels."""
    stages = (size // COARSE).bit_length() - 1
    return [width * min(2**i, 4) for i in range(stages)]


class Encoder(nn.Module):
    """Images and labels to mean and log variance of q(z|x).

    Three (at 64 pixels) 5x5 convolutions of stride 2, dense `hidden`, then two dense heads. Labels join the
    flattened maps before the dense layer.
    """

    def __init__(self, config: NetworkConfig, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = channels
        for filters in _filters(config.width, size):
            bias = _has_bias(config.norm, filters)
            layers += [
                nn.Conv2d(previous, filters, 5, stride=2, padding=2, bias=bias),
                _norm(config.norm, filters),
                nn.ReLU(),
            ]
            previous = filters
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Linear(previous * COARSE**2 + num_classes, config.hidden)
        self.mu = nn.Linear(config.hidden, config.latent_dim)
        self.log_var = nn.Linear(config.hidden, config.latent_dim)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) in [-1, 1], labels (N, K) -> mu and log_var, each (N, D), float32."""
        maps = self.convolutions(x).flatten(1)
        h = torch.relu(self.dense(torch.cat([maps, labels.to(maps.dtype)], dim=1)))
        # beyond e^±10 a variance is numerically 0 or infinite; the bound keeps one bad step from becoming NaN
        return _widened(self.mu(h)), _widened(self.log_var(h)).clamp(-10, 10)


class Decoder(nn.Module):
    """Latents and labels to images: dense 8x8x256, transposed 5x5 convolutions of stride 2, one of stride 1, tanh."""

    def __init__(self, config: NetworkConfig, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        filters = _filters(config.width, size)[::-1]
        self.coarse_filters = filters[0]
        self.dense = nn.Linear(config.latent_dim + num_classes, filters[0] * COARSE**2)
        layers: list[nn.Module] = [_norm(config.norm, filters[0]), nn.ReLU()]
        previous = filters[0]
        for count in filters:
            layers += [
                nn.ConvTranspose2d(
                    previous, count, 5, stride=2, padding=2, output_padding=1, bias=_has_bias(config.norm, count)
                ),
                _norm(config.norm, count),
                nn.ReLU(),
            ]
            previous = count
        layers += [nn.ConvTranspose2d(previous, channels, 5, stride=1, padding=2)]
        self.deconvolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z (N, D), labels (N, K) -> images (N, C, H, W) in [-1, 1], float32."""
        h = self._project(torch.cat([z, labels.to(z.dtype)], dim=1))
        return torch.tanh(_widened(self.deconvolutions(h.view(-1, self.coarse_filters, COARSE, COARSE))))

    def _project(self, inputs: Tensor) -> Tensor:
        """The dense layer, padded with rows when there are few.

        Below 8 rows the matrix product takes another path with other rounding (the convolutions don't); padded, a
        sample's bytes do not depend on how many are drawn with it.
        """
        if self.training or len(inputs) >= FEW_ROWS:
            return self.dense(inputs)
        return self.dense(nn.functional.pad(inputs, (0, 0, 0, FEW_ROWS - len(inputs))))[: len(inputs)]


class Discriminator(nn.Module):
    """Images and labels to a logit, and the maps of one convolution: Dis_l.

    5x5 convolutions: one of stride 1, the rest of stride 2 (64; 128, 256, 256 at 64 pixels), then a dense unit. Labels
    enter by projection (Miyato & Koyama 2018): the inner product of their embedding with the summed last maps.
    """

    def __init__(self, config: NetworkConfig, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        normalise = spectral_norm if config.spectral_norm else lambda module: module
        filters = [config.width] + [config.width * min(2**i, 4) for i in range(1, len(_filters(1, size)) + 1)]
        if config.feature_layer > len(filters):
            raise ValueError(
                f"model.feature_layer is {config.feature_layer}: at {size} pixels the discriminator has "
                f"{len(filters)} convolutions; expected 1 to {len(filters)}"
            )
        self.feature_layer = config.feature_layer
        self.convolutions = nn.ModuleList()
        previous = channels
        for i, count in enumerate(filters):
            kind = config.discriminator_norm if i else "none"
            convolution = nn.Conv2d(
                previous, count, 5, stride=1 if i == 0 else 2, padding=2, bias=_has_bias(kind, count)
            )
            self.convolutions.append(nn.Sequential(normalise(convolution), _norm(kind, count), nn.LeakyReLU(0.2)))
            previous = count
        self.dense = normalise(nn.Linear(previous * COARSE**2, 1))
        self.embedding = normalise(nn.Linear(num_classes, previous, bias=False)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W), labels (N, K) -> logits (N,) before any sigmoid, Dis_l's maps (N, C', H', W'); float32."""
        h, features = x, x
        for i, convolution in enumerate(self.convolutions, start=1):
            h = convolution(h)
            if i == self.feature_layer:
                features = h
        logits = self.dense(h.flatten(1)).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels.to(h.dtype)) * h.mean(dim=(2, 3))).sum(dim=1)
        return _widened(logits), _widened(features)


class Networks(nn.Module):
    """The networks of one model; those that its kind lacks are None.

    Raises:
        ValueError: an image size other than 32, 64, 128 or 256.
    """

    def __init__(self, config: NetworkConfig, *, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(
                f"images of {size} pixels: the networks take {', '.join(map(str, SIZES))}; prepare with --size"
            )
        self.config, self.size, self.channels = config, size, channels
        self.num_classes = num_classes if config.conditional else 0
        shape = (config, size, channels, self.num_classes)
        self.decoder = Decoder(*shape)
        self.encoder = Encoder(*shape) if config.kind != "gan" else None
        self.discriminator = Discriminator(*shape) if config.kind != "vae" else None

    def present(self) -> dict[str, nn.Module]:
        """The networks that there are, by name, in a fixed order."""
        everything = dict(encoder=self.encoder, decoder=self.decoder, discriminator=self.discriminator)
        return {name: network for name, network in everything.items() if network is not None}

    def condition(self, labels: Tensor) -> Tensor:
        """What of the labels (N, K) enters the networks: all of it, or (N, 0) for an unconditional model."""
        return labels[:, : self.num_classes]
