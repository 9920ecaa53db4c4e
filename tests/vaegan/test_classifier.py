import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vaegan.classifier import SmallCNN, classification_loss, fit, fixed_seed, predict, random_batches


def squares(num: int, size: int = 32, channels: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a dark square at the left (class 1) or without (class 0)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 200, (num, size, size, channels), dtype=np.uint8)
    labels = rng.integers(0, 2, num)
    pixels[labels == 1, 8:20, 4:16] //= 2
    return pixels, np.eye(2, dtype=np.uint8)[labels]


def fitted(seed: int, steps: int = 30) -> tuple[SmallCNN, np.ndarray, np.ndarray]:
    pixels, labels = squares(64)
    with fixed_seed(seed):
        network = SmallCNN(1, 2, width=8)
    batches = random_batches(pixels, labels, batch_size=16, seed=seed)
    fit(network, batches, task="multiclass", steps=steps, learning_rate=3e-3, seed=seed)
    return network, *squares(64, seed=1)


@pytest.mark.parametrize("size", [16, 28, 45, 64, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_channel_count_gives_one_logit_per_class(size, channels):
    network = SmallCNN(channels, 5, width=8)
    x = torch.zeros(2, channels, size, size)
    assert network(x).shape == (2, 5)
    assert network.features(x).shape == (2, network.num_features)


def test_a_visible_square_is_learnt_and_found_in_new_images():
    network, pixels, labels = fitted(seed=0, steps=60)
    assert (predict(network, pixels, "multiclass").argmax(1) == labels.argmax(1)).mean() > 0.95


def test_the_seed_decides_the_fit_and_the_callers_random_state_is_left_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, pixels, _ = fitted(seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    again, other = fitted(seed=3)[0], fitted(seed=4)[0]
    expected = predict(first, pixels, "multiclass")
    assert np.array_equal(expected, predict(again, pixels, "multiclass"))
    assert not np.allclose(expected, predict(other, pixels, "multiclass"))


def test_an_images_probability_does_not_depend_on_the_batch_it_is_in():
    network, pixels, _ = fitted(seed=0)
    together = predict(network, pixels, "multiclass")
    np.testing.assert_allclose(predict(network, pixels, "multiclass", batch_size=5), together, atol=1e-6)
    assert predict(network, pixels[:0], "multiclass").shape == (0, 2)


def test_softmax_for_exclusive_classes_and_one_sigmoid_each_for_many_labels():
    network, pixels, _ = fitted(seed=0, steps=5)
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    np.testing.assert_allclose(predict(network, pixels, "multilabel"), logits.sigmoid(), atol=1e-6)
    np.testing.assert_allclose(predict(network, pixels, "multiclass").sum(1), 1, atol=1e-6)


def test_predicting_leaves_the_training_mode_as_it_was():
    network = SmallCNN(1, 2, width=8).train()
    predict(network, squares(2)[0], "multiclass")
    assert network.training


def test_the_loss_of_one_hot_targets_is_torchs_cross_entropy():
    logits, classes = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    loss = classification_loss(logits, F.one_hot(classes, 3).float(), "multiclass")
    torch.testing.assert_close(loss, F.cross_entropy(logits, classes))


def test_a_class_weight_of_two_counts_as_seeing_that_class_twice():
    logits, classes, weight = torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), torch.tensor([1.0, 2.0])
    twice = torch.tensor([0, 1, 1, 1, 1, 0])
    weighted = classification_loss(logits, F.one_hot(classes, 2).float(), "multiclass", weight) * 4
    repeated = F.cross_entropy(logits[[0, 1, 1, 2, 2, 3]], twice, reduction="sum")
    torch.testing.assert_close(weighted, repeated)


def test_batches_are_full_and_show_every_row_equally_often():
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    batches = random_batches(pixels, np.ones((10, 1)), batch_size=4, seed=0)
    seen = torch.cat([next(batches)[0][:, 0, 0, 0] for _ in range(5)])
    values, counts = ((seen + 1) * 127.5).round().unique(return_counts=True)
    assert values.tolist() == list(range(10))
    assert counts.tolist() == [2] * 10


def test_batches_that_run_out_are_an_error_and_not_a_shorter_training():
    pixels, labels = squares(8)
    batches = [next(random_batches(pixels, labels, batch_size=4, seed=0))] * 3
    with pytest.raises(ValueError, match="after 3 of 4 steps"):
        fit(SmallCNN(1, 2, width=8), batches, task="multiclass", steps=4, learning_rate=1e-3, seed=0)
