"""The best trained model of each case as a registry, its figures in its card."""

from collections.abc import Iterable
from pathlib import Path

from cluster.errors import UserError
from cluster.storage import atomic_file, read_json
from quality_study.records import Record
from quality_study.runs import Run
from quality_study.summary import value
from vaegan.checkpoint import CARD, is_model, read_card, read_info
from vaegan.registry import publish, renew_sums
from vaegan.runs import model_folder

HEADING = "## How it was judged"
DECIDING = "_frechet_distance_gap"
"""Of the first extractor."""
KINDS = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "density": "density",
    "coverage": "coverage",
    "c2st_auc": "AUROC of real against synthetic",
    "copies": "copies of training films",
    "tstr_auroc": "AUROC of a classifier trained on synthetic films only",
}


def ship(runs: Iterable[Run], work: Path, out: Path) -> list[Path]:
    """Publish into the registry `out` as CASE/RECIPE-sSEED, of each recipe and case among the runs, the model with the
    least Fréchet gap by the first extractor.

    Raises:
        UserError: none of the runs is done and has its model here.
    """
    best: dict[tuple[str, str], tuple[Run, Record]] = {}
    for run in runs:
        if not (run.is_done(work) and is_model(model_folder(run.folder(work)))):
            continue
        record, key = read_json(run.record_path(work)), (run.case.name, run.recipe.name)
        if key not in best or _gap(record) < _gap(best[key][1]):
            best[key] = run, record
    if not best:
        raise UserError(f"{work} has no judged model of these recipes, cases and budget: run them first")
    return [_shipped(run, record, work, out) for run, record in best.values()]


def _gap(record: Record) -> float:
    return next(gap for name, gap in record["metrics"].items() if name.endswith(DECIDING))


def _shipped(run: Run, record: Record, work: Path, out: Path) -> Path:
    address = f"{run.case.name}/{run.recipe.name}-s{run.seed}"
    folder = publish(model_folder(run.folder(work)), out, address).path
    before, _, _ = read_card(folder).partition(HEADING)
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(f"{before.rstrip()}\n\n{_section(run, record)}", encoding="utf-8")
    renew_sums(folder)
    return folder


def _section(run: Run, record: Record) -> str:
    sampling = {"latent": run.recipe.latent} | run.recipe.sampling
    options = ", ".join(f"{name} {each}" for name, each in sampling.items())
    which = {"val": "validation", "test": "test"}[run.reference]
    rows = "\n".join(
        f"| {_words(metric)} | {value(record, metric):.4g} | {_shown(record['floor'].get(metric))} |"
        for metric in record["metrics"]
        if metric.endswith(tuple(KINDS))
    )
    return f"""{HEADING}

`benchmarks/quality.py`: {record["num_synthetic"]} images drawn with {options}, beside {record["num_reference"]}
{which} films of the case "{run.case.words}". The best of its recipe's seeds by the first row, chosen on {which} films:
expect a little worse of it on others.

| | this model | as many real films |
|---|---|---|
{rows}
"""


def _words(metric: str) -> str:
    kind = next(kind for kind in KINDS if metric.endswith(kind))
    extractor = metric.removesuffix(kind).strip("_")
    return f"{KINDS[kind]}, {extractor}" if extractor else KINDS[kind]


def _shown(real: float | None) -> str:
    return "" if real is None else f"{real:.4g}"


def describe_shipped(folder: Path) -> str:
    """A line about a shipped model."""
    info = read_info(folder)
    return f"{folder}: {info.num_training_images} films, {info.images_seen} images seen, card in {folder / CARD}"
