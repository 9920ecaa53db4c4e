"""Runs: a recipe, a case and a seed, from the dataset to the record; and which of many are still to be done."""

import importlib.util
import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.cli import describe
from cluster.errors import UserError
from cluster.provenance import git_revision
from cluster.storage import locked, read_json, text_sha256
from quality_study.cases import CASES, Case, CaseData, load_case, prepare_case
from quality_study.generators import Generator, OurGenerator
from quality_study.judge import JUDGE_VERSION, SEED, Judge, JudgeSettings
from quality_study.recipes import Recipe
from quality_study.records import file_name, write_record
from quality_study.training import train
from vaegan.images import encode_png, grid

GRID = 64  # samples on a sheet


@dataclass(frozen=True)
class Run:
    """One training and its judgement."""

    recipe: Recipe
    case: Case
    seed: int
    images: int
    """Budget: images seen in training."""
    reference: str
    """The split that it is judged by, "val" or "test"."""
    judge: JudgeSettings

    @property
    def words(self) -> str:
        return f"{self.recipe.name} on {self.case.name}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """Of all that decides the record's numbers."""
        trained = self.recipe.training_digest(self.case, self.images)
        content = [trained, self.recipe.sampling, JUDGE_VERSION, asdict(self.judge), self.reference]
        return text_sha256(json.dumps(content, sort_keys=True))[:16]

    def folder(self, work: Path) -> Path:
        """Of the training, which recipes that differ in sampling alone share."""
        trained = self.recipe.training_digest(self.case, self.images)
        return work / "runs" / self.case.name / f"{trained}-s{self.seed}"

    def record_path(self, work: Path) -> Path:
        return work / "records" / file_name(self.case.name, self.images, self.reference, self.recipe.name, self.seed)

    def grid_path(self, work: Path) -> Path:
        name = f"{self.case.name}-{self.images}-{self.recipe.name}-s{self.seed}.png"
        return work / "grids" / name

    def is_done(self, work: Path) -> bool:
        """Whether there is a record of this very run, and no error in it."""
        path = self.record_path(work)
        if not path.exists():
            return False
        record = read_json(path)
        return record["digest"] == self.digest and "error" not in record

    def as_job(self) -> dict[str, Any]:
        """For a child process; `from_job` is the way back."""
        return asdict(self) | {"case": self.case.name}  # all of JSON's types

    @staticmethod
    def from_job(job: dict[str, Any]) -> "Run":
        return Run(**job | {
            "recipe": Recipe(**job["recipe"]), "case": CASES[job["case"]], "judge": JudgeSettings(**job["judge"]),
        })  # fmt: skip

    def head(self) -> dict[str, Any]:
        """What a record begins with, its numbers apart."""
        return {
            "recipe": self.recipe.name, "case": self.case.name, "seed": self.seed, "images": self.images,
            "reference": self.reference, "digest": self.digest,
        }  # fmt: skip


def execute(run: Run, work: Path) -> bool:
    """Train, judge and write the record; whether it has no error. A run that was begun goes on from its checkpoint.

    Raises:
        UserError: another process does it.
    """
    folder = run.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), f"another process makes {run.words}: wait for it"):
        try:
            record = run.head() | _result(run, work)
        except Exception as error:  # the study goes on, whatever a candidate does
            if not isinstance(error, (UserError, OSError)):
                traceback.print_exc()
            record = run.head() | {"error": describe(error)}
        record["revision"] = git_revision()
        write_record(work / "records", record)
    return "error" not in record


def _result(run: Run, work: Path) -> dict[str, Any]:
    data = load_case(run.case, work, run.reference)
    begun = any(run.folder(work).iterdir())
    started_s = time.monotonic()
    generator = _trained(run, data, work)
    trained_s = round(time.monotonic() - started_s, 1)
    _say(f"{run.words}: trained, {trained_s:.0f} s of it in this process")
    judge = Judge(data, run.reference, run.judge, work)
    found = judge.judge(generator, run.recipe.latent, run.seed, _say)
    some = judge.labels[np.linspace(0, judge.count - 1, GRID).round().astype(int)]
    sheet = generator.sample(some, SEED, run.recipe.latent)
    run.grid_path(work).parent.mkdir(parents=True, exist_ok=True)
    run.grid_path(work).write_bytes(encode_png(grid(sheet, columns=8)))
    return found | {"model": generator.about()} | ({} if begun else {"train_s": trained_s})


def _trained(run: Run, data: CaseData, work: Path) -> Generator:
    settings = dict(seed=run.seed, images=run.images)
    if run.recipe.trainer == "pythae":
        if importlib.util.find_spec("pythae") is None:
            raise UserError("pythae isn't installed: pip install -e '.[bench]' brings it")
        from quality_study.pythae_rival import train_pythae

        return train_pythae(run.recipe, run.case, data, run.folder(work), **settings)
    model = train(run.recipe, run.case, prepare_case(run.case, work), run.folder(work), **settings)
    return OurGenerator(model, run.recipe.sampling)


def compute_floor(case: Case, work: Path, reference: str, settings: JudgeSettings) -> None:
    """Features of the real films, and the floor: before the runs, which would all begin with them."""
    judge = Judge(load_case(case, work, reference), reference, settings, work)
    started_s = time.monotonic()
    metrics = judge.floor["metrics"]
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "distance" in name)
    _say(f"floor of {case.name}: {shown} ({time.monotonic() - started_s:.0f} s)")


def _say(line: str) -> None:
    print(line, flush=True)
