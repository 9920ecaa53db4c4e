import importlib
import pkgutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vaegan.importers
from cluster.errors import UserError
from vaegan.images import encode_png
from vaegan.importers import FORMATS, ImportConfig, open_source
from vaegan.preparation.config import PrepareConfig
from vaegan.shards import DatasetWriter, Images


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 1), dtype=np.uint8)


def films(folder, names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)[..., 0]).save(folder / name)
    return folder


def a_dataset(path):
    with DatasetWriter(path, task="multiclass", classes=["a", "b"], height=8, width=8, channels=1) as writer:
        pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
        names = [f"i{i}" for i in range(4)]
        writer.add("train", Images.real(pixels, np.eye(2, dtype=np.uint8)[[0, 1, 0, 1]], names, names))
        writer.finish()
    return path


def bytes_in_parquet(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [encode_png(image(i)) for i in range(4)], "label": list("abab")}), path)
    return path


def kind(path):
    return open_source(ImportConfig(images=path)).kind


def test_every_module_that_has_a_format_is_registered_once_under_its_own_name():
    modules = [
        importlib.import_module(f"vaegan.importers.{m.name}") for m in pkgutil.iter_modules(vaegan.importers.__path__)
    ]
    named = {module.__name__.rpartition(".")[2]: module.FORMAT for module in modules if hasattr(module, "FORMAT")}
    assert {name: each.name for name, each in named.items()} == {each.name: each.name for each in FORMATS}
    assert len(named) == len(FORMATS)


def test_the_help_names_every_format():
    import inspect

    source = inspect.getsource(PrepareConfig)
    assert [each.name for each in FORMATS if each.name not in source] == []


def test_each_kind_is_recognised(tmp_path):
    assert open_source(ImportConfig()).kind == "phantom"
    assert kind(films(tmp_path / "folder", ["A/1.png", "B/2.png"])) == "folder"
    assert kind(a_dataset(tmp_path / "dataset")) == "dataset"
    file = bytes_in_parquet(tmp_path / "parquet" / "a.parquet")
    assert kind(file) == kind(file.parent) == "parquet"
    table = films(tmp_path / "table", ["1.png", "2.png"]) / "t.csv"
    table.write_text("path,label\n1.png,a\n2.png,b\n")
    assert kind(table) == kind(table.parent) == "table"


def test_a_folder_of_classes_stays_one_with_a_table_of_something_else_beside_them(tmp_path):
    root = films(tmp_path, ["A/1.png", "B/2.png"])
    (root / "notes.csv").write_text("who,when\nme,today\n")
    (root / "README.md").write_text("films")
    assert kind(root) == "folder"


def test_a_dataset_wins_over_what_its_files_look_like(tmp_path):
    assert kind(a_dataset(tmp_path / "d")) == "dataset"
    (tmp_path / "d" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"one file of a dataset that AugRay wrote|other columns"):
        kind(tmp_path / "d")


@pytest.mark.parametrize(
    ("settings", "name", "says"),
    [
        ({"images": "odd.zip"}, "auto", r"unknown format \(\.zip\)"),
        ({"images": "absent"}, "auto", "no folder or file"),
        ({"images": "odd.zip"}, "zip", "--source is 'zip': expected auto or one of dataset"),
        ({}, "folder", "--source folder needs --images PATH"),
        ({"images": "films", "merge": ("d",)}, "auto", "--merge takes datasets of AugRay's"),
        ({"images": "d", "merge": ("d",)}, "auto", "named twice"),
        ({"images": "d", "merge": ("films",)}, "auto", "isn't a dataset"),
        ({"images": "d", "merge": ("nowhere",)}, "auto", "isn't a dataset"),
        ({"images": "films"}, "dataset", "isn't a dataset"),
    ],
)
def test_mistakes_are_refused_with_what_was_found_and_what_to_do(tmp_path, settings, name, says):
    (tmp_path / "odd.zip").write_bytes(b"PK")
    films(tmp_path / "films", ["A/1.png", "B/2.png"])
    a_dataset(tmp_path / "d")
    paths = {
        key: tuple(tmp_path / v for v in value) if isinstance(value, tuple) else tmp_path / value
        for key, value in settings.items()
    }
    with pytest.raises(UserError, match=says):
        open_source(ImportConfig(**paths), name)


def test_a_source_that_is_named_is_not_guessed(tmp_path):
    root = films(tmp_path, ["A/1.png", "B/2.png"])
    (root / "t.csv").write_text("path,label\nA/1.png,x\nB/2.png,y\n")
    assert open_source(ImportConfig(images=root)).classes == ("x", "y")
    assert open_source(ImportConfig(images=root), "folder").classes == ("A", "B")


def test_opening_sources_and_decoding_need_no_pytorch():
    """Workers are processes of their own, and each would take seconds and 200 MB for it."""
    import subprocess

    code = "import sys, vaegan.importers, vaegan.preparation.spool; print('torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
