"""Datasets as sources: nothing is lost or changed on the way, and nothing damaged goes on."""

import json
import os
import shutil

import numpy as np
import pytest

from cluster.errors import UserError
from vaegan.importers import ImportConfig, open_source
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.shards import DatasetWriter, Images, read_manifest, read_split


def write(path, prefix="", *, rows=(24, 6, 6), classes=("a", "b"), task="multiclass", seed=0, size=8, synthetic=False):
    rng = np.random.default_rng(seed)
    with DatasetWriter(path, task=task, classes=classes, height=size, width=size, channels=1, rows_per_file=16) as out:
        for split, count in zip(("train", "val", "test"), rows, strict=True):
            if not count:
                continue
            pixels = rng.integers(0, 256, (count, size, size, 1), dtype=np.uint8)
            labels = np.eye(len(classes), dtype=np.uint8)[np.arange(count) % len(classes)]
            who = [f"{prefix}{split}p{i // 2}" for i in range(count)]
            images = Images.real(pixels, labels, who, [f"{prefix}{split}{i}" for i in range(count)])
            if synthetic:
                images.source[:] = "synthetic"
                images.model = np.full(count, "model-1", dtype=object)
                images.seed, images.index = np.arange(count) * 2, np.arange(count) * 3
            out.add(split, images)
        out.finish()
    return path


def rows_of(dataset):
    """Each row as a comparable value."""
    found = []
    manifest = read_manifest(dataset)
    for split in manifest.splits:
        images = read_split(dataset, split)
        for i in range(len(images)):
            address = None if images.model is None else (images.model[i], int(images.seed[i]), int(images.index[i]))
            names = tuple(name for name, on in zip(manifest.classes, images.labels[i], strict=True) if on)
            found.append(
                (
                    split,
                    images.image_id[i],
                    images.patient_id[i],
                    names,
                    images.pixels[i].tobytes(),
                    images.source[i],
                    address,
                )
            )
    return sorted(found, key=lambda row: row[:2])


def prepared(tmp_path, images, name="out", **settings):
    config = PrepareConfig(images=images, out=tmp_path / name, **{"size": 8, "val": "keep"} | settings)
    return prepare(config), config.out


@pytest.mark.parametrize("synthetic", [False, True])
def test_a_dataset_prepared_again_at_its_size_is_the_same(tmp_path, synthetic):
    first = write(tmp_path / "in", synthetic=synthetic)
    _, out = prepared(tmp_path, first)
    assert rows_of(out) == rows_of(first)


def test_prepared_a_third_time_the_files_are_the_same_bytes(tmp_path):
    _, second = prepared(tmp_path, write(tmp_path / "in"), "second")
    manifest, third = prepared(tmp_path, second, "third")
    assert read_manifest(second).splits == manifest.splits
    for info in manifest.splits.values():
        for file in info.files:
            assert (second / file).read_bytes() == (third / file).read_bytes()


def test_a_merge_of_two_is_their_union_by_class_name(tmp_path):
    one, other = write(tmp_path / "one", "x"), write(tmp_path / "other", "y", classes=("b", "c"), seed=1)
    manifest, out = prepared(tmp_path, one, merge=(other,))
    assert manifest.classes == ("a", "b", "c")
    assert rows_of(out) == sorted([*rows_of(one), *rows_of(other)], key=lambda row: row[:2])


def test_equal_image_ids_get_their_datasets_name_and_equal_patients_are_one(tmp_path):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", seed=1)
    manifest, out = prepared(tmp_path, one, merge=(other,))
    ids = [row[1] for row in rows_of(out)]
    assert len(set(ids)) == len(ids) == 72
    assert {name.split("/")[0] for name in ids} == {"one", "other"}
    assert manifest.report["patients"]["number"] == 18
    assert any("18 patient_ids are in more than one" in note for note in manifest.report["notes"])


def test_a_patient_in_train_of_one_and_in_test_of_the_other_leaves_train(tmp_path):
    one = write(tmp_path / "one", rows=(24, 0, 6))
    other = tmp_path / "other"
    with DatasetWriter(other, task="multiclass", classes=["a", "b"], height=8, width=8, channels=1) as out:
        pixels = np.random.default_rng(9).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
        out.add("test", Images.real(pixels, np.eye(2, dtype=np.uint8), ["trainp3", "new"], ["u", "v"]))
        out.finish()
    manifest, out = prepared(tmp_path, one, merge=(other,))
    assert manifest.report["leaks"]["by_patient"] == 2
    assert "trainp3" not in read_split(out, "train").patient_id
    assert len(read_split(out, "test")) == 8


def test_a_copy_in_both_is_found(tmp_path):
    one = write(tmp_path / "one", "x")
    other = write(tmp_path / "other", "y")  # the same pixels under other names
    manifest, _ = prepared(tmp_path, one, merge=(other,))
    assert manifest.report["duplicates"]["exact_copies"] == 36


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_part_of_the_classes_in_another_order(tmp_path, multilabel):
    task = "multilabel" if multilabel else "multiclass"
    first = write(tmp_path / "in", classes=("a", "b", "c"), task=task)
    manifest, out = prepared(tmp_path, first, classes=("c", "a"))
    expected = [(*row[:3], tuple(n for n in row[3] if n != "b"), *row[4:]) for row in rows_of(first)]
    assert manifest.classes == ("c", "a")
    assert rows_of(out) == [row for row in expected if row[3] or multilabel]
    assert sum(manifest.report["left_out"].values()) == (0 if multilabel else 12)


def test_classes_that_are_given_one_name_become_one(tmp_path):
    first = write(tmp_path / "in", classes=("a", "b", "c"))
    manifest, out = prepared(tmp_path, first, rename=("b=x", "c=x"))
    assert manifest.classes == ("a", "x")
    names = {"a": ("a",), "b": ("x",), "c": ("x",)}
    assert rows_of(out) == [(*row[:3], names[row[3][0]], *row[4:]) for row in rows_of(first)]
    swapped, out = prepared(tmp_path, first, "swapped", rename=("a=b", "b=a"))
    assert swapped.classes == ("b", "a", "c")


def test_a_subset_takes_whole_patients_and_the_same_ones_each_time(tmp_path):
    first = write(tmp_path / "in", rows=(400, 100, 100))
    manifest, out = prepared(tmp_path, first, subset=0.4)
    _, again = prepared(tmp_path, first, "again", subset=0.4)
    _, other = prepared(tmp_path, first, "other", subset=0.4, seed=1)
    _, more = prepared(tmp_path, first, "more", subset=0.6)
    taken = {row[2] for row in rows_of(out)}
    assert rows_of(out) == [row for row in rows_of(first) if row[2] in taken] == rows_of(again)
    assert rows_of(other) != rows_of(out)
    assert taken < {row[2] for row in rows_of(more)}
    assert len(taken) / 300 == pytest.approx(0.4, abs=0.12)  # 4 standard deviations
    assert sum(manifest.report["left_out"].values()) == 600 - 2 * len(taken)


def test_split_make_ignores_the_sources_split(tmp_path):
    first = write(tmp_path / "in", rows=(60, 0, 60))
    manifest, out = prepared(tmp_path, first, split="make", val="auto")
    assert manifest.report["split"]["origin"] == "made"
    assert manifest.splits["train"].num_images == pytest.approx(84, abs=8)
    assert {row[1:] for row in rows_of(out)} == {row[1:] for row in rows_of(first)}


def test_images_without_any_label_from_a_model_without_classes(tmp_path):
    """What `vaegan.sample` writes of an unconditional model."""
    with DatasetWriter(tmp_path / "in", task="multiclass", classes=[], height=8, width=8, channels=1) as out:
        pixels = np.random.default_rng(9).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
        names = [f"i{i}" for i in range(40)]
        out.add("train", Images.real(pixels, np.zeros((40, 0), np.uint8), names, names))
        out.finish()
    manifest, _ = prepared(tmp_path, tmp_path / "in", allow_one_class=True, val="auto")
    assert sum(info.num_images for info in manifest.splits.values()) == 40


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


DAMAGE = {
    "one bit of a shard": lambda d: flipped(d / "train-00000.parquet", 700),
    "a shard cut short": lambda d: cut(d / "train-00000.parquet"),
    "a shard less": lambda d: (d / "test-00000.parquet").unlink(),
    "shards swapped": lambda d: shutil.copy(d / "train-00000.parquet", d / "train-00001.parquet"),
    "a pipe for a shard": lambda d: ((d / "val-00000.parquet").unlink(), os.mkfifo(d / "val-00000.parquet")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_dataset_is_refused_and_leaves_nothing(tmp_path, damage):
    dataset = write(tmp_path / "in")
    DAMAGE[damage](dataset)
    with pytest.raises(UserError, match=r"sha256|can't be read|no regular file"):
        prepared(tmp_path, dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["a"]),
        ("classes", 7),
        ("classes", ["a", 3]),
        ("task", "regression"),
        ("height", "tall"),
        ("splits", {"elsewhere": {"num_images": 1, "per_class": {}, "num_patients": 1, "files": {}}}),
        ("splits", {"train": {"num_images": "many", "per_class": {}, "num_patients": 1, "files": {}}}),
        ("splits", {"train": {"num_images": 1, "per_class": {}, "num_patients": 1, "files": ["x"]}}),
        ("splits", {"train": {"num_images": 1, "per_class": {}, "num_patients": 1, "files": {"../x": "y"}}}),
        ("splits", {"train": {"num_images": 1, "per_class": {}, "num_patients": 1, "files": {}}}),
        ("splits", []),
        ("splits", None),
    ],
)
def test_a_manifest_that_says_something_odd_is_refused(tmp_path, key, value):
    dataset = write(tmp_path / "in")
    content = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(UserError):
        list(open_source(ImportConfig(images=dataset)).records())


def test_as_many_records_as_promised(tmp_path):
    source = open_source(ImportConfig(images=write(tmp_path / "in"), merge=(write(tmp_path / "b", "x"),)))
    assert len(list(source.records())) == source.num_records == 72
