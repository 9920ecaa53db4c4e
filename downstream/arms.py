"""What each arm of the ablation trains on. Pure: labels and seeds in, row numbers and weights out.

All arms take the same number of optimiser steps with the same batch size. A batch is drawn uniformly from the union of
an arm's rows (one random order of them all after the other): with a ratio of 1 half of every batch is extra rows on
average, with 0.5 a third. More rows thus do not mean more training, only other images in the same training.

| arm                 | rows                                                     | loss     | changed at random |
|---------------------|----------------------------------------------------------|----------|-------------------|
| real                | the real subset                                          |          |                   |
| class_weights       | the real subset                                          | weighted |                   |
| duplicate_real      | the real subset and `ratio` times as many repeats of it  |          |                   |
| classical           | the real subset                                          |          | yes               |
| synthetic           | the real subset and `ratio` times as many synthetic rows |          |                   |
| classical_synthetic | the same                                                 |          | yes               |
| synthetic_only      | `ratio` times as many synthetic rows as the real subset  |          |                   |

The extra rows of duplicate_real and of synthetic have the same label vectors, one for one: a repeat of a real row
there is a synthetic image with that row's labels here. The two arms differ in nothing but the newness of the pixels.
Where the extra rows follow the real classes (`as_real`) and the ratio is whole, duplicate_real draws the same batches
as real does, in distribution: it then tells how large a gain chance alone makes. With `balanced` extra rows it is
oversampling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from cluster.errors import UserError
from vaegan.splits import strata, stratified_position

Arm = Literal[
    "real", "class_weights", "duplicate_real", "classical", "synthetic", "classical_synthetic", "synthetic_only"
]
ARMS: tuple[Arm, ...] = get_args(Arm)
SYNTHETIC_ARMS: frozenset[str] = frozenset({"synthetic", "classical_synthetic", "synthetic_only"})
"""Those that need a generator."""
EXTRA_ARMS: frozenset[str] = SYNTHETIC_ARMS | {"duplicate_real"}
"""Those with rows beyond the real subset, whose number is `ratio` times its size."""

ExtraClasses = Literal["as_real", "balanced"]
"""Labels of extra rows: in the real subset's proportions, or equally many of each class."""

MAX_CLASS_WEIGHT = 100.0


@dataclass(frozen=True)
class TrainingRows:
    """What one arm trains on.

    real: rows of the real subset; repeats are there more than once. synthetic: rows of the synthetic pool.
    class_weight: (K,) or None, as `vaegan.classifier.fit` takes it. augment: change images at random at each showing.
    num_extra: how many of the rows are extra ones.
    """

    real: np.ndarray
    synthetic: np.ndarray
    class_weight: np.ndarray | None = None
    augment: bool = False
    num_extra: int = 0

    @property
    def num_real(self) -> int:
        """Real images, each counted once."""
        return len(np.unique(self.real))


def extra_rows(labels: np.ndarray, num: int, classes: ExtraClasses, seed: int) -> np.ndarray:
    """Rows of the real subset whose labels the extra rows take; repeats, once all are used up, are as even as can be.

    The first rows of a longer answer are the shorter answer, so that pools of several ratios are nested.

    Args:
        labels: multi-hot (N, K); "balanced" takes each distinct label vector equally often.
    """
    rng = np.random.default_rng(seed)
    if classes == "balanced":
        _, kind = np.unique(labels, axis=0, return_inverse=True)
        kinds = [rng.permutation(np.flatnonzero(kind.ravel() == k)) for k in range(kind.max() + 1)]
        return np.array([kinds[i % len(kinds)][i // len(kinds) % len(kinds[i % len(kinds)])] for i in range(num)], int)
    rounds = [np.argsort(stratified_position(strata(labels), rng)) for _ in range(-(-num // len(labels)))]
    return np.concatenate([np.empty(0, int), *rounds])[:num]


def matching_rows(pool_labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted label vector the next unused row of the pool that has it: (M, K), (N, K) -> (N,).

    Raises:
        UserError: the pool has too few of one label vector.
    """
    waiting: dict[bytes, list[int]] = defaultdict(list)
    for row in reversed(range(len(pool_labels))):
        waiting[pool_labels[row].tobytes()].append(row)
    rows = []
    for labels in wanted:
        if not (queue := waiting[labels.tobytes()]):
            need, have = (int((table == labels).all(axis=1).sum()) for table in (wanted, pool_labels))
            raise UserError(
                f"the synthetic rows hold {have} images with labels {labels.tolist()} and {need} are needed: "
                f"make more of them, or lower the ratio"
            )
        rows.append(queue.pop())
    return np.array(rows, int)


def training_rows(
    arm: Arm,
    real_labels: np.ndarray,
    pool_labels: np.ndarray | None,
    *,
    ratio: float,
    task: str,
    extra_classes: ExtraClasses = "as_real",
    seed: int = 0,
) -> TrainingRows:
    """What `arm` trains on.

    Args:
        real_labels: (N, K) of the real subset. pool_labels: (M, K) of the synthetic pool; only synthetic arms need it.
        ratio: extra rows over real rows; arms without extra rows ignore it.
        seed: decides which real rows the extra ones repeat or resemble; the same for every arm.
    """
    everything, nothing = np.arange(len(real_labels)), np.empty(0, int)
    augment = arm in ("classical", "classical_synthetic")
    if arm not in EXTRA_ARMS:
        weight = class_weight(real_labels, task) if arm == "class_weights" else None
        return TrainingRows(everything, nothing, weight, augment)
    num_extra = max(1, round(ratio * len(real_labels)))
    templates = extra_rows(real_labels, num_extra, extra_classes, seed)
    if arm == "duplicate_real":
        return TrainingRows(np.concatenate([everything, templates]), nothing, num_extra=num_extra)
    if pool_labels is None:
        raise ValueError(f"arm {arm} needs synthetic rows")
    synthetic = matching_rows(pool_labels, real_labels[templates])
    return TrainingRows(nothing if arm == "synthetic_only" else everything, synthetic, None, augment, num_extra)


def class_weight(labels: np.ndarray, task: str) -> np.ndarray:
    """Weights (K,) that make every class count the same.

    multiclass: N / (K n_k), scikit-learn's "balanced". multilabel: negatives over positives of each class, for the
    positives' term. Limited to 100, or a finding seen once would drown the others; 1 for a class without any row.
    """
    positives = labels.sum(axis=0).astype(float)
    with np.errstate(divide="ignore"):
        if task == "multiclass":
            weight = len(labels) / (labels.shape[1] * positives)
        else:
            weight = (len(labels) - positives) / positives
    return np.where(positives > 0, np.clip(weight, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT), 1.0)


def classical_augmentation() -> Callable[[Tensor], Tensor]:
    """Small rotations (±7°), shifts (±5 %), scaling (±7 %), brightness and contrast (±15 %), another for each image.

    No horizontal flip: in a chest film it moves the heart to the right and the liver to the left, which is situs
    inversus, a finding in itself, and turns side markers into mirror writing. Uncovered corners are black, as outside
    of the film.

    Returns:
        A function of a batch (N, C, H, W) in [-1, 1] that draws from torch's global generator.
    """
    change = v2.Compose(
        [
            v2.RandomAffine(
                degrees=7, translate=(0.05, 0.05), scale=(0.93, 1.07), interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]
    )

    def augment(x: Tensor) -> Tensor:
        # One image at a time, since a transform draws once per call; colour changes expect [0, 1].
        return torch.stack([change(image) for image in (x + 1) / 2]) * 2 - 1

    return augment
