import hashlib
import io
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UserError
from vaegan.importers.base import ImportConfig
from vaegan.importers.medmnist import CLASSES, FORMAT, open_medmnist

COUNTS = {"train": 7, "val": 3, "test": 2}


def arrays(shape=(28, 28), labels=1, classes=2, counts=COUNTS, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for split, count in counts.items():
        made[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{split}_labels"] = rng.integers(0, classes if labels == 1 else 2, (count, labels), dtype=np.uint8)
    return made


def write(path, made, save=np.savez_compressed):
    save(path, **made)
    return path


def opened(path):
    return open_medmnist(ImportConfig(images=path))


def member(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64, 1), (224, 224, 3)])
def test_rows_are_those_of_the_arrays_in_order_stored_and_deflated(tmp_path, shape, save):
    made = arrays(shape)
    source = opened(write(tmp_path / "pneumoniamnist.npz", made, save))
    records = list(source.records())
    assert source.num_records == len(records) == 12
    assert [r.image_id for r in records][:2] == ["train-00000", "train-00001"]
    assert Counter(r.split for r in records) == COUNTS
    for split in COUNTS:
        own = [r for r in records if r.split == split]
        np.testing.assert_array_equal(np.stack([r.image for r in own]), made[f"{split}_images"])
        names = np.array(["normal", "pneumonia"])[made[f"{split}_labels"][:, 0]]
        assert [r.labels for r in own] == [(name,) for name in names]
    assert (source.task, source.classes) == ("multiclass", ("normal", "pneumonia"))


def test_many_chunks_give_the_same_rows_as_one_array(tmp_path):
    made = arrays(
        (64, 64, 3), counts={"train": 500, "val": 1, "test": 1}
    )  # 6 MB: six chunks, none a whole number of rows
    records = list(opened(write(tmp_path / "x.npz", made)).records())
    np.testing.assert_array_equal(np.stack([r.image for r in records[:500]]), made["train_images"])


def test_several_labels_an_image_are_multilabel(tmp_path):
    made = arrays(labels=14)
    source = opened(write(tmp_path / "chestmnist_64.npz", made))
    assert (source.task, source.classes) == ("multilabel", CLASSES["chestmnist"])
    expected = [tuple(np.array(CLASSES["chestmnist"])[row == 1]) for row in made["train_labels"]]
    assert [r.labels for r in source.records()][:7] == expected


def test_class_names_are_those_of_the_package():
    pytest.importorskip("medmnist.info")
    from medmnist.info import INFO

    flat = {name: info for name, info in INFO.items() if not name.endswith("3d")}
    assert {
        name: tuple(info["label"][str(k)] for k in range(len(info["label"]))) for name, info in flat.items()
    } == CLASSES


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("pneumoniamnist_reassembled", 2, CLASSES["pneumoniamnist"]),
        ("OctMNIST_224", 4, CLASSES["octmnist"]),
        ("retinamnist", 5, CLASSES["retinamnist"]),
        ("mine", 3, ("0", "1", "2")),
        ("pneumoniamnist", 3, ("0", "1", "2")),  # its labels aren't those of the set
        ("pneumoniamnist2", 2, ("0", "1")),
        ("chestmnist", 3, ("0", "1", "2")),  # one label each: somebody's own
    ],
)
def test_names_of_classes_follow_the_files_name_only_where_the_labels_fit(tmp_path, name, classes, expected):
    made = arrays(classes=classes, counts={"train": 60, "val": 3, "test": 3})
    source = opened(write(tmp_path / f"{name}.npz", made))
    assert source.classes == expected
    assert any("called by their numbers" in note for note in source.notes) == (
        expected[0] == "0" and name != "retinamnist"
    )


def test_labels_that_skip_numbers_or_are_negative_keep_their_numbers(tmp_path):
    made = arrays() | {"train_labels": np.array([-1, 5, 5, 9, -1, 5, 9]), "val_labels": np.array([5, 5, 5])}
    made["test_labels"] = np.array([9, 9])
    source = opened(write(tmp_path / "mine.npz", made))
    assert source.classes == ("-1", "5", "9")
    assert [r.labels for r in source.records()][:4] == [("-1",), ("5",), ("5",), ("9",)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"val_images": None}, r"no val_images \(it has train_images"),
        ({"train_images": np.zeros((7, 28, 28), np.float32)}, r"float32 of shape \(7, 28, 28\): expected uint8"),
        ({"train_images": np.zeros((7, 28, 28, 2), np.uint8)}, "expected uint8"),
        ({"train_images": np.zeros((7, 784), np.uint8)}, r"expected uint8 of shape \(N, H, W\)"),
        ({"train_images": np.zeros((6, 28, 28), np.uint8)}, "6 train images and 7 labels"),
        ({"train_images": np.zeros((7, 0, 28), np.uint8)}, "1 to 2048 pixels"),
        ({"train_images": np.zeros((7, 64, 64), np.uint8)}, "other shapes in one split"),
        ({"train_images": np.asfortranarray(np.zeros((7, 28, 28), np.uint8))}, "ascontiguousarray"),
        ({"train_images": np.zeros((7, 28, 28, 28), np.uint8)}, "3D images"),
        ({"train_labels": np.array([[0.5]] * 7)}, "expected integers"),
        ({"train_labels": np.zeros((7, 3), np.uint8)}, "other shapes in one split"),
        ({f"{split}_labels": np.full((count, 3), 2) for split, count in COUNTS.items()}, "expected 0 and 1"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(tmp_path, change, says):
    made = {key: value for key, value in (arrays() | change).items() if value is not None}
    with pytest.raises(UserError, match=says):
        opened(write(tmp_path / "x.npz", made))


def test_three_dimensional_sets_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="3D images"):
        opened(write(tmp_path / "organmnist3d.npz", arrays((28, 28, 28))))


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    made = arrays() | {"train_labels": np.array([[Bomb()]] * 7, dtype=object)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(tmp_path / "x.npz", made)
    with pytest.raises(UserError, match="Python objects"):
        opened(path)
    assert not (tmp_path / "exploded").exists()


def test_rows_behind_the_end_of_a_member_become_problems_and_none_is_lost(tmp_path):
    made = arrays()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key, value in made.items():
            data = member(value)
            archive.writestr(f"{key}.npy", data[: len(data) - 3 * 784 - 100] if key == "train_images" else data)
    source = opened(tmp_path / "x.npz")
    records = list(source.records())
    assert len(records) == source.num_records == 12
    assert [r.problem is None for r in records] == [True] * 3 + [False] * 4 + [True] * 5
    np.testing.assert_array_equal(np.stack([r.image for r in records[:3]]), made["train_images"][:3])


def test_damage_inside_the_compressed_rows_becomes_problems(tmp_path):
    made = arrays(counts={"train": 3000, "val": 3, "test": 2})
    path = write(tmp_path / "x.npz", made)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)
    source = opened(path)
    records = list(source.records())
    assert len(records) == source.num_records == 3005
    assert all(r.problem for r in records[2999:3000])
    assert records[0].problem is None
    assert records[-1].problem is None


def test_a_wrong_checksum_is_noticed(tmp_path):
    path = write(tmp_path / "x.npz", arrays(), np.savez)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1  # a pixel of the first member, stored as it is
    path.write_bytes(data)
    assert [r.problem is None for r in opened(path).records()] == [False] * 7 + [True] * 5


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tmp_path, keep):
    path = write(tmp_path / "x.npz", arrays())
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(UserError, match="can't be read as a MedMNIST file"):
        opened(path)
    assert not FORMAT.recognises(path)


def test_a_header_that_claims_a_trillion_rows_is_refused_before_any_is_made(tmp_path):
    shape = "(1000000000000, 28, 28)"
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key, value in arrays().items():
            lie = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
            archive.writestr(f"{key}.npy", lie if key == "train_images" else member(value))
    with pytest.raises(UserError, match="1000000000000 train images and 7 labels"):
        opened(tmp_path / "x.npz")


def test_damaged_files_lead_to_user_errors_or_to_as_many_records_as_promised(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.npz"
    whole = write(path, arrays((6, 6))).read_bytes()
    outcomes = Counter()
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            source = opened(path)
        except UserError:
            outcomes["refused"] += 1
            continue
        records = list(source.records())
        assert len(records) == source.num_records
        outcomes["with problems" if any(r.problem for r in records) else "whole"] += 1
    assert min(outcomes.values()) > 20
    assert len(outcomes) >= 2


def test_a_file_and_a_folder_with_one_are_recognised(tmp_path):
    (tmp_path / "one").mkdir()
    path = write(tmp_path / "one" / "x.npz", arrays())
    assert FORMAT.recognises(path)
    assert FORMAT.recognises(path.parent)
    assert opened(path.parent).num_records == 12
    write(tmp_path / "one" / "other.npz", {"weights": np.zeros(3)})
    assert FORMAT.recognises(path.parent)
    assert not FORMAT.recognises(tmp_path / "one" / "other.npz")
    write(tmp_path / "one" / "y.npz", arrays())
    assert not FORMAT.recognises(path.parent)
    with pytest.raises(UserError, match="holds 2 MedMNIST files"):
        opened(path.parent)


def test_an_unknown_name_is_no_set(tmp_path):
    with pytest.raises(UserError, match=r"no file pathmnist_65: expected .* the name of a 2D set \(pathmnist, "):
        opened(Path("pathmnist_65"))


def test_a_set_that_cannot_be_downloaded_is_one_sentence_about_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("medmnist")
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens: no network, here and elsewhere
    with pytest.raises(
        UserError, match=r"^breastmnist_64 couldn't be downloaded: download breastmnist_64.npz where"
    ) as e:
        opened(Path("breastmnist_64"))
    assert "\n" not in str(e.value)
    assert "http" not in str(e.value)


def test_a_downloaded_set_lies_in_the_cache_and_is_taken_from_there_while_its_checksum_fits(tmp_path, monkeypatch):
    """The package's own table of checksums gets a made-up file's, since the real one can't be had here."""
    medmnist = pytest.importorskip("medmnist")
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "medmnist").mkdir()
    path = write(tmp_path / "medmnist" / "breastmnist_64.npz", arrays((64, 64)))
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "MD5_64", hashlib.md5(path.read_bytes()).hexdigest())
    source = opened(Path("breastmnist_64"))
    assert source.files == (path,)
    assert source.classes == ("malignant", "normal, benign")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="couldn't be downloaded"):
        opened(Path("breastmnist_64"))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(UserError, match=r"pip install 'augray\[medmnist\]'"):
        opened(Path("breastmnist"))


def test_torch_is_not_imported(tmp_path):
    path = write(tmp_path / "x.npz", arrays())
    code = (
        "import sys; from pathlib import Path; from vaegan.importers.base import ImportConfig; "
        "from vaegan.importers.medmnist import open_medmnist; "
        f"list(open_medmnist(ImportConfig(images=Path({str(path)!r}))).records()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_real_file_has_the_published_counts(shared):
    path = shared / "data/pneumoniamnist_28/pneumoniamnist_reassembled.npz"
    assert FORMAT.recognises(path.parent)
    source = opened(path)
    counts = Counter((r.split, r.labels) for r in source.records())
    normal, pneumonia = ("normal",), ("pneumonia",)
    assert source.num_records == 5856
    assert {split: counts[split, normal] + counts[split, pneumonia] for split in COUNTS} == {
        "train": 4708, "val": 524, "test": 624,
    }  # fmt: skip
    assert (counts["test", normal], counts["test", pneumonia]) == (234, 390)
