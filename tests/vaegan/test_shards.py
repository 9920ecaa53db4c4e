import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from vaegan.shards import DatasetWriter, Images, dataset_sha256, read_manifest, read_split


def images(count: int, start: int = 0, channels: int = 1) -> Images:
    rng = np.random.default_rng(start)
    return Images.real(
        rng.integers(0, 256, (count, 4, 5, channels), dtype=np.uint8),
        np.eye(3, dtype=np.uint8)[np.arange(start, start + count) % 3],
        [f"patient {i // 2}" for i in range(start, start + count)],
        [f"image {i}" for i in range(start, start + count)],
    )


def writer(path, channels=1, rows_per_file=4) -> DatasetWriter:
    return DatasetWriter(
        path, task="multiclass", classes="abc", height=4, width=5, channels=channels, rows_per_file=rows_per_file
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("parts", [[10], [1, 2, 3, 4], [5, 5]])
def test_rows_come_back_as_they_went_in_however_they_were_added(tmp_path, channels, parts):
    whole = images(10, channels=channels)
    with writer(tmp_path / "d", channels) as out:
        at = 0
        for size in parts:
            out.add("train", whole.take(np.arange(at, at + size)))
            at += size
        manifest = out.finish()
    back = read_split(tmp_path / "d", "train")
    for name in ("pixels", "labels", "patient_id", "image_id", "source"):
        assert np.array_equal(getattr(back, name), getattr(whole, name)), name
    assert back.model is None
    assert manifest == read_manifest(tmp_path / "d")
    assert manifest.splits["train"].per_class == {"a": 4, "b": 3, "c": 3}
    assert manifest.splits["train"].num_patients == 5
    assert len(manifest.splits["train"].files) == 3


def test_a_split_may_fill_its_files_to_the_last_row(tmp_path):
    with writer(tmp_path / "d", rows_per_file=4) as out:
        out.add("train", images(8))
        manifest = out.finish()
    assert len(manifest.splits["train"].files) == 2
    assert len(read_split(tmp_path / "d", "train")) == 8


def test_addresses_come_back_and_mix_with_real_rows(tmp_path):
    real = images(3)
    synthetic = images(2, start=3)
    synthetic.model = np.array(["m/1"] * 2, dtype=object)
    synthetic.seed, synthetic.index = np.array([2**62, 1]), np.array([0, 7])
    with writer(tmp_path / "d") as out:
        out.add("train", Images.concatenate([real, synthetic]))
        out.finish()
    back = read_split(tmp_path / "d", "train")
    assert back.model.tolist() == [None, None, None, "m/1", "m/1"]
    assert back.seed.tolist() == [-1, -1, -1, 2**62, 1]


def test_a_dataset_is_there_whole_or_not_at_all(tmp_path):
    with writer(tmp_path / "d") as out:
        out.add("train", images(9))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"isn't a dataset: .* no such folder"):
        read_manifest(tmp_path / "d")


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.docx").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        writer(tmp_path / "d")


def test_other_tools_can_read_the_file_with_its_description(tmp_path):
    with writer(tmp_path / "d") as out:
        out.add("test", images(3))
        out.reject("x.png", "the file is empty")
        out.finish()
    table = pq.read_table(tmp_path / "d" / "test-00000.parquet")
    about = json.loads(table.schema.metadata[b"augray"])
    assert about["classes"] == ["a", "b", "c"]
    first = np.frombuffer(table["image"][0].as_py(), np.uint8).reshape(about["height"], about["width"], -1)
    assert np.array_equal(first, images(3).pixels[0])
    rejects = pq.read_table(tmp_path / "d" / "rejects.parquet").to_pylist()
    assert rejects == [{"path": "x.png", "reason": "the file is empty"}]


def test_the_dataset_hash_changes_with_one_pixel(tmp_path):
    digests = []
    for name in ("one", "same", "other"):
        rows = images(5)
        if name == "other":
            rows.pixels[4, 3, 3, 0] ^= 1
        with writer(tmp_path / name) as out:
            out.add("train", rows)
            out.finish()
        digests.append(dataset_sha256(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_a_missing_split_and_a_damaged_file_are_named(tmp_path):
    with writer(tmp_path / "d") as out:
        out.add("train", images(5))
        out.finish()
    with pytest.raises(UserError, match="has no val split: it has train"):
        read_split(tmp_path / "d", "val")
    (tmp_path / "d" / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train-00001\.parquet can't be read"):
        read_split(tmp_path / "d", "train")


def some_unlabelled(count: int) -> Images:
    """Every third row has no label, and something in its place all the same."""
    return replace(images(count), labelled=np.arange(count) % 3 != 1)


def test_rows_without_a_label_come_back_as_such_count_for_no_class_and_hold_zeros(tmp_path):
    rows = some_unlabelled(10)
    with writer(tmp_path / "d") as out:
        out.allow_unlabelled()
        out.add("train", rows)
        out.add("test", images(3))
        manifest = out.finish()
    back = read_split(tmp_path / "d", "train")
    assert back.labelled.tolist() == rows.labelled.tolist()
    assert not back.labels[~rows.labelled].any()
    assert np.array_equal(back.labels[rows.labelled], rows.labels[rows.labelled])
    assert manifest.splits["train"].num_unlabelled == 3
    assert manifest.splits["train"].per_class == {"a": 4, "b": 0, "c": 3}
    assert manifest == read_manifest(tmp_path / "d")
    known = back.labelled_only()
    assert known.labelled is None
    assert known.image_id.tolist() == back.image_id[rows.labelled].tolist()
    assert "num_unlabelled" not in json.loads((tmp_path / "d" / "manifest.json").read_text())["splits"]["test"]


def test_rows_without_a_label_are_not_written_where_nothing_would_tell_them_from_rows_of_no_finding(tmp_path):
    out = writer(tmp_path / "d", rows_per_file=2)
    with out, pytest.raises(ValueError, match="need a schema with a column `labelled`"):
        out.add("train", some_unlabelled(10))


def test_rows_with_and_without_labels_are_joined_and_those_of_a_part_that_says_nothing_are_labelled():
    joined = Images.concatenate([images(2), some_unlabelled(3)])
    assert joined.has_label.tolist() == [True, True, True, False, True]
    assert Images.concatenate([images(2), images(3)]).labelled is None
