"""quality.md: the records as tables, the goals as reached or not. Every number is computed, none typed."""

import math
from collections.abc import Callable

from quality_study.cases import CASES
from quality_study.goals import PAPER, SHIPPED, Goal, all_goals
from quality_study.judge import FLOOR_DRAWS, JudgeSettings
from quality_study.recipes import BUDGET, Recipe
from quality_study.records import Record
from quality_study.runs import Run
from quality_study.summary import Estimate, estimate, paired, value, values

Group = tuple[str, int, str]
"""Case, budget, reference: what is compared with each other."""
GAPS = {
    "inception_frechet_distance_gap": "Fréchet, Inception-768",
    "squeezenet_frechet_distance_gap": "Fréchet, SqueezeNet",
    "inception_kernel_distance_gap": "kernel, Inception-768",
    "squeezenet_kernel_distance_gap": "kernel, SqueezeNet",
    "gist_frechet_distance_gap": "Fréchet, gist",
}
OTHERS = {
    "inception_precision": "precision", "inception_recall": "recall", "inception_density": "density",
    "inception_coverage": "coverage", "squeezenet_coverage": "coverage, SqueezeNet", "inception_c2st_auc": "C2ST AUC",
    "neighbour_ratio": "neighbour ratio", "copies": "copies", "reconstruction_mse": "reconstruction",
    "tstr_auroc": "TSTR AUC", "tstr_over_real": "of real's",
}  # fmt: skip
EFFECTS = {
    **{name: f"gap, {words}" for name, words in GAPS.items()},
    "inception_coverage": "coverage", "inception_recall": "recall", "reconstruction_mse": "reconstruction",
    "tstr_auroc": "TSTR AUC",
}  # fmt: skip
REFERENCES = {"val": "validation films", "test": "official test films"}


def render(records: list[Record], recipes: dict[str, Recipe]) -> tuple[str, list[Goal]]:
    """The page, Markdown, and the goals.

    Records of recipes that have changed since, or have gone, are counted and left out.
    """
    current = [record for record in records if is_current(record, recipes)]
    goals = all_goals(current)
    parts = [_head(len(records) - len(current)), _goal_table(goals)]
    groups = sorted({(r["case"], r["images"], r["reference"]) for r in current}, key=_order)
    for group in groups:
        members = [record for record in current if (record["case"], record["images"], record["reference"]) == group]
        parts.append(_group_part(group, members, recipes))
    return "\n\n".join(parts) + "\n", goals


def is_current(record: Record, recipes: dict[str, Recipe]) -> bool:
    """Whether the recipe, the case and the judge are still those of the record."""
    recipe, case = recipes.get(record["recipe"]), CASES.get(record["case"])
    if recipe is None or case is None:
        return False
    run = Run(recipe, case, record["seed"], record["images"], record["reference"], JudgeSettings())
    return run.digest == record["digest"]


def _head(left_out: int) -> str:
    note = f"\n\n{left_out} records of earlier forms of recipes are in the file, not on this page." if left_out else ""
    return f"""# Generator recipes compared

Written by `benchmarks/quality.py` from `quality.json`; recipes are in `benchmarks/quality_recipes.yaml`. Do not edit.

Numbers are means over seeds (of training; the films are the same) with 95 % Student-t intervals over them, none where
there is one seed. With three seeds the interval is ±2.5 standard deviations wide: it holds no comparison with another
set of films. *Gap* is a distance of samples from held-out films minus the same distance of as many real training-part
films (the floor, mean of {FLOOR_DRAWS} draws). Distances are by Inception-768 (Keras ImageNet trunk) and SqueezeNet 1.1
(Caffe, ImageNet): neither is FID or KID as published. Where there are fewer films than features plus one, covariances
are shrunk (Ledoit & Wolf). *TSTR*: a small CNN trained on as many synthetic films as there are real ones, and tested on
held-out real films; *of real's*: as a share of the same classifier's AUC trained on the real ones. *Neighbour ratio*:
distance to the nearest training film over that to the nearest held-out film, at equal numbers of patients.{note}"""


def _goal_table(goals: list[Goal]) -> str:
    rows = [
        [goal.words, "not measured" if goal.ratio is None else f"{goal.ratio:.3f}", f"{goal.goal:.4g}",
         "reached" if goal.reached else "**not reached**" if goal.ratio is not None else "not measured", goal.detail]
        for goal in goals
    ]  # fmt: skip
    head = f"## Goals\n\nOf `{SHIPPED}`, {BUDGET:,} images seen. Reached: the number isn't below the goal.\n\n"
    return head + _table(["goal", "is", "at least", "", "from"], rows)


def _group_part(group: Group, records: list[Record], recipes: dict[str, Recipe]) -> str:
    case, images, reference = group
    good = [record for record in records if "error" not in record]
    failed = [record for record in records if "error" in record]
    title = f"## {case}: {CASES[case].words}\n\n{images:,} images seen, judged by {REFERENCES[reference]}"
    parts = [title + (f" ({_counts(good[0])})." if good else ".")]
    names = [name for name in recipes if any(record["recipe"] == name for record in good)]
    by_recipe = {name: [record for record in good if record["recipe"] == name] for name in names}
    if by_recipe:
        parts += [_gap_table(by_recipe, recipes), _other_table(by_recipe, good)]
        parts += [part for part in (_effects(by_recipe, recipes), _sources(by_recipe)) if part]
    if failed:
        rows = [[record["recipe"], str(record["seed"]), record["error"]] for record in failed]
        parts.append("### Failed\n\n" + _table(["recipe", "seed", "why"], rows))
    return "\n\n".join(parts)


def _counts(record: Record) -> str:
    shrunk = ", ".join(f"{name}: {kind} covariance" for name, kind in record["covariance"].items())
    return (
        f"{record['num_training']} training films, {record['num_reference']} held out, {record['num_synthetic']} "
        f"samples and as many real films in the floor; {shrunk}"
    )


def _gap_table(by_recipe: dict[str, list[Record]], recipes: dict[str, Recipe]) -> str:
    """Gaps to the floor, and as shares of the paper recipe's."""
    shown = {name: words for name, words in GAPS.items() if _has(by_recipe, name)}
    paper = {name: estimate(by_recipe[PAPER], name) if PAPER in by_recipe else None for name in shown}
    rows = []
    for recipe, records in by_recipe.items():
        row = [f"`{recipe}` {recipes[recipe].words}", str(len(records))]
        for name in shown:
            found, theirs = estimate(records, name), paper[name]
            row.append(_shown(found))
            if found is not None and theirs is not None and theirs.mean > 0:
                row[-1] += f"; {found.mean / theirs.mean:.2f} of the paper's"
        rows.append(row)
    return "### Gap to the floor\n\n" + _table(["recipe", "seeds", *shown.values()], rows)


def _other_table(by_recipe: dict[str, list[Record]], good: list[Record]) -> str:
    shown = {name: words for name, words in OTHERS.items() if _has(by_recipe, name)}
    rows = [[f"`{name}`", *(_shown(estimate(each, metric)) for metric in shown)] for name, each in by_recipe.items()]
    floor = good[0]["floor"] | {"tstr_auroc": _of_real_films(good)}
    real = [_number(floor[name]) if floor.get(name) is not None else "" for name in shown]
    return "### Everything else\n\n" + _table(["recipe", *shown.values()], [["*real films*", *real], *rows])


def _of_real_films(good: list[Record]) -> float | None:
    """AUC of the classifier trained on the real films, mean over seeds, which all recipes share."""
    by_seed = values(good, "real_auroc")
    return sum(by_seed.values()) / len(by_seed) if by_seed else None


def _effects(by_recipe: dict[str, list[Record]], recipes: dict[str, Recipe]) -> str:
    """What each switch buys: the difference to the recipe it was changed from."""
    shown = {name: words for name, words in EFFECTS.items() if _has(by_recipe, name)}
    rows = []
    for name, records in by_recipe.items():
        base = recipes[name].base
        if base is None or base not in by_recipe:
            continue
        row = [f"`{name}` {recipes[name].words}", f"`{base}`", recipes[name].reference]
        for metric in shown:
            before, after = values(by_recipe[base], metric), values(records, metric)
            row.append(_change(paired(after, before), before))
        rows.append(row)
    if not rows:
        return ""
    head = (
        "### What each switch buys\n\nMinus its base, paired by seed; below 0 is better for gaps and reconstruction. "
        "In brackets the interval, then the difference as a share of the base's number."
    )
    return head + "\n\n" + _table(["switch", "base", "reference", *shown.values()], rows)


def _sources(by_recipe: dict[str, list[Record]]) -> str:
    """The latent sources that a recipe doesn't draw from."""
    rows = []
    shown = {name: words for name, words in GAPS.items() if _has(by_recipe, name)}
    for recipe, records in by_recipe.items():
        for source in sorted({source for record in records for source in record["other_sources"]}):
            cells = []
            for metric in shown:
                found = {
                    record["seed"]: record["other_sources"][source][metric]
                    for record in records
                    if metric in record["other_sources"].get(source, {})
                }
                cells.append(_change(paired(found, values(records, metric)), values(records, metric)))
            rows.append([f"`{recipe}`", source, records[0]["latent"], *cells])
    if not rows:
        return ""
    head = (
        "### Other sources of z in the same models\n\nGap minus that of the recipe's own source; Inception's kernel "
        "distance is from a quarter of the samples, its Fréchet distance isn't computed."
    )
    return head + "\n\n" + _table(["recipe", "source", "instead of", *shown.values()], rows)


# ---------------------------------------------------------------------------------------------------------------- cells
def _shown(found: Estimate | None) -> str:
    if found is None:
        return ""
    if math.isnan(found.low) or found.low == found.high:
        return _number(found.mean)
    return f"{_number(found.mean)} ({_number(found.low)} to {_number(found.high)})"


def _number(value: float, sign: str = "") -> str:
    """Three digits, or all before the point."""
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.3g}"


def _change(found: Estimate | None, base: dict[int, float]) -> str:
    if found is None:
        return ""
    mean = sum(base.values()) / len(base)
    share = f", {100 * found.mean / abs(mean):+.0f} %" if mean else ""
    interval = "" if math.isnan(found.low) else f" ({_number(found.low, '+')} to {_number(found.high, '+')})"
    return f"{_number(found.mean, '+')}{interval}{share}"


def _has(by_recipe: dict[str, list[Record]], metric: str) -> bool:
    return any(value(record, metric) is not None for records in by_recipe.values() for record in records)


def _table(head: list[str], rows: list[list[str]]) -> str:
    line: Callable[[list[str]], str] = lambda cells: "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"  # noqa: E731
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _order(group: Group) -> tuple[int, int, int]:
    """Full budgets first, test before validation, cases in their table's order."""
    case, images, reference = group
    return abs(images - BUDGET), ("test", "val").index(reference), list(CASES).index(case)
