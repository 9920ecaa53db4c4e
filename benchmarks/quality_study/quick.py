"""--quick: all of the machinery on the phantom with tiny networks, and the pure parts on numbers that are known."""

import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from common.measure import verdict

from cluster.storage import read_json
from quality_study.cases import prepare_case
from quality_study.goals import EXTRACTORS, all_goals
from quality_study.judge import JudgeSettings
from quality_study.recipes import BUDGET, Recipe, load_recipes
from quality_study.records import Record, merge, read_records
from quality_study.report import render
from quality_study.runs import Run, execute
from quality_study.ship import ship
from quality_study.study import child_of, planned, publish, run_missing
from quality_study.summary import Estimate, paired
from vaegan.checkpoint import checkpoints, read_card, read_info
from vaegan.registry import Registry

IMAGES = 960
JUDGE = JudgeSettings(num_synthetic=64, classifier_steps=10, without_weights=True)
TINY: dict[str, Any] = {
    "model": {"kind": "vaegan", "width": 8, "latent_dim": 8, "hidden": 32},
    "optimizer": {"learning_rate": 1e-3},
    "batch_size": 16,
}
RECIPES: dict[str, Any] = {
    "tiny": {"stage": "baseline", "words": "a tiny network", "config": TINY},
    "tiny-mixture": {"stage": "candidate", "base": "tiny", "sampling": {"latent": "mixture"}},
    "broken": {"stage": "candidate", "base": "tiny", "set": {"loss.no_such_key": 1}},
}


def quick(folder: Path) -> int:
    """0 where everything holds; an AssertionError says what doesn't."""
    torch.set_num_threads(1)
    _check_summary()
    _check_merge()
    _check_goals()
    _check_study(folder)
    return 0 if verdict("quality_machinery", 1.0, 1.0) else 1


def _check_summary() -> None:
    """A t-interval known in closed form; pairing by seed, whatever the order and whichever seeds are missing."""
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found is not None
    assert math.isclose(found.high - found.mean, 4.302652729911275 / math.sqrt(3), rel_tol=1e-9), found
    pair = paired({2: 5.0, 0: 1.0, 7: 9.0}, {0: 3.0, 2: 6.0, 5: 100.0})
    assert pair is not None
    assert (pair.mean, pair.count) == (-1.5, 2), pair
    assert paired({0: 1.0}, {1: 1.0}) is None
    single = Estimate.of([4.0])
    assert single is not None
    assert math.isnan(single.low)


def _check_merge() -> None:
    """New replaces old of the same key; an error doesn't replace a result of its digest; the order is the key's."""
    old = [_record("a", 0, digest="x", metrics={}), _record("b", 1, digest="y", metrics={})]
    new = [
        _record("b", 1, digest="y", error="lost"),
        _record("a", 1, digest="x", metrics={}),
        _record("a", 0, digest="z", error="changed, and fails"),
    ]
    found = [(each["recipe"], each["seed"], "error" in each) for each in merge(old, new)]
    assert found == [("a", 0, True), ("a", 1, False), ("b", 1, False)], found


def _check_goals() -> None:
    """A quarter of the paper's gap is below a third; one copy is too many; nine seeds aren't ten."""
    assert not any(goal.reached for goal in all_goals([]))
    records = [_made_up(name, seed, gap) for name, gap in (("small", 1.0), ("paper", 4.0)) for seed in range(10)]
    found = {goal.name: goal for goal in all_goals(records)}
    assert found["inception_frechet_gap"].ratio == 4.0
    assert found["inception_frechet_gap"].reached
    assert found["coverage_normal"].reached
    assert found["no_copies"].reached
    assert found["no_collapse"].reached
    assert not found["tstr_auroc"].reached
    assert found["tstr_auroc"].ratio is None
    records[3]["metrics"]["copies"] = 1
    records[4]["metrics"]["inception_coverage"] = 0.1
    found = {goal.name: goal for goal in all_goals(records)}
    assert not found["no_copies"].reached
    assert found["no_collapse"].ratio == 0.9
    assert {goal.name: goal for goal in all_goals(records[1:])}["no_collapse"].ratio is None


def _record(recipe: str, seed: int, **rest: Any) -> Record:
    return {"recipe": recipe, "case": "normal", "seed": seed, "images": BUDGET, "reference": "val"} | rest


def _made_up(recipe: str, seed: int, gap: float) -> Record:
    gaps = {f"{name}_{kind}_distance_gap": gap for name in EXTRACTORS for kind in ("frechet", "kernel")}
    coverage = {f"{name}_coverage": 0.9 for name in EXTRACTORS}
    floor = dict.fromkeys(coverage, 1.0)
    return _record(recipe, seed, digest="", metrics=gaps | coverage | {"copies": 0}, floor=floor, num_synthetic=1000)


def _check_study(folder: Path) -> None:
    """A killed run goes on and ends as one that wasn't; what is done isn't done again; a failure is a sentence."""
    work, recipes = folder / "work", _recipes(folder, RECIPES)
    runs = _plan(recipes, work)
    assert [run.recipe.name for run in runs] == list(RECIPES)
    assert runs[0].folder(work) == runs[1].folder(work), "sampling alone differs: one training"
    prepare_case(runs[0].case, work)
    other = folder / "other"
    other.mkdir()
    for name in ("data", "features", "floors"):  # the floor is computed by the run beside, while another is killed
        (work / name).mkdir(exist_ok=True)
        (other / name).symlink_to(work / name)
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(_kill_after_a_checkpoint, runs[0], work)
        assert execute(runs[0], other)
        killing.result()
    assert run_missing(runs[:1], work, jobs=2) == 1
    assert [execute(run, work) for run in runs[1:]] == [True, False]  # here, where PyTorch has started already
    whole, resumed = (read_info(runs[0].folder(each) / "model").tensors_sha256 for each in (other, work))
    assert whole == resumed, "a run that was killed ends as one that wasn't"

    records = {record["recipe"]: record for record in read_records(work / "records")}
    assert "no_such_key" in records["broken"]["error"], records["broken"]
    name = "gist_frechet_distance_gap"
    assert records["tiny"]["other_sources"]["mixture"][name] == records["tiny-mixture"]["metrics"][name]
    assert 0 <= records["tiny"]["metrics"]["tstr_auroc"] <= 1
    assert all(run.grid_path(work).exists() for run in runs[:2])
    assert [run.recipe.name for run in runs if not run.is_done(work)] == ["broken"], "only failures are tried again"
    mended = RECIPES | {"broken": RECIPES["broken"] | {"set": {"loss.gamma": 0.1}}}
    changed = _plan(_recipes(folder, mended), work)
    assert not changed[2].is_done(work)
    assert changed[2].digest != runs[2].digest

    shipped = ship(runs, work, folder / "models")
    assert [path.parent.name for path in shipped] == ["phantom", "phantom"], shipped
    assert "| copies of training films | " in read_card(shipped[0])
    assert ship(runs, work, folder / "models") == shipped, "the same command again changes nothing"
    assert Registry(folder / "models").resolve("phantom", shipped[0].name).path == shipped[0]

    publish(recipes, work, folder / "results")
    page, _ = render(read_json(folder / "results" / "quality.json")["records"], recipes)
    assert "earlier forms" in page  # --quick judges in another way than the study: no study's page may show it


def _recipes(folder: Path, table: dict[str, Any]) -> dict[str, Recipe]:
    path = folder / "recipes.yaml"
    path.write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    return load_recipes(path)


def _plan(recipes: dict[str, Recipe], work: Path) -> list[Run]:
    return planned(recipes, work, names=recipes, cases=["phantom"], seeds=[0], images=IMAGES, judge=JUDGE)


def _kill_after_a_checkpoint(run: Run, work: Path) -> None:
    process = subprocess.Popen([sys.executable, *child_of(run, work).arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(checkpoints(run.folder(work))) < 1:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints(run.folder(work)), "killed before its first checkpoint"
    assert not run.record_path(work).exists(), "it was to be killed in training"
