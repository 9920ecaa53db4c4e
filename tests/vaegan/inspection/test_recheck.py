import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaegan.images import decode, resize
from vaegan.inspection import words
from vaegan.inspection.contents import read_contents
from vaegan.inspection.reading import open_shards
from vaegan.inspection.recheck import correlations, recheck
from vaegan.shards import Images, read_manifest


def check(data, near=True):
    manifest = read_manifest(data)
    contents = read_contents(open_shards(data, manifest, verify=True), manifest, near=near)
    return recheck(contents, manifest), contents


def test_splits_without_a_leak_pass(tools, splits, tmp_path):
    found, _ = check(tools.write(tmp_path / "data", **splits))
    assert found.passes
    assert words.headline(found) == "No patient and no exact copy is in two splits"
    assert (found.patients.number, found.patients.unknown) == (22 + 6 + 11, False)


def test_a_patient_in_two_splits_is_found_and_named(tools, splits, tmp_path):
    splits["test"].patient_id[4] = "0-p7"
    found, _ = check(tools.write(tmp_path / "data", **splits))
    assert not found.passes
    assert found.patients.across_listed == [("0-p7", ("train", "test"))]
    assert words.headline(found) == "1 patient is in two splits"


def test_an_exact_copy_in_two_splits_is_found_whatever_its_name(tools, splits, tmp_path):
    splits["test"].pixels[3] = splits["train"].pixels[9]
    splits["test"].labels[3] = 1 - splits["train"].labels[9]
    for near in (True, False):
        found, contents = check(tools.write(tmp_path / f"data{near}", **splits), near)
        assert not found.passes
        assert found.copies.exact.tolist() == [[9, 43 + 12 + 3]]
        assert found.copies.exact_across == found.copies.conflicting.sum() == 1
        assert correlations(contents.rows, found.copies.pairs) == [1.0]
        assert (found.copies.near is None) == (not near)
        assert words.headline(found) == "1 exact copy is in two splits"


def test_a_brightened_copy_is_a_near_copy_and_for_people_to_judge(tools, splits, tmp_path):
    splits["val"].pixels[2] = (splits["train"].pixels[30] * 0.85 + 30).astype(np.uint8)
    found, contents = check(tools.write(tmp_path / "data", **splits))
    assert found.copies.near.tolist() == [[30, 45]]
    assert found.copies.near_across == 1
    assert found.passes
    assert words.verdict_kind(found) == "unsure"
    assert correlations(contents.rows, found.copies.pairs)[0] > 0.995


def test_copies_within_a_split_leak_nothing(tools, splits, tmp_path):
    splits["train"].pixels[5] = splits["train"].pixels[6] = splits["train"].pixels[4]
    found, _ = check(tools.write(tmp_path / "data", **splits))
    assert found.passes
    assert (found.copies.groups, found.copies.images, len(found.copies.exact)) == (1, 3, 2)
    assert not found.copies.across.any()


def test_the_worst_pairs_come_first(tools, splits, tmp_path):
    train, test = splits["train"], splits["test"]
    train.pixels[1], train.labels[1] = train.pixels[0], train.labels[0]
    train.pixels[3], train.labels[3] = train.pixels[2], 1 - train.labels[2]
    test.pixels[0], test.labels[0] = train.pixels[8], train.labels[8]
    found, _ = check(tools.write(tmp_path / "data", **splits))
    assert found.copies.pairs[found.copies.worst(2)].tolist() == [[8, 55], [2, 3]]


def test_synthetic_images_are_nobody_s(tools, splits, tmp_path):
    test = splits["test"]
    synthetic = Images(
        test.pixels, test.labels, splits["train"].patient_id[:21], test.image_id, np.array(["synthetic"] * 21, object),
        model=np.array(["m/1"] * 21, object), seed=np.zeros(21, np.int64), index=np.arange(21),
    )  # fmt: skip
    found, contents = check(tools.write(tmp_path / "data", train=splits["train"], test=synthetic))
    assert found.passes
    assert found.patients.number == 22
    assert words.source_sentence(contents) == "43 real, 21 synthetic, made by m/1 (21)."


def test_where_patients_are_not_known_the_verdict_doesn_t_speak_of_them(tools, splits, tmp_path):
    for rows in splits.values():
        rows.patient_id = rows.image_id
    found, _ = check(tools.write(tmp_path / "data", **splits))
    assert found.patients.unknown
    assert "patients aren’t known" in words.headline(found)
    assert words.verdict_kind(found) == "unsure"


def test_one_split_has_nothing_to_leak_into(tools, splits, tmp_path):
    found, _ = check(tools.write(tmp_path / "data", train=splits["train"]))
    assert "one split only" in words.headline(found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda m: m["splits"]["val"].update(num_images=13),
            "The manifest counts 13 images in val, the files hold 12.",
        ),
        (lambda m: m["splits"]["test"].update(num_patients=2), "2 patients in test, the files hold 11"),
        (lambda m: m["splits"]["val"]["per_class"].update(scar=99), "99 scar images in val"),
        (lambda m: m["splits"]["val"]["per_class"].pop("scar"), "None scar images in val"),
        (lambda m: m.update(task="multiclass"), "don't have exactly one label"),
    ],
)
def test_a_manifest_that_counts_otherwise_is_told(tools, splits, tmp_path, change, sentence):
    data = tools.write(tmp_path / "data", **splits)
    tools.edit_manifest(data, change)
    found, _ = check(data)
    assert not found.passes
    assert any(sentence in told for told in found.miscounts)


def test_patients_with_several_labels_are_those_of_a_plain_count(tools, splits, tmp_path):
    found, _ = check(tools.write(tmp_path / "data", **splits))
    labels = {}
    for rows in splits.values():
        for patient, label in zip(rows.patient_id, rows.labels, strict=True):
            labels.setdefault(patient, set()).add(label.tobytes())
    several = sorted(patient for patient, seen in labels.items() if len(seen) > 1)
    assert sorted(found.patients.several_listed) == several
    assert found.patients.images == {"train": {1: 1, 2: 21}, "val": {2: 6}, "test": {1: 1, 2: 10}}


def test_films_resaved_as_jpeg_in_another_split_are_found_and_no_others(tools, shared, tmp_path):
    files = sorted((shared / "data" / "nih_cxr_1000_256").glob("*.parquet"))
    column = pq.ParquetFile(files[0]).read_row_group(0).slice(0, 150).to_pylist()
    key = next(name for name, value in column[0].items() if isinstance(value, bytes | dict))
    bytes_of = lambda row: row[key]["bytes"] if isinstance(row[key], dict) else row[key]  # noqa: E731
    films = np.stack([resize(decode(bytes_of(row)), 64, 1) for row in column])
    count = len(films)

    def resaved(film):
        buffer = io.BytesIO()
        Image.fromarray(film[:, :, 0]).save(buffer, "JPEG", quality=40)
        return decode(buffer.getvalue())

    rows = lambda pixels, name: Images.real(  # noqa: E731
        pixels, np.ones((len(pixels), 1), np.uint8), [f"{name}{i}" for i in range(len(pixels))],
        [f"{name}{i}.png" for i in range(len(pixels))],
    )  # fmt: skip
    test = np.stack([resaved(film) for film in films[:10]])
    data = tools.write(tmp_path / "data", classes=("film",), train=rows(films, "a"), test=rows(test, "b"))
    found, _ = check(data)
    across = found.copies.pairs[found.copies.across]
    assert {(a, b - count) for a, b in across.tolist()} == {(i, i) for i in range(10)}
