import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from vaegan.inspection.contents import Grey, Rows, read_contents
from vaegan.inspection.pictures import (
    FEWEST_TO_COMPARE,
    Strip,
    class_differences,
    differences,
    draw_strips,
    found_pairs,
    means,
    split_differences,
)
from vaegan.inspection.plots import class_levels, levels
from vaegan.inspection.reading import open_shards
from vaegan.inspection.recheck import recheck
from vaegan.inspection.sheet import contact_sheet, enlarged
from vaegan.inspection.shortcuts import tells
from vaegan.shards import read_manifest


def opened(data):
    manifest = read_manifest(data)
    shards = open_shards(data, manifest, verify=True)
    return read_contents(shards, manifest, near=True), shards, manifest


def array(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def strips_of(data, **options):
    contents, shards, manifest = opened(data)
    settings = dict(splits=tuple(manifest.splits), per_class=4, seed=0) | options
    return draw_strips(contents, shards, manifest, **settings)[0]


def test_a_strip_holds_different_images_of_its_class_and_split(tools, splits, tmp_path):
    data = tools.write(tmp_path / "data", **splits)
    strips = strips_of(data)
    assert [(s.label, s.split) for s in strips[:4]] == [(tools.classes[0], name) for name in splits] + [
        (tools.classes[1], "train")
    ]
    for strip in strips:
        rows = splits[strip.split]
        mask = ~rows.labels.any(axis=1)
        if strip.label in tools.classes:
            mask = rows.labels[:, tools.classes.index(strip.label)].astype(bool)
        known = {image.tobytes() for image in rows.pixels[mask]}
        shown = [image.tobytes() for image in strip.pixels]
        assert strip.total == len(known) == mask.sum()
        assert set(shown) <= known
        assert len(set(shown)) == len(shown) == min(4, mask.sum())


def test_the_seed_decides_what_is_drawn(tools, splits, tmp_path):
    data = tools.write(tmp_path / "data", **splits)
    first, again, other = (strips_of(data, seed=seed) for seed in (0, 0, 1))
    same = lambda a, b: all(np.array_equal(x.pixels, y.pixels) for x, y in zip(a, b, strict=True))  # noqa: E731
    assert same(first, again)
    assert not same(first, other)


def test_only_the_splits_asked_for_are_shown(tools, splits, tmp_path):
    assert {s.split for s in strips_of(tools.write(tmp_path / "data", **splits), splits=("val",))} == {"val"}


def test_the_contact_sheet_has_each_image_pixel_by_pixel_below_its_class(tools, splits, tmp_path):
    strips = strips_of(tools.write(tmp_path / "data", **splits))
    sheet = array(contact_sheet(strips, "a title", "a note"))[..., 0]
    tops = []
    for strip in strips:
        for image in strip.pixels:
            cell = enlarged(image)[:, :, 0]
            height, width = cell.shape
            assert (height, width) == (120, 120)  # 24 pixels five times
            windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, width))[:, :, 0]
            rows, columns = np.nonzero((windows[:, :, ::17] == cell[0, ::17]).all(axis=2))
            places = [(r, c) for r, c in zip(rows, columns, strict=True)
                      if np.array_equal(sheet[r : r + height, c : c + width], cell)]  # fmt: skip
            assert places
        tops.append(min(r for r, _ in places))
    assert len(set(tops)) > 1


@pytest.mark.parametrize("shape", [(24, 24, 3), (28, 28, 1), (112, 90, 1), (3, 40, 1)])
def test_a_sheet_of_any_shape_is_drawn(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    strip = Strip("Long name of a class " * 5, "train", True, 3, pixels)
    sheet = array(contact_sheet([strip], "t"))
    assert sheet.shape[2] == 3
    assert sheet.shape[1] > 3 * max(1, 128 // max(shape)) * shape[1]


def test_a_sheet_of_nothing_is_a_title():
    assert array(contact_sheet([], "nothing")).shape[0] < 100


def grey_of(pixels, labels, classes=("a", "b")):
    grey = Grey.empty(classes, pixels.shape[1:])
    grey.add(pixels, labels)
    return grey


def marked(count=40, marker=200):
    """Noise, and a square in one corner of all that are of the second class."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (count, 16, 16, 1), dtype=np.uint8)
    labels = np.eye(2, dtype=np.uint8)[np.arange(count) % 2]
    pixels[labels[:, 1] == 1, 1:4, 11:15] = marker
    return pixels, labels


def test_a_marker_of_one_class_is_red_in_the_difference_and_nothing_else_is():
    (found,), scale = differences(class_differences(grey_of(*marked()), "train"))
    assert found.title == "train: b − a"
    assert found.most == pytest.approx(100, abs=6)
    picture = array(found.png).astype(int)
    red = picture[..., 0] - picture[..., 2] > 50
    expected = np.zeros((16, 16), bool)
    expected[1:4, 11:15] = True
    assert np.array_equal(red, expected)
    assert found.most > found.noise
    assert scale == pytest.approx(100, abs=6)


def test_a_darker_marker_is_blue():
    (found,), _ = differences(class_differences(grey_of(*marked(marker=10)), "train"))
    picture = array(found.png).astype(int)
    assert (picture[2, 12, 2] - picture[2, 12, 0]) > 60


def test_a_difference_of_chance_is_told_as_one():
    rng = np.random.default_rng(0)
    labels = np.eye(2, dtype=np.uint8)[np.arange(400) % 2]
    within = 0
    for _ in range(40):
        grey = grey_of(rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8), labels)
        (found,), _ = differences(class_differences(grey, "train"))
        within += found.most < found.noise
    assert 33 <= within < 41  # 95 % of them; fewer than 33 of 40 in one of 10,000 cases


def test_too_few_images_are_not_compared():
    pixels, labels = marked(2 * FEWEST_TO_COMPARE - 1)
    assert class_differences(grey_of(pixels, labels), "train") == []
    assert differences([]) == ([], 1.0)


def test_splits_are_compared_with_the_first():
    pixels, labels = marked()
    bright = np.minimum(pixels.astype(int) + 30, 255).astype(np.uint8)
    halves = split_differences({"train": grey_of(pixels, labels), "test": grey_of(bright, labels)})
    (found,), _ = differences(halves)
    assert (found.title, found.most) == ("test − train", pytest.approx(30))


def test_a_mean_image_is_shown_of_groups_and_never_of_one_film():
    pixels, labels = marked(40)
    labels[:] = [1, 0]
    labels[0] = [0, 1]
    shown = means(grey_of(pixels, labels), "val")
    assert [each.title for each in shown] == ["val, all images", "val, a"]
    assert np.array_equal(array(shown[0].png), np.round(pixels.mean(axis=0))[:, :, 0])


def rows_with(looks, labels, splits=("train",), split=None):
    count = len(looks)
    names = pa.array([f"p{i}" for i in range(count)])
    return Rows(
        splits=splits, classes=tuple("abc"[: labels.shape[1]]),
        split=np.zeros(count, np.int8) if split is None else split, labels=labels,
        labelled=np.ones(count, bool),
        synthetic=np.zeros(count, bool), patient_id=names, image_id=names,
        pixel_hash=np.zeros(count, "S64"), perceptual_hash=np.zeros(0, np.uint64),
        thumbnails=np.zeros((0, 32, 32), np.uint8), looks=looks.astype(np.float32),
    )  # fmt: skip


def test_the_auc_of_a_number_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 3)) < 0.4).astype(np.uint8)
    looks = rng.normal(size=(300, 3)) + labels * [0.0, 2.0, -0.5]
    for k, tell in enumerate(tells(rows_with(looks, labels))):
        expected = [roc_auc_score(labels[:, k], looks.astype(np.float32)[:, column]) for column in range(3)]
        assert tell.auc == pytest.approx(expected)
        assert [tell.notable(column) for column in range(3)] == [False, k == 1, False]


def test_two_exclusive_classes_are_told_apart_once_and_splits_too():
    rng = np.random.default_rng(0)
    labels = np.eye(2, dtype=np.uint8)[rng.integers(0, 2, 200)]
    split = (np.arange(200) >= 150).astype(np.int8)
    found = tells(rows_with(rng.normal(size=(200, 3)), labels, ("train", "test"), split))
    assert [(each.subject, each.against) for each in found] == [("b", "a"), ("test", "train")]


def test_pairs_are_shown_with_the_pixels_of_their_rows(tools, splits, tmp_path):
    splits["test"].pixels[3] = splits["train"].pixels[9]
    contents, shards, manifest = opened(tools.write(tmp_path / "data", **splits))
    (pair,) = found_pairs(recheck(contents, manifest), contents, shards, manifest)
    assert (pair.left.image_id, pair.right.image_id, pair.left.split, pair.right.split) == (
        "0-9",
        "2-3",
        "train",
        "test",
    )
    assert np.array_equal(array(pair.left.png), splits["train"].pixels[9][:, :, 0])
    assert pair.across


@pytest.mark.parametrize("name", ["_hidden", "$x_1$", "a" * 90, "肺炎", "", "no & <b>"])
def test_a_class_of_any_name_has_its_line(name):
    counts = np.arange(256)
    plain, odd = levels({"plain": counts}), levels({name: counts})
    assert plain[:8] == odd[:8] == b"\x89PNG\r\n\x1a\n"


def test_many_classes_share_a_figure_only_as_far_as_there_are_colours():
    labels = np.eye(9, dtype=np.uint8)[np.arange(90) % 9]
    pixels = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), dtype=np.uint8)
    plot = class_levels(grey_of(pixels, labels, tuple("abcdefghi")), "train")
    assert plot.caption == "train, the 6 most frequent classes"
