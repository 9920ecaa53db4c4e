import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vaegan.inspect import InspectConfig, inspect, main
from vaegan.inspection.sheet import contact_sheet
from vaegan.shards import DatasetWriter, Images, read_manifest


def snapshot(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def test_it_writes_a_page_and_a_sheet_beside_the_dataset_and_nothing_into_it(dataset, capsys):
    before = snapshot(dataset)
    assert main([str(dataset)]) == 0
    out = dataset.with_name("data.inspect")
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.png", "inspect.html"]
    assert snapshot(dataset) == before
    printed = capsys.readouterr().out
    assert "No patient and no exact copy is in two splits" in printed
    assert str(out / "inspect.html") in printed
    assert "treat them as your data" in printed
    with Image.open(out / "contact_sheet.png") as sheet:
        sheet.verify()


def test_a_second_run_draws_the_same_sheet_and_another_seed_another(dataset):
    sheets = [contact_sheet(inspect(InspectConfig(dataset=dataset, seed=seed)).strips, "") for seed in (3, 3, 4)]
    assert sheets[0] == sheets[1] != sheets[2]


def test_one_split_is_shown_and_all_are_looked_through(dataset, tmp_path, capsys):
    leak = tmp_path / "leak"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    labels = np.eye(2, dtype=np.uint8)[np.arange(60) % 2]
    names = [str(i) for i in range(60)]
    with DatasetWriter(leak, task="multiclass", classes=["a", "b"], height=16, width=16, channels=1) as writer:
        writer.add("train", Images.real(pixels, labels, names, names))
        writer.add(
            "test", Images.real(pixels[:5], labels[:5], [f"t{i}" for i in range(5)], [f"t{i}" for i in range(5)])
        )
        writer.finish()
    assert main([str(leak), "--split", "train", "--out", str(tmp_path / "out"), "--max-compared", "0"]) == 0
    printed = capsys.readouterr().out
    assert "5 exact copies are in two splits" in printed
    assert "Near copies were not looked for among 65 images" in printed
    html = (tmp_path / "out" / "inspect.html").read_text()
    assert "8 images of train, a" not in html
    assert "4 images of train, a" in html
    assert "images of test, a" not in html


def broken(dataset):
    path = dataset / "val-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("words", "prepare", "message"),
    [
        (["{data}/nowhere"], None, "isn't a dataset"),
        ([], None, "--dataset"),
        (["{data}", "extra"], None, "extra"),
        (["{data}"], lambda d: (d / "manifest.json").unlink(), "a folder without one"),
        (["{data}"], lambda d: (d / "manifest.json").write_text("{"), "isn't valid JSON"),
        (["{data}"], lambda d: (d / "manifest.json").write_text("{}"), "isn't the manifest of a dataset"),
        (["{data}"], lambda d: (d / "train-00000.parquet").unlink(), "is missing"),
        (["{data}"], broken, "isn't the file that was written"),
        (["{data}", "--verify", "false"], broken, "can't be read"),
        (["{data}", "--split", "dev"], None, "it has train, val, test"),
        (["{data}", "--out", "{data}"], None, "choose a folder beside it"),
        (["{data}", "--out", "{data}/page"], None, "choose a folder beside it"),
        (["{data}", "--out", "{data}.txt"], lambda d: d.with_name("data.txt").write_text(""), "is a file"),
        (["{data}", "--per-class", "0"], None, "expected 1 to 24"),
        (["{data}", "--seed", "-1"], None, "expected 0 or more"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(dataset, words, prepare, message, capsys):
    if prepare:
        prepare(dataset)
    assert main([word.format(data=dataset) for word in words]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert not dataset.with_name("data.inspect").exists()
    assert not (dataset / "page").exists()


def test_what_was_changed_is_looked_at_as_it_is_where_that_is_asked_for(dataset, capsys):
    path = dataset / "val-00000.parquet"
    content = path.read_bytes()
    path.write_bytes((dataset / "test-00000.parquet").read_bytes())
    assert main([str(dataset)]) == 2
    assert main(["--verify", "no", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "in two splits" in printed
    assert "8 exact copies" in printed
    assert "sha256 were not compared" in printed
    path.write_bytes(content)
    assert main([str(dataset)]) == 0


def test_it_needs_no_torch(dataset):
    code = (
        "import sys; from vaegan.inspect import main; status = main(sys.argv[1:]); "
        "sys.exit(9 if {'torch', 'ray'} & set(sys.modules) else status)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(dataset)], capture_output=True).returncode == 0


def test_the_dataset_may_be_named_from_within(dataset, monkeypatch):
    monkeypatch.chdir(dataset)
    assert main(["."]) == 0
    assert (dataset.parent / "data.inspect" / "inspect.html").exists()
    assert read_manifest(dataset).classes == ("left", "right")


@pytest.fixture
def half_labelled(tmp_path):
    """60 images in train, of which 20 have no label, and two of those are one patient's with a label, or a copy."""
    path = tmp_path / "half"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    pixels[45] = pixels[0]
    names = [f"i{i}" for i in range(60)]
    patients = ["i1" if i == 46 else name for i, name in enumerate(names)]
    rows = Images.real(pixels, np.eye(2, dtype=np.uint8)[np.arange(60) % 2], patients, names)
    rows.labelled = np.arange(60) < 40
    with DatasetWriter(path, task="multiclass", classes=["a", "b"], height=16, width=16, channels=1) as writer:
        writer.allow_unlabelled()
        writer.add("train", rows)
        writer.finish()
    return path


def test_images_without_a_label_are_counted_and_shown_as_such_and_taken_for_nothing_else(half_labelled, capsys):
    assert main([str(half_labelled)]) == 0
    printed = capsys.readouterr().out
    assert "no label" in printed
    assert "no finding" not in printed
    assert "exactly one label" not in printed
    assert "different labels" not in printed
    found = inspect(InspectConfig(dataset=half_labelled))
    assert {(strip.label, strip.total) for strip in found.strips} == {("a", 20), ("b", 20), ("no label", 20)}
    grey = found.contents.grey["train"]
    assert dict(zip(grey.names, grey.num_images, strict=True)) == {
        "all images": 60, "a": 20, "b": 20, "no finding": 0, "no label": 20,
    }  # fmt: skip
    assert [(tell.subject, tell.against) for tell in found.tells] == [("b", "a")]
    assert "no label" in (half_labelled.with_name("half.inspect") / "inspect.html").read_text()


def test_a_manifest_that_miscounts_images_without_a_label_is_told_so(half_labelled, capsys):
    manifest = json.loads((half_labelled / "manifest.json").read_text())
    del manifest["splits"]["train"]["num_unlabelled"]
    (half_labelled / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(half_labelled)]) == 0
    assert "counts 0 images without a label in train, the files hold 20" in capsys.readouterr().out
