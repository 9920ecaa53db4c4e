import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.loop import train_loop
from vaegan.sampler import Sampler
from vaegan.shards import read_split
from vaegan.traversal import along, changes, conditioning, latent_use, sheet, traverse, typical
from vaegan.traverse import main


@pytest.fixture
def model(config):
    return train_loop(config)


def test_a_dimension_equal_to_the_prior_is_unused_and_one_that_moves_is_the_first_in_order():
    rng = np.random.default_rng(0)
    mu = np.stack([np.zeros(5000), 0.05 * rng.normal(size=5000), 2 * rng.normal(size=5000)], axis=1)
    log_var = np.tile(np.log([1.0, 1.0, 0.1]), (5000, 1))
    use = latent_use(mu, log_var)
    assert use.active.tolist() == [False, False, True]
    assert use.informative.tolist() == [False, False, True]
    assert use.order.tolist() == [2, 1, 0]
    np.testing.assert_allclose(use.kl, [0, 0.5 * 0.05**2, 0.5 * (4 + 0.1 - 1 - np.log(0.1))], rtol=0.1, atol=1e-12)


def test_a_narrow_posterior_that_never_moves_is_informative_but_not_active():
    use = latent_use(np.zeros((10, 1)), np.full((10, 1), -4.0))
    assert use.informative.all()
    assert not use.active.any()


def test_the_typical_row_is_no_outlier():
    assert typical(np.array([[-1.0, 0], [0.1, 0.1], [1, 0], [0, 9], [0, -9]])) == 1


def test_one_dimension_moves_at_a_time():
    z = np.arange(4.0)
    moved = along(z, [2, 0], np.array([-1.0, 5.0, 7.0]))
    assert moved.shape == (2, 3, 4)
    for row, dimension in enumerate([2, 0]):
        np.testing.assert_array_equal(moved[row, :, dimension], [-1, 5, 7])
        others = [k for k in range(4) if k != dimension]
        np.testing.assert_array_equal(moved[row][:, others], np.tile(z[others], (3, 1)))


def test_a_traversal_passes_through_the_images_own_reconstruction(model, config):
    sampler, images = Sampler.from_model(model), read_split(config.data, "val")
    mu, _ = sampler.encode(images.pixels, images.labels)
    pixels = traverse(sampler, mu[1], images.labels[1], [3, 0], np.array([-2.5, mu[1, 0], 2.5], dtype=np.float32))
    assert pixels.shape == (2, 3, 32, 32, 1)
    np.testing.assert_array_equal(pixels[1, 1], sampler.reconstruct(images.pixels[1:2], images.labels[1:2])[0])
    assert not np.array_equal(pixels[1, 0], pixels[1, 2])


def test_changes_share_one_scale_and_no_change_is_mid_grey():
    images = np.full((2, 3, 4, 4, 1), 100, dtype=np.uint8)
    images[0, 2], images[1, 0] = 140, 90
    shown, largest = changes(images)
    assert largest == 40
    assert [int(shown[row, column, 0, 0, 0]) for row, column in ((0, 0), (0, 1), (0, 2), (1, 0))] == [128, 128, 255, 96]
    assert changes(images[:, :1])[1] == 0  # nothing to divide by
    assert sheet(images).shape == (4 * 6 + 2, 3 * 6 + 2, 1)


def test_labels_go_by_their_names():
    labels = np.array([[1, 0, 0], [0, 0, 1]], dtype=np.uint8)
    np.testing.assert_array_equal(conditioning(["c", "a"], labels, ["a", "b", "c"]), [[0, 1], [1, 0]])
    assert conditioning([], labels, ["a", "b", "c"]).shape == (2, 0)
    with pytest.raises(UserError, match=r"has no d \(it has a, b, c\)"):
        conditioning(["a", "d"], labels, ["a", "b", "c"])


def test_the_command_tells_every_row_that_it_draws(model, config, tmp_path, capsys):
    out = tmp_path / "pictures" / "traversal.png"
    words = ["--model", str(model), "--data", str(config.data), "--out", str(out), "--dimensions", "3", "--steps", "5"]
    assert main(words) == 0
    with Image.open(out) as picture:
        assert picture.size == (5 * 34 + 2, 6 * 34 + 2)
        assert "synthetic" in picture.text["Comment"]
    printed = capsys.readouterr().out
    assert "of 6 dimensions are active" in printed
    assert str(out) in printed
    rows = [line.split() for line in printed.splitlines() if len(line.split()) == 4 and line.split()[0].isdigit()]
    assert len(rows) == 3
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_the_command_refuses_a_row_that_has_no_middle(config, tmp_path, capsys):
    words = ["--model", "m", "--data", str(config.data), "--out", str(tmp_path / "t.png")]
    assert main([*words, "--steps", "4"]) == 2
    assert "an odd number" in capsys.readouterr().err
