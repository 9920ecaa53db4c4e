import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.phantom import PhantomConfig, phantom
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.prepare import main
from vaegan.shards import SPLITS, read_manifest, read_split


@pytest.fixture(scope="module")
def films():
    """One film each of 80 patients, (80, 64, 64)."""
    images = phantom(PhantomConfig(patients=80), size=64, seed=0)
    return images.pixels[np.unique(images.patient_id.astype(str), return_index=True)[1]][..., 0]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path, films):
    """Two classes of 40 films, two films per patient."""
    for i, film in enumerate(films):
        save(tmp_path / "in" / "AB"[i % 2] / f"p{i // 4}-{i}.png", film)
    return tmp_path / "in"


def config(folder, tmp_path, **settings):
    usual = dict(images=folder, out=tmp_path / "out", size=32, patient_regex=r"p(\d+)-")
    return PrepareConfig(**usual | settings)


def images_of(dataset):
    return {split: read_split(dataset, split) for split in read_manifest(dataset).splits}


def test_every_good_image_lands_in_exactly_one_split_with_its_label_and_patient(folder, tmp_path):
    manifest = prepare(config(folder, tmp_path))
    found = images_of(tmp_path / "out")
    names = [name for images in found.values() for name in images.image_id]
    assert sorted(names) == sorted(path.stem for path in folder.rglob("*.png"))
    patients = [set(images.patient_id) for images in found.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
    for images in found.values():
        for name, patient, label in zip(images.image_id, images.patient_id, images.labels, strict=True):
            assert name.startswith(f"p{patient}-")
            assert (folder / manifest.classes[label.argmax()] / f"{name}.png").exists()
    assert manifest.provenance["config"]["size"] == 32
    assert manifest.report["patients"]["number"] == 20


def test_pixels_are_those_of_the_file(folder, tmp_path):
    prepare(config(folder, tmp_path, size=64))
    images = read_split(tmp_path / "out", "test")
    for name, pixels in zip(images.image_id, images.pixels, strict=True):
        np.testing.assert_array_equal(pixels[..., 0], np.asarray(Image.open(next(folder.rglob(f"{name}.png")))))


def spoil(folder):
    """One file of each kind that can't be used, and what must be said of it."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(buffer, "JPEG")
    (folder / "A" / "truncated.jpg").write_bytes(buffer.getvalue()[:-300])
    (folder / "A" / "text.png").write_text("this is no image")
    (folder / "B" / "empty.png").write_bytes(b"")
    save(folder / "B" / "constant.png", np.full((64, 64), 7, dtype=np.uint8))
    save(folder / "B" / "nan.tif", np.full((64, 64), np.nan, dtype=np.float32))
    return {"truncated": "cut short", "text": "not an image", "empty": "empty", "constant": "same value", "nan": "NaN"}


def test_bad_files_are_listed_with_path_and_reason_and_the_rest_goes_on(folder, tmp_path):
    expected = spoil(folder)
    manifest = prepare(config(folder, tmp_path))
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert manifest.rejects == len(rejects) == len(expected)
    for row in rejects:
        stem = row["path"].split("/")[-1].split(".")[0]
        assert expected[stem] in row["reason"]
    assert sum(info.num_images for info in manifest.splits.values()) == 80


def test_strict_stops_with_status_2_names_the_file_and_leaves_nothing(folder, tmp_path, capsys):
    spoil(folder)
    out = tmp_path / "out"
    assert main(["--images", str(folder), "--out", str(out), "--size", "32", "--strict"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "A/text.png" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_second_run_leaves_a_finished_dataset_and_other_settings_or_images_are_refused(folder, tmp_path, capsys):
    arguments = ["--images", str(folder), "--out", str(tmp_path / "out"), "--size", "32"]
    assert main(arguments) == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert main([*arguments, "--num-workers", "1"]) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert main([*arguments, "--seed", "1"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err
    next(folder.rglob("*.png")).unlink()
    assert main(arguments) == 2
    assert "other images" in capsys.readouterr().err


def test_the_same_settings_write_the_same_files_whatever_the_number_of_workers(folder, tmp_path):
    one = prepare(config(folder, tmp_path, out=tmp_path / "one", num_workers=1))
    four = prepare(config(folder, tmp_path, out=tmp_path / "four", num_workers=0))
    assert one.splits == four.splits


def split_tree(root, films, **plants):
    """train/ and test/ of different patients, two classes each; `plants` are further files: path -> pixels."""
    for i, film in enumerate(films):
        save(root / ("test" if i >= 60 else "train") / "AB"[i % 2] / f"p{i}-0.png", film)
    return root


def test_copies_across_splits_leave_train_never_test_and_both_names_are_told(tmp_path, films):
    root = split_tree(tmp_path / "in", films)
    save(root / "train/A/p100-exact.png", films[60])
    save(root / "train/B/p101-near.jpg", np.clip(films[61] * 1.15, 0, 255).astype(np.uint8), quality=40)
    manifest = prepare(config(root, tmp_path, size=64))
    leaks = {leak["image"]: leak for leak in manifest.report["leaks"]["listed"]}
    assert set(leaks) == {"p100-exact", "p101-near"}
    assert (leaks["p100-exact"]["match"], leaks["p100-exact"]["other_image"]) == ("exact", "p60-0")
    assert (leaks["p101-near"]["match"], leaks["p101-near"]["other_image"]) == ("near", "p61-0")
    found = images_of(tmp_path / "out")
    assert not {"p100-exact", "p101-near"} & {name for images in found.values() for name in images.image_id}
    assert manifest.splits["test"].num_images == 20
    assert manifest.report["duplicates"]["groups"] == 2


def test_leaks_can_be_kept_but_are_still_told(tmp_path, films):
    root = split_tree(tmp_path / "in", films)
    save(root / "train/A/p100-exact.png", films[60])
    manifest = prepare(config(root, tmp_path, leaks="keep"))
    assert manifest.report["leaks"]["images"] == 1
    assert sum(info.num_images for info in manifest.splits.values()) == 81


def test_a_patient_in_two_splits_of_the_source_leaves_train(tmp_path, films):
    root = split_tree(tmp_path / "in", films)
    save(root / "train/A/p60-another.png", films[0][::-1])
    manifest = prepare(config(root, tmp_path))
    (leak,) = manifest.report["leaks"]["listed"]
    assert (leak["kind"], leak["image"], leak["other_image"]) == ("patient", "p60-another", "p60-0")
    assert (leak["split"], leak["other_split"]) == ("train", "test")
    assert manifest.report["leaks"]["by_patient"] == 1


def test_copies_under_other_names_stay_together_when_the_split_is_made_here(tmp_path, films):
    for i, film in enumerate(films[:40]):
        for copy in "xy":
            save(tmp_path / "in" / "AB"[i % 2] / f"{copy}{i}.png", film)
    prepare(config(tmp_path / "in", tmp_path, patient_regex=None))
    where = {name: split for split, images in images_of(tmp_path / "out").items() for name in images.image_id}
    assert len(where) == 80
    assert all(where[f"x{i}"] == where[f"y{i}"] for i in range(40))


def test_identical_images_with_two_labels_are_reported(folder, tmp_path, films):
    save(folder / "B" / "p900-again.png", films[0])  # films[0] is of class A
    report = prepare(config(folder, tmp_path)).report["duplicates"]
    assert report["groups_with_conflicting_labels"] == 1
    assert set(report["conflicts_listed"][0]) == {"p0-0", "p900-again"}


def test_one_class_is_refused_unless_asked_for(folder, tmp_path):
    with pytest.raises(UserError, match=r"only one class.*--allow-one-class"):
        prepare(config(folder, tmp_path, classes=("A",)))
    manifest = prepare(config(folder, tmp_path, classes=("A",), allow_one_class=True))
    assert manifest.classes == ("A",)
    assert sum(info.num_images for info in manifest.splits.values()) == 40


def test_hashed_patients_leave_no_name_behind_and_keep_who_belongs_together(folder, tmp_path):
    spoil(folder)
    prepare(config(folder, tmp_path, hash_patients=True))
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    content += json.dumps(read_manifest(tmp_path / "out").report).encode()
    for images in images_of(tmp_path / "out").values():
        assert all(len(name) == 16 for name in [*images.patient_id, *images.image_id])
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").column("path").to_pylist()
    assert not any("truncated" in path for path in rejects)
    assert b"p3-12" not in content
    assert sum(info.num_patients for info in read_manifest(tmp_path / "out").splits.values()) == 20


def test_a_grey_source_can_be_stored_in_colour(folder, tmp_path):
    prepare(config(folder, tmp_path, channels=3))
    pixels = read_split(tmp_path / "out", "train").pixels
    assert pixels.shape[1:] == (32, 32, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_the_phantom_is_what_comes_without_images(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--size", "32", "--phantom.patients", "30", "--seed", "4"]) == 0
    expected = phantom(PhantomConfig(patients=30), size=32, seed=4)
    found = images_of(tmp_path / "out")
    assert set(found) == set(SPLITS)
    assert sum(len(images) for images in found.values()) == len(expected)
    by_name = dict(zip(expected.image_id, expected.pixels, strict=True))
    for images in found.values():
        for name, pixels in zip(images.image_id, images.pixels, strict=True):
            np.testing.assert_array_equal(pixels, by_name[name])
    assert "made up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "/nowhere/at/all"], "no folder or file /nowhere/at/all"),
        (["--source", "folder"], "needs --images"),
        (["--size", "5000"], "expected 8 to 1024"),
        (["--fractions", "0.5", "0.2", "0.2"], "sum to 1"),
    ],
)
def test_mistakes_are_told_in_one_sentence_with_status_2(tmp_path, capsys, arguments, says):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_one_of_nothing_but_rubbish(tmp_path):
    (tmp_path / "in" / "A").mkdir(parents=True)
    (tmp_path / "in" / "B").mkdir()
    with pytest.raises(UserError, match="no images in the subfolders"):
        prepare(config(tmp_path / "in", tmp_path))
    for name in "AB":
        (tmp_path / "in" / name / "x.png").write_text("rubbish")
    with pytest.raises(UserError, match=r"none of the 2 images.*not an image"):
        prepare(config(tmp_path / "in", tmp_path))


def test_nih_as_it_is_shows_its_traps(shared, tmp_path):
    manifest = prepare(PrepareConfig(images=shared / "data/nih_cxr_1000_256", out=tmp_path / "out", size=32))
    assert sum(info.num_images for info in manifest.splits.values()) == 1000
    assert sum(info.num_patients for info in manifest.splits.values()) == 682
    assert manifest.report["patients"]["with_several_labels"] == 21
    assert manifest.report["split"]["origin"] == "made"
    assert any("rsna_says" in note for note in manifest.report["notes"])


def test_kermany_as_it_is_shows_its_traps(shared, tmp_path):
    """One of its three files: all of test and val, the normal and some of the pneumonia training films."""
    path = shared / "data/kermany_cxr_224/part-000-of-003.parquet"
    table = pq.read_table(path, columns=["split", "dup_group", "source_id"]).to_pandas()
    manifest = prepare(PrepareConfig(images=path, out=tmp_path / "out", size=32))
    groups = table.dropna().groupby("dup_group").source_id.apply(frozenset)
    planted = {group for group in groups if len(group) > 1}
    assert {frozenset(group) for group in manifest.report["duplicates"]["listed"]} == planted
    assert manifest.report["duplicates"]["near_copies"] == 0
    assert manifest.report["leaks"]["images"] == 0
    assert manifest.splits["test"].num_images == np.sum(table["split"] == "test")
    if np.sum(table["split"] == "val") < 50:
        assert any("carved out for val" in note for note in manifest.report["split"]["notes"])


def test_images_that_nobody_labelled_are_stored_as_such_and_a_patients_stay_with_hers(folder, films, tmp_path):
    for i, film in enumerate(films[:16]):  # of four patients who are there, and of four others
        save(folder / "unknown" / f"p{i // 4 if i < 8 else 90 + i}-u{i}.png", np.roll(film, 5 + i, axis=1))
    known = config(folder, tmp_path, unlabelled=("unknown",))
    manifest = prepare(known)
    found = images_of(tmp_path / "out")
    assert manifest.classes == ("A", "B")
    assert sum(info.num_unlabelled for info in manifest.splits.values()) == 16
    assert sum(sum(info.per_class.values()) for info in manifest.splits.values()) == 80
    everything = [set(images.patient_id) for images in found.values()]
    assert sum(map(len, everything)) == len(set.union(*everything))
    for images in found.values():
        assert [not labelled for labelled in images.has_label] == ["-u" in name for name in images.image_id]
        assert not images.labels[~images.has_label].any()
    strangers = {name for name in found["train"].image_id if "-u" in name and int(name[1:].split("-")[0]) >= 90}
    assert len(strangers) == 8
    assert any("16 of 96 images have no label" in note for note in manifest.report["notes"])
    assert prepare(known) == manifest
    again = prepare(PrepareConfig(images=tmp_path / "out", out=tmp_path / "again", size=32))
    assert {s: i.num_unlabelled for s, i in again.splits.items()} == {
        s: i.num_unlabelled for s, i in manifest.splits.items()
    }


def test_the_label_of_a_copy_conflicts_with_none_that_nobody_gave(folder, films, tmp_path):
    save(folder / "unknown" / "p0-copy.png", films[0])
    manifest = prepare(config(folder, tmp_path, unlabelled=("unknown",)))
    assert manifest.report["duplicates"]["groups_with_conflicting_labels"] == 0
    assert manifest.report["duplicates"]["groups"] == 1
