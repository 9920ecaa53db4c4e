from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from vaegan.importers.base import ColumnsConfig, DicomConfig, ImportConfig
from vaegan.importers.dicom import FORMAT, NO_FILE, NO_ROW, open_dicom

pydicom = pytest.importorskip("pydicom")

SURNAME = "MUSTERMANN"


def film(path, number=0, *, study=None, patient=None):
    """A small film of SOPInstanceUID 1.2.3.`number`, study 1.2.9.`study` and patient `SURNAME`-`patient`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.SOPInstanceUID = f"1.2.3.{number}"
    data.StudyInstanceUID = f"1.2.9.{number if study is None else study}"
    data.PatientID = f"{SURNAME}-{number if patient is None else patient}"
    data.Modality = "CR"
    data.Rows = data.Columns = 8
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 7, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = np.arange(64, dtype=np.uint8).tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    return path


def films(root, names, **ids):
    for i, name in enumerate(names):
        film(root / name, i, **{key: value[i] for key, value in ids.items()})
    return root


def write(path, text):
    path.write_text(text)
    return path


def opened(root, labels=None, columns=None, **more):
    config = ImportConfig(images=root, dicom=DicomConfig(labels=labels), columns=columns or ColumnsConfig(), **more)
    source = open_dicom(config)
    records = list(source.records())
    assert len(records) == source.num_records
    assert source.identifying
    assert source.dicom
    assert SURNAME not in " ".join(source.notes)
    assert "1.2.3." not in " ".join(source.notes)
    return source, records


def told(records):
    return {r.name: r.labels or r.problem for r in records}


# ------------------------------------------------------------------------------------------------------- recognition


@pytest.mark.parametrize(
    "names", [["a/1.dcm"], ["A/1.IMA"], ["a/b/c/IM0001"], ["1.2.840.5"], ["x.DICOM", "labels.csv"]]
)
def test_a_folder_of_dicom_files_is_recognised_by_what_is_in_them(tmp_path, names):
    assert FORMAT.recognises(films(tmp_path, names))


def test_other_folders_are_not_recognised(tmp_path):
    (tmp_path / "A").mkdir()
    assert not FORMAT.recognises(tmp_path)
    for name in ("A/1.png", "A/2.png", "A/notes.txt", "A/README", "A/fake.dcm"):
        write(tmp_path / name, "not at all")
    assert not FORMAT.recognises(tmp_path)
    film(tmp_path / "A" / "stray.dcm")
    assert not FORMAT.recognises(tmp_path)


# ------------------------------------------------------------------------------------------------------- subfolders


def test_subfolders_are_classes_with_and_without_splits(tmp_path):
    names = ["train/normal/1.dcm", "train/ill/deep/er/2", "validation/ill/3.IMA", "test/normal/1.2.840.77"]
    source, records = opened(films(tmp_path, names))
    assert source.classes == ("ill", "normal")
    assert source.task == "multiclass"
    assert [(r.name, r.labels, r.split, r.patient_id) for r in records] == [
        ("test/normal/1.2.840.77", ("normal",), "test", None),
        ("train/ill/deep/er/2", ("ill",), "train", None),
        ("train/normal/1.dcm", ("normal",), "train", None),
        ("validation/ill/3.IMA", ("ill",), "val", None),
    ]
    assert all(r.image == tmp_path / r.name for r in records)


def test_what_is_no_dicom_is_counted_in_a_note_and_a_mediums_index_is_no_image(tmp_path):
    films(tmp_path, ["A/1.dcm", "A/3.dcm", "B/2.dcm", "B/DICOMDIR"])
    for name in ("A/report.pdf", "viewer.exe", "A/.hidden"):
        write(tmp_path / name, "x")
    source, records = opened(tmp_path)
    assert [r.name for r in records] == ["A/1.dcm", "A/3.dcm", "B/2.dcm"]
    (note,) = [note for note in source.notes if "ignored" in note]
    assert all(part in note for part in ("1 DICOMDIR", "1 .pdf", "1 .exe"))


def test_a_pattern_takes_patients_from_paths_and_says_how_many_it_missed_without_a_name(tmp_path):
    films(tmp_path, [f"A/{SURNAME}7_1.dcm", f"B/{SURNAME}8_1.dcm", "B/other.dcm"])
    source, records = opened(tmp_path, patient_regex=rf"{SURNAME}\d")
    assert [r.patient_id for r in records] == [f"{SURNAME}7", f"{SURNAME}8", None]
    assert any("1 of 3 have none" in note for note in source.notes)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["1.dcm", "2.dcm"], r"has 2 DICOM files in it and none in subfolders.*--dicom.labels TABLE"),
        (["A/notes.txt"], r"no DICOM files in the subfolders of .* \(found 1 .txt\)"),
        ([], "found no files"),
        (["train/A/1.dcm", "other/A/2.dcm"], "holds train/ beside other/"),
    ],
)
def test_odd_folders_are_refused_with_what_was_found(tmp_path, names, says):
    with pytest.raises(UserError, match=says):
        opened(films(tmp_path, names))


def test_a_table_that_lies_there_is_suggested(tmp_path):
    write(films(tmp_path, ["1.dcm"]) / "labels.csv", "path,label\n1.dcm,a\n")
    with pytest.raises(UserError, match=r"pass --dicom.labels .*labels\.csv"):
        opened(tmp_path)


def test_a_folder_for_each_patient_is_not_taken_for_classes(tmp_path):
    for i in range(1001):
        (tmp_path / f"{SURNAME}{i}").mkdir()
    film(tmp_path / f"{SURNAME}0" / "1.dcm")
    with pytest.raises(UserError, match="1001 subfolders, which seem to be one for each patient") as error:
        opened(tmp_path)
    assert SURNAME not in str(error.value)


@pytest.mark.parametrize("images", [None, "absent", "file"])
def test_there_must_be_a_folder(tmp_path, images):
    write(tmp_path / "file", "x")
    with pytest.raises(UserError, match="expected one with DICOM files"):
        open_dicom(ImportConfig(images=images and tmp_path / images))


# ------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["a/1.dcm", "b/2.dcm", "b/c/IM3"], "paths"),
        (["a\\1.dcm", "./b/2.dcm", "/b/c/IM3"], "paths"),
        (["a/1", "b/2", "b/c/IM3"], "paths without suffix"),
        (["1.dcm", "2.dcm", "IM3"], "file names"),
        (["1", "2", "IM3"], "file names without suffix"),
        (["1.2.3.0", "1.2.3.1", "1.2.3.2"], "the headers' SOPInstanceUID"),
        (["1.2.9.0", "1.2.9.1", "1.2.9.2"], "the headers' StudyInstanceUID"),
        ([f"{SURNAME}-0", f"{SURNAME}-1", f"{SURNAME}-2"], "the headers' PatientID"),
    ],
)
def test_the_kind_of_key_is_found_by_looking(tmp_path, keys, kind):
    films(tmp_path / "images", ["a/1.dcm", "b/2.dcm", "b/c/IM3"])
    table = write(tmp_path / "t.csv", "path,label\n" + "".join(f"{k},{'xyx'[i]}\n" for i, k in enumerate(keys)))
    source, records = opened(tmp_path / "images", table)
    assert [(r.labels, r.problem, r.patient_id) for r in records] == [((each,), None, None) for each in "xyx"]
    assert any(f"holds {kind}: 3 of 3 files have a row" in note for note in source.notes)
    assert source.files == (table,)


def test_one_row_of_a_study_or_a_patient_is_for_all_their_files(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm", "3.dcm"], study=[0, 0, 1])
    _, records = opened(tmp_path / "i", write(tmp_path / "t.csv", "path,label\n1.2.9.0,x\n1.2.9.1,y\n"))
    assert [r.labels for r in records] == [("x",), ("x",), ("y",)]


def test_the_kind_that_matches_the_most_files_wins_over_one_that_matches_a_few(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm", "3.dcm", "4.dcm"])
    keys = ["1.dcm", "1.2.3.1", "1.2.3.2", "1.2.3.3"]
    table = write(tmp_path / "t.csv", "path,label\n" + "".join(f"{key},x\n" for key in keys))
    _, records = opened(tmp_path / "i", table)
    assert told(records) == {"1.dcm": NO_ROW, "2.dcm": ("x",), "3.dcm": ("x",), "4.dcm": ("x",), "t.csv:2": NO_FILE}


def test_rows_in_are_records_out(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm", "3.dcm"])
    text = "path,label\n1.dcm,x\ngone.dcm,y\n,x\n2.dcm,\n1.dcm,x,too,many\ngone.dcm,y\n"
    source, records = opened(tmp_path / "i", write(tmp_path / "t.csv", text))
    assert told(records) == {
        "1.dcm": ("x",),
        "2.dcm": "no label",
        "3.dcm": NO_ROW,
        "t.csv:3": NO_FILE,
        "t.csv:4": "no name of a file in the row",
        "t.csv:6": "4 fields in the row, expected 2",
    }
    assert any("2 of the table's entries name no file" in note for note in source.notes)


def test_equal_rows_of_one_file_are_one_and_contradictory_ones_a_problem(tmp_path):
    """The layout of the RSNA Pneumonia Detection Challenge: a row for each box."""
    films(tmp_path / "stage_2_train_images", ["p1.dcm", "p2.dcm", "p3.dcm", "p4.dcm"])
    text = (
        "patientId,x,y,width,height,Target\n"
        "p1,,,,,0\n"
        "p2,264.0,152.0,213.0,379.0,1\n"
        "p2,562.0,152.0,256.0,453.0,1\n"
        "p3,1.0,2.0,3.0,4.0,1\n"
        "p3,,,,,0\n"
    )
    table = write(tmp_path / "stage_2_train_labels.csv", text)
    columns = ColumnsConfig(path="patientId", label="Target")
    source, records = opened(tmp_path / "stage_2_train_images", table, columns)
    assert source.classes == ("0", "1")
    assert told(records) == {
        "p1.dcm": ("0",),
        "p2.dcm": ("1",),
        "p3.dcm": "the table's rows for it contradict each other",
        "p4.dcm": NO_ROW,
    }
    assert {r.patient_id for r in records} == {None}  # the header's, once it is decoded


def test_a_name_that_two_folders_have_labels_neither_of_its_files(tmp_path):
    films(tmp_path / "i", ["a/IM1", "b/IM1", "b/IM2"])
    source, records = opened(tmp_path / "i", write(tmp_path / "t.csv", "path,label\nIM1,x\nIM2,y\n"))
    assert [r.labels for r in records] == [None, None, ("y",)]
    assert all("several files have the name" in (r.problem or "") for r in records[:2])
    assert any("2 files share their name" in note for note in source.notes)


def test_split_group_patient_and_asides_of_the_table_are_taken(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm", "3.dcm"])
    text = "path,label,split,hospital,patient_id,view\n1.dcm,x,Training,A,77,PA\n2.dcm,y,test,,,AP\n3.dcm,y,odd,B,78,\n"
    table = write(tmp_path / "t.csv", text)
    _, records = opened(tmp_path / "i", table, ColumnsConfig(group="hospital"))
    assert [(r.split, r.group, r.patient_id, dict(r.asides)) for r in records] == [
        ("train", "hospital=A", "77", {"view": "PA"}),
        ("test", None, None, {"view": "AP"}),
        (None, "hospital=B", "78", {}),
    ]
    assert records[2].problem == "unknown split 'odd'"


def test_findings_and_several_labels_in_one_string_are_multilabel(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm"])
    table = write(tmp_path / "t.csv", "path,label,Mass,Edema\n1.dcm,Mass|Edema,1,1\n2.dcm,No Finding,0,0\n")
    by_string, first = opened(tmp_path / "i", table)
    by_columns, second = opened(tmp_path / "i", table, ColumnsConfig(findings=("Mass", "Edema")))
    assert by_string.task == by_columns.task == "multilabel"
    assert [set(r.labels) for r in first] == [set(r.labels) for r in second] == [{"Mass", "Edema"}, set()]


def test_a_parquet_table_does_as_well(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm"])
    pq.write_table(pa.table({"image_id": ["1", "2"], "label": [1, 0]}), tmp_path / "t.parquet")
    source, records = opened(tmp_path / "i", tmp_path / "t.parquet")
    assert [r.labels for r in records] == [("1",), ("0",)]
    assert source.classes == ("0", "1")


def test_a_file_that_cannot_be_read_has_no_row_where_headers_are_the_key(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm"])
    (tmp_path / "i" / "3.dcm").write_bytes(b"junk")
    _, records = opened(tmp_path / "i", write(tmp_path / "t.csv", "SOPInstanceUID,label\n1.2.3.0,x\n1.2.3.1,y\n"))
    assert [r.labels for r in records] == [("x",), ("y",), None]


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        ("film,label\n1.dcm,x\n", {}, r"no column 'path' \(it has film, label\): name yours with --columns.path"),
        ("path,what\n1.dcm,x\n", {}, "no column 'label'"),
        ("path,label\n1.dcm,x\n", {"group": "hospital"}, "no column 'hospital'"),
        ("path,label\n", {}, "no rows"),
        ("path,label\n1.dcm,\n", {}, "is empty"),
    ],
)
def test_odd_tables_are_refused_with_what_was_found(tmp_path, text, columns, says):
    films(tmp_path / "i", ["1.dcm"])
    with pytest.raises(UserError, match=says):
        opened(tmp_path / "i", write(tmp_path / "t.csv", text), ColumnsConfig(**columns))


def test_the_table_must_be_there_and_so_must_dicom_files(tmp_path):
    films(tmp_path / "i", ["1.dcm"])
    with pytest.raises(UserError, match=r"check --dicom\.labels"):
        opened(tmp_path / "i", tmp_path / "absent.csv")
    table = write(tmp_path / "t.csv", "path,label\n1.dcm,x\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no DICOM files"):
        opened(tmp_path / "empty", table)


def test_the_fingerprint_follows_the_table_and_the_files(tmp_path):
    films(tmp_path / "i", ["1.dcm", "2.dcm"])
    table = write(tmp_path / "t.csv", "path,label\n1.dcm,x\n2.dcm,y\n")
    before = opened(tmp_path / "i", table)[0].fingerprint
    assert opened(tmp_path / "i", table)[0].fingerprint == before
    film(tmp_path / "i" / "3.dcm")
    with_file = opened(tmp_path / "i", table)[0].fingerprint
    write(table, "path,label\n1.dcm,x\n2.dcm,yy\n")
    assert len({before, with_file, opened(tmp_path / "i", table)[0].fingerprint}) == 3


def test_damaged_tables_lead_to_user_errors_or_to_as_many_records_as_promised(tmp_path):
    films(tmp_path / "i", [f"{i}.dcm" for i in range(4)])
    text = "path,label,split\n" + "".join(f"{i}.dcm,{'ab'[i % 2]},{['train', 'test'][i // 2]}\n" for i in range(4))
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for _ in range(300):
        data = bytearray(text.encode())
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] = rng.integers(256)
        (tmp_path / "t.csv").write_bytes(data)
        try:
            _, records = opened(tmp_path / "i", tmp_path / "t.csv")
            outcomes["opened"] += 1
            assert {f"{i}.dcm" for i in range(4)} <= {r.name for r in records}
        except UserError:
            outcomes["refused"] += 1
    assert min(outcomes["opened"], outcomes["refused"]) > 20
