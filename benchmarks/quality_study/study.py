"""The study: what is asked for, what of it is missing, its children, and where their results go."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.errors import UserError
from cluster.storage import read_json, write_json
from quality_study.cases import CASES, ROOT, prepare_case
from quality_study.children import Child, last_line, run_children
from quality_study.judge import JudgeSettings
from quality_study.recipes import BUDGET, Recipe
from quality_study.records import merge, read_records, read_results, write_record, write_results
from quality_study.report import render
from quality_study.runs import Run, compute_floor, execute

PROGRAM = ROOT / "benchmarks" / "quality.py"
FOUR = ("n100", "n400", "normal", "all")
SCREEN_BASE = "small-1"


@dataclass(frozen=True)
class Stage:
    """What a stage runs where the command line doesn't say otherwise."""

    recipes: str
    """`named` on the command line, or a stage of the recipes' table."""
    cases: tuple[str, ...] = FOUR
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = BUDGET


NAMED = Stage("named")
STAGES = {
    "baselines": Stage("baseline"),
    # successive halving: all candidates at half the budget with one seed, then those that a person chose in full
    "screen": Stage("candidate", ("normal",), (0,), BUDGET // 2),
    "confirm": NAMED,
}


def planned(
    recipes: dict[str, Recipe],
    work: Path,
    *,
    stages: Iterable[str] = (),
    names: Iterable[str] = (),
    cases: Iterable[str] = (),
    seeds: Iterable[int] = (),
    images: int | None = None,
    reference: str = "val",
    judge: JudgeSettings | None = None,
) -> list[Run]:
    """The runs of some stages, seed by seed, so that the first answers come early. What is empty is the stage's own.

    Raises:
        UserError: an unknown recipe, or a stage that wants them named.
    """
    names, cases, seeds, judge = tuple(names), tuple(cases), tuple(seeds), judge or JudgeSettings()
    if unknown := set(names) - set(recipes):
        raise UserError(f"no recipe {', '.join(sorted(unknown))} in the table; --list shows them")
    runs: dict[Path, Run] = {}
    for stage in [STAGES[each] for each in stages] or ([NAMED] if names else []):
        for seed in seeds or stage.seeds:
            for case in cases or stage.cases:
                for name in names or _of_stage(stage, recipes):
                    run = Run(recipes[name], CASES[case], seed, images or stage.images, reference, judge)
                    runs.setdefault(run.record_path(work), run)
    return list(runs.values())


def _of_stage(stage: Stage, recipes: dict[str, Recipe]) -> list[str]:
    if stage is NAMED:
        raise UserError("name the recipes of this stage: --recipes A B; --list shows them")
    base = [SCREEN_BASE] if stage.recipes == "candidate" else []
    return base + [name for name, recipe in recipes.items() if recipe.stage == stage.recipes]


def run_missing(runs: list[Run], work: Path, jobs: int) -> int:
    """Do what isn't done; how many runs that were."""
    missing = [run for run in runs if not run.is_done(work)]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done", flush=True)
    if missing:
        prepare({(run.case.name, run.reference): run.judge for run in missing}, work, jobs)
        by_log = {_log(run, work): run for run in missing}
        run_children([child_of(run, work) for run in missing], jobs, lambda *ended: _ended(by_log, work, *ended))
    return len(missing)


def prepare(needed: dict[tuple[str, str], JudgeSettings], work: Path, jobs: int) -> None:
    """Datasets in this process, then the floors, each in a child: all runs of a case need them.

    Args:
        needed: (case, reference) to how it is judged.

    Raises:
        UserError: no source, or a floor that failed.
    """
    floors = []
    for (name, reference), judge in needed.items():
        case = CASES[name]
        print(f"{name}: {prepare_case(case, work)}", flush=True)
        if (work / "floors" / f"{name}-{reference}.json").exists():
            continue  # a judge that finds it out of date makes it anew
        job = {"floor": {"case": name, "reference": reference, "judge": vars(judge)}}
        log = work / "logs" / f"floor-{name}-{reference}.log"
        # one at a time of a source: the second finds its films' features in the cache
        floors.append(Child(_command(job, work, log.stem), log, exclusive=f"{case.source}_{case.size}"))

    def ended(child: Child, status: int, progress: str) -> None:
        print(f"[floors: {progress}] {last_line(child.log)}", flush=True)
        if status:
            raise UserError(f"a floor failed: see {child.log}")

    run_children(floors, jobs, ended)


def do_job(job: dict[str, Any], work: Path) -> int:
    """In a child process, on one thread: a floor or a run; its exit status."""
    torch.set_num_threads(1)
    if "floor" in job:
        floor = job["floor"]
        compute_floor(CASES[floor["case"]], work, floor["reference"], JudgeSettings(**floor["judge"]))
        return 0
    return 0 if execute(Run.from_job(job["run"]), work) else 1


def publish(recipes: dict[str, Recipe], work: Path | None, results: Path) -> bool:
    """Merge a work folder's records into quality.json, write quality.md, print the goals; whether all are reached."""
    path = results / "quality.json"
    records = merge(read_results(path), read_records(work / "records") if work else [])
    write_results(path, records)
    page, goals = render(records, recipes)
    (results / "quality.md").write_text(page, encoding="utf-8")
    print(f"{len(records)} records in {path}")
    for goal in goals:
        print(goal.line)
    return all(goal.reached for goal in goals)


def child_of(run: Run, work: Path) -> Child:
    """The process that does a run."""
    log = _log(run, work)
    return Child(_command({"run": run.as_job()}, work, log.stem), log, exclusive=str(run.folder(work)))


def _log(run: Run, work: Path) -> Path:
    return work / "logs" / run.record_path(work).with_suffix(".log").name


def _command(job: dict[str, Any], work: Path, name: str) -> list[str]:
    path = work / "jobs" / f"{name}.json"
    write_json(path, job)
    return [str(PROGRAM), f"--work={work}", f"--job={path}"]


def _ended(by_log: dict[Path, Run], work: Path, child: Child, status: int, progress: str) -> None:
    run = by_log[child.log]
    if status not in (0, 1, 2):  # 1 wrote the error into its record, 2 found the run in another process's hands
        reason = f"the process ended with status {status} (below 0: a signal); its output is in logs/{child.log.name}"
        write_record(work / "records", run.head() | {"error": reason})
    shown = last_line(child.log) if status == 2 else _shown(run, work)
    print(f"[{progress}] {run.words}: {shown}", flush=True)


def _shown(run: Run, work: Path) -> str:
    record = read_json(run.record_path(work))
    if "error" in record:
        return f"failed: {record['error']}"
    metrics = record["metrics"]
    gaps = [f"{name.removesuffix('_distance_gap')} {metrics[name]:.4g}" for name in metrics if name.endswith("_gap")]
    others = [f"{name} {metrics[name]:.3g}" for name in ("copies", "tstr_auroc") if name in metrics]
    return "gap " + ", ".join(gaps + others)


def list_all(recipes: dict[str, Recipe]) -> None:
    """Print cases and recipes."""
    for case in CASES.values():
        print(f"case {case.name}: {case.words}")
    for recipe in recipes.values():
        base = f" (beside {recipe.base})" if recipe.base else ""
        print(f"{recipe.stage} {recipe.name}{base}: {recipe.words}; {recipe.reference}")
