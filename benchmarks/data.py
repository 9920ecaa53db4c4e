"""Images to a dataset, and a dataset to batches: beside what a researcher would write, and beside other libraries.

    python benchmarks/data.py           real films, and the same at 1024 px: some minutes
    python benchmarks/data.py --quick   few films, one round: under 45 s

prepare    image files to grey pixels of 64 px: a loop with Pillow's time over ours, that of torchvision's ImageFolder
           and DataLoader with as many workers over ours; ours also hashes, finds copies, splits and writes shards
epochs, stall, encodings    a dataset to batches: see reading.py, which measures more of it

Pixels are compared before times. Contestants take turns; ratios are their time over ours, medians over rounds.
Exit status 1 if one falls short of its goal.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Nothing else here: processes that decode import this file, as they do any program's that starts them, and should have
# no more to import than those of `vaegan.prepare` do.

READING = ("epochs", "stall", "encodings")
QUICK = ("prepare", "epochs")


def main(argv: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few films, one round, epochs alone of the reading")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default 3; 1 with --quick)")
    parser.add_argument("--most", type=int, help="films of a set to prepare (default 6000, and 1000 of 1024 px)")
    parser.add_argument("--only", nargs="+", choices=("prepare", *READING), help="these parts")
    arguments = parser.parse_args(argv)
    import torch
    from common.measure import conditions
    from common.prepare_rivals import compare_prepare
    from reading import COMPARISONS, Plan

    torch.set_num_threads(1)
    for name, value in conditions().items():
        print(f"{name}: {value}")
    rounds, quick = arguments.rounds or (1 if arguments.quick else 3), arguments.quick
    names = arguments.only or (QUICK if quick else ("prepare", *READING))
    met = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if "prepare" in names:
            met.append(compare_prepare(place, quick=quick, rounds=rounds, most=arguments.most))
        plan = Plan(place, films=None, size=64, count=2000 if quick else 20_000, rounds=rounds, quick=quick)
        met += [COMPARISONS[name](plan) for name in READING if name in names]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
