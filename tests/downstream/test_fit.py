from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import UserError
from downstream.arms import training_rows
from downstream.fit import FitSettings, fit_and_predict, gather
from downstream.tasks import Data
from vaegan.shards import DatasetWriter, Images

SETTINGS = FitSettings(steps=15, batch_size=16, learning_rate=3e-3)


def films(num: int, seed: int) -> Images:
    """Noise with a dark square (class 1) or without (class 0)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 200, (num, 32, 32, 1), dtype=np.uint8)
    y = rng.integers(0, 2, num)
    pixels[y == 1, 8:20, 4:16] //= 2
    names = [f"{seed}-{i}" for i in range(num)]
    return Images.real(pixels, np.eye(2, dtype=np.uint8)[y], names, names)


def probabilities(classifier: str, arm: str, seed: int = 0) -> np.ndarray:
    real, pool, val, test = films(48, 0), films(120, 1), films(40, 2), films(40, 3)
    rows = training_rows(arm, real.labels, pool.labels, ratio=1.0, task="multiclass")
    return fit_and_predict(
        classifier, rows, real, pool, val, test, task="multiclass", settings=SETTINGS, seed=seed
    )[1]  # fmt: skip


@pytest.mark.parametrize("classifier", ["small_cnn", "logistic"])
@pytest.mark.parametrize("arm", ["real", "class_weights", "classical_synthetic", "synthetic_only"])
def test_every_classifier_learns_from_every_kind_of_arm(classifier, arm):
    test = films(40, 3)
    p = probabilities(classifier, arm)
    assert p.shape == (40, 2)
    assert p[test.labels[:, 1] == 1, 1].mean() > p[test.labels[:, 1] == 0, 1].mean()


def test_a_cell_is_a_function_of_its_seed():
    first, again, other = (probabilities("small_cnn", "classical", seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_real_rows_come_first_then_those_of_the_pool():
    real, pool = films(10, 0), films(40, 1)
    rows = training_rows("synthetic", real.labels, pool.labels, ratio=1.0, task="multiclass")
    pixels, labels = gather(rows, real, pool)
    assert np.array_equal(pixels[:10], real.pixels)
    assert np.array_equal(pixels[10:], pool.pixels[rows.synthetic])
    assert len(labels) == 20


def test_a_classifier_neither_learns_from_images_without_a_label_nor_is_judged_on_them(tmp_path):
    path = tmp_path / "data"
    with DatasetWriter(path, task="multiclass", classes="ab", height=32, width=32, channels=1) as writer:
        writer.allow_unlabelled()
        for seed, split in enumerate(("train", "val", "test")):
            writer.add(split, replace(films(30, seed), labelled=np.arange(30) % 3 > 0))
        writer.finish()
    data = Data.read(path)
    for images in (data.train, data.val, data.test):
        assert len(images) == 20
        assert (images.labels.sum(axis=1) == 1).all()


def test_a_split_of_images_that_nobody_labelled_is_refused(tmp_path):
    path = tmp_path / "data"
    with DatasetWriter(path, task="multiclass", classes="ab", height=32, width=32, channels=1) as writer:
        writer.allow_unlabelled()
        for seed, split in enumerate(("train", "val", "test")):
            writer.add(split, replace(films(30, seed), labelled=np.full(30, split != "val")))
        writer.finish()
    with pytest.raises(UserError, match="no labelled image in val"):
        Data.read(path)
