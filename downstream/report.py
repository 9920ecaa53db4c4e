"""Command line: an ablation's result folder to a report that a researcher can read, defend and repeat.

    python -m downstream.report --results DIR [--out DIR]

writes report.html (stands alone), report.md, report.json and plots/*.png; the same input gives the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.storage import atomic_file, write_json
from downstream.reporting.figures import draw_plots, example_groups
from downstream.reporting.findings import find
from downstream.reporting.page import render_html, render_markdown
from downstream.reporting.results import read_results


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make a report of a finished ablation."""

    results: Path
    """Folder that python -m downstream.ablate wrote."""
    out: Path | None = None
    """Where the report goes; default: report/ inside the results folder."""
    resamples: int = 2000
    """Bootstrap resamples per interval; fewer are quicker and coarser."""

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ValueError(f"resamples ({self.resamples}) must be at least 100: a 95 % interval needs its tails")


def report(config: ReportConfig) -> None:
    """Read the results, write the report and print its path."""
    page = write_report(config)
    print(page)


def write_report(config: ReportConfig) -> Path:
    """Write the four kinds of files; report.html comes last. Returns its path.

    Raises:
        UserError: the results are no ablation's or aren't finished, or the output can't be a folder.
    """
    out = config.out or config.results / "report"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: expected a folder for the report; choose another --out")
    results = read_results(config.results)
    findings = find(results, resamples=config.resamples, progress=_progress)
    examples = example_groups(results)
    plots = draw_plots(findings, examples, out)
    findings["plots"] = [{"file": plot.file, "alt": plot.alt} for plot in plots]
    findings["examples"] = {group.name: [example.address for example in group.synthetic] for group in examples}
    write_json(out / "report.json", findings)
    _write_text(out / "report.md", render_markdown(findings, plots, examples))
    _write_text(out / "report.html", render_html(findings, plots, examples, out))
    return out / "report.html"


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ReportConfig, report, prog="python -m downstream.report", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
