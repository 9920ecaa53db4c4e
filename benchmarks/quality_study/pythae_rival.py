"""pythae's VAEGAN as a recipe: our networks behind its interfaces, its objective, optimiser steps and samplers.

pythae has no labels, so that a case with classes gets a model for each of them, and the budget in their proportions.
It takes images in [0, 1]. A run that was killed begins anew.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.rivals import as_pythae
from pythae.data.datasets import BaseDataset
from pythae.models import VAEGAN, VAEGANConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
from pythae.samplers import GaussianMixtureSampler, NormalSampler
from pythae.trainers import CoupledOptimizerAdversarialTrainer, CoupledOptimizerAdversarialTrainerConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.storage import atomic_file
from quality_study.cases import Case, CaseData
from quality_study.recipes import Recipe
from vaegan.classifier import fixed_seed
from vaegan.networks import NetworkConfig, Networks
from vaegan.tensors import to_pixels, to_tensor

RECONSTRUCTION_LAYER = 3  # Dis_l, as in our recipes
BATCH = 64
OPTIMIZERS = {"adam": "Adam", "rmsprop": "RMSprop"}
MIXTURE_SEED = 0


def train_pythae(
    recipe: Recipe, case: Case, data: CaseData, folder: Path, *, seed: int, images: int
) -> "PythaeGenerator":
    """A trained model for each class (or one of all), from `folder` where it is there already."""
    logging.disable(logging.INFO)  # its modules attach console handlers of their own
    labels = data.train.labels if case.conditional else np.ones((len(data.train), 1), np.uint8)
    models, seen = [], 0
    for k, column in enumerate(labels.T):
        rows = np.flatnonzero(column)
        batch_size = min(recipe.settings["batch_size"], len(rows))
        steps = round(images * len(rows) / labels.sum() / batch_size)
        seen += steps * batch_size
        pixels = data.train.pixels[rows]
        networks = _networks(recipe, pixels.shape, seed)
        file = folder / f"model_{k}.safetensors"
        if file.exists():
            networks.load_state_dict(load_file(file))
        model = _as_model(networks, recipe, pixels)
        if not file.exists():
            _fit(model, pixels, recipe, steps, batch_size, seed)
            with atomic_file(file) as temporary:
                save_file(networks.state_dict(), temporary)
        models.append(OneModel(networks.eval(), model.eval(), pixels))
    return PythaeGenerator(models, seen)


class OneModel:
    """A trained model and its two samplers."""

    def __init__(self, networks: Networks, model: VAEGAN, pixels: np.ndarray) -> None:
        self.networks = networks
        mixture = GaussianMixtureSampler(model)
        x = _unit(pixels)
        x[0, 0, 0, 0] = 1  # it refuses films of which none has a white pixel, so one corner of one film gets one
        with fixed_seed(MIXTURE_SEED), _NumpySeed(MIXTURE_SEED):
            mixture.fit(x)
        self.samplers = {"prior": NormalSampler(model), "mixture": mixture}

    def sample(self, count: int, seed: int, source: str) -> np.ndarray:
        with fixed_seed(seed), _NumpySeed(seed), torch.inference_mode():
            return to_pixels(self.samplers[source].sample(count, batch_size=BATCH) * 2 - 1)

    @torch.inference_mode()
    def reconstruct(self, pixels: np.ndarray) -> np.ndarray:
        assert self.networks.encoder is not None
        parts = []
        for at in range(0, len(pixels), BATCH):
            x = to_tensor(pixels[at : at + BATCH])
            nothing = x.new_zeros(len(x), 0)
            parts.append(to_pixels(self.networks.decoder(self.networks.encoder(x, nothing)[0], nothing)))
        return np.concatenate(parts)


class PythaeGenerator:
    """`generators.Generator` by one model a class."""

    sources = ("prior", "mixture")

    def __init__(self, models: list[OneModel], images_seen: int) -> None:
        self.models, self.images_seen = models, images_seen

    def sample(self, labels: np.ndarray, seed: int, source: str) -> np.ndarray:
        return self._by_class(labels, lambda model, rows: model.sample(len(rows), seed, source))

    def reconstruct(self, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self._by_class(labels, lambda model, rows: model.reconstruct(pixels[rows]))

    def about(self) -> dict[str, Any]:
        return {"images_seen": self.images_seen, "chosen": "last", "sources": list(self.sources)}

    def _by_class(self, labels: np.ndarray, images_of: Any) -> np.ndarray:
        owner = labels.argmax(axis=1) if len(self.models) > 1 else np.zeros(len(labels), int)
        parts = {k: np.flatnonzero(owner == k) for k in range(len(self.models)) if (owner == k).any()}
        made = {k: images_of(self.models[k], rows) for k, rows in parts.items()}
        found = np.empty((len(labels), *next(iter(made.values())).shape[1:]), np.uint8)
        for k, rows in parts.items():
            found[rows] = made[k]
        return found


# ------------------------------------------------------------------------------------------------------------- training
def _networks(recipe: Recipe, shape: tuple[int, ...], seed: int) -> Networks:
    config = NetworkConfig(**recipe.settings["model"] | {"conditional": False})
    with fixed_seed(seed):
        return Networks(config, size=shape[1], channels=shape[3], num_classes=0)


def _as_model(networks: Networks, recipe: Recipe, pixels: np.ndarray) -> VAEGAN:
    config = VAEGANConfig(
        input_dim=(pixels.shape[3], *pixels.shape[1:3]),
        latent_dim=recipe.settings["model"]["latent_dim"],
        reconstruction_layer=RECONSTRUCTION_LAYER,
    )
    encoder, decoder, discriminator = as_pythae(networks)
    return VAEGAN(config, UnitEncoder(encoder), UnitDecoder(decoder), UnitDiscriminator(discriminator))


def _fit(model: VAEGAN, pixels: np.ndarray, recipe: Recipe, steps: int, batch_size: int, seed: int) -> None:
    """Its trainer's forward and optimiser step for so many batches; epochs are permutations, as in our loop."""
    optimizer = recipe.settings["optimizer"]
    choices = dict(optimizer_cls=OPTIMIZERS[optimizer["name"]], learning_rate=optimizer["learning_rate"])
    names = ("encoder", "decoder", "discriminator")
    x = _unit(pixels)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CoupledOptimizerAdversarialTrainer(
            model,
            BaseDataset(x[:batch_size], torch.zeros(batch_size)),
            training_config=CoupledOptimizerAdversarialTrainerConfig(
                output_dir=folder, per_device_train_batch_size=batch_size, no_cuda=True,
                **{f"{name}_{key}": value for name in names for key, value in choices.items()},
            ),
        )  # fmt: skip
    for name in names:
        getattr(trainer, f"set_{name}_optimizer")()
    per_epoch = max(len(x) // batch_size, 1)
    with fixed_seed(seed):
        for step in range(steps):
            if step % per_epoch == 0:
                order = np.random.default_rng([seed, step // per_epoch]).permutation(len(x))
            rows = order[step % per_epoch * batch_size :][:batch_size]
            output = model.train()({"data": x[rows]}, epoch=1, dataset_size=len(x), uses_ddp=False)
            trainer._optimizers_step(output)


def _unit(pixels: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) to (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2) / 255


class UnitEncoder(BaseEncoder):
    """Takes images in [0, 1] for an encoder that takes them in [-1, 1]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x * 2 - 1)


class UnitDecoder(BaseDecoder):
    """Gives images in [0, 1]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=(self.inner(z).reconstruction + 1) / 2)


class UnitDiscriminator(BaseDiscriminator):
    """Takes images in [0, 1]."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.depth = inner, inner.depth

    def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> Any:
        return self.inner(x * 2 - 1, output_layer_levels)


class _NumpySeed:
    """scikit-learn's mixture, to which pythae gives no seed of its own, draws from NumPy's global generator."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.before = np.random.get_state()  # noqa: NPY002
        np.random.seed(self.seed)  # noqa: NPY002

    def __exit__(self, *_error: object) -> None:
        np.random.set_state(self.before)  # noqa: NPY002
