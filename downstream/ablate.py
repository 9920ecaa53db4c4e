"""Command line: do synthetic images make a classifier better? Trains generators and classifiers as Ray tasks.

    python -m downstream.ablate --data data/real --out runs/ablation --recipe configs/demo.yaml --fractions 0.02 0.1

A killed run goes on where it was when the same command is given again: every generator, pool, metric and cell is a file
that is either whole or absent.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from cluster.cli import run_command
from cluster.session import connect
from cluster.storage import read_json
from downstream import tasks
from downstream.collect import collect, is_finished
from downstream.plan import AblateConfig, Cell, Generator, Pool
from downstream.study import Study, absolute, prepare

MAX_RETRIES = 2
POLL_S = 1.0
SAY_EVERY_S = 60.0
"""Where stderr is a file there is no bar but a line this often."""
NAMES = {"generator": "generators", "pool": "pools", "metrics": "sets of metrics", "cell": "fits"}
IMAGES_PER_SECOND = 500.0
"""A guess for the first estimate of the time left, until a cell has been seen."""


def ablate(config: AblateConfig) -> int:
    """The command. Returns 1 if a cell failed."""
    started_s = time.time()
    config = absolute(config)
    study = prepare(config)
    for warning in study.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if is_finished(study):
        print(f"{config.out} is complete already", file=sys.stderr)
    else:
        study.folder.manifest.unlink(missing_ok=True)  # a folder with a manifest is a finished one
        with connect(config.cluster):
            Run(study).finish()
        collect(study, started_s)
    counts = read_json(study.folder.manifest)["cells"]
    if counts["failed"]:
        first = next(cell for cell in study.cells if not tasks.is_done(study.folder.cell(cell)))
        error = pq.read_table(study.folder.cell(first), columns=["error"])["error"][0].as_py()
        print(
            f"{counts['failed']} of {counts['planned']} cells failed, the first ({first.id}) with: {error}; "
            "the others are complete; the same command tries the failed ones again",
            file=sys.stderr,
        )
    print(f"next: python -m downstream.report --results {config.out}\n{config.out}")
    return 1 if counts["failed"] else 0


@dataclass
class Job:
    """A running task."""

    kind: str  # "generator", "pool", "metrics" or "cell"
    what: Any
    done: Callable[[Any], None]
    failed: Callable[[str], None]


@dataclass
class Run:
    """The driver's side of a running ablation: starts tasks whose inputs are there, until there is nothing left.

    Generators are started first, since they take longest; the cells that need none fill the cores beside them.
    """

    study: Study
    jobs: dict[ray.ObjectRef[Any], Job] = field(default_factory=dict)
    waiting: dict[Pool, list[Cell]] = field(default_factory=dict)
    remaining: dict[str, int] = field(default_factory=dict)
    finished: dict[str, list[float]] = field(default_factory=dict)
    started_s: float = field(default_factory=time.time)
    options: dict[str, Any] = field(default_factory=dict)
    data: Any = None

    def finish(self) -> None:
        """Run everything that is missing."""
        study = self.study
        todo = [cell for cell in study.cells if not tasks.is_done(study.folder.cell(cell))]
        for cell in todo:
            if cell.pool is not None and cell.pool.generator is not None:
                self.waiting.setdefault(cell.pool, []).append(cell)
        generators = [g for g in study.generators if self._is_needed(g)]
        metrics = len(generators) if study.config.trains_generators else int(study.config.needs_synthetic)
        self.remaining = {
            "generator": len(generators),
            "pool": len(self.waiting | {pool: [] for pool in self._measured(generators)}),
            "metrics": metrics if study.config.extractors else 0,
            "cell": len(todo),
        }
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": MAX_RETRIES}
        if study.config.gpus_per_task:
            options["num_gpus"] = study.config.gpus_per_task
        self.options = options
        self.data = ray.put(study.data)
        for generator in generators:
            self._start_generator(generator)
        for cell in todo:
            if cell.pool is None or cell.pool.generator is None:
                self._start_cell(cell)
        if study.config.synthetic and study.config.needs_synthetic:
            self._start_metrics(None, study.config.synthetic)
        self._wait(len(study.cells) - len(todo))

    def _measured(self, generators: list[Generator]) -> list[Pool]:
        """The pools whose metrics are computed: the first of each generator."""
        return (
            [Pool(generator, generator.fraction, 0) for generator in generators] if self.study.config.extractors else []
        )

    def _is_needed(self, generator: Generator) -> bool:
        """Whether cells wait for it, or its metrics are missing."""
        folder = self.study.folder
        waited_for = any(pool.generator == generator for pool in self.waiting)
        if self.study.config.extractors and not folder.metrics(generator).exists():
            return True
        return waited_for or not (folder.generator(generator) / "generator.json").exists()

    def _submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Start a function of `tasks` as a Ray task."""
        return ray.remote(**self.options)(function).remote(*arguments, **options)

    @property
    def device(self) -> str:
        return "cuda" if self.study.config.gpus_per_task else "cpu"

    def _start_generator(self, generator: Generator) -> None:
        study = self.study
        rows = study.subsets[generator.fraction]
        seen = tasks.training_images(study.data.train.take(rows), study.held_out)
        run_dir = study.folder.generator(generator)
        ref = self._submit(
            tasks.train_generator, self.data, rows, generator, study.recipe, run_dir, seen, device=self.device
        )

        def done(_: Any) -> None:
            pools = [Pool(generator, generator.fraction, seed) for seed in range(study.config.pool_seeds)]
            for pool in pools:
                if pool in self.waiting or pool in self._measured([generator]):
                    self._start_pool(pool)

        def failed(error: str) -> None:
            self._skip("metrics", len(self._measured([generator])))
            waiting = {pool: None for pool in self.waiting if pool.generator == generator}
            for pool in waiting | dict.fromkeys(self._measured([generator])):
                self._skip("pool")
                self._give_up(pool, f"generator {generator.id} failed: {error}")

        self.jobs[ref] = Job("generator", generator, done, failed)

    def _start_pool(self, pool: Pool) -> None:
        study, generator = self.study, pool.generator
        assert generator is not None
        path = study.folder.pool(pool)
        ref = self._submit(
            tasks.make_pool, self.data, study.folder.generator(generator) / "model", study.pool_labels(pool.fraction),
            pool.seed, study.config.latent, path, device=self.device,
        )  # fmt: skip

        def done(_: Any) -> None:
            for cell in self.waiting.pop(pool, []):
                self._start_cell(cell)
            if pool in self._measured([generator]):
                self._start_metrics(generator, path)

        def failed(error: str) -> None:
            self._skip("metrics", int(pool in self._measured([generator])))
            self._give_up(pool, f"pool {pool.id} failed: {error}")

        self.jobs[ref] = Job("pool", pool, done, failed)

    def _start_metrics(self, generator: Generator | None, synthetic: Path) -> None:
        config = self.study.config
        if not config.extractors:
            return
        out = self.study.folder.metrics(generator)
        ref = self._submit(tasks.measure, self.data, synthetic, config.extractors, out, device=self.device)
        name = out.stem
        self.jobs[ref] = Job(
            "metrics", name, lambda _: None, lambda error: self._tell(f"no metrics for {name}: {error}")
        )

    def _start_cell(self, cell: Cell) -> None:
        study = self.study
        path = study.folder.cell(cell)
        ref = self._submit(
            tasks.run_cell, self.data, study.subsets[cell.fraction], cell, study.pool_path(cell), study.config.fit,
            study.config.extra_classes, study.config.subset_seed, path,
        )  # fmt: skip

        def done(result: dict[str, Any]) -> None:
            if result["status"] == "failed":
                self._tell(f"cell {cell.id} failed: {result['error']}")

        def failed(error: str) -> None:  # the worker itself died, more often than it is retried
            tasks.write_row(path, tasks.failed_row(cell, study.config.fit, error))
            self._tell(f"cell {cell.id} failed: {error}")

        self.jobs[ref] = Job("cell", cell, done, failed)

    def _give_up(self, pool: Pool, error: str) -> None:
        cells = self.waiting.pop(pool, [])
        if not cells:
            return
        for cell in cells:
            tasks.write_row(self.study.folder.cell(cell), tasks.failed_row(cell, self.study.config.fit, error))
        self._skip("cell", len(cells))
        self._tell(f"{len(cells)} cells can't run: {error}")

    def _skip(self, kind: str, num: int = 1) -> None:
        self.remaining[kind] -= num

    def _tell(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def _wait(self, num_reused: int) -> None:
        if num_reused:
            self._tell(f"{num_reused} cells are there already")
        slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        form = "{percentage:3.0f}%|{bar}| {elapsed}, {postfix}"
        said_s = time.time()
        with tqdm(total=sum(self.remaining.values()), file=sys.stderr, bar_format=form, disable=None) as bar:
            total = sum(self.remaining.values())
            while self.jobs:
                ready, _ = ray.wait(list(self.jobs), timeout=POLL_S)
                for ref in ready:
                    self._close(ref)
                shares = self._generator_shares()
                bar.n = total - sum(self.remaining.values()) + sum(shares.values())
                bar.set_postfix_str(self._outlook(shares, slots))
                if bar.disable and time.time() - said_s > SAY_EVERY_S:
                    self._tell(self._outlook(shares, slots))
                    said_s = time.time()

    def _close(self, ref: ray.ObjectRef[Any]) -> None:
        job = self.jobs.pop(ref)
        self.remaining[job.kind] -= 1
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            job.failed(" ".join(f"{type(cause).__name__}: {cause}".split())[:500])
        except ray.exceptions.RayError as error:
            job.failed(" ".join(f"{type(error).__name__}: {error}".split())[:500])
        else:
            seconds = result.get("seconds") if isinstance(result, dict) else None
            self.finished.setdefault(job.kind, []).append(seconds if seconds is not None else 0.0)
            job.done(result)

    def _outlook(self, shares: dict[str, float], slots: int) -> str:
        """What is left to do, and about how long it takes."""
        each = {kind: self._seconds_each(kind, shares) for kind in self.remaining}
        seconds = sum(num * each[kind] for kind, num in self.remaining.items())
        seconds -= sum(shares.values()) * each["generator"]
        minutes, rest = divmod(int(seconds / min(slots, max(1, len(self.jobs)))), 60)
        kinds = [f"{num} {NAMES[kind]}" for kind, num in self.remaining.items() if num]
        return f"about {minutes}:{rest:02d} left; to do: {', '.join(kinds)}" if kinds else ""

    def _generator_shares(self) -> dict[str, float]:
        """How far each running generator is, 0 to 1, from its stats.jsonl."""
        shares = {}
        recipe = self.study.recipe
        for job in self.jobs.values():
            if job.kind == "generator" and recipe is not None:
                shares[job.what.id] = _images_seen(self.study.folder.generator(job.what)) / recipe.total_images
        return {name: min(share, 0.99) for name, share in shares.items() if share > 0}

    def _seconds_each(self, kind: str, shares: dict[str, float]) -> float:
        """Mean seconds of a finished task of this kind, else a guess."""
        if seen := [seconds for seconds in self.finished.get(kind, []) if seconds > 0]:
            return float(np.mean(seen))
        if kind == "generator" and shares:
            return (time.time() - self.started_s) / max(shares.values())
        config = self.study.config
        cell = config.steps * config.batch_size / IMAGES_PER_SECOND
        return {"cell": cell, "pool": 5.0, "metrics": 30.0, "generator": 120.0}[kind]


def _images_seen(run_dir: Path) -> int:
    try:
        with open(run_dir / "stats.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65536))
            lines = [line for line in file.read().split(b"\n") if line.endswith(b"}")]
        return int(json.loads(lines[-1])["images"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m downstream.ablate --data DATASET --out DIR --recipe configs/demo.yaml`."""
    return run_command(AblateConfig, ablate, prog="python -m downstream.ablate", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
