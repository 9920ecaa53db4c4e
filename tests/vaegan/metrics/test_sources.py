"""Images to measure from anywhere: the same pixels however they are stored, and nothing decoded before its time."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.images import decode, encode_png, resize
from vaegan.metrics.sources import blocks, open_source, source_of, source_splits
from vaegan.shards import DatasetWriter, Images


def made_up(count, seed=0, size=16, channels=1, shift=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    labels = np.eye(2, dtype=np.uint8)[np.arange(count) % 2]
    return Images.real(
        pixels, labels, [f"p{row // 2}" for row in range(count)], [f"i{row + shift:04d}" for row in range(count)]
    )


def write_dataset(path, **splits):
    first = next(iter(splits.values()))
    height, width, channels = first.pixels.shape[1:]
    with DatasetWriter(
        path, task="multiclass", classes=["a", "b"], height=height, width=width, channels=channels, rows_per_file=300
    ) as writer:
        for split, images in splits.items():
            writer.add(split, images)
        writer.finish()
    return path


def write_folder(path, images, names=("a", "b")):
    for image, label, image_id in zip(images.pixels, images.labels, images.image_id, strict=True):
        folder = path / names[label.argmax()]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image_id}.png").write_bytes(encode_png(image))
    return path


def write_parquet(path, images, rows_per_group=50, **columns):
    encoded = [{"bytes": encode_png(image), "path": None} for image in images.pixels]
    pq.write_table(pa.table({"image": encoded, **columns}), path, row_group_size=rows_per_group)
    return path


def read(source):
    return np.concatenate([block.read() for block in source.blocks])


def test_a_dataset_of_ours_comes_back_block_by_block_with_labels_and_patients(tmp_path):
    images = made_up(700)
    source = open_source(write_dataset(tmp_path / "data", train=images, val=made_up(8)), "train")
    assert [block.count for block in source.blocks] == [256, 44, 256, 44, 100]
    np.testing.assert_array_equal(read(source), images.pixels)
    np.testing.assert_array_equal(source.labels, images.labels)
    assert list(source.patient_id) == list(images.patient_id)
    assert list(source.image_id) == list(images.image_id)
    assert (source.classes, source.shape, len(source)) == (("a", "b"), (16, 16, 1), 700)
    assert source_splits(tmp_path / "data") == ("train", "val")
    assert len(open_source(tmp_path / "data")) == 708


def test_the_same_images_are_the_same_from_memory_files_parquet_and_arrays(tmp_path):
    images = made_up(60)
    by_class = images.take(np.argsort(images.labels[:, 1], kind="stable"))  # as a folder of classes is sorted
    np.save(tmp_path / "images.npy", images.pixels[..., 0])
    np.savez(tmp_path / "images.npz", images=images.pixels, labels=images.labels.argmax(axis=1))
    sources = {
        "memory": source_of(images),
        "folder": open_source(write_folder(tmp_path / "folder", images)),
        "parquet": open_source(write_parquet(tmp_path / "one.parquet", images, label=[*"ab"] * 30), "train"),
        "npy": open_source(tmp_path / "images.npy"),
        "npz": open_source(tmp_path / "images.npz"),
    }
    for name, source in sources.items():
        expected = by_class if name == "folder" else images
        np.testing.assert_array_equal(read(source), expected.pixels, name)
        if name != "npy":
            np.testing.assert_array_equal(source.labels, expected.labels, name)
        assert len(source.patient_id) == len(source.image_id) == len(source) == 60
    assert sources["folder"].classes == sources["parquet"].classes == ("a", "b")
    assert sources["folder"].image_id[0] == "a/i0000.png"
    assert set(sources["folder"].patient_id) == {""}


def test_any_rows_are_read_in_any_order_from_their_blocks_alone(tmp_path, monkeypatch):
    images = made_up(600)
    for source in (source_of(images), open_source(write_dataset(tmp_path / "data", train=images))):
        rows = [599, 0, 255, 256, 0]
        np.testing.assert_array_equal(source.pixels(rows), images.pixels[rows])
        assert source.pixels([]).shape == (0, 16, 16, 1)
    decoded = []
    folder = open_source(write_folder(tmp_path / "folder", made_up(20)))
    monkeypatch.setattr(blocks, "decode", lambda data, **options: decoded.append(1) or decode(data, **options))
    folder.pixels([3, 17])
    assert len(decoded) == 2


def test_blocks_go_to_another_process(tmp_path):
    images = made_up(30)
    write_folder(tmp_path / "folder", images)
    np.save(tmp_path / "images.npy", images.pixels)
    for source in (
        source_of(images),
        open_source(write_dataset(tmp_path / "data", train=images)),
        open_source(tmp_path / "folder"),
        open_source(tmp_path / "images.npy"),
        open_source(write_parquet(tmp_path / "one.parquet", images), size=8).as_rgb(),
    ):
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(read(again), read(source))
        assert again.sha256 == source.sha256


def test_hashes_tell_content_and_way_of_reading_apart_and_nothing_else(tmp_path):
    images = made_up(30)
    folder, copy = (write_folder(tmp_path / name, images) for name in ("folder", "copy"))
    first = open_source(folder)
    assert [block.sha256 for block in first.blocks] == [block.sha256 for block in open_source(copy).blocks]
    assert first.sha256 == open_source(copy).sha256
    other = images.take(np.arange(30))
    other.pixels[7, 0, 0] ^= 1
    ways = [first, first.as_rgb(), first.resized(8), open_source(folder, size=8), source_of(images), source_of(other)]
    assert len({source.blocks[0].sha256 for source in ways}) == len(ways)
    assert source_of(images).sha256 == source_of(made_up(30)).sha256 != source_of(other).sha256
    assert source_of(made_up(30).take(np.arange(30))).blocks[0].sha256 == source_of(images).blocks[0].sha256
    renamed = Images.real(images.pixels, images.labels, ["somebody"] * 30, list(images.image_id))
    assert source_of(renamed).sha256 != source_of(images).sha256, "intervals depend on patients"
    assert source_of(renamed).blocks[0].sha256 == source_of(images).blocks[0].sha256, "features don't"


def test_splits_of_a_folder_are_its_top_folders_and_the_class_comes_below(tmp_path):
    write_folder(tmp_path / "data" / "Training", made_up(6))
    write_folder(tmp_path / "data" / "test", made_up(4, shift=10))
    assert source_splits(tmp_path / "data") == ("train", "test")
    train, whole = open_source(tmp_path / "data", "train"), open_source(tmp_path / "data")
    assert (len(train), len(whole)) == (6, 10)
    assert train.classes == whole.classes == ("a", "b")
    with pytest.raises(UserError, match=r"no folder for the val split: it has Training, test"):
        open_source(tmp_path / "data", "val")
    with pytest.raises(UserError, match=f"name {tmp_path / 'data'} instead"):
        open_source(tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "one.png").write_bytes(encode_png(made_up(1).pixels[0]))
    assert source_splits(flat) == ()
    assert open_source(flat, "train").labels.shape == (1, 0)
    with pytest.raises(UserError, match="it has no splits"):
        open_source(flat, "val")


def test_broken_files_are_counted_and_the_rest_is_measured(tmp_path):
    write_folder(tmp_path, made_up(12))
    png = encode_png(made_up(1, seed=9, size=16).pixels[0])
    jpeg = io.BytesIO()
    Image.fromarray(made_up(1, size=16, seed=8).pixels[0, :, :, 0]).save(jpeg, "JPEG")
    (tmp_path / "a" / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "a" / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (tmp_path / "a" / "empty.png").touch()
    (tmp_path / "b" / "text.png").write_text("no image")
    (tmp_path / "b" / "note.txt").write_text("not looked at")
    source = open_source(tmp_path)
    assert len(source) == 12
    assert sorted(name.rpartition("/")[2] for name, _ in source.rejected) == [
        "cut.jpg", "cut.png", "empty.png", "text.png",
    ]  # fmt: skip
    assert read(source).shape == (12, 16, 16, 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.png").touch()
    with pytest.raises(UserError, match=r"none of the 1 files in .* is a readable image .*x.png: the file is empty"):
        open_source(tmp_path / "none")


def test_an_image_of_one_value_is_measured_since_a_generator_may_make_one(tmp_path):
    Image.new("L", (16, 16), 7).save(tmp_path / "grey.png")
    Image.new("I;16", (16, 16), 700).save(tmp_path / "deep.png")
    source = open_source(tmp_path)
    assert [int(image.max()) for image in read(source)] == [0, 7], "16 bits are scaled by their own range"


def test_several_sizes_need_a_size_and_grey_beside_colour_becomes_colour(tmp_path):
    Image.fromarray(made_up(1, size=16).pixels[0, :, :, 0]).save(tmp_path / "a.png")
    Image.fromarray(made_up(1, size=24, channels=3).pixels[0]).save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"2 sizes \(1 of 16x16, but b.png is 24x24\).*--size 16"):
        open_source(tmp_path)
    source = open_source(tmp_path, size=8)
    assert source.shape == (8, 8, 3)
    expected = [resize(made_up(1, size=size, channels=c).pixels[0], 8, 3) for size, c in ((16, 1), (24, 3))]
    np.testing.assert_array_equal(read(source), expected)
    assert (read(source)[0] == read(source)[0, :, :, :1]).all()


def test_datasets_and_arrays_are_resized_as_files_are(tmp_path):
    images = made_up(10)
    dataset = write_dataset(tmp_path / "data", train=images)
    folder = write_folder(tmp_path / "folder", images.take(np.arange(0, 10, 2)))
    np.testing.assert_array_equal(
        open_source(dataset, size=8).pixels(range(0, 10, 2)), read(open_source(folder, size=8))
    )
    assert open_source(dataset, size=16).blocks[0].sha256 == open_source(dataset).blocks[0].sha256


def test_parquet_keeps_splits_patients_and_places_across_row_groups(tmp_path):
    images = made_up(130)
    splits = ["train" if row % 3 else "test" for row in range(130)]
    path = write_parquet(
        tmp_path / "x.parquet", images, label=[int(row % 2) for row in range(130)], split=splits,
        patient_id=list(images.patient_id),
    )  # fmt: skip
    assert source_splits(path) == ("train", "test")
    rows = np.arange(0, 130, 3)
    source = open_source(path, "test")
    np.testing.assert_array_equal(read(source), images.pixels[rows])
    assert list(source.patient_id) == list(images.patient_id[rows])
    assert source.classes == ("0", "1")
    np.testing.assert_array_equal(source.labels, images.labels[rows])
    with pytest.raises(UserError, match="has no rows of the val split"):
        open_source(path, "val")
    unlabelled = open_source(write_parquet(tmp_path / "y.parquet", images))
    np.testing.assert_array_equal(read(unlabelled), images.pixels)
    assert unlabelled.labels.shape == (130, 0)


def test_medmnists_file_has_splits_and_labels(tmp_path):
    one, two = made_up(7), made_up(5, seed=1)
    np.savez(
        tmp_path / "m.npz", train_images=one.pixels[..., 0], train_labels=np.arange(7)[:, None] % 2,
        test_images=two.pixels[..., 0], test_labels=np.arange(5)[:, None] % 2,
    )  # fmt: skip
    assert source_splits(tmp_path / "m.npz") == ("train", "test")
    np.testing.assert_array_equal(read(open_source(tmp_path / "m.npz", "test")), two.pixels)
    assert open_source(tmp_path / "m.npz").labels.sum(axis=0).tolist() == [7, 5]


def test_a_file_that_changes_after_it_was_opened_is_not_measured_under_the_old_hash(tmp_path):
    folder = write_folder(tmp_path, made_up(4))
    source = open_source(folder)
    (folder / "a" / "i0000.png").write_bytes(encode_png(made_up(1, seed=5).pixels[0]))
    with pytest.raises(UserError, match=r"i0000.png has changed since"):
        read(source)
    (folder / "a" / "i0000.png").unlink()
    with pytest.raises(UserError, match=r"i0000.png can't be read"):
        read(source)


def test_what_can_not_be_measured_is_told_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "bad.npy").write_text("x")
    (tmp_path / "bad.npz").write_text("x")
    (tmp_path / "bad.parquet").write_text("x")
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 4, 4), np.uint8), b=np.zeros((2, 4, 4), np.uint8))
    np.savez(tmp_path / "first.npz", images=np.zeros((2, 3, 8, 8), np.uint8))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    data = write_dataset(tmp_path / "data", train=made_up(4))
    (data / "manifest.json").unlink()
    for name, expected in {
        "absent": "no folder or file",
        "empty": "no image files in",
        "text.txt": "is none of what can be measured",
        "bad.npy": "can't be read",
        "bad.npz": "can't be read as .npz",
        "bad.parquet": "isn't a Parquet file",
        "float.npy": r"holds float64 of shape \(2, 4, 4, 1\)",
        "objects.npy": "can't be read",
        "two.npz": "holds a, b: expected one uint8 array",
        "first.npz": r"holds uint8 of shape \(2, 3, 8, 8\)",
        "other.parquet": "no column 'image'",
        "data": "part of a dataset, without its manifest.json",
    }.items():
        with pytest.raises(UserError, match=expected) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)
