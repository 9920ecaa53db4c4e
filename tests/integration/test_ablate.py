import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from downstream.ablate import main
from downstream.plan import AblateConfig
from downstream.scores import METRICS, score
from downstream.study import absolute, prepare
from vaegan.images import pixel_hash
from vaegan.phantom import PhantomConfig, phantom
from vaegan.shards import DatasetWriter, read_manifest, read_split
from vaegan.splits import nested_subset

pytestmark = pytest.mark.integration

CLASSES = ("normal", "consolidation", "effusion")
RECIPE = """
model: {kind: vaegan, width: 4, latent_dim: 4, hidden: 16}
batch_size: 32
total_images: 320
"""
ARMS = ["real", "duplicate_real", "synthetic"]
NUM_CELLS = 2 + 2 + 2 * 2  # classifier seeds of real and duplicate_real, and those of synthetic for two generators


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 patients of the phantom at 32 px, split in three."""
    images = phantom(PhantomConfig(patients=160), size=32, seed=0)
    part = np.array([int(name.encode()[-1]) % 4 for name in images.patient_id])
    path = tmp_path_factory.mktemp("data") / "phantom"
    with DatasetWriter(path, task="multiclass", classes=CLASSES, height=32, width=32, channels=1) as writer:
        for name, parts in {"train": (0, 1), "val": (2,), "test": (3,)}.items():
            writer.add(name, images.take(np.flatnonzero(np.isin(part, parts))))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def arguments(data: Path, out: Path, *more: object, arms: list[str] | None = None) -> list[str]:
    settings = f"--data {data} --out {out} --fractions 0.5 --steps 4 --batch-size 8 --classifier-seeds 2 --pool-seeds 1"
    return [*settings.split(), "--arms", *(arms or ARMS), *map(str, more)]


def comparable(out: Path) -> list[dict[str, object]]:
    """results.parquet without the times."""
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in pq.read_table(out / "results.parquet").to_pylist()
    ]


@pytest.fixture(scope="module")
def finished(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """An ablation that was killed once it had two cells and then run again; the files there were, with times."""
    out = tmp_path_factory.mktemp("killed") / "out"
    command = [
        sys.executable,
        "-m",
        "downstream.ablate",
        *arguments(data, out, "--recipe", recipe, "--cluster.num-cpus", 2),
    ]
    first = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 300
    while len(list(out.glob("cells/*.parquet"))) < 2:
        assert first.poll() is None, first.stderr and first.stderr.read()
        assert time.time() < deadline, "no cell after five minutes"
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    time.sleep(2)  # its workers end with it, but not in the same instant
    before = {
        path: path.stat().st_mtime_ns
        for path in (*out.glob("cells/*.parquet"), *out.glob("generators/*/generator.json"))
    }
    assert not (out / "ablation.json").exists()
    assert main(arguments(data, out, "--recipe", recipe, "--cluster.num-cpus", 2)) == 0
    return out, before


def test_a_killed_run_goes_on_and_keeps_what_was_done(finished):
    out, before = finished
    assert len(before) >= 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    manifest = json.loads((out / "ablation.json").read_text())
    assert manifest["cells"] == {"planned": NUM_CELLS, "ok": NUM_CELLS, "failed": 0}
    assert manifest["primary"]["arm"] == "synthetic"
    assert [g["generator_seed"] for g in manifest["generators"]] == [0, 1]


def test_the_same_command_again_changes_no_file(finished, data, recipe, capsys):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} | {out: out.stat().st_mtime_ns}
    manifest = (out / "ablation.json").stat().st_mtime_ns
    assert main(arguments(data, out, "--recipe", recipe)) == 0
    assert (out / "ablation.json").stat().st_mtime_ns == manifest
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path != out)
    assert capsys.readouterr().out.splitlines()[-1] == str(out)


def test_another_run_of_the_same_settings_has_the_same_results(finished, data, recipe, tmp_path, ray_cluster):
    out, _ = finished
    assert main(arguments(data, tmp_path / "again", "--recipe", recipe, "--extractors", "[]")) == 0
    assert comparable(tmp_path / "again") == comparable(out)


def test_scores_in_the_table_follow_from_the_probabilities_in_it(finished, data):
    out, _ = finished
    test, val = read_split(data, "test"), read_split(data, "val")
    about = pq.read_table(out / "test.parquet")
    assert about["image_id"].to_pylist() == test.image_id.tolist()
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert len(rows) == NUM_CELLS
    for row in rows:
        p = np.array(row["scores"]).reshape(len(test), 3)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
        # What needs a threshold needs the validation probabilities, which are not kept.
        again = score(test.labels, p, val.labels, np.zeros((len(val), 3)), task="multiclass", classes=CLASSES)
        for metric in ("auroc", "auprc", "brier"):
            assert row[metric] == pytest.approx(again[metric], abs=1e-6)
        assert set(json.loads(row["per_class"])) == set(CLASSES)
        assert all(row[metric] is not None for metric in METRICS)
        assert (row["generator_seed"] is None) == (row["arm"] != "synthetic")


def test_a_generator_sees_its_fraction_s_images_and_none_of_val_or_test(finished, data):
    out, _ = finished
    train, test, val = (read_split(data, name) for name in ("train", "test", "val"))
    names = [json.loads(path.read_text()) for path in sorted(out.glob("generators/*/training_images.json"))]
    seen = {entry["sha256"] for entry in names[0]["images"]}
    assert names[0] == names[1]
    assert seen < {pixel_hash(pixels) for pixels in train.pixels}
    assert not seen & {pixel_hash(pixels) for pixels in (*test.pixels, *val.pixels)}
    assert 0.4 < len(seen) / len(train) < 0.6


def test_a_pool_has_the_labels_of_the_rows_it_stands_beside(finished, data):
    out, _ = finished
    row = next(row for row in comparable(out) if row["arm"] == "synthetic")
    pool = read_split(out / "synthetic" / "f0.5_g0_p0", "train")
    assert len(pool) == row["num_extra"] == row["num_real"]
    assert set(pool.source) == {"synthetic"}
    train = read_split(data, "train")
    real = train.labels[nested_subset(train.labels, train.patient_id, 0.5, seed=0)]
    assert pool.labels.sum(axis=0).tolist() == real.sum(axis=0).tolist()


def test_other_settings_in_the_same_folder_are_refused_by_name(finished, data, recipe, capsys):
    out, _ = finished
    assert main(arguments(data, out, "--recipe", recipe, "--steps", 5)) == 2
    assert "differs in steps (steps was 4 and is 5)" in capsys.readouterr().err


def test_a_cell_that_fails_is_recorded_and_the_others_are_finished(finished, data, tmp_path, capsys, ray_cluster):
    pool = finished[0] / "synthetic" / "f0.5_g0_p0"  # ready images: enough for a ratio of 1, too few for 3
    out = tmp_path / "failing"
    more = ("--synthetic", pool, "--ratios", 1, 3, "--extractors", "[]")
    assert main(arguments(data, out, *more)) == 1
    rows = pq.read_table(out / "results.parquet").to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert {(row["arm"], row["ratio"]) for row in failed} == {("synthetic", 3.0)}
    assert all("are needed" in row["error"] and row["auroc"] is None for row in failed)
    assert json.loads((out / "ablation.json").read_text())["cells"] == {"planned": 10, "ok": 8, "failed": 2}
    said = capsys.readouterr().err
    assert "2 of 10 cells failed" in said
    assert "is taken as it is" in said  # ready images: what their generator saw is not known


def test_training_images_that_are_also_test_images_are_refused(data, recipe, tmp_path, capsys):
    about = read_manifest(data)
    leaky = tmp_path / "leaky"
    train, val, test = (read_split(data, name) for name in ("train", "val", "test"))
    train.pixels[:] = test.pixels[0]
    with DatasetWriter(leaky, task=about.task, classes=CLASSES, height=32, width=32, channels=1) as writer:
        for name, images in {"train": train, "val": val, "test": test}.items():
            writer.add(name, images)
        writer.finish()
    assert main(arguments(leaky, tmp_path / "out", "--recipe", recipe)) == 2
    assert f"is test image {test.image_id[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_fraction_with_too_few_images_of_a_class_is_refused(data, recipe, tmp_path):
    config = AblateConfig(data=data, out=tmp_path / "out", recipe=recipe, fractions=(0.01,))
    with pytest.raises(UserError, match="choose a larger fraction"):
        prepare(absolute(config))
