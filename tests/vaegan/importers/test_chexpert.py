import csv

import pytest

from cluster.errors import UserError
from vaegan.importers.base import ColumnsConfig, ImportConfig, RadiographConfig
from vaegan.importers.chexpert import FORMAT
from vaegan.importers.radiographs import OBSERVATIONS

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *OBSERVATIONS)


def write(root, name, *rows, header=HEADER):
    """A table; each row: path, view, and findings by name."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name.removesuffix(".csv")).mkdir(exist_ok=True)
    with open(root / name, "w", newline="") as file:
        writer = csv.DictWriter(file, header, restval="", extrasaction="ignore")
        writer.writeheader()
        for path, view, findings in rows:
            about = {"Path": path, "Sex": "Female", "Age": "68", "Frontal/Lateral": view, "AP/PA": "AP"}
            writer.writerow(about | findings)
    return root


def path(patient, split="train", view="frontal", top="CheXpert-v1.0-small/"):
    return f"{top}{split}/patient{patient:05}/study1/view1_{view}.jpg"


def opened(root, group=None, **choices):
    columns = ColumnsConfig(group=group)
    return FORMAT.open(ImportConfig(images=root, radiographs=RadiographConfig(**choices), columns=columns))


def records(source):
    found = list(source.records())
    assert len(found) == source.num_records
    return found


def test_both_tables_give_findings_patient_split_and_asides(tmp_path):
    write(tmp_path, "train.csv", (path(1), "Frontal", {"Edema": "1.0", "Fracture": "0.0", "Support Devices": "1.0"}))
    write(tmp_path, "valid.csv", (path(2, "valid"), "Frontal", {"No Finding": "1.0"}))
    source = opened(tmp_path)
    first, second = records(source)
    assert (first.labels, first.patient_id, first.split) == (("Edema", "Support Devices"), "patient00001", "train")
    assert first.image == tmp_path / "train/patient00001/study1/view1_frontal.jpg"
    assert first.image_id == "patient00001/study1/view1_frontal"
    assert first.asides == {"Sex": "Female", "Frontal/Lateral": "Frontal", "AP/PA": "AP"}
    assert (second.labels, second.split, second.problem) == ((), "val", None)
    assert (source.kind, source.task, source.identifying) == ("chexpert", "multilabel", False)
    assert [file.name for file in source.files] == ["train.csv", "valid.csv"]
    assert any("a test split is made" in note for note in source.notes)


def test_thirteen_classes_of_which_no_finding_is_none():
    assert len(OBSERVATIONS) == len(set(OBSERVATIONS)) == 13
    assert "No Finding" not in OBSERVATIONS


@pytest.mark.parametrize(
    ("policy", "labels", "problem"),
    [
        ("zeros", ("Mass",), None),
        ("ones", ("Edema", "Mass"), None),
        ("reject", None, "a label that is marked as uncertain"),
    ],
)
def test_uncertain_labels_follow_the_policy_and_are_counted(tmp_path, policy, labels, problem):
    findings = {"Edema": "-1.0", "Pneumonia": "1.0", "No Finding": "-1.0"}
    write(tmp_path, "train.csv", (path(1), "Frontal", findings), (path(2), "Frontal", {"Edema": "-1"}))
    source = opened(tmp_path, uncertain=policy)
    first = records(source)[0]
    expected = None if labels is None else tuple("Pneumonia" if name == "Mass" else name for name in labels)
    assert (first.labels, first.problem) == (expected, problem)
    assert any(f"--radiographs.uncertain {policy}" in n and "in the tables: Edema 2." in n for n in source.notes)


@pytest.mark.parametrize(
    ("views", "left_out"),
    [
        ("frontal", [None, "a lateral view", None, "a lateral view", "an unknown view"]),
        ("lateral", ["a frontal view", None, "a frontal view", None, "an unknown view"]),
        ("all", [None] * 5),
    ],
)
def test_views_that_were_not_asked_for_are_left_out(tmp_path, views, left_out):
    write(
        tmp_path, "train.csv",
        (path(1), "Frontal", {}), (path(2, view="lateral"), "Lateral", {}),
        (path(3), "", {}), (path(4, view="lateral"), "", {}), (path(5, view="x"), "", {}),
    )  # fmt: skip
    found = records(opened(tmp_path, views=views))
    assert [r.left_out for r in found] == left_out
    assert {r.problem for r in found} == {None}


@pytest.mark.parametrize("top", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", "", "/scratch/me/CheXpert/", "a\\b\\"])
def test_paths_begin_below_the_folder_wherever_it_was(tmp_path, top):
    write(tmp_path / "moved", "train.csv", (path(1, top=top), "Frontal", {}))
    assert records(opened(tmp_path / "moved"))[0].name == "train/patient00001/study1/view1_frontal.jpg"


def test_the_folder_may_lie_one_level_below(tmp_path):
    write(tmp_path / "CheXpert-v1.0-small", "valid.csv", (path(1, "valid"), "Frontal", {}))
    assert FORMAT.recognises(tmp_path)
    assert records(opened(tmp_path))[0].image.parts[-5:-3] == ("CheXpert-v1.0-small", "valid")


def test_test_images_count_where_their_table_has_labels(tmp_path):
    write(tmp_path, "train.csv", (path(1), "Frontal", {}))
    write(tmp_path, "test.csv", (path(2, "test"), "Frontal", {}))
    assert [r.split for r in records(opened(tmp_path))] == ["train", "test"]
    write(tmp_path, "test.csv", (path(2, "test"), "Frontal", {}), header=("Path",))
    assert [r.split for r in records(opened(tmp_path))] == ["train"]


def test_odd_rows_are_problems(tmp_path):
    write(
        tmp_path, "train.csv",
        (path(1), "Frontal", {}), (path(1), "Frontal", {}), ("", "Frontal", {}), ("../../etc/passwd", "Frontal", {}),
        ("/etc/passwd", "Frontal", {}), (path(2), "Frontal", {"Edema": "perhaps"}),
        (path(3) + "/../../../../../x.jpg", "Frontal", {}),
    )  # fmt: skip
    with open(tmp_path / "train.csv", "a") as file:
        file.write("short,row\n")
    outside = "a path that leads out of the dataset's folder"
    assert [r.problem for r in records(opened(tmp_path))] == [
        None, "listed twice, first in row 2", "no path", outside, outside,
        "Edema is 'perhaps', expected 0 or 1", outside, "2 fields in the row, expected 19",
    ]  # fmt: skip


def test_any_column_may_be_the_group(tmp_path):
    write(tmp_path, "train.csv", (path(1), "Frontal", {}))
    assert records(opened(tmp_path, group="Age"))[0].group == "Age=68"
    with pytest.raises(UserError, match=r"no column 'Scanner'.*--columns.group"):
        opened(tmp_path, group="Scanner")


def test_folders_that_are_not_chexpert(tmp_path):
    assert not FORMAT.recognises(tmp_path)
    assert not FORMAT.recognises(tmp_path / "absent")
    (tmp_path / "train.csv").write_text("path,label\nx,y\n")
    (tmp_path / "valid.csv").write_bytes(bytes(100))
    assert not FORMAT.recognises(tmp_path)
    with pytest.raises(UserError, match=r"no train.csv or valid.csv of CheXpert"):
        opened(tmp_path)


def test_incomplete_folders_are_refused_with_what_they_lack(tmp_path):
    write(tmp_path, "train.csv", (path(1), "Frontal", {}))
    (tmp_path / "train").rmdir()
    with pytest.raises(UserError, match="none of the folders train/"):
        opened(tmp_path)
    write(tmp_path, "train.csv", (path(1), "Frontal", {}), header=[name for name in HEADER if name != "Edema"])
    with pytest.raises(UserError, match="no column 'Edema'"):
        opened(tmp_path)
    write(tmp_path, "train.csv")
    with pytest.raises(UserError, match="has no rows"):
        opened(tmp_path)
