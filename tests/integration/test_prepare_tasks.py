"""Ray tasks decode as threads do."""

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.preparation.tasks import in_ray_tasks
from vaegan.prepare import main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """1,300 tiny images of two classes, some parts' worth, and one that is none."""
    root, rng = tmp_path_factory.mktemp("tasks") / "in", np.random.default_rng(0)
    for label in "AB":
        (root / label).mkdir(parents=True)
    for i in range(1300):
        film = rng.integers(0, 256, (10, 10), dtype=np.uint8)
        Image.fromarray(film).save(root / "AB"[i % 2] / f"p{i // 4}-{i}.png")
    (root / "A" / "broken.png").write_text("no image")
    return root


def hashes(dataset):
    return {path.name: file_sha256(path) for path in dataset.iterdir() if path.name != "manifest.json"}


def settings(folder, out, **more):
    return PrepareConfig(images=folder, out=out, size=8, patient_regex=r"p(\d+)-", **more)


def test_the_bytes_are_the_same_as_those_of_threads(folder, tmp_path, ray_cluster):
    prepare(settings(folder, tmp_path / "tasks"), in_ray_tasks)
    prepare(settings(folder, tmp_path / "threads"))
    assert hashes(tmp_path / "tasks") == hashes(tmp_path / "threads")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tasks", "threads"]


def test_a_mistake_in_a_task_is_the_same_sentence_as_anywhere(folder, tmp_path, ray_cluster):
    with pytest.raises(UserError, match=r"A/broken\.png: not an image") as in_task:
        prepare(settings(folder, tmp_path / "out", strict=True), in_ray_tasks)
    with pytest.raises(UserError, match=r"A/broken\.png: not an image") as in_thread:
        prepare(settings(folder, tmp_path / "out", strict=True))
    assert str(in_task.value) == str(in_thread.value)
    assert list(tmp_path.iterdir()) == []


def test_relative_paths_mean_those_of_the_command_not_of_the_tasks(folder, tmp_path, ray_cluster, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    out = tmp_path / "out"
    arguments = ["--images", folder.name, "--out", str(out), "--size", "8", "--patient-regex", r"p(\d+)-"]
    assert main([*arguments, "--ray"]) == 0
    assert "1 images could not be used" in capsys.readouterr().out
    assert main(arguments) == 0  # where it was decoded is no other setting
    assert "nothing was done" in capsys.readouterr().out


def test_a_folder_that_tasks_cannot_write_to_is_told_in_a_sentence(folder, tmp_path, ray_cluster):
    """As on a node that doesn't see --out."""
    config = settings(folder, tmp_path / "out")

    def elsewhere(parts, how):
        from dataclasses import replace

        yield from in_ray_tasks((replace(part, path=part.path / "no" / "such.arrow") for part in moved(parts)), how)

    def moved(parts):
        for part in parts:
            part.path.write_text("a file where a folder should be")
            yield part

    with pytest.raises(UserError, match="file system that all nodes see"):
        prepare(config, elsewhere)
