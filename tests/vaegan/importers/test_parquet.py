import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from vaegan.images import encode_png
from vaegan.importers.base import ColumnsConfig, ImportConfig
from vaegan.importers.parquet import FORMAT, ROWS_PER_BATCH
from vaegan.shards import schema


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 1), dtype=np.uint8)


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def rows(tmp_path, label, config=None, **columns):
    columns = {"image": [encode_png(image(i)) for i in range(len(label))], "label": label} | columns
    path = write(tmp_path / "x.parquet", columns)
    return FORMAT.open(ImportConfig(images=path, columns=ColumnsConfig(**config or {})))


def test_integer_labels_take_their_names_from_the_other_column_in_the_order_of_the_integers(tmp_path):
    source = rows(tmp_path, [1, 0, 1], label_name=["zoster", "normal", "zoster"])
    assert source.classes == ("normal", "zoster")
    assert [r.labels for r in source.records()] == [("zoster",), ("normal",), ("zoster",)]


@pytest.mark.parametrize(
    ("label", "task", "classes", "expected"),
    [
        (["b", "a", "b"], "multiclass", ("a", "b"), [("b",), ("a",), ("b",)]),
        ([2, 0, 10], "multiclass", ("0", "2", "10"), [("2",), ("0",), ("10",)]),
        ([1.0, None, 0.0], "multiclass", ("0", "1"), [("1",), None, ("0",)]),
        ([["b", "a"], [], ["b"]], "multilabel", ("a", "b"), [("b", "a"), (), ("b",)]),
        ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], "multilabel", ("0", "1", "2"), [("0", "2"), (), ("1",)]),
        ([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], "multilabel", ("0", "1"), [("0",), (), ("1",)]),
        ([[5], [3, 5], []], "multilabel", ("3", "5"), [("5",), ("3", "5"), ()]),
        (["a|b", "No Finding", "b"], "multilabel", ("a", "b"), [("a", "b"), (), ("b",)]),
    ],
)
def test_every_kind_of_label(tmp_path, label, task, classes, expected):
    source = rows(tmp_path, label)
    assert (source.task, source.classes) == (task, classes)
    assert [r.labels for r in source.records()] == expected


def test_labels_that_pandas_made_categories_are_strings(tmp_path):
    assert rows(tmp_path, pa.array(["b", "a", "b"]).dictionary_encode()).classes == ("a", "b")


def test_findings_columns_are_classes(tmp_path):
    config = {"findings": ("Mass", "Edema")}
    source = rows(tmp_path, ["", ""], config, Mass=[1, 0], Edema=[True, None])
    assert (source.task, source.classes) == ("multilabel", ("Mass", "Edema"))
    assert [r.labels for r in source.records()] == [("Mass", "Edema"), ()]


def test_rows_without_a_label_or_with_an_unknown_split_say_so(tmp_path):
    source = rows(tmp_path, ["a", None, "b"], split=["train", "test", "elsewhere"])
    assert [r.problem for r in source.records()] == [None, "no label", "unknown split 'elsewhere'"]


def test_a_split_column_that_only_says_all_is_no_split(tmp_path):
    source = rows(tmp_path, ["a", "b"], split=["all", "all"])
    assert [r.split for r in source.records()] == [None, None]
    assert any("made anew" in note for note in source.notes)


def test_structs_of_bytes_and_other_column_names(tmp_path):
    data = encode_png(image())
    path = write(tmp_path / "hf.parquet", {"img": [{"bytes": data, "path": "x.png"}], "y": ["a"], "who": [7.0]})
    columns = ColumnsConfig(image="img", label="y", patient_id="who")
    (record,) = FORMAT.open(ImportConfig(images=path, columns=columns)).records()
    assert record.image == data
    assert record.patient_id == "7"


def test_a_struct_of_a_path_and_no_bytes_is_a_problem(tmp_path):
    images = [{"bytes": None, "path": "x.png"}, {"bytes": b"x", "path": None}, None]
    path = write(tmp_path / "x.parquet", {"image": images, "label": ["a", "b", "a"]})
    found = [r.problem for r in FORMAT.open(ImportConfig(images=path)).records()]
    assert found == ["a path without bytes: expected the image itself", None, "no image"]


def test_groups_asides_and_columns_not_read(tmp_path):
    columns = {
        "site": ["x", None, "y"],
        "sex": ["F", "M", None],
        "embedding": [[0.5], [0.1], [0.2]],
        "empty": [None] * 3,
    }
    source = rows(tmp_path, ["a", "b", "a"], {"group": "site"}, **columns)
    assert [r.group for r in source.records()] == ["site=x", None, "site=y"]
    assert [r.asides for r in source.records()] == [{"sex": "F"}, {"sex": "M"}, {}]
    assert "Columns not read: embedding, empty." in source.notes


def test_the_hub_names_splits_in_file_names(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        write(tmp_path / f"data/{name}.parquet", {"image": [encode_png(image())], "label": ["a"]})
    source = FORMAT.open(ImportConfig(images=tmp_path))
    assert [r.split for r in source.records()] == ["test", "train", "train", "val"]
    assert any("files' names" in note for note in source.notes)


def test_rows_of_files_that_share_a_name_have_ids_of_their_own(tmp_path):
    for name in ("train/0000", "test/0000"):
        write(tmp_path / f"{name}.parquet", {"image": [encode_png(image())], "label": ["a"]})
    records = list(FORMAT.open(ImportConfig(images=tmp_path)).records())
    assert [(r.image_id, r.split) for r in records] == [("test/0000-000000", "test"), ("train/0000-000000", "train")]


def test_records_can_be_had_twice_and_fill_several_batches(tmp_path):
    count = 2 * ROWS_PER_BATCH + 3
    columns = {"image": [b"x"] * count, "label": ["a", "b", "c"] * (count // 3) + ["a"] * (count % 3)}
    source = FORMAT.open(ImportConfig(images=write(tmp_path / "x.parquet", columns, row_group_size=100)))
    ids = [r.image_id for r in source.records()]
    assert len(ids) == len(set(ids)) == source.num_records == count
    assert ids == [r.image_id for r in source.records()]
    assert ids[-1] == f"x-{count - 1:06d}"


def test_rows_of_a_damaged_part_are_problems_and_the_others_are_whole(tmp_path):
    data = [bytes([i]) * 5000 for i in range(40)]
    path = write(
        tmp_path / "x.parquet", {"image": data, "label": ["a", "b"] * 20}, row_group_size=10, compression="zstd",
        use_dictionary=False,
    )  # fmt: skip
    about = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[about.data_page_offset : about.data_page_offset + about.total_compressed_size] = b"\xff" * (
        about.total_compressed_size
    )
    path.write_bytes(content)
    records = list(FORMAT.open(ImportConfig(images=path)).records())
    assert [r.problem is None for r in records] == [True] * 10 + [False] * 10 + [True] * 20
    assert [r.image for r in records if r.problem is None] == data[:10] + data[20:]
    assert "damaged part of the file" in records[10].problem


def test_text_that_is_not_utf8_gets_marks_instead_of_an_error(tmp_path):
    odd = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"b"]).buffers())
    (first, _) = rows(tmp_path, odd, patient_id=odd).records()
    assert (first.labels, first.patient_id, first.problem) == (("��",), "��", None)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"picture": [b""], "label": ["a"]}, "no column 'image'.*--columns.image"),
        ({"image": [b""], "kind": ["a"]}, "no column 'label'.*--columns.label"),
        ({"image": ["x.png"], "label": ["a"]}, "holds string: expected image files as bytes; .*--source table"),
        ({"image": [b""], "label": [1.5]}, "holds float"),
        ({"image": [b""], "label": [{"x": 1}]}, "holds struct"),
        ({"image": [b"", b""], "label": [0, 0], "label_name": ["a", "b"]}, "do not match one to one"),
        ({"image": [b""], "label": pa.array([None], pa.string())}, "is empty"),
        ({"image": [b""], "label": ["a"], "patient_id": [["x"]]}, "'patient_id' .* holds lists"),
    ],
)
def test_odd_parquet_is_refused_with_what_was_found(tmp_path, columns, says):
    with pytest.raises(UserError, match=says):
        FORMAT.open(ImportConfig(images=write(tmp_path / "x.parquet", columns)))


def test_files_of_different_columns_are_refused(tmp_path):
    write(tmp_path / "a.parquet", {"image": [b""], "label": ["a"]})
    write(tmp_path / "b.parquet", {"image": [b""], "label": ["a"], "more": [1]})
    with pytest.raises(UserError, match="other columns than"):
        FORMAT.open(ImportConfig(images=tmp_path))


def test_a_file_that_only_claims_to_be_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("not at all")
    assert FORMAT.recognises(tmp_path)
    with pytest.raises(UserError, match="isn't a Parquet file"):
        FORMAT.open(ImportConfig(images=tmp_path))


def test_a_shard_without_its_manifest_is_sent_back_to_the_folder(tmp_path):
    shards = schema(task="multiclass", classes=["a", "b"], height=8, width=8, channels=1)
    row = {"image": [bytes(64)], "labels": [[1, 0]], "patient_id": ["p"], "image_id": ["i"], "source": ["real"]}
    empty = {"model": [None], "seed": [None], "index": [None]}
    pq.write_table(pa.table(row | empty, schema=shards), tmp_path / "train-00000.parquet")
    for path in (tmp_path, tmp_path / "train-00000.parquet"):
        with pytest.raises(UserError, match=rf"pass the dataset's folder \({tmp_path}\).*manifest.json"):
            FORMAT.open(ImportConfig(images=path))


def test_no_files_at_all(tmp_path):
    assert not FORMAT.recognises(tmp_path)
    with pytest.raises(UserError, match="no Parquet files"):
        FORMAT.open(ImportConfig(images=tmp_path))


def test_real_films_of_kermany_keep_split_patients_and_what_else_is_known_of_them(shared):
    source = FORMAT.open(ImportConfig(images=shared / "data/kermany_cxr_224"))
    counts = {"train": 0, "val": 0, "test": 0}
    for record in source.records():
        counts[record.split] += 1
        assert record.patient_id
        assert record.problem is None
        assert set(record.asides) == {"subtype", "provenance"}
    assert counts == {"train": 5216, "val": 16, "test": 624}
    assert source.classes == ("NORMAL", "PNEUMONIA")


def test_real_films_of_nih_bring_the_radiologists_opinion_as_an_aside(shared):
    source = FORMAT.open(ImportConfig(images=shared / "data/nih_cxr_1000_256"))
    doubted = [r for r in source.records() if r.asides.get("rsna_says") == "normal" and r.labels == ("PNEUMONIA",)]
    assert len(doubted) == 57
    assert {r.split for r in source.records()} == {None}
