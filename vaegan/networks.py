"""Encoder, decoder and discriminator of Rguibi et al. 2023 (section 4.3) at any width and at 32 to 256 pixels."""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vaegan.collectives import num_workers, sum_over_workers

SIZES = (32, 64, 128, 256)
FEW_ROWS = 16
GROUPS = 8  # of a group norm, or one a channel where there are fewer
COARSE = 8  # side of the smallest feature map: 8 x 8, as in the paper
MODULATION_UNITS = 32  # as in Chen et al. 2019

Modulation = tuple[Tensor, Tensor]
"""Scale and shift of normalised maps, (N, C, 1, 1) each."""


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
    blocks: Literal["plain", "residual"] = "plain"
    """`plain` stages are the paper's 5x5 convolutions; `residual` ones have two of 3x3 and a skip (Miyato et al. \
2018)."""
    modulation: bool = False
    """Scale and shift the decoder's normalised maps by functions of z and labels (Chen et al. 2019)."""
    label_head: bool = False
    """Let the encoder infer labels as well, which stand in for those of images that have none (after Kingma et al. 2014
    and, for GANs, Lucic et al. 2019)."""
    feature_layers: tuple[int, ...] = (3,)
    """Which of the discriminator's stages are Dis_l, counted from 1; L_like is the mean over them."""
    feature_layer: InitVar[int | None] = None
    """The name of `feature_layers` in configs and models from before there could be several."""

    def __post_init__(self, feature_layer: int | None) -> None:
        layers = self.feature_layers if feature_layer is None else (feature_layer,)
        object.__setattr__(self, "feature_layers", tuple(layers))  # JSON and YAML have lists
        for name in ("width", "latent_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: expected 1 or more")
        if not self.feature_layers:
            raise ValueError("model.feature_layers is empty: expected one or more of the discriminator's stages")
        for layer in self.feature_layers:
            if not isinstance(layer, int) or layer < 1:
                raise ValueError(f"model.feature_layers has {layer}: expected whole numbers, 1 or more")
            if self.feature_layers.count(layer) > 1:
                raise ValueError(f"model.feature_layers has {layer} more than once: expected each stage once")
        if self.modulation and self.norm == "none":
            raise ValueError(
                "model.modulation scales and shifts normalised maps, and model.norm none normalises nothing: "
                "choose norm group or batch, or leave modulation out"
            )
        if self.label_head and self.kind == "gan":
            raise ValueError("model.label_head is a part of the encoder, and model.kind gan has none")
        if self.label_head and not self.conditional:
            raise ValueError(
                "model.label_head infers labels, which enter no network with model.conditional false: leave it out; "
                "an unconditional model learns from images without labels as it is"
            )


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


NORMS = (nn.GroupNorm, DistributedBatchNorm2d)


def _channels(norm: nn.GroupNorm | DistributedBatchNorm2d) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


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


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows (N, D) with zeros below, (count, D)."""
    return nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _filters(width: int, size: int) -> list[int]:
    """Filters of the stride-2 stages between an image of `size` and the coarsest map: 64, 128, 256 at 64 pixels."""
    stages = (size // COARSE).bit_length() - 1
    return [width * min(2**i, 4) for i in range(stages)]


class UpConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a convolution of odd size k, as one transposed convolution of size k + 1.

    The same function without the upsampled maps in memory and, for a 3x3 one, with 4/9 of the products: where each
    pixel is there twice, the weights that meet it add up.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C', 2H, 2W)."""
        kernel = nn.functional.avg_pool2d(self.weight, 2, stride=1, padding=1, divisor_override=1)
        kernel = kernel.flip(2, 3).transpose(0, 1)
        return nn.functional.conv_transpose2d(x, kernel, self.bias, stride=2, padding=_halves(self))


class DownConv2d(nn.Conv2d):
    """A convolution of odd size k, then average pooling by 2, as one convolution of size k + 1: see `UpConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, C', H/2, W/2)."""
        kernel = nn.functional.avg_pool2d(self.weight, 2, stride=1, padding=1)
        return nn.functional.conv2d(x, kernel, self.bias, stride=2, padding=_halves(self))


def _halves(convolution: nn.Conv2d) -> tuple[int, ...]:
    """Padding at which maps keep their side."""
    return tuple(side // 2 for side in convolution.kernel_size)


class ResidualBlock(nn.Module):
    """What stands for a 5x5 convolution in networks of residual blocks: two 3x3 convolutions beside a 1x1 skip.

    Miyato et al. 2018, figure 8; Gulrajani et al. 2017, appendix F: upsampling comes before the branch's second
    convolution, pooling after it. The skip starts from activated maps, and one normalisation and activation follow the
    sum, as they do a plain convolution: so a stage's maps mean the same in both kinds, Dis_l keeps its scale, and the
    costliest part of a step on a CPU, the normalisations' backward passes, stays what it is.

    Args:
        resample: "up" doubles the side of the maps, "down" halves it.
        norm: what follows the sum.
        activation: between the two convolutions.
        normalise: what each convolution is wrapped in, such as a spectral norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resample: Literal["up", "down", "none"],
        *,
        norm: str,
        activation: nn.Module,
        normalise: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        super().__init__()
        inner = min(in_channels, out_channels)
        first = nn.Conv2d(in_channels, inner, 3, padding=1)
        kind = {"up": UpConv2d, "down": DownConv2d, "none": nn.Conv2d}[resample]
        second = kind(inner, out_channels, 3, padding=1, bias=_has_bias(norm, out_channels))
        skip = kind(in_channels, out_channels, 1, bias=False)  # the sum has the branch's bias
        for convolution in (first, second, skip):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.first, self.second, self.skip = normalise(first), normalise(second), normalise(skip)
        self.activation = activation
        # Branch and skip each keep the variance (He et al. 2015), so their sum has twice of it. A normalisation takes
        # that back; without one it would double from stage to stage.
        self.scale = 0.5**0.5 if norm == "none" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Activated maps x (N, C, H, W) -> the sum (N, C', H', W'), neither normalised nor activated."""
        branch = self.second(self.activation(self.first(x)))
        total = branch + self.skip(x)
        return total if self.scale == 1 else total * self.scale


class Encoder(nn.Module):
    """Images and labels to mean and log variance of q(z|x).

    Three (at 64 pixels) 5x5 convolutions of stride 2, dense `hidden`, then two dense heads. Labels join the
    flattened maps before the dense layer. With residual blocks the first stage is a 4x4 convolution of stride 2, since
    two at the image's own size cost as much as all the rest.

    The label head, if there is one, is a dense layer from those maps, before labels join, to a logit a class: q(y|x) of
    Kingma et al. 2014, "Semi-supervised learning with deep generative models" (M2). In place of their sum over all
    labels of an unlabelled image, which costs a pass for each, the networks take its expectation, soft labels; the GANs
    of Lucic et al. 2019, "High-fidelity image generation with fewer labels", are trained on inferred labels likewise.
    """

    def __init__(
        self, config: NetworkConfig, size: int, channels: int, num_classes: int, task: str = "multiclass"
    ) -> None:
        super().__init__()
        self.task = task
        layers: list[nn.Module] = []
        previous = channels
        for i, filters in enumerate(_filters(config.width, size)):
            bias = _has_bias(config.norm, filters)
            convolution: nn.Module
            if config.blocks == "plain":
                convolution = nn.Conv2d(previous, filters, 5, stride=2, padding=2, bias=bias)
            elif i == 0:
                convolution = nn.Conv2d(previous, filters, 4, stride=2, padding=1, bias=bias)
            else:
                convolution = ResidualBlock(previous, filters, "down", norm=config.norm, activation=nn.ReLU())
            layers += [convolution, _norm(config.norm, filters), nn.ReLU()]
            previous = filters
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Linear(previous * COARSE**2 + num_classes, config.hidden)
        self.mu = nn.Linear(config.hidden, config.latent_dim)
        self.log_var = nn.Linear(config.hidden, config.latent_dim)
        # last, so that the others begin with the weights that they have without it
        self.label_head = nn.Linear(previous * COARSE**2, num_classes) if config.label_head else None

    def forward(self, x: Tensor, labels: Tensor, *, infer: bool = False) -> tuple[Tensor, ...]:
        """x (N, C, H, W) in [-1, 1], labels (N, K) -> mu and log_var, each (N, D), float32.

        Args:
            infer: labels may have rows of NaN, which are not known: the label head's probabilities, detached, stand for
                them. The head's logits (N, K) and those labels (N, K) are then returned as well.
        """
        maps = self.convolutions(x).flatten(1)
        found: tuple[Tensor, ...] = ()
        if infer:
            assert self.label_head is not None
            logits = _widened(self.label_head(maps))
            inferred = (logits.softmax(dim=1) if self.task == "multiclass" else logits.sigmoid()).detach()
            labels = torch.where(labels.isnan(), inferred.to(labels.dtype), labels)
            found = logits, labels
        h = torch.relu(self.dense(torch.cat([maps, labels.to(maps.dtype)], dim=1)))
        # beyond e^±10 a variance is numerically 0 or infinite; the bound keeps one bad step from becoming NaN
        return _widened(self.mu(h)), _widened(self.log_var(h)).clamp(-10, 10), *found

    def predict(self, x: Tensor) -> Tensor:
        """The label head's decision on images (N, C, H, W), 0 and 1, (N, K): the likeliest class, or all above 1/2."""
        assert self.label_head is not None
        logits = _widened(self.label_head(self.convolutions(x).flatten(1)))
        if self.task == "multiclass":
            return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
        return (logits > 0).to(logits.dtype)


class SelfModulation(nn.Module):
    """Scales and shifts of normalised maps as a function of the decoder's input (Chen et al. 2019, section 3.1).

    Two dense layers with a ReLU between them for all normalisations together. The last starts at 0, and so the whole at
    the identity; it has no bias, since each normalisation has a weight and a bias of its own.

    Args:
        inputs: numbers per row that it sees.
        channels: of each normalisation.
    """

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.hidden = nn.Linear(inputs, MODULATION_UNITS)
        self.out = nn.Linear(MODULATION_UNITS, 2 * sum(channels), bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, inputs) -> (N, 2 * sum of channels): what `split` takes apart."""
        return self.out(torch.relu(self.hidden(inputs)))

    def split(self, rows: Tensor) -> list[Modulation]:
        """Scale and shift of each normalisation in turn, (N, C, 1, 1) each; the scale is 1 plus what was computed."""
        scales, shifts = (part[:, :, None, None].split(self.channels, dim=1) for part in rows.chunk(2, dim=1))
        return [(1 + scale, shift) for scale, shift in zip(scales, shifts, strict=True)]


class Decoder(nn.Module):
    """Latents and labels to images: dense 8x8x256, transposed 5x5 convolutions of stride 2, one of stride 1, tanh.

    With residual blocks the last convolution is 3x3, as theirs are.
    """

    def __init__(self, config: NetworkConfig, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        filters = _filters(config.width, size)[::-1]
        self.coarse_filters, self.residual = filters[0], config.blocks == "residual"
        inputs = config.latent_dim + num_classes
        self.dense = nn.Linear(inputs, filters[0] * COARSE**2)
        layers: list[nn.Module] = [_norm(config.norm, filters[0]), nn.ReLU()]
        previous = filters[0]
        for count in filters:
            convolution: nn.Module
            if self.residual:
                convolution = ResidualBlock(previous, count, "up", norm=config.norm, activation=nn.ReLU())
            else:
                bias = _has_bias(config.norm, count)
                convolution = nn.ConvTranspose2d(previous, count, 5, stride=2, padding=2, output_padding=1, bias=bias)
            layers += [convolution, _norm(config.norm, count), nn.ReLU()]
            previous = count
        if self.residual:
            layers += [nn.Conv2d(previous, channels, 3, padding=1)]
        else:
            layers += [nn.ConvTranspose2d(previous, channels, 5, stride=1, padding=2)]
        self.deconvolutions = nn.Sequential(*layers)
        modulated = [_channels(module) for module in self.deconvolutions if isinstance(module, NORMS)]
        self.modulation = SelfModulation(inputs, modulated) if config.modulation else None

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z (N, D), labels (N, K) -> images (N, C, H, W) in [-1, 1], float32."""
        inputs = torch.cat([z, labels.to(z.dtype)], dim=1)
        if self.residual and not self.training and len(inputs) == 1:
            return self._decode(_padded(inputs, 2))[:1]  # 3x3 convolutions of a lone image round in another way
        return self._decode(inputs)

    def _decode(self, inputs: Tensor) -> Tensor:
        h = self._project(self.dense, inputs).view(-1, self.coarse_filters, COARSE, COARSE)
        if self.modulation is None:
            h = self.deconvolutions(h)
        else:
            h = self._modulated(h, self.modulation.split(self._project(self.modulation, inputs)))
        return torch.tanh(_widened(h))

    def _modulated(self, h: Tensor, modulations: list[Modulation]) -> Tensor:
        """The deconvolutions, each of their normalisations followed by its modulation."""
        rest = iter(modulations)
        for layer in self.deconvolutions:
            h = layer(h)
            if isinstance(layer, NORMS):
                scale, shift = next(rest)
                h = torch.addcmul(shift, h, scale)
        return h

    def _project(self, layers: nn.Module, inputs: Tensor) -> Tensor:
        """Dense layers, padded with rows when there are few.

        Below 8 rows the matrix product takes another path with other rounding (the plain convolutions don't); padded, a
        sample's bytes do not depend on how many are drawn with it.
        """
        if self.training or len(inputs) >= FEW_ROWS:
            return layers(inputs)
        return layers(_padded(inputs, FEW_ROWS))[: len(inputs)]


class Discriminator(nn.Module):
    """Images and labels to a logit, and the maps of some of its stages: Dis_l.

    5x5 convolutions: one of stride 1, the rest of stride 2 (64; 128, 256, 256 at 64 pixels), then a dense unit. Labels
    enter by projection (Miyato & Koyama 2018): the inner product of their embedding with the summed last maps.

    With residual blocks the first stage is a 4x4 convolution of stride 2 and the second keeps the side, so that two
    convolutions at the image's own size are spared; from the second on each stage's maps have the plain one's shape.
    """

    def __init__(self, config: NetworkConfig, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        normalise = spectral_norm if config.spectral_norm else lambda module: module
        filters = [config.width] + [config.width * min(2**i, 4) for i in range(1, len(_filters(1, size)) + 1)]
        for layer in config.feature_layers:
            if layer > len(filters):
                raise ValueError(
                    f"model.feature_layers has {layer}: at {size} pixels the discriminator has "
                    f"{len(filters)} stages; expected 1 to {len(filters)}"
                )
        self.feature_layers = config.feature_layers
        self.convolutions = nn.ModuleList()
        previous = channels
        for i, count in enumerate(filters):
            kind = config.discriminator_norm if i else "none"
            bias = _has_bias(kind, count)
            convolution: nn.Module
            if config.blocks == "plain":
                convolution = normalise(nn.Conv2d(previous, count, 5, stride=2 if i else 1, padding=2, bias=bias))
            elif i == 0:
                convolution = normalise(nn.Conv2d(previous, count, 4, stride=2, padding=1, bias=bias))
            else:
                resample: Literal["down", "none"] = "down" if i > 1 else "none"
                convolution = ResidualBlock(
                    previous, count, resample, norm=kind, activation=nn.LeakyReLU(0.2), normalise=normalise
                )
            self.convolutions.append(nn.Sequential(convolution, _norm(kind, count), nn.LeakyReLU(0.2)))
            previous = count
        self.dense = normalise(nn.Linear(previous * COARSE**2, 1))
        self.embedding = normalise(nn.Linear(num_classes, previous, bias=False)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (N, C, H, W), labels (N, K) -> logits (N,) before any sigmoid, and Dis_l's maps; float32.

        The maps are (N, C', H', W') each, one tensor for each of the config's `feature_layers`, in their order.
        """
        h = x
        stages = []
        for convolution in self.convolutions:
            h = convolution(h)
            stages.append(h)
        logits = self.dense(h.flatten(1)).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels.to(h.dtype)) * h.mean(dim=(2, 3))).sum(dim=1)
        return _widened(logits), tuple(_widened(stages[layer - 1]) for layer in self.feature_layers)


class Networks(nn.Module):
    """The networks of one model; those that its kind lacks are None.

    Args:
        task: whether an image has exactly one class ("multiclass") or any number; it decides what a label head infers.

    Raises:
        ValueError: an image size other than 32, 64, 128 or 256, or a label head without classes.
    """

    def __init__(
        self, config: NetworkConfig, *, size: int, channels: int, num_classes: int, task: str = "multiclass"
    ) -> None:
        super().__init__()
        if config.label_head and not num_classes:
            raise ValueError("model.label_head infers classes, and the dataset has none: leave it out")
        if size not in SIZES:
            raise ValueError(
                f"images of {size} pixels: the networks take {', '.join(map(str, SIZES))}; prepare with --size"
            )
        self.config, self.size, self.channels = config, size, channels
        self.num_classes = num_classes if config.conditional else 0
        shape = (config, size, channels, self.num_classes)
        self.decoder = Decoder(*shape)
        self.encoder = Encoder(*shape, task) if config.kind != "gan" else None
        self.discriminator = Discriminator(*shape) if config.kind != "vae" else None

    def present(self) -> dict[str, nn.Module]:
        """The networks that there are, by name, in a fixed order."""
        everything = dict(encoder=self.encoder, decoder=self.decoder, discriminator=self.discriminator)
        return {name: network for name, network in everything.items() if network is not None}

    def condition(self, labels: Tensor) -> Tensor:
        """What of the labels (N, K) enters the networks: all of it, or (N, 0) for an unconditional model."""
        return labels[:, : self.num_classes]

    def complete(self, x: Tensor, labels: Tensor) -> Tensor:
        """`condition` of labels (N, K), with what the label head decides in rows of NaN, which are not known."""
        labels = self.condition(labels)
        if self.encoder is None or self.encoder.label_head is None:
            return labels
        return torch.where(labels.isnan(), self.encoder.predict(x).to(labels.dtype), labels)
