import subprocess
import sys
from dataclasses import replace

import pytest

from cluster.errors import UserError
from cluster.storage import read_json, write_json
from vaegan.runs import locked, refuse_old_run, settings, tidy
from vaegan.train import main, train


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    other = f"from pathlib import Path; from vaegan.runs import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    with locked(tmp_path):
        found = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"another process trains in {tmp_path}" in found.stderr
    assert subprocess.run([sys.executable, "-c", other], capture_output=True, check=False).returncode == 0


def test_a_folder_with_a_run_is_refused_if_asked_to(config):
    refuse_old_run(config.run_dir)
    assert train(config) == 0
    assert train(config) == 0  # auto: it is done, and left alone
    with pytest.raises(UserError, match="--resume is never"):
        train(replace(config, resume="never"))


def test_a_run_that_failed_before_its_first_step_can_be_corrected_in_its_folder(config, tmp_path):
    with pytest.raises(UserError, match="isn't a model"):
        train(replace(config, warm_start=tmp_path / "mistyped"))
    assert train(config) == 0
    with pytest.raises(UserError, match="differs in warm_start"):
        train(replace(config, warm_start=config.run_dir / "model"))


def test_a_run_of_an_earlier_version_is_resumed_if_keys_that_came_since_are_at_their_defaults(config):
    assert train(config) == 0
    path = config.run_dir / "config.json"
    stored = read_json(path)
    settings = stored["config"]
    (layer,) = settings["model"].pop("feature_layers")
    settings["model"]["feature_layer"] = layer
    for part, key in (
        (settings["model"], "blocks"),
        (settings["model"], "modulation"),
        (settings["loss"], "r1_weight"),
    ):
        del part[key]
    del settings["augment"]  # which this run has not at its default
    write_json(path, stored)
    with pytest.raises(UserError, match="differs in augment:"):
        train(config)
    write_json(path, stored | {"config": settings | {"augment": config.augment}})
    assert train(config) == 0
    with pytest.raises(UserError, match="differs in model:"):
        train(replace(config, model=replace(config.model, modulation=True)))


def test_what_a_sudden_end_left_half_written_or_half_removed_is_removed(tmp_path):
    whole = ("checkpoint_000000032", "best_000000032", "best_000000064")
    for name in (".checkpoint_000000064-abc", ".best_000000064-abc", "checkpoint_000000016", "grids", *whole):
        (tmp_path / name).mkdir()
    for name in whole:
        for file in ("state.json", "state.safetensors"):
            (tmp_path / name / file).touch()
    (tmp_path / "checkpoint_000000016" / "state.json").touch()
    for name in (".stats.123-0a1b2c3d.jsonl", "grids/.samples_000000032.123-0a1b2c3d.png", ".lock", "grids/kept.png"):
        (tmp_path / name).touch()
    tidy(tmp_path, images_seen=32)
    left = sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.parent.name not in whole
    )
    assert left == [".lock", "best_000000032", "checkpoint_000000032", "grids", "grids/kept.png"]


def test_a_password_stays_out_of_the_runs_files(config):
    secret = replace(config, mlflow="postgresql://me:geheim@db.example/mlflow")
    assert settings(secret)["mlflow"] == "postgresql://db.example/mlflow"
    assert "geheim" not in str(settings(secret))


def test_a_dry_run_tells_what_would_happen_and_writes_nothing(config, capsys):
    assert train(replace(config, dry_run=True)) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("encoder", "decoder", "discriminator", "parameters", "steps", "time"))
    assert not config.run_dir.exists()


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    options = [part.split("\n\n")[0] for part in text.split("\n  --")[1:]]
    bare = [part.split()[0] for part in options if "(type:" in part and len(part.split("(type:")[0].split()) < 5]
    assert not bare
    assert len(options) > 50
