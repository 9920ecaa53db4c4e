import csv
import gzip

import pytest

from cluster.errors import UserError
from vaegan.importers.base import ColumnsConfig, ImportConfig, RadiographConfig
from vaegan.importers.mimic import FORMAT
from vaegan.importers.radiographs import OBSERVATIONS

PREFIX = "mimic-cxr-2.0.0"
STUDIES = (
    {"subject_id": "10000032", "study_id": "50414267", "Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"},
    {"subject_id": "10000764", "study_id": "57375967", "No Finding": "1.0"},
)
IMAGES = (("02aa-1", "10000032", "50414267", "PA"), ("174d-2", "10000032", "50414267", "LATERAL"),
          ("0962-3", "10000764", "57375967", "AP"))  # fmt: skip
SPLITS = (("02aa-1", "train"), ("174d-2", "train"), ("0962-3", "validate"))


def write(root, kind, header, rows, suffix=".csv.gz"):
    with (gzip.open if suffix == ".csv.gz" else open)(root / f"{PREFIX}-{kind}{suffix}", "wt", newline="") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)


def dataset(root, studies=STUDIES, images=IMAGES, splits=SPLITS, kinds=("chexpert",), suffix=".csv.gz"):
    """The three tables as distributed, without images."""
    for kind in kinds:
        write(root, kind, ("subject_id", "study_id", *sorted((*OBSERVATIONS, "No Finding"))), studies, suffix)
    keys = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    turned = "PatientOrientationCodeSequence_CodeMeaning"
    rows = [dict(zip(keys, row, strict=True)) | {turned: "Erect", "Rows": "3056"} for row in images]
    write(root, "metadata", (*keys, turned, "Rows"), rows, suffix)
    if splits is not None:
        write(root, "split", ("dicom_id", "split"), [dict(dicom_id=i, split=split) for i, split in splits], suffix)
    return root


def opened(root, group=None, **choices):
    columns = ColumnsConfig(group=group)
    return FORMAT.open(ImportConfig(images=root, radiographs=RadiographConfig(**choices), columns=columns))


def records(source):
    found = list(source.records())
    assert len(found) == source.num_records
    return found


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_labels_of_a_study_join_each_of_its_images(tmp_path, suffix):
    source = opened(dataset(tmp_path, suffix=suffix), views="all")
    found = records(source)
    assert [(r.image_id, r.labels, r.patient_id, r.split, r.problem) for r in found] == [
        ("02aa-1", ("Edema",), "10000032", "train", None),
        ("174d-2", ("Edema",), "10000032", "train", None),
        ("0962-3", (), "10000764", "val", None),
    ]
    assert found[0].image == tmp_path / "files/p10/p10000032/s50414267/02aa-1.jpg"
    assert found[0].asides == {"ViewPosition": "PA", "PatientOrientationCodeSequence_CodeMeaning": "Erect"}
    assert (source.kind, source.task, source.classes, source.identifying) == (
        "mimic",
        "multilabel",
        OBSERVATIONS,
        False,
    )
    assert any("data use agreement" in note for note in source.notes)
    assert any("Uncertain studies of all in the tables: Pneumonia 1." in note for note in source.notes)
    assert len(source.files) == 3


@pytest.mark.parametrize(
    ("policy", "labels", "problem"),
    [
        ("zeros", ("Edema",), None),
        ("ones", ("Edema", "Pneumonia"), None),
        ("reject", None, "a label that is marked as uncertain"),
    ],
)
def test_uncertain_labels_follow_the_policy(tmp_path, policy, labels, problem):
    first = records(opened(dataset(tmp_path), uncertain=policy))[0]
    assert (first.labels, first.problem) == (labels, problem)


@pytest.mark.parametrize(
    ("views", "left_out"),
    [
        ("frontal", [None, None, "a lateral view", "a lateral view", "an unknown view", "an unknown view"]),
        ("lateral", ["a frontal view", "a frontal view", None, None, "an unknown view", "an unknown view"]),
        ("all", [None] * 6),
    ],
)
def test_views_that_were_not_asked_for_are_left_out(tmp_path, views, left_out):
    positions = ("AP", "PA", "LATERAL", "LL", "", "SWIMMERS")
    images = [(f"i{k}", "10000032", "50414267", view) for k, view in enumerate(positions)]
    found = records(opened(dataset(tmp_path, images=images, splits=None), views=views))
    assert [r.left_out for r in found] == left_out


def test_without_the_table_of_splits_one_is_made(tmp_path):
    source = opened(dataset(tmp_path, splits=None))
    assert {r.split for r in source.records()} == {None}
    assert any("a split is made, by patient" in note for note in source.notes)


def test_chexperts_labels_go_before_negbios(tmp_path):
    dataset(tmp_path, kinds=("chexpert", "negbio"))
    assert opened(tmp_path).files[0].name == f"{PREFIX}-chexpert.csv.gz"
    (tmp_path / f"{PREFIX}-chexpert.csv.gz").unlink()
    source = opened(tmp_path)
    assert source.files[0].name == f"{PREFIX}-negbio.csv.gz"
    assert any("the negbio program" in note for note in source.notes)


def test_odd_images_are_problems(tmp_path):
    images = (
        IMAGES[0], ("new-1", "10000032", "99999999", "PA"), ("new-2", "10000764", "50414267", "PA"), IMAGES[0],
        ("../../x", "10000032", "50414267", "PA"), ("", "10000032", "50414267", "PA"), ("new-3", *IMAGES[2][1:]),
        ("new-4", *IMAGES[2][1:]), ("new-5", "10000001", "5", "PA"),
    )  # fmt: skip
    splits = [(name, "test") for name in ("02aa-1", "new-1", "new-2", "../../x", "", "new-5")] + [("new-4", "holdout")]
    twice = {"subject_id": "10000001", "study_id": "5"}
    source = opened(dataset(tmp_path, images=images, splits=splits, studies=(*STUDIES, twice, twice | {"Edema": "1"})))
    improper = "no proper dicom_id, study_id or subject_id"
    assert [r.problem for r in records(source)] == [
        None, "no labels of its study", "no labels of its study", "listed twice, first in row 2", improper, improper,
        "no row in the table of splits", "unknown split 'holdout'", "several rows of labels for its study",
    ]  # fmt: skip
    assert not any(".." in r.image.relative_to(tmp_path).parts for r in source.records() if r.problem is None)


def test_ragged_rows_become_records_or_are_said(tmp_path):
    dataset(tmp_path, suffix=".csv")
    for kind in ("metadata", "chexpert"):
        with open(tmp_path / f"{PREFIX}-{kind}.csv", "a") as file:
            file.write("short,row\n")
    source = opened(tmp_path)
    assert records(source)[-1].problem == "2 fields in the row, expected 6"
    assert any("1 rows of mimic-cxr-2.0.0-chexpert.csv have too few" in note for note in source.notes)


def test_any_column_of_the_metadata_may_be_the_group(tmp_path):
    assert records(opened(dataset(tmp_path), group="Rows"))[0].group == "Rows=3056"
    with pytest.raises(UserError, match="no column 'Scanner'"):
        opened(tmp_path, group="Scanner")


def test_the_fingerprint_follows_the_tables(tmp_path):
    before = opened(dataset(tmp_path)).fingerprint
    assert opened(tmp_path).fingerprint == before
    dataset(tmp_path, splits=[*SPLITS, ("more", "test")])
    assert opened(tmp_path).fingerprint != before


def test_folders_that_are_not_mimic(tmp_path):
    assert not FORMAT.recognises(tmp_path)
    assert not FORMAT.recognises(tmp_path / "absent")
    with pytest.raises(UserError, match="no mimic-cxr-"):
        opened(tmp_path)
    dataset(tmp_path)
    assert FORMAT.recognises(tmp_path)
    (tmp_path / f"{PREFIX}-metadata.csv.gz").unlink()
    assert not FORMAT.recognises(tmp_path)


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("chexpert", b"subject_id,study_id\n1,2\n", "no column 'Enlarged Cardiomediastinum'"),
        ("chexpert", b"", "is empty"),
        ("metadata", b"dicom_id,subject_id\n1,2\n", "no column 'study_id'"),
        ("split", b"dicom_id\nx\n", "no column 'split'"),
        ("split", b"other\nx\n", "no column 'dicom_id'"),
        ("split", bytes(100), "zero bytes"),
    ],
)
def test_odd_tables_are_refused_with_what_they_lack(tmp_path, kind, content, says):
    dataset(tmp_path, suffix=".csv")
    (tmp_path / f"{PREFIX}-{kind}.csv").write_bytes(content)
    with pytest.raises(UserError, match=says):
        opened(tmp_path)
