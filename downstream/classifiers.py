"""The classifiers of the ablation: two networks and a logistic regression on features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torchvision.models
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from cluster.errors import UserError
from vaegan.classifier import SmallCNN, fixed_seed
from vaegan.metrics.extractor import load_weights, read_weights
from vaegan.metrics.features import make_extractor
from vaegan.tensors import to_tensor

ClassifierName = Literal["small_cnn", "resnet18", "logistic"]
CLASSIFIERS: tuple[ClassifierName, ...] = get_args(ClassifierName)

PIXELS = "pixels"
"""The features of `logistic` where no network's weights are given."""
POOLED_SIZE = 16
COMPONENTS = 64
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def build_network(
    name: ClassifierName, *, channels: int, num_outputs: int, weights: Path | None = None, seed: int
) -> nn.Module:
    """An untrained `small_cnn` or `resnet18`, its initial weights a function of the seed.

    Args:
        weights: state dict of torchvision's resnet18 (.safetensors or .pth) to start from, whatever its number of
            classes; None starts from random numbers. small_cnn has none.

    Raises:
        UserError: the file isn't one of that network's.
    """
    with fixed_seed(seed):
        if name == "small_cnn":
            return SmallCNN(channels, num_outputs)
        if name == "resnet18":
            return _resnet18(channels, num_outputs, weights)
    raise ValueError(f"{name} is no network")


def _resnet18(channels: int, num_outputs: int, weights: Path | None) -> nn.Module:
    network = torchvision.models.resnet18(weights=None)
    if weights is not None:
        state = read_weights(weights)
        if "fc.weight" not in state or state["fc.weight"].ndim != 2:
            raise UserError(
                f"{weights} holds no weights of torchvision's resnet18 (no fc.weight); give that network's file"
            )
        network.fc = nn.Linear(network.fc.in_features, len(state["fc.weight"]))
        load_weights(network, state, weights, "torchvision's resnet18")
    network.fc = nn.Linear(network.fc.in_features, num_outputs)
    if channels == 1:
        # A grey image is one whose three channels are equal, so the sum over them gives the answer that three would.
        colour = network.conv1
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        network.conv1.weight = nn.Parameter(colour.weight.detach().sum(dim=1, keepdim=True))
    return network


def image_features(spec: str, pixels: np.ndarray) -> np.ndarray:
    """What `logistic` reads of images: uint8 (N, H, W, C) -> float32 (N, D).

    Args:
        spec: "pixels": the image averaged down to 16x16, as it is; or an extractor as in `vaegan.metrics`, such as
            torchvision:squeezenet1_1=FILE.
    """
    if spec != PIXELS:
        return make_extractor(spec, device="cpu").features(pixels).features
    with torch.inference_mode():
        small: Tensor = F.adaptive_avg_pool2d(to_tensor(pixels), min(POOLED_SIZE, *pixels.shape[1:3]))
    return small.flatten(1).numpy()


@dataclass
class LogisticOnFeatures:
    """scikit-learn's logistic regression, one per label where there are many, on standardised features.

    Of pixels only the first 64 principal components are read (fewer where there are fewer rows). The strength of the
    penalty is chosen by log loss on the validation split.

    It is solved to the end, not for a number of steps: "equal optimiser steps" says nothing about it, and an arm with
    more rows takes more work.
    """

    task: str
    reduce: bool
    models: list[Pipeline | float]  # a number: the label's share, where training rows leave nothing to learn

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        class_weight: np.ndarray | None,
        val_features: np.ndarray,
        val_labels: np.ndarray,
        *,
        task: str,
        reduce: bool,
    ) -> LogisticOnFeatures:
        """Args: features (N, D), labels (N, K) multi-hot, class_weight (K,) as `vaegan.classifier.fit` takes it."""
        result = cls(task, reduce, [])
        if task == "multiclass":
            y, val_y = labels.argmax(axis=1), val_labels.argmax(axis=1)
            weights = None if class_weight is None else class_weight[y]
            result.models.append(_best(features, y, weights, val_features, val_y, reduce, labels.shape[1]))
            return result
        for k in range(labels.shape[1]):
            y = labels[:, k].astype(int)
            weights = None if class_weight is None else np.where(y == 1, class_weight[k], 1.0)
            if y.min() == y.max():
                result.models.append(float(y[0]))
            else:
                result.models.append(_best(features, y, weights, val_features, val_labels[:, k].astype(int), reduce, 2))
        return result

    def predict(self, features: np.ndarray, num_outputs: int) -> np.ndarray:
        """Probabilities float32 (N, K)."""
        if self.task == "multiclass":
            return _probabilities(self.models[0], features, num_outputs)
        return np.stack([_probabilities(model, features, 2)[:, 1] for model in self.models], axis=1)


def _best(
    features: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    val_features: np.ndarray,
    val_y: np.ndarray,
    reduce: bool,
    num_classes: int,
) -> Pipeline:
    """The regression whose penalty gives the least log loss on validation."""
    fitted = []
    for penalty in PENALTIES:
        reduction = [PCA(min(COMPONENTS, len(features) - 1, features.shape[1]), random_state=0)] if reduce else []
        model = make_pipeline(StandardScaler(), *reduction, LogisticRegression(C=penalty, max_iter=2000))
        model.fit(features, y, logisticregression__sample_weight=weights)
        p = _probabilities(model, val_features, num_classes).astype(np.float64)
        fitted.append((log_loss(val_y, p / p.sum(1, keepdims=True), labels=range(num_classes)), model))
    return min(fitted, key=lambda pair: pair[0])[1]


def _probabilities(model: Pipeline | float, features: np.ndarray, num_classes: int) -> np.ndarray:
    if isinstance(model, float):
        return np.tile(np.array([1 - model, model], np.float32), (len(features), 1))
    p = np.zeros((len(features), num_classes), np.float32)
    p[:, model.classes_] = model.predict_proba(features)  # a class that no training row has keeps 0
    return p
