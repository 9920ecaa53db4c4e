"""Train on synthetic, test on real (Esteban et al. 2017): what a classifier learns that has seen no real film."""

from typing import Any

import numpy as np

from downstream.arms import classical_augmentation
from downstream.scores import judged_classes
from vaegan.classifier import SmallCNN, Task, fit, fixed_seed, predict, random_batches
from vaegan.metrics.auc import area
from vaegan.shards import Images

STEPS, BATCH_SIZE, LEARNING_RATE = 600, 32, 3e-3


def classifier_auroc(
    pixels: np.ndarray, labels: np.ndarray, test: Images, *, task: Task, seed: int, steps: int = STEPS
) -> dict[str, Any]:
    """AUROC on `test` of a small CNN fitted to these images alone, with downstream's classical augmentation.

    Args:
        pixels, labels: uint8 (N, H, W, C), multi-hot (N, K). seed: of the weights, the order and the augmentation.

    Returns:
        `auroc`, the mean over judged classes (of two exclusive ones the second), and `standard_error`, DeLong's over
        patients, where one class is judged.
    """
    with fixed_seed(seed):
        network = SmallCNN(channels=pixels.shape[3], num_outputs=labels.shape[1])
    batches = random_batches(pixels, labels, batch_size=BATCH_SIZE, seed=seed, augment=classical_augmentation())
    fit(network, batches, task=task, steps=steps, learning_rate=LEARNING_RATE, seed=seed)
    scores = predict(network, test.pixels, task)
    areas = []
    for k in judged_classes(labels.shape[1], task):
        on = test.labels[:, k] == 1
        if on.any() and not on.all():
            areas.append(area(scores[on, k], scores[~on, k], test.patient_id[on], test.patient_id[~on]))
    error = areas[0].standard_error if len(areas) == 1 else None
    return {"auroc": float(np.mean([each.auc for each in areas])), "standard_error": error}
