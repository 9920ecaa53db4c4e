import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from vaegan.inspection.recorded import read_findings, read_recorded
from vaegan.shards import read_manifest


def record(data):
    return read_recorded(data, read_manifest(data))


def test_a_dataset_without_findings_says_so(tools, splits, tmp_path):
    data = tools.write(tmp_path / "data", **splits)
    found = record(data)
    assert found.findings is None
    assert (found.source, found.warnings, found.leaks) == (None, [], {})


def test_findings_are_counted_and_the_worst_come_first(tools, splits, tmp_path):
    rows = [
        *[tools.finding("exact", other_split="train", removed=False)] * 3,
        tools.finding("near", other_labels="", image_id="conflict"),
        *[tools.finding("patient", correlation=None)] * 2,
        tools.finding("group", split="", removed=False, correlation=None),
        tools.finding("exact", thumbnail=None, other_thumbnail=None, image_id="unseen"),
    ]
    found = record(tools.write(tmp_path / "data", findings=rows, **splits)).findings
    assert found.num_pairs == 8
    assert found.counts == {
        ("exact", True, True): 1, ("exact", False, False): 3, ("near", True, True): 1, ("patient", True, True): 2,
        ("group", False, False): 1,
    }  # fmt: skip
    assert found.conflicting == 1
    assert found.shown[0].image_ids[0] == "conflict"
    assert [each.kind for each in found.shown][1:3] == ["patient", "patient"]
    assert found.shown[-1].image_ids[0] == "unseen"
    assert found.shown[0].correlation == pytest.approx(0.9951)


def test_what_is_no_picture_is_not_shown_as_one(tools, splits, tmp_path):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    huge = tools.finding()["thumbnail"] + bytes(300_000)
    rows = [tools.finding(thumbnail=svg, other_thumbnail=huge)]
    found = record(tools.write(tmp_path / "data", findings=rows, **splits)).findings
    assert found.shown[0].thumbnails == (None, None)


def test_only_the_first_thousand_pairs_are_looked_at_for_pictures(tools, splits, tmp_path):
    rows = [tools.finding("exact", other_split="train")] * 1500 + [tools.finding()]
    found = record(tools.write(tmp_path / "data", findings=rows, **splits)).findings
    assert found.num_pairs == 1501
    assert len(found.shown) == 60
    assert not any(each.across for each in found.shown)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"kind": ["near"]}),
        pa.table({"kind": [1], "image_id": ["a"]}),
    ],
)
def test_findings_of_another_make_are_refused(table, tmp_path):
    pq.write_table(table, tmp_path / "findings.parquet")
    with pytest.raises(UserError, match="has no column"):
        read_findings(tmp_path / "findings.parquet")


def test_findings_that_are_no_parquet_are_refused(tmp_path):
    (tmp_path / "findings.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be read"):
        read_findings(tmp_path / "findings.parquet")


def test_rejects_are_counted_by_reason_with_examples(tools, splits, tmp_path):
    rejects = [(f"f{i}.png", "empty" if i % 3 else "cut short") for i in range(10)]
    found = record(tools.write(tmp_path / "data", rejects=rejects, **splits))
    assert found.num_rejects == 10
    assert [(each.words, each.count, each.examples) for each in found.reasons] == [
        ("empty", 6, ["f1.png", "f2.png", "f4.png"]), ("cut short", 4, ["f0.png", "f3.png", "f6.png"]),
    ]  # fmt: skip


GARBAGE = [None, 3, "text", [], [3], {}, {"a": []}, True]


@pytest.mark.parametrize("key", ["source", "notes", "rejects", "split", "patients", "duplicates", "leaks", "warnings",
                                 "films", "left_out", "sample"])  # fmt: skip
@pytest.mark.parametrize("value", GARBAGE)
def test_a_report_of_another_make_is_read_as_far_as_it_goes(tools, splits, tmp_path, key, value):
    data = tools.write(tmp_path / "data", val=splits["val"])
    tools.edit_manifest(data, lambda m: m["report"].update({key: value}))
    record(data)
    tools.edit_manifest(data, lambda m: m.update(report=value, provenance=value))
    record(data)
