import os

import pytest

from cluster.errors import UserError
from vaegan.importers.base import ColumnsConfig, ImportConfig
from vaegan.importers.nih import CLASSES, FORMAT

OLD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
NEW = OLD.replace("Gender", "Sex").removesuffix(",")
ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,058Y,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,081Y,M,AP,2500,2048,0.171,0.171",
)


def dataset(root, rows=ROWS, header=NEW, name="Data_Entry_2017_v2020.csv", folder="images_001/images", lists=True):
    """The tree as distributed, with files of a few bytes for each row."""
    end = "," if header.endswith(",") else ""
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join([header, *(row + end for row in rows)]) + "\n")
    for row in rows:
        (root / folder / (row.partition(",")[0] or "x.txt")).write_bytes(b"x")
    if lists:
        (root / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
        (root / "test_list.txt").write_text("00000002_000.png")
    return root


def opened(root, **columns):
    return FORMAT.open(ImportConfig(images=root, columns=ColumnsConfig(**columns)))


def problems(source):
    records = list(source.records())
    assert len(records) == source.num_records
    return {r.image_id: r.problem for r in records}


@pytest.mark.parametrize(("header", "name"), [(OLD, "Data_Entry_2017.csv"), (NEW, "Data_Entry_2017_v2020.csv")])
def test_both_tables_give_findings_patient_split_and_asides(tmp_path, header, name):
    source = opened(dataset(tmp_path, header=header, name=name))
    assert (source.kind, source.task, source.classes, source.identifying) == ("nih", "multilabel", CLASSES, False)
    records = list(source.records())
    assert [(r.image_id, r.labels, r.patient_id, r.split, r.problem) for r in records] == [
        ("00000001_000", ("Cardiomegaly",), "1", "train", None),
        ("00000001_001", ("Cardiomegaly", "Emphysema"), "1", "train", None),
        ("00000002_000", (), "2", "test", None),
    ]
    assert records[2].asides["View Position"] == "AP"
    assert set(records[2].asides.values()) == {"AP", "M"}
    assert records[0].image == tmp_path / "images_001/images/00000001_000.png"
    assert records[0].name == "images_001/images/00000001_000.png"
    assert any("more than 90%" in note for note in source.notes)
    assert [file.name for file in source.files] == [name, "train_val_list.txt", "test_list.txt"]


@pytest.mark.parametrize("folder", ["images", "images_001", "images_012/images", "images-224/images-224", "."])
def test_images_may_lie_in_one_folder_or_many(tmp_path, folder):
    source = opened(dataset(tmp_path, folder=folder))
    assert set(problems(source).values()) == {None}
    assert all(r.image.is_file() for r in source.records())


def test_images_of_another_format_are_found_by_their_stem(tmp_path):
    dataset(tmp_path)
    file = tmp_path / "images_001/images/00000001_000.png"
    file.rename(file.with_suffix(".jpg"))
    assert next(opened(tmp_path).records()).image == file.with_suffix(".jpg")


def test_the_standard_order_of_findings():
    assert len(CLASSES) == 14
    assert (CLASSES[0], CLASSES[8], CLASSES[13]) == ("Atelectasis", "Consolidation", "Hernia")


def test_rows_without_an_image_and_images_without_a_row_are_records_with_a_problem(tmp_path):
    dataset(tmp_path)
    (tmp_path / "images_001/images/00000001_001.png").unlink()
    (tmp_path / "images_001/images/00000009_000.png").write_bytes(b"x")
    (tmp_path / "images_001/images/notes.txt").write_bytes(b"x")
    (tmp_path / "images_002/images").mkdir(parents=True)
    (tmp_path / "images_002/images/00000001_000.png").write_bytes(b"x")
    source = opened(tmp_path)
    assert problems(source) == {
        "00000001_000": None,
        "00000001_001": "no such file in the folders of images",
        "00000002_000": None,
        "images_001/images/00000009_000": "no row in Data_Entry_2017_v2020.csv",
        "images_002/images/00000001_000": "a second file of that name, in another folder or with another suffix",
    }
    assert any("1 of the table's 3 images are not there" in note for note in source.notes)


def test_the_lists_must_name_each_image_in_exactly_one_of_them(tmp_path):
    dataset(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\r\n00000002_000.png\r\n\r\nabsent.png\r\n")
    source = opened(tmp_path)
    assert [(r.split, r.problem) for r in source.records()] == [
        ("train", None), (None, "in neither list of the split"), (None, "in both lists of the split"),
    ]  # fmt: skip
    assert any("1 names in train_val_list.txt" in note for note in source.notes)


@pytest.mark.parametrize("gone", [("test_list.txt",), ("test_list.txt", "train_val_list.txt")])
def test_without_both_lists_there_is_no_split(tmp_path, gone):
    dataset(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    source = opened(tmp_path)
    assert {(r.split, r.problem) for r in source.records()} == {(None, None)}
    assert any("test_list.txt" in note and "one is made, by patient" in note for note in source.notes)


def test_odd_rows_are_problems(tmp_path):
    odd = ("00000003_000.png,Cold,0,3", "00000004_000.png,,0,4", "00000005_000.png,No Finding|Mass,0,5", ",Mass,0,6")
    rows = (*ROWS, *(row + ",050Y,F,PA,1,1,1,1" for row in odd), ROWS[0], "short,Mass")
    root = dataset(tmp_path, rows=rows[:7], lists=False)
    with open(root / "Data_Entry_2017_v2020.csv", "a") as file:
        file.write("\n".join(rows[7:]) + "\n")
    records = list(opened(root).records())
    assert [r.problem for r in records[3:]] == [
        "unknown label 'Cold'",
        "no label",
        "no finding beside a finding",
        "no such file in the folders of images",
        "listed twice, first in row 2",
        "2 fields in the row, expected 11",
    ]
    assert len(records) == opened(root).num_records


def test_any_column_may_be_the_group(tmp_path):
    dataset(tmp_path)
    assert next(opened(tmp_path, group="Patient Age").records()).group == "Patient Age=058Y"
    with pytest.raises(UserError, match=r"no column 'Scanner'.*--columns.group"):
        opened(tmp_path, group="Scanner")


def test_file_names_that_are_no_text_are_records_all_the_same(tmp_path):
    dataset(tmp_path)
    with open(os.path.join(os.fsencode(tmp_path), b"images_001/images/\xff.png"), "wb") as file:
        file.write(b"x")
    record = list(opened(tmp_path).records())[-1]
    assert record.name == "images_001/images/�.png"
    assert record.image.is_file()


def test_the_fingerprint_follows_the_images_times(tmp_path):
    before = opened(dataset(tmp_path)).fingerprint
    assert opened(tmp_path).fingerprint == before
    os.utime(tmp_path / "images_001/images/00000001_000.png", (1, 1))
    assert opened(tmp_path).fingerprint != before


def test_the_newer_of_two_tables_is_read_and_said(tmp_path):
    dataset(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text(OLD + "\n")
    assert any("Data_Entry_2017.csv was not read" in note for note in opened(tmp_path).notes)


def test_recognised_by_the_table_alone(tmp_path):
    assert FORMAT.recognises(dataset(tmp_path / "whole"))
    assert not FORMAT.recognises(tmp_path)
    assert not FORMAT.recognises(tmp_path / "whole/Data_Entry_2017_v2020.csv")
    assert not FORMAT.recognises(tmp_path / "absent")
    (tmp_path / "Data_Entry_2017.csv").write_bytes(bytes(100))
    assert not FORMAT.recognises(tmp_path)


@pytest.mark.parametrize(
    ("table", "images", "says"),
    [
        (None, True, "no Data_Entry_2017.csv"),
        (NEW + "\n" + ROWS[0], False, "no images in"),
        (NEW + "\n", True, "has no rows"),
        ("Image Index,Finding Labels\nx,y\n", True, "no column 'Patient ID'"),
        ("", True, "is empty"),
    ],
)
def test_incomplete_folders_are_refused_with_what_they_lack(tmp_path, table, images, says):
    if table is not None:
        (tmp_path / "Data_Entry_2017.csv").write_text(table)
    if images:
        (tmp_path / "images").mkdir()
        (tmp_path / "images/x.png").write_bytes(b"x")
    with pytest.raises(UserError, match=says):
        opened(tmp_path)
