"""MLflow as a second place for what a run tells people, for those who compare runs there. An extra: augray[mlflow].

A run's own stats.jsonl stays the complete record: it needs no server and is what a resumed run trims and continues.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.errors import UserError
from cluster.storage import read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

logger = logging.getLogger(__name__)

IDENTITY = "mlflow.json"  # in a run's folder: which MLflow run continues it
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
MAX_VALUE = 6000  # characters that MLflow takes of a parameter
PAUSE_S = 60.0  # without a call after one that failed: a dead server must not hold up every log line


class Tracker:
    """One run in an MLflow store, from its first step to its end, across interruptions.

    After `open`, nothing here raises: a store that fails costs a training of hours one warning on stderr. It is tried
    again after `PAUSE_S` seconds, with the metrics that it missed; pictures of that time are lost to it.
    """

    def __init__(self, client: MlflowClient, run_id: str, logged: set[tuple[str, int, float]], where: str) -> None:
        self.client, self.run_id, self.where = client, run_id, where
        self._logged = logged  # (metric, step, value) that the store had when this process opened it
        self._unsent: list[Metric] = []
        self._warned, self._retry_at = False, 0.0

    @staticmethod
    def open(uri: str, run_dir: Path, *, experiment: str, name: str, settings: dict[str, Any]) -> Tracker:
        """Start an MLflow run for the run in `run_dir`, or continue the one that `run_dir`/mlflow.json names.

        Args:
            uri: of the store: `sqlite:////absolute/path.db`, `http://host:5000`, or what else MLflow takes.
            run_dir: the run's folder. Artifacts of an experiment that is new to a database go beside it, into
                `mlflow-artifacts`; a server keeps them where it was told to.
            experiment, name: under which MLflow shows the run.
            settings: parameters to log, nested ones as `loss.gamma`; values are cut to 6,000 characters. A continued
                run keeps those that it has.

        Raises:
            UserError: MLflow isn't installed, or the store refuses to open.
        """
        client = _connect(uri)
        where = without_password(uri)
        try:
            run_id = _earlier_run(client, where, run_dir)
            if run_id is None:
                run_id = client.create_run(_experiment(client, uri, run_dir, experiment), run_name=name).info.run_id
                write_json(run_dir / IDENTITY, {"tracking_uri": where, "run_id": run_id})
            else:
                client.update_run(run_id, status="RUNNING")
            known = client.get_run(run_id).data
            client.log_batch(run_id, params=_params(settings, known.params))
            logged = {
                (key, entry.step, entry.value)
                for key in known.metrics
                for entry in client.get_metric_history(run_id, key)
            }
        except Exception as error:
            raise _refused(where, error) from error
        return Tracker(client, run_id, logged, where)

    def log(self, metrics: dict[str, Any]) -> None:
        """Log every finite float of a line of stats.jsonl at step `metrics["images"]`.

        What a resumed run computes again and finds equal is not logged twice; another value for an old step is added,
        as MLflow does.
        """
        from mlflow.entities import Metric

        step, now_ms = int(metrics["images"]), int(time.time() * 1000)
        self._unsent += [
            Metric(key, value, now_ms, step)
            for key, value in metrics.items()
            if isinstance(value, float) and math.isfinite(value) and (key, step, value) not in self._logged
        ]
        self._try(self._send)

    def picture(self, path: Path) -> None:
        """Keep a PNG under grids/. It leaves this machine if the store does: think before you pass real images."""
        self._try(lambda: self.client.log_artifact(self.run_id, str(path), "grids"))

    def finish(self, model: Path) -> None:
        """Keep the model's description and card under model/ and end the run as FINISHED.

        The weights stay where they are: before an audit they count as patients' data, and must not go to a server
        because somebody wanted curves. model.json has their sha256, the registry hands them out.
        """

        def finish() -> None:
            self._send()
            for file in ("model.json", "card.md"):
                self.client.log_artifact(self.run_id, str(model / file), "model")
            self.client.set_terminated(self.run_id, "FINISHED")

        self._try(finish, now=True)

    def fail(self, reason: str) -> None:
        """End the run as FAILED, with the reason as its tag `failure`."""

        def fail() -> None:
            self._send()
            self.client.set_tag(self.run_id, "failure", _cut(reason))
            self.client.set_terminated(self.run_id, "FAILED")

        self._try(fail, now=True)

    def _send(self) -> None:
        self.client.log_batch(self.run_id, metrics=self._unsent)
        self._unsent = []

    def _try(self, action: Callable[[], object], now: bool = False) -> None:
        """Do it unless the store failed a moment ago; a failure is told once and never raised."""
        if not now and time.monotonic() < self._retry_at:
            return
        try:
            action()
        except Exception as error:
            self._retry_at = time.monotonic() + PAUSE_S
            if not self._warned:
                self._warned = True
                logger.warning(
                    "warning: MLflow at %s failed (%s); training goes on, and stats.jsonl has every line",
                    self.where,
                    _one_line(error),
                )


def absolute_uri(uri: str) -> str:
    """A relative `sqlite:///runs.db` with the path that it has here: Ray changes its workers' directory."""
    scheme, separator, path = uri.partition(":///")
    if scheme != "sqlite" or not path or path.startswith("/"):
        return uri
    return f"{scheme}{separator}{Path(path).absolute()}"


def _connect(uri: str) -> MlflowClient:
    # Read at import: nothing about this use goes to MLflow's makers. Nor may a dead server hold a step for the four
    # minutes that MLflow retries for; `_try` has its own way. Who knows their server to be slow sets these two.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        from mlflow import MlflowClient

        if urlsplit(uri).scheme.partition("+")[0] in DATABASES:
            for package in ("sqlalchemy", "alembic"):  # without these, MLflow calls the URI unsupported
                import_module(package)
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # pages about what becomes one sentence here
        with _alone(uri):
            return MlflowClient(tracking_uri=uri)
    except ImportError as error:
        raise UserError(
            f"MLflow tracking needs a package that isn't installed ({error.name}): pip install -e '.[mlflow]'"
        ) from error
    except Exception as error:
        raise _refused(without_password(uri), error) from error


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Wait while another process of this machine opens an SQLite store in the same folder.

    Two that create the tables of a new one at once end with "duplicate column name" (MLflow 3.17).
    """
    scheme, _, path = uri.partition(":///")
    if scheme != "sqlite":
        yield
        return
    folder = os.open(Path(path).parent, os.O_RDONLY)  # not the database: SQLite's own locks would go with our close
    try:
        with suppress(OSError):  # a network file system that has none
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _earlier_run(client: MlflowClient, where: str, run_dir: Path) -> str | None:
    """The MLflow run that an interrupted run began in this store, unless somebody deleted it since."""
    from mlflow.exceptions import MlflowException

    path = run_dir / IDENTITY
    before = read_json(path) if path.exists() else {}
    if before.get("tracking_uri") != where:
        return None
    try:
        run = client.get_run(before["run_id"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run.info.run_id if run.info.lifecycle_stage == "active" else None


def _experiment(client: MlflowClient, uri: str, run_dir: Path, name: str) -> str:
    """The experiment's id; a new one in a database keeps artifacts beside the runs, not in the current directory."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        on_server = urlsplit(uri).scheme in ("http", "https") or uri.startswith("databricks")
        location = None if on_server else (run_dir.absolute().parent / "mlflow-artifacts").as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run of the same experiment was quicker
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None
    return found.experiment_id


def _params(settings: dict[str, Any], known: dict[str, str]) -> list[Param]:
    """What a run hasn't got yet: a parameter can't change, and a resumed run may have other workers."""
    from mlflow.entities import Param

    return [Param(key, _cut(value)) for key, value in _flat(settings) if key not in known]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def without_password(text: str) -> str:
    """A URI, or a text with URIs, without user and password: these belong in no file and no message."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def _refused(where: str, error: Exception) -> UserError:
    return UserError(
        f"MLflow at {where} can't be used ({_one_line(error)}): "
        "check the address and that it can be written, or train without MLflow; stats.jsonl has every line"
    )


def _one_line(error: Exception) -> str:
    return without_password(" ".join(str(error).split()) or type(error).__name__)[:160]
