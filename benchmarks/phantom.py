"""How hard the phantom is: test AUROC of a small CNN trained on 200 of its images.

    python benchmarks/phantom.py            eight phantoms, some minutes on two cores
    python benchmarks/phantom.py --quick    two phantoms, under 45 s

Each phantom (seed) gives 200 training images and 800 test images of other patients. The goal is a mean macro AUROC
between .85 and .95: hard enough that more data would help, easy enough that there is something to learn. Exit status 1
outside.
"""

import argparse
import sys
import time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from vaegan.classifier import SmallCNN, fit, fixed_seed, predict, random_batches
from vaegan.phantom import CLASSES, PhantomConfig, phantom

NUM_TRAIN, NUM_TEST = 200, 800
STEPS, BATCH_SIZE, LEARNING_RATE = 300, 32, 3e-3
LOW, HIGH = 0.85, 0.95


def test_aurocs(seed: int, size: int) -> list[float]:
    """AUROC of each class against the others, on patients that training did not see."""
    films = phantom(PhantomConfig(patients=600), size=size, seed=seed)
    train = films.take(np.arange(NUM_TRAIN))
    unseen = np.flatnonzero(~np.isin(films.patient_id, train.patient_id))
    test = films.take(unseen[:NUM_TEST])
    with fixed_seed(seed):
        network = SmallCNN(channels=1, num_outputs=len(CLASSES))
    batches = random_batches(train.pixels, train.labels, batch_size=BATCH_SIZE, seed=seed)
    fit(network, batches, task="multiclass", steps=STEPS, learning_rate=LEARNING_RATE, seed=seed)
    scores = predict(network, test.pixels, "multiclass")
    return [float(roc_auc_score(test.labels[:, k], scores[:, k])) for k in range(len(CLASSES))]


def main() -> int:
    """Print one line per phantom and one with the mean; 1 when that is outside the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two phantoms instead of eight")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # on a shared machine the second thread of so small a network waits more than it works
    macro = []
    for seed in range(2 if arguments.quick else 8):
        started_s = time.time()
        aurocs = test_aurocs(seed, arguments.size)
        macro.append(float(np.mean(aurocs)))
        each = ", ".join(f"{name} {value:.3f}" for name, value in zip(CLASSES, aurocs, strict=True))
        print(f"seed {seed}: macro AUROC {macro[-1]:.3f} ({each}), {time.time() - started_s:.0f} s", flush=True)
    mean = float(np.mean(macro))
    print(f"macro AUROC over {len(macro)} phantoms: {mean:.3f}, standard deviation {np.std(macro, ddof=1):.3f}")
    print(f"phantom_auroc ratio={mean:.3f} goal={LOW}..{HIGH}")
    return 0 if LOW <= mean <= HIGH else 1


if __name__ == "__main__":
    sys.exit(main())
