"""Fit one classifier to the rows of one arm, and ask it about the validation and test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from downstream.arms import TrainingRows, classical_augmentation
from downstream.classifiers import PIXELS, ClassifierName, LogisticOnFeatures, build_network, image_features
from vaegan.classifier import Task, fit, fixed_seed, predict, random_batches
from vaegan.shards import Images
from vaegan.tensors import to_pixels, to_tensor

AUGMENTED_COPIES = 4
"""Changed copies of each row that `logistic` is given where a network would see a new one at each step."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How classifiers are fitted; the same for every arm."""

    steps: int
    batch_size: int
    learning_rate: float
    weights: Path | None = None
    """Start of resnet18."""
    features: str = PIXELS
    """What logistic reads."""
    device: str = "cpu"


def fit_and_predict(
    classifier: ClassifierName,
    rows: TrainingRows,
    real: Images,
    pool: Images | None,
    val: Images,
    test: Images,
    *,
    task: Task,
    settings: FitSettings,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N_val, K) and (N_test, K) of one classifier fitted to one arm's rows.

    The seed decides initial weights, order of rows and augmentation; two arms with the same seed start from the same
    weights. Of `logistic` it decides the augmentation alone: without that, all seeds give the same answer.

    Args:
        real: the real subset that `rows.real` counts in. pool: the synthetic rows that `rows.synthetic` counts in.
    """
    pixels, labels = gather(rows, real, pool)
    if classifier == "logistic":
        return _logistic(rows, pixels, labels, val, test, task=task, settings=settings, seed=seed)
    network = build_network(
        classifier,
        channels=pixels.shape[3],
        num_outputs=labels.shape[1],
        weights=settings.weights if classifier == "resnet18" else None,
        seed=seed,
    ).to(settings.device)
    augment = classical_augmentation() if rows.augment else None
    fit(
        network,
        random_batches(pixels, labels, batch_size=settings.batch_size, seed=seed, augment=augment),
        task=task,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        class_weight=None if rows.class_weight is None else torch.from_numpy(rows.class_weight),
        seed=seed,
    )
    return predict(network, val.pixels, task), predict(network, test.pixels, task)


def gather(rows: TrainingRows, real: Images, pool: Images | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, H, W, C) and labels (N, K) of an arm's rows, real ones first."""
    pixels, labels = [real.pixels[rows.real]], [real.labels[rows.real]]
    if len(rows.synthetic):
        assert pool is not None, "rows of a pool, but no pool"
        pixels.append(pool.pixels[rows.synthetic])
        labels.append(pool.labels[rows.synthetic])
    return np.concatenate(pixels), np.concatenate(labels)


def _logistic(
    rows: TrainingRows,
    pixels: np.ndarray,
    labels: np.ndarray,
    val: Images,
    test: Images,
    *,
    task: Task,
    settings: FitSettings,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    if rows.augment:
        change = classical_augmentation()
        with fixed_seed(seed):
            copies = [to_pixels(change(to_tensor(pixels))) for _ in range(AUGMENTED_COPIES)]
        pixels, labels = np.concatenate([pixels, *copies]), np.tile(labels, (1 + AUGMENTED_COPIES, 1))
    features, val_features, test_features = (
        image_features(settings.features, images) for images in (pixels, val.pixels, test.pixels)
    )
    model = LogisticOnFeatures.fit(
        features, labels, rows.class_weight, val_features, val.labels, task=task, reduce=settings.features == PIXELS
    )
    return model.predict(val_features, labels.shape[1]), model.predict(test_features, labels.shape[1])
