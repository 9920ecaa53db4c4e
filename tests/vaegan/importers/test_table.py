import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.importers import open_source
from vaegan.importers.base import ColumnsConfig, ImportConfig
from vaegan.importers.labels import LINE_BREAK
from vaegan.importers.table import FORMAT
from vaegan.importers.tabular import column_names, first_rows, read_table


def tree(root, names):
    """Small PNG files at these paths, whatever their suffix."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / name, format="PNG")
    return root


def table(root, text, name="labels.csv", images=("a.png", "b.png"), **columns):
    """The source of a table beside two images."""
    tree(root, images)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return FORMAT.open(ImportConfig(images=root / name, columns=ColumnsConfig(**columns)))


def listed(source):
    records = list(source.records())
    assert len(records) == source.num_records
    return [(r.name, r.labels, r.problem) for r in records]


GOOD = [("a.png", ("A",), None), ("b.png", ("B",), None)]


def test_a_table_gives_class_patient_split_group_and_asides(tmp_path):
    text = "path,label,patient_id,split,hospital,sex,age\na.png,A,007,train,x,M,31\nb.png,B,8,test,,F,\n"
    source = table(tmp_path, text, group="hospital")
    first, second = source.records()
    assert (first.labels, first.patient_id, first.split, first.group) == (("A",), "007", "train", "hospital=x")
    assert (second.labels, second.patient_id, second.split, second.group) == (("B",), "8", "test", None)
    assert first.asides == {"sex": "M", "age": "31"}
    assert second.asides == {"sex": "F"}
    assert first.image == tmp_path / "a.png"
    assert (source.kind, source.task, source.classes, source.dicom) == ("table", "multiclass", ("A", "B"), False)
    assert source.files == (tmp_path / "labels.csv",)


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\na.png,A\nb.png,B\n",
        b"path,label\r\na.png,A\r\nb.png,B",
        b"path,label\ra.png,A\rb.png,B\r",
        b"\n\npath,label\n\na.png,A\n\nb.png,B\n\n",
        b"\xef\xbb\xbfpath,label\na.png,A\nb.png,B\n",
        "path,label\na.png,A\nb.png,B\n".encode("utf-16"),
        b"path;label\na.png;A\nb.png;B\n",
        b"path\tlabel\na.png\tA\nb.png\tB\n",
        b'"path","label"\n"a.png","A"\n"b.png","B"\n',
        b"path, label\n a.png , A\nb.png, B\n",
        b"Image Index,Finding Labels\na.png,A\nb.png,B\n",
        b"FileName,CLASS\na.png,A\nb.png,B\n",
        b"path,label\n./a.png,A\n.\\b.png,B\n",
        b"path,label\na,A\nb,B\n",
    ],
)
def test_every_usual_form_of_a_csv_file_reads_the_same(tmp_path, text):
    assert listed(table(tmp_path, text)) == GOOD


@pytest.mark.parametrize("name", ["x.tsv", "x.CSV"])
def test_the_delimiter_is_found_whatever_the_name_says(tmp_path, name):
    assert listed(table(tmp_path, b"path\tlabel\na.png\tA\nb.png\tB\n", name)) == GOOD


def test_a_gzip_file_and_parquet_read_the_same(tmp_path):
    assert listed(table(tmp_path, gzip.compress(b"path,label\na.png,A\nb.png,B\n"), "x.csv.gz")) == GOOD
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": ["A", "B"]}), tmp_path / "x.parquet")
    assert listed(FORMAT.open(ImportConfig(images=tmp_path / "x.parquet"))) == GOOD


def test_text_that_is_not_utf8_is_read_as_latin1_and_said(tmp_path):
    source = table(tmp_path, "path,label\na.png,Müller\nb.png,B\n".encode("latin-1"))
    assert source.classes == ("B", "Müller")
    assert any("Latin-1" in note for note in source.notes)


def test_columns_taken_by_usual_names_are_said(tmp_path):
    source = table(tmp_path, "Image Index,Finding Labels,Patient ID\na.png,A,1\nb.png,B,2\n")
    assert any("'Image Index'" in n and "'Finding Labels'" in n and "'Patient ID'" in n for n in source.notes)
    assert [r.patient_id for r in source.records()] == ["1", "2"]


def test_a_column_that_was_named_is_not_guessed(tmp_path):
    with pytest.raises(UserError, match=r"no column 'klass' .*--columns.label"):
        table(tmp_path, "path,label\na.png,A\n", label="klass")
    with pytest.raises(UserError, match=r"no column 'who' .*--columns.patient-id"):
        table(tmp_path, "path,label\na.png,A\n", patient_id="who")
    with pytest.raises(UserError, match=r"no column 'site' .*--columns.group"):
        table(tmp_path, "path,label\na.png,A\n", group="site")


def test_paths_that_lead_nowhere_outside_or_twice_to_one_file_are_problems(tmp_path):
    text = "path,label\na.png,A\nabsent.png,A\n../up.png,B\nx/../../up.png,B\n,B\na.png,A\n./a,B\nb.png,B\n"
    tree(tmp_path, ["up.png"])
    found = listed(table(tmp_path / "in", text))
    outside = "a path that leads out of the table's folder"
    again = "listed twice, first in row 2"
    assert [problem for *_, problem in found] == [
        None, "no such file", outside, outside, "no path", again, again, None,
    ]  # fmt: skip


def test_an_absolute_path_may_lead_anywhere(tmp_path):
    tree(tmp_path, ["elsewhere/a.png"])
    text = f"path,label\n{tmp_path}/elsewhere/a.png,A\n{tmp_path}/elsewhere/b.png,B\nb.png,B\n"
    source = table(tmp_path / "in", text)
    assert [problem for *_, problem in listed(source)] == [None, "no such file", None]
    assert next(source.records()).image == tmp_path / "elsewhere/a.png"


def test_a_bare_name_is_found_below_unless_several_files_have_it(tmp_path):
    text = "path,label\none,A\ntwo.png,A\ntwin.png,B\nsub/twin.png,B\nnone.png,B\nsub\\three.JPG,B\n"
    images = ["sub/one.png", "sub/deep/two.png", "sub/twin.png", "other/twin.png", "sub/three.JPG"]
    assert listed(table(tmp_path, text, images=images)) == [
        ("sub/one.png", ("A",), None),
        ("sub/deep/two.png", ("A",), None),
        ("twin.png", ("B",), "a name that several folders have"),
        ("sub/twin.png", ("B",), None),
        ("none.png", ("B",), "no such file"),
        ("sub/three.JPG", ("B",), None),
    ]


def test_a_name_without_suffix_that_fits_two_files_is_a_problem(tmp_path):
    found = listed(table(tmp_path, "path,label\na,A\nb,B\n", images=["a.png", "a.jpg", "b.png"]))
    assert [problem for *_, problem in found] == ["a name without suffix that fits 2 files", None]


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert listed(table(tmp_path, "path,label\na.png,A\nb.png,B\n", images=["b.png"]))[0][2] == "no such file"


def test_findings_columns_are_classes(tmp_path):
    text = "path,Edema,Mass,other\na.png,1,0,x\nb.png,,True,x\n"
    source = table(tmp_path, text, findings=("Mass", "Edema"))
    assert (source.task, source.classes) == ("multilabel", ("Mass", "Edema"))
    assert [r.labels for r in source.records()] == [("Edema",), ("Mass",)]
    assert table(tmp_path, text, findings=("Mass",), label="other").classes == ("Mass",)
    with pytest.raises(UserError, match="no column 'Hernia'"):
        table(tmp_path, text, findings=("Mass", "Hernia"))


def test_labels_in_one_string_and_names_of_integers(tmp_path):
    source = table(tmp_path, "path,label\na.png,A|B\nb.png,No Finding\n")
    assert (source.task, [r.labels for r in source.records()]) == ("multilabel", [("A", "B"), ()])
    source = table(tmp_path, "path,label,label_name\na.png,1,sick\nb.png,0,well\n")
    assert (source.classes, [r.labels for r in source.records()]) == (("well", "sick"), [("sick",), ("well",)])


def test_ragged_rows_become_records_and_the_others_keep_their_numbers(tmp_path):
    text = "path,label\na.png,A,extra\na.png,A\nonly\nb.png,B\na.png,A\n"
    assert listed(table(tmp_path, text)) == [
        *GOOD,
        ("a.png", ("A",), "listed twice, first in row 3"),
        ("labels.csv:2", None, "3 fields in the row, expected 2"),
        ("labels.csv:4", None, "1 fields in the row, expected 2"),
    ]


def test_a_field_with_a_line_break_is_one_field(tmp_path):
    assert listed(table(tmp_path, 'path,label,note\na.png,A,"two\nlines, one field"\nb.png,B,\n')) == GOOD


def test_a_quotation_mark_that_is_not_closed_is_said_since_it_hides_rows(tmp_path):
    source = table(tmp_path, 'path,label\na.png,A\nb.png,"B\nc.png,A\n')
    assert any("odd number of quotation marks" in note for note in source.notes)
    assert listed(source)[1] == ("b.png", None, LINE_BREAK)
    assert not any("quotation" in note for note in table(tmp_path, 'path,label\na.png,"A"\nb.png,B\n').notes)


def test_unknown_splits_are_problems_only_where_others_are_known(tmp_path):
    source = table(tmp_path, "path,label,split\na.png,A,Training\nb.png,B,holdout\n")
    assert [(r.split, r.problem) for r in source.records()] == [("train", None), (None, "unknown split 'holdout'")]
    source = table(tmp_path, "path,label,split\na.png,A,all\nb.png,B,\n")
    assert [(r.split, r.problem) for r in source.records()] == [(None, None), (None, None)]


def test_patients_come_from_a_pattern_where_there_is_no_column(tmp_path):
    text = "path,label\np7_1.png,A\nother.png,B\n"
    config = ImportConfig(images=tmp_path / "labels.csv", patient_regex=r"p\d+")
    assert any("patient of its own" in note for note in table(tmp_path, text, images=["p7_1.png", "other.png"]).notes)
    assert [r.patient_id for r in FORMAT.open(config).records()] == ["p7", None]


def test_dicom_files_make_the_source_identifying(tmp_path):
    source = table(tmp_path, "path,label\na,A\nb.png,B\n", images=["a.dcm", "b.png"])
    assert source.identifying
    assert source.dicom
    assert next(source.records()).image == tmp_path / "a.dcm"


def test_columns_of_many_values_are_not_read_and_said(tmp_path):
    names = [f"{i:02}.png" for i in range(25)]
    text = "path,label,report,sex\n" + "".join(f"{n},A,text {n},F\n" for n in names)
    source = table(tmp_path, text, images=names)
    assert next(source.records()).asides == {"sex": "F"}
    assert "Columns not read: report." in source.notes


def test_lists_in_parquet_are_labels_and_embeddings_are_left_alone(tmp_path):
    tree(tmp_path, ["a.png", "b.png"])
    columns = {"path": ["a.png", "b.png"], "label": [["A", "B"], []], "embedding": [[0.1, 0.2], [0.3, 0.4]]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = FORMAT.open(ImportConfig(images=tmp_path / "x.parquet"))
    assert [r.labels for r in source.records()] == [("A", "B"), ()]
    assert "Columns not read: embedding." in source.notes


def test_the_fingerprint_follows_table_and_images(tmp_path):
    text = "path,label\na.png,A\nb.png,B\n"
    before = table(tmp_path, text).fingerprint
    again = FORMAT.open(ImportConfig(images=tmp_path / "labels.csv")).fingerprint
    os.utime(tmp_path / "a.png", (1, 1))
    assert before == again != FORMAT.open(ImportConfig(images=tmp_path / "labels.csv")).fingerprint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty|no rows|no column"),
        (b"path,label\n", "has no rows"),
        (b"path,label\n,\n", "is empty"),
        (b"name,value\n1,2\n", r"no column 'path' \(it has name, value\).*--columns.path"),
        (b"path,value\n1,2\n", r"no column 'label'.*--columns.label NAME or columns of 0 and 1"),
        (b"path,label,label\na.png,A,B\n", "'label' stands more than once"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 40, "zero bytes"),
        (bytes(range(1, 256)) * 40, "no column|stands more than once|can't be read"),
        (b'"' + b"x" * 200_000, "can't be read"),
        (b"x," * 40_000 + b"\n1\n", "header of .* is longer than 65536 bytes"),
        (b"path,label\na.png,\nb.png,\n", "is empty"),
        (b"path,label\na.png,0.25\nb.png,0.5\n", "float numbers"),
    ],
)
def test_odd_tables_are_refused_with_what_was_found(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        table(tmp_path, text)
    assert FORMAT.recognises(tmp_path / "labels.csv")  # nobody else would say what is wrong with it


@pytest.mark.parametrize(
    ("name", "data"), [("x.csv.gz", b"no gzip"), ("x.csv.gz", gzip.compress(b"path,label\n")[:-3])]
)
def test_archives_that_are_none_or_cut_short(tmp_path, name, data):
    with pytest.raises(UserError, match="can't be read"):
        table(tmp_path, data, name)


def test_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(UserError, match="isn't a Parquet file"):
        FORMAT.open(ImportConfig(images=tmp_path / "x.parquet"))
    assert not FORMAT.recognises(tmp_path / "x.parquet")


def test_a_folder_is_recognised_by_its_only_table_of_paths_and_labels(tmp_path):
    tree(tmp_path, ["a.png", "b.png"])
    assert not FORMAT.recognises(tmp_path)
    (tmp_path / "README.csv").write_text("size,colour\n1,2\n")
    (tmp_path / "rubbish.csv").write_bytes(bytes(100))
    assert not FORMAT.recognises(tmp_path)
    (tmp_path / "x.csv").write_text("file_name,class\na.png,A\nb.png,B\n")
    assert FORMAT.recognises(tmp_path)
    assert listed(FORMAT.open(ImportConfig(images=tmp_path))) == GOOD
    (tmp_path / "y.csv").write_text("file_name,class\na.png,A\nb.png,B\n")
    assert not FORMAT.recognises(tmp_path)
    with pytest.raises(UserError, match=r"several tables in .* \(x.csv, y.csv\): expected one"):
        FORMAT.open(ImportConfig(images=tmp_path))


def test_parquet_with_image_bytes_is_left_to_its_own_importer(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "label": ["A"]}), tmp_path / "x.parquet")
    assert not FORMAT.recognises(tmp_path / "x.parquet")
    assert not FORMAT.recognises(tmp_path / "absent")
    with pytest.raises(UserError, match="no table"):
        FORMAT.open(ImportConfig(images=tmp_path / "absent"))


def test_the_first_row_of_each_value_and_none_for_missing_ones():
    values = pa.chunked_array([["b", None, "a"], ["b", None, "a", "c"]])
    assert first_rows(values).tolist() == [0, 1, 2, 0, 4, 2, 6]
    assert first_rows(pa.array([], pa.string())).tolist() == []


def test_a_column_without_a_name_is_numbered_as_in_nihs_first_table(tmp_path):
    (tmp_path / "x.csv").write_text("a,b[x,y],\n1,2,3,\n")
    assert column_names(tmp_path / "x.csv") == ["a", "b[x", "y]", "column 4"]
    assert read_table(tmp_path / "x.csv", {"a"}).data.to_pylist() == [{"a": "1"}]


def test_parquet_values_become_the_strings_that_csv_would_have(tmp_path):
    columns = {
        "int": [7, None], "float": [7.0, None], "real": [0.5, float("nan")], "bool": [True, None],
        "category": pa.array(["x", None]).dictionary_encode(), "hot": [[True, False], None], "bytes": [b"x", b""],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet").data.to_pylist() == [
        {"int": "7", "float": "7", "real": "0.5", "bool": "true", "category": "x", "hot": ["1", "0"]},
        {"int": None, "float": None, "real": None, "bool": None, "category": None, "hot": None},
    ]


def kept(tmp_path, text, images=("a.png", "b.png"), **settings):
    """Labels and problems of a table's rows, with --keep-unlabelled."""
    tree(tmp_path, images)
    (tmp_path / "labels.csv").write_text(text)
    source = open_source(ImportConfig(images=tmp_path / "labels.csv", keep_unlabelled=True, **settings))
    return [(r.labels, r.problem) for r in source.records()]


def test_a_blank_label_is_rejected_or_where_asked_for_an_image_that_nobody_labelled(tmp_path):
    text = "path,label\na.png,A\nb.png,\n"
    assert [problem for _, _, problem in listed(table(tmp_path, text))] == [None, "no label"]
    assert kept(tmp_path, text) == [(("A",), None), (None, None)]


def test_a_row_of_findings_that_are_all_blank_has_no_label_and_one_of_zeros_no_finding(tmp_path):
    text = "path,mass,scar\na.png,1,\nb.png,,\nc.png,0,0\n"
    columns = ColumnsConfig(findings=("mass", "scar"))
    found = kept(tmp_path, text, ("a.png", "b.png", "c.png"), columns=columns)
    assert found == [(("mass",), None), (None, None), ((), None)]


def test_a_label_that_makes_no_sense_stays_a_problem_though_blanks_are_kept(tmp_path):
    text = "path,label,split\na.png,A,train\nb.png,,nowhere\n"
    assert kept(tmp_path, text) == [(("A",), None), (None, "unknown split 'nowhere'")]
