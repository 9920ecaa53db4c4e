import numpy as np
import pytest
from PIL import Image

from vaegan.images import perceptual_hash, pixel_hash
from vaegan.inspection.contents import ALL, NO_FINDING, border_share, read_contents, to_grey
from vaegan.inspection.reading import open_shards
from vaegan.shards import read_manifest


def contents_of(data, **options):
    manifest = read_manifest(data)
    return read_contents(open_shards(data, manifest, verify=True), manifest, near=True, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_levels_are_those_of_all_pixels_at_once(tools, tmp_path, channels):
    rows = tools.rows(37, 3, channels=channels)
    grey = contents_of(tools.write(tmp_path / "data", train=rows)).grey["train"]
    luma = rows.pixels[..., 0]
    if channels == 3:
        luma = np.array([np.asarray(Image.fromarray(image).convert("L")) for image in rows.pixels])
    masks = {ALL: np.ones(37, bool), NO_FINDING: ~rows.labels.any(axis=1)}
    masks |= {name: rows.labels[:, k].astype(bool) for k, name in enumerate(tools.classes)}
    for g, name in enumerate(grey.names):
        mine = luma[masks[name]]
        assert grey.num_images[g] == len(mine)
        assert np.array_equal(grey.histogram[g], np.bincount(mine.ravel(), minlength=256))
        assert grey.mean(g) == pytest.approx(mine.mean())
        assert grey.std(g) == pytest.approx(mine.std())
        assert np.allclose(grey.mean_image(g), rows.pixels[masks[name]].mean(axis=0))


def test_colour_becomes_the_grey_that_pillow_makes():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert np.array_equal(to_grey(pixels)[0], np.asarray(Image.fromarray(pixels[0]).convert("L")))


def test_each_row_keeps_its_names_hashes_and_looks(tools, splits, tmp_path):
    rows = contents_of(tools.write(tmp_path / "data", **splits)).rows
    at = 43 + 5  # the sixth of val
    image = splits["val"].pixels[5]
    assert rows.name(at) == "1-5"
    assert rows.patient_id[at].as_py() == "1-p2"
    assert rows.splits[rows.split[at]] == "val"
    assert rows.pixel_hash[at].decode() == pixel_hash(image)
    assert rows.perceptual_hash[at] == perceptual_hash(image)
    assert rows.looks[at] == pytest.approx([image.mean(), image.std(), 0], rel=1e-5)


def test_of_many_images_every_nth_is_measured_and_all_are_hashed(tools, splits, tmp_path):
    data = tools.write(tmp_path / "data", **splits)
    every, whole = contents_of(data, max_values=24 * 24 * 20), contents_of(data)
    assert (every.every, whole.every) == (4, 1)
    measured = np.isfinite(every.rows.looks[:, 0])
    assert np.array_equal(np.flatnonzero(measured), np.arange(0, 76, 4))
    assert sum(each.num_images[0] for each in every.grey.values()) == 19
    assert np.array_equal(every.rows.pixel_hash, whole.rows.pixel_hash)


@pytest.mark.parametrize(
    ("bright", "share"),
    [
        ((slice(2, 10), slice(0, 10)), 0.2),
        ((slice(0, 10), slice(3, 9)), 0.4),
        ((slice(1, 9), slice(1, 9)), 0.36),
        ((slice(0, 10), slice(0, 10)), 0.0),
        ((slice(0, 0), slice(0, 0)), 1.0),
        ((slice(4, 5), slice(7, 8)), 0.99),
    ],
)
def test_black_border_is_the_area_outside_the_smallest_box_that_holds_all_that_is_bright(bright, share):
    image = np.full((1, 10, 10), 8, np.uint8)
    image[0][bright] = 9
    assert border_share(image) == pytest.approx([share])


def test_a_dark_line_inside_is_no_border():
    image = np.full((1, 10, 10), 200, np.uint8)
    image[0, 4:6] = 0
    assert border_share(image) == pytest.approx([0])


def test_near_constant_images_are_counted(tools, tmp_path):
    rows = tools.rows(20, 0)
    rows.pixels[3], rows.pixels[11] = 90, 91
    grey = contents_of(tools.write(tmp_path / "data", train=rows)).grey["train"]
    assert grey.flat[0] == 2
