"""Which recipe makes the best generator of a few hundred to a few thousand films: the study, resumable.

    python benchmarks/quality.py --list                                 recipes and cases
    python benchmarks/quality.py --work W --stage baselines             what is compared with: four cases, three seeds
    python benchmarks/quality.py --work W --stage screen                every candidate once, at half the budget
    python benchmarks/quality.py --work W --stage confirm --recipes A B the named ones: four cases, three seeds
    python benchmarks/quality.py --work W --final --recipes small paper by the official test films, at the end
    python benchmarks/quality.py --work W --ship DIR                    the best model of each case, with its card
    python benchmarks/quality.py --work W --cases normal all            datasets and floors alone
    python benchmarks/quality.py --quick                                all of the machinery on the phantom: under 45 s

Every recipe, case and seed is a run: prepare, train, judge, one record in WORK/records. The same command again does
what is missing; a run that was killed goes on from its checkpoint; a recipe that was changed is run again, and one that
failed is tried again. Then all records go to docs/results/quality.json, beside those of other work folders, and
quality.md is written from that file. One line per goal of the study; exit status 1 where one is not reached.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.measure import conditions
from quality_study.cases import CASES, ROOT
from quality_study.goals import SHIPPED
from quality_study.judge import JudgeSettings
from quality_study.quick import quick
from quality_study.recipes import BUDGET, TABLE, load_recipes
from quality_study.ship import describe_shipped, ship
from quality_study.study import STAGES, do_job, list_all, planned, prepare, publish, run_missing

from cluster.cli import describe
from cluster.errors import UserError
from cluster.storage import read_json
from vaegan.acceleration import keep_freed_memory

RESULTS = ROOT / "docs" / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing, merge, report; 1 where a goal is not reached, 2 after a user's mistake."""
    arguments = _arguments(argv)
    keep_freed_memory()
    try:
        if arguments.job:
            return do_job(read_json(arguments.job), arguments.work)
        if arguments.quick:
            with tempfile.TemporaryDirectory() as folder:
                return quick(Path(folder))
        return _study(arguments)
    except (UserError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130


def _study(arguments: argparse.Namespace) -> int:
    recipes = load_recipes(arguments.table)
    if arguments.list:
        list_all(recipes)
        return 0
    if arguments.work is None:
        raise UserError("--work is missing: the folder of datasets, models and records, for instance runs/quality")
    reference = "test" if arguments.final else "val"
    if arguments.ship:
        runs = planned(
            recipes, arguments.work, names=arguments.recipes or [SHIPPED], cases=arguments.cases or CASES,
            seeds=arguments.seeds or range(10), images=arguments.images, reference=reference,
        )  # fmt: skip
        for folder in ship(runs, arguments.work, arguments.ship):
            print(describe_shipped(folder))
        return 0
    print("; ".join(f"{name}: {value}" for name, value in conditions().items()), flush=True)
    runs = planned(
        recipes, arguments.work, stages=arguments.stage, names=arguments.recipes, cases=arguments.cases,
        seeds=arguments.seeds, images=arguments.images, reference=reference,
    )  # fmt: skip
    if runs:
        run_missing(runs, arguments.work, arguments.jobs)
    else:
        prepare({(case, reference): JudgeSettings() for case in arguments.cases}, arguments.work, arguments.jobs)
    return 0 if publish(recipes, arguments.work, arguments.results) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of datasets, models and records")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=[], help="what to run; else what --recipes names")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=[],
        help="instead of the stage's; without stage and recipes, these are prepared and their floors computed",
    )  # fmt: skip
    parser.add_argument("--recipes", nargs="+", default=[], help="these recipes instead of the stage's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="instead of the stage's")
    parser.add_argument("--images", type=int, help=f"seen in training (default {BUDGET}, half of it in the screen)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default 2)")
    parser.add_argument("--final", action="store_true", help="judge by the official test films instead of validation")
    parser.add_argument("--ship", type=Path, help="registry for the best model of each case, of seeds 0 to 9")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of quality.json and quality.md")
    parser.add_argument("--table", type=Path, default=TABLE, help="the recipes")
    parser.add_argument("--list", action="store_true", help="recipes and cases")
    parser.add_argument("--quick", action="store_true", help="a tiny study of the phantom, under 45 s")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # what a child of this process does
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
