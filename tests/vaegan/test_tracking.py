import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.storage import read_json, write_json
from vaegan import tracking
from vaegan.tracking import Tracker, absolute_uri

SETTINGS = {"seed": 3, "data": "somewhere", "loss": {"gamma": 0.5, "adversarial": "hinge"}, "notes": "x" * 7000}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """An SQLite store with MLflow's tables and nothing in them; making it takes two seconds."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    tracking._connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty_store, tmp_path):
    return f"sqlite:///{shutil.copy(empty_store, tmp_path)}"


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    return path


def start(uri, run_dir, **changes):
    return Tracker.open(uri, run_dir, **(dict(experiment="films", name="first", settings=SETTINGS) | changes))


def history(tracker, key):
    return sorted((entry.step, entry.value) for entry in tracker.client.get_metric_history(tracker.run_id, key))


def test_nested_settings_become_dotted_parameters_cut_at_mlflows_limit(uri, run_dir):
    tracker = start(uri, run_dir)
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.run_name == "first"
    assert {name: run.data.params[name] for name in ("seed", "loss.gamma", "loss.adversarial")} == {
        "seed": "3",
        "loss.gamma": "0.5",
        "loss.adversarial": "hinge",
    }
    assert run.data.params["notes"] == "x" * 5999 + "…"


def test_finite_floats_are_logged_at_the_image_count_and_nothing_else_is(uri, run_dir):
    tracker = start(uri, run_dir)
    for images, like in ((32, 2.0), (64, 1.5)):
        tracker.log(
            {"images": images, "like": like, "fool": float("inf"), "kl_per_dimension": [0.1], "precision": "float32"}
        )
    assert history(tracker, "like") == [(32, 2.0), (64, 1.5)]
    assert set(tracker.client.get_run(tracker.run_id).data.metrics) == {"like"}


def test_a_resumed_run_continues_the_same_mlflow_run_and_repeats_no_equal_entry(uri, run_dir):
    first = start(uri, run_dir)
    for images in (32, 64):
        first.log({"images": images, "like": 1 / images, "images_per_s": float(images)})
    again = start(uri, run_dir, settings=SETTINGS | {"num_workers": 2, "seed": 4})  # killed after 64, resumed from 32
    again.log({"images": 64, "like": 1 / 64, "images_per_s": 70.0})
    again.log({"images": 96, "like": 1 / 96, "images_per_s": 96.0})

    assert again.run_id == first.run_id
    (experiment,) = (e for e in again.client.search_experiments() if e.name == "films")
    assert len(again.client.search_runs([experiment.experiment_id])) == 1
    assert history(again, "like") == [(32, 1 / 32), (64, 1 / 64), (96, 1 / 96)]
    assert history(again, "images_per_s") == [(32, 32.0), (64, 64.0), (64, 70.0), (96, 96.0)]
    params = again.client.get_run(again.run_id).data.params
    assert (params["seed"], params["num_workers"]) == ("3", "2")


def test_a_rollback_inside_a_process_shows_the_new_value_of_a_step(uri, run_dir):
    tracker = start(uri, run_dir)
    for like in (9.0, 1.0):
        tracker.log({"images": 64, "like": like})
    assert tracker.client.get_run(tracker.run_id).data.metrics["like"] == 1.0
    tracker.log({"images": 64, "like": 9.0})
    assert tracker.client.get_run(tracker.run_id).data.metrics["like"] == 9.0


def test_a_failed_run_that_is_resumed_runs_again(uri, run_dir):
    tracker = start(uri, run_dir)
    tracker.fail("like is not finite")
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "like is not finite")
    assert run.info.end_time
    assert tracker.client.get_run(start(uri, run_dir).run_id).info.status == "RUNNING"


def test_another_store_or_a_deleted_run_gets_a_new_mlflow_run(uri, run_dir, empty_store, tmp_path):
    first = start(uri, run_dir)
    other = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    elsewhere = start(other, run_dir)
    assert elsewhere.run_id != first.run_id
    elsewhere.client.delete_run(elsewhere.run_id)
    assert start(other, run_dir).run_id != elsewhere.run_id


def test_two_runs_share_an_experiment(uri, run_dir):
    second = run_dir.with_name("second")
    second.mkdir()
    runs = [start(uri, folder).client.get_run(start(uri, folder).run_id) for folder in (run_dir, second)]
    assert runs[0].info.run_id != runs[1].info.run_id
    assert runs[0].info.experiment_id == runs[1].info.experiment_id


def test_artifacts_lie_beside_the_run_without_weights_and_the_current_directory_stays_clean(
    uri, run_dir, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    picture, model = tmp_path / "samples_000000032.png", tmp_path / "model"
    picture.write_bytes(b"png")
    model.mkdir()
    for name in ("model.json", "card.md", "model.safetensors"):
        (model / name).write_text(name)

    tracker = start(uri, run_dir)
    tracker.picture(picture)
    tracker.finish(model)

    root = tmp_path / "runs" / "mlflow-artifacts" / tracker.run_id / "artifacts"
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {"grids/samples_000000032.png", "model/model.json", "model/card.md"}
    run = tracker.client.get_run(tracker.run_id)
    assert (run.info.status, run.info.artifact_uri) == ("FINISHED", root.as_uri())
    assert list(here.iterdir()) == []


def test_a_store_that_dies_costs_one_line_and_gets_what_it_missed(uri, run_dir, tmp_path, monkeypatch, caplog):
    tracker = start(uri, run_dir)
    database, hidden = tmp_path / "store.db", tmp_path / "hidden.db"
    database.rename(hidden)
    tracker.log({"images": 32, "like": 1.0})
    tracker.picture(tmp_path / "no_such.png")
    tracker.fail("while it is down")
    (warning,) = caplog.messages
    assert warning.startswith(f"warning: MLflow at {uri} failed (")
    assert "\n" not in warning

    hidden.replace(database)
    tracker.log({"images": 64, "like": 1.0})  # in the pause
    assert history(tracker, "like") == []
    monkeypatch.setattr(tracking.time, "monotonic", lambda: tracker._retry_at)
    tracker.log({"images": 96, "like": 1.0})
    assert history(tracker, "like") == [(32, 1.0), (64, 1.0), (96, 1.0)]


def test_a_server_that_nobody_answers_for_is_one_sentence_before_training(run_dir):
    with pytest.raises(UserError, match=r"^MLflow at http://127\.0\.0\.1:9 can't be used") as caught:
        start("http://somebody:secret@127.0.0.1:9", run_dir)
    assert "secret" not in str(caught.value)


def test_a_database_that_cannot_be_made_is_one_sentence(run_dir):
    with pytest.raises(UserError, match="can't be used"):
        start("sqlite:////proc/no/such/folder/store.db", run_dir)


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy", "alembic"])
def test_a_missing_package_is_one_sentence_with_the_command_that_installs_it(missing, tmp_path):
    result = isolated(
        f"import sys; sys.modules['{missing}'] = None\n"
        "try: tracker = Tracker.open('sqlite:///store.db', Path('.'), experiment='e', name='n', settings={})\n"
        "except UserError as error: print(error)",
        tmp_path,
    )
    assert result == f"MLflow tracking needs a package that isn't installed ({missing}): pip install -e '.[mlflow]'\n"


def test_nothing_is_sent_and_nothing_written_outside_the_store_and_the_run(tmp_path):
    """In a process of its own, since MLflow sends nothing where it sees pytest or a CI service."""
    result = isolated(
        "import socket\n"
        "def refuse(*address): raise AssertionError(f'a connection to {address}')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "tracker = Tracker.open('sqlite:///store.db', Path('run'), experiment='e', name='n', settings={'a': 1})\n"
        "tracker.log({'images': 1, 'like': 1.0}); tracker.fail('over')\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "print(get_telemetry_client())",
        tmp_path,
    )
    assert result == "None\n"
    assert {path.name for path in tmp_path.iterdir()} == {"store.db", "run"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mlflow.json"]


def test_two_processes_that_open_a_new_store_at_once_both_get_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; import mlflow; from vaegan.tracking import Tracker\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "Tracker.open('sqlite:///store.db', Path(sys.argv[1]), experiment='e', name='n', settings={}).fail('over')"
    )
    processes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, name], cwd=tmp_path, env=plain_environment(tmp_path), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def test_the_run_folder_names_the_store_without_a_password(uri, run_dir):
    tracker = start(uri, run_dir)
    assert read_json(run_dir / "mlflow.json") == {"tracking_uri": uri, "run_id": tracker.run_id}
    assert tracking.without_password("postgresql://me:secret@host:1/db?x=1") == "postgresql://host:1/db?x=1"


def test_an_mlflow_json_of_another_store_is_no_obstacle(uri, run_dir):
    write_json(run_dir / "mlflow.json", {"tracking_uri": "http://gone:5000", "run_id": "1" * 32})
    tracker = start(uri, run_dir)
    assert read_json(run_dir / "mlflow.json")["run_id"] == tracker.run_id


def test_only_a_relative_database_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    for uri in ("sqlite:////a.db", "http://host:5000", "postgresql://host/db", "file:///store"):
        assert absolute_uri(uri) == uri


def isolated(code, folder):
    """What the code prints in a new process with an empty home and nothing that tells of a test."""
    (folder / "run").mkdir(exist_ok=True)
    imports = "from pathlib import Path\nfrom cluster.errors import UserError\nfrom vaegan.tracking import Tracker\n"
    done = subprocess.run(
        [sys.executable, "-c", imports + code], cwd=folder, text=True, capture_output=True, timeout=120, check=False,
        env=plain_environment(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain_environment(folder):
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return environment | {"HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
