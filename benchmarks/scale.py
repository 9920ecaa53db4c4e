"""Does preparing take the same memory, and the same time an image, whether there are 1,000 images or 112,120?

    python benchmarks/scale.py --out curve.png   1,000 to 112,120 images, as NIH ChestX-ray14 and as class folders
    python benchmarks/scale.py --quick           1,000 against 6,000, as NIH ChestX-ray14: under 45 s

Trees of made-up films (`common/nih_tree.py`) are prepared by the command itself, in a process of its own with two more
that decode. Its memory is looked at every 50 ms, apart for what it has allocated (anonymous) and for mapped files,
which the kernel drops when it needs the room: the spool of decoded images is one. What was planted in a tree must be
found, or the figures say nothing.

memory_parent_*  largest anonymous memory of the command's own process, at 100,000 images over that at 1,000
memory_tree_*    the same with the processes that decode
rate_*           images per second, at 100,000 over 1,000: it may not fall by more than half

Flat means: all processes together take at most 1.3 times as much for 100,000 images as for 1,000. Exit status 1 if one
falls short.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from common.measure import conditions, verdict
from common.memory import MIB, Sample, Watched, watch
from common.nih_tree import Tree, write_class_folders, write_nih_tree

COUNTS = (1_000, 3_162, 10_000, 31_623, 100_000, 112_120)
QUICK_COUNTS = (1_000, 6_000)
MOST, MOST_OF_PARENT = 1.3, 1.5
"""Times the memory at COUNTS[0]. The command's own process was to stay within 1.3 too, and takes 600 bytes an image."""
LEAST_RATE = 0.5
LAYOUTS: dict[str, Callable[[Path, int], Tree]] = {"nih": write_nih_tree, "folder": write_class_folders}
STAGES = ("open", "decode", "settle", "write", "finish")
"""Of the command, as its bars tell: listing the source, decoding, copies and splits and warnings, shards, manifest."""


@dataclass(frozen=True)
class Run:
    """A tree that was prepared."""

    layout: str
    num_images: int
    watched: Watched

    @property
    def rate(self) -> float:
        """Images per second, start and end of the command included."""
        return self.num_images / self.watched.wall_s

    @property
    def parent(self) -> float:
        """Peak anonymous memory of the command's own process, in bytes."""
        return self.watched.peak(_parent)

    @property
    def tree(self) -> float:
        """The same with all processes it starts."""
        return self.watched.peak(_tree)


def _parent(sample: Sample) -> int:
    return sample.parent.anonymous


def _tree(sample: Sample) -> int:
    return sample.tree.anonymous


def _all(sample: Sample) -> int:
    return sample.tree.anonymous + sample.tree.files


def main(argv: Sequence[str] | None = None) -> int:
    """Print the curve and every verdict; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 and 6,000 images as NIH ChestX-ray14")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of images, in rising order")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, help="(default: both; nih with --quick)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (default 2)")
    parser.add_argument("--folder", type=Path, help="where trees are made, kept, and found again (default: temporary)")
    parser.add_argument("--out", type=Path, help="PNG file of the curve to write")
    parser.add_argument("--json", type=Path, help="JSON file of all figures to write")
    arguments = parser.parse_args(argv)
    for name, value in conditions().items():
        print(f"{name}: {value}")
    counts = arguments.counts or (QUICK_COUNTS if arguments.quick else COUNTS)
    layouts = arguments.layouts or (["nih"] if arguments.quick else list(LAYOUTS))
    runs: list[Run] = []
    print(f"\nMiB of anonymous memory at most, with {arguments.workers} processes that decode")
    print(heads())
    for layout in layouts:
        for count in counts:
            with made(layout, count, arguments.folder) as tree:
                run, wrong = prepared(layout, tree, arguments.workers)
            if wrong:
                print(f"error: {layout}, {count} images: {wrong}, so the figures say nothing", file=sys.stderr)
                return 1
            print(line(run), flush=True)
            runs.append(run)
    if arguments.json:
        arguments.json.write_text(json.dumps([as_json(run) for run in runs], indent=1))
    if arguments.out:
        draw(runs, arguments.out)
    print()
    met = [judged(layout, [run for run in runs if run.layout == layout]) for layout in layouts]
    return 0 if all(met) else 1


# ---------------------------------------------------------------------------------------------------------------------
# Trees


@contextmanager
def made(layout: str, count: int, folder: Path | None) -> Iterator[Tree]:
    """A tree of so many images: made in a temporary folder, or kept in `folder` and found there."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield LAYOUTS[layout](Path(temporary) / layout, count)
        return
    place = folder / f"{layout}-{count}"
    about = place.with_suffix(".json")
    if not about.exists():
        shutil.rmtree(place, ignore_errors=True)
        content = dataclasses.asdict(LAYOUTS[layout](place, count)) | {"folder": str(place)}
        about.write_text(json.dumps(content))
    yield Tree(**json.loads(about.read_text()) | {"folder": place})


def prepared(layout: str, tree: Tree, workers: int) -> tuple[Run, str | None]:
    """What preparing took; and what the dataset got wrong, if anything."""
    with tempfile.TemporaryDirectory(dir=tree.folder.parent) as temporary:
        out = Path(temporary) / "dataset"
        command = [sys.executable, "-m", "vaegan.prepare", "--images", str(tree.folder), "--source", layout]
        command += ["--out", str(out), "--num-workers", str(workers)]
        watched = watch(command, {"OMP_NUM_THREADS": "1"}, STAGES[0], stage_after)
        wrong = (
            what_is_wrong(tree, json.loads((out / "manifest.json").read_text()))
            if watched.status == 0
            else f"the command ended with {watched.status}: {watched.output[-2000:]}"
        )
        return Run(layout, tree.num_images, watched), wrong


def stage_after(stage: str, said: str) -> str:
    """What the command does after it has said something: its bars are called so, and end in a line feed."""
    for name, ended, word in (("decode", "settle", "reading:"), ("write", "finish", "writing:")):
        if word in said:
            stage = name
        if stage == name and "\n" in said[said.rfind(word) :]:
            stage = ended
    return stage


def what_is_wrong(tree: Tree, manifest: dict[str, Any]) -> str | None:
    """The first thing that isn't as it was planted."""
    report = manifest["report"]
    removed = len(tree.exact) + len(tree.near)
    expected = {
        "rejects": (manifest["rejects"], len(tree.broken)),
        "exact copies": (report["duplicates"]["exact_copies"], len(tree.exact)),
        "near copies": (report["duplicates"]["near_copies"], len(tree.near)),
        "images that leak by copy": (report["leaks"]["by_copy"], removed),
        "images that leak by patient": (report["leaks"]["by_patient"], 0),
        "images": (
            sum(split["num_images"] for split in manifest["splits"].values()),
            tree.num_images - len(tree.broken) - removed,
        ),
    }
    return next(
        (f"{found} {name}, expected {wanted}" for name, (found, wanted) in expected.items() if found != wanted), None
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables, curves, verdicts


def heads() -> str:
    """Of the columns of `line`."""
    stages = "".join(f"{stage:>9}" for stage in STAGES)
    return (
        f"{'layout':8}{'images':>8}{'s':>8}{'images/s':>10}{'parent':>9}{'all':>9}{'and files':>10}"
        f"   parent by stage{stages}   seconds by stage"
    )


def line(run: Run) -> str:
    """A run's figures."""
    watched = run.watched
    peaks = "".join(f"{watched.peak(_parent, stage) / MIB:9.0f}" for stage in STAGES)
    spent = " ".join(f"{end - start:.1f}" for start, end in watched.stages.values())
    return (
        f"{run.layout:8}{run.num_images:8}{watched.wall_s:8.1f}{run.rate:10.0f}{run.parent / MIB:9.0f}"
        f"{run.tree / MIB:9.0f}{watched.peak(_all) / MIB:10.0f}   {'':15}{peaks}   {spent}"
    )


def as_json(run: Run) -> dict[str, Any]:
    """All figures of a run."""
    watched = run.watched
    return {
        "layout": run.layout,
        "images": run.num_images,
        "wall_s": watched.wall_s,
        "parent_anonymous": run.parent,
        "tree_anonymous": run.tree,
        "tree_with_files": watched.peak(_all),
        "parent_by_stage": {stage: watched.peak(_parent, stage) for stage in STAGES},
        "seconds_by_stage": {stage: end - start for stage, (start, end) in watched.stages.items()},
    }


def judged(layout: str, runs: Sequence[Run]) -> bool:
    """The largest tree of at most 100,000 images against the smallest; and what an image more costs."""
    first, last = runs[0], next(run for run in reversed(runs) if run.num_images <= COUNTS[-2] or run is runs[0])
    more = max(last.num_images - first.num_images, 1)
    name = f"{short(last.num_images)}_vs_{short(first.num_images)}_{layout}"
    print(
        f"{layout}: an image more costs {(last.parent - first.parent) / more:.0f} bytes of the command's own process, "
        f"{(last.tree - first.tree) / more:.0f} of all"
    )
    return all(
        [
            verdict(f"memory_parent_{name}", last.parent / first.parent, 0, MOST_OF_PARENT),
            verdict(f"memory_tree_{name}", last.tree / first.tree, 0, MOST),
            verdict(f"rate_{name}", last.rate / first.rate, LEAST_RATE),
        ]
    )


def short(count: int) -> str:
    """As in 100k."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Memory and speed over the number of images."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 7), layout="constrained")
    for layout in dict.fromkeys(run.layout for run in runs):
        chosen = [run for run in runs if run.layout == layout]
        x = [run.num_images for run in chosen]
        for name, of, style in (("all processes", _tree, "-"), ("the command's own", _parent, "--")):
            y = [run.watched.peak(of) / MIB for run in chosen]
            above.plot(x, y, style, marker="o", label=f"{layout}, {name}")
        below.plot(x, [run.rate for run in chosen], "-", marker="o", label=layout)
    above.set(xscale="log", ylabel="anonymous memory at most, MiB", ylim=(0, None), title="python -m vaegan.prepare")
    below.set(xlabel="images", ylabel="images per second", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
