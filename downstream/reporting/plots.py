"""Figures of the report: Matplotlib without a display, the same bytes for the same numbers.

Every figure is drawn for a column of about 540 px, so that a phone shows it without scaling its text away; wide pages
set two side by side. Arms differ by colour and by marker: colours are Okabe and Ito's, which colour-blind readers tell
apart, and the markers survive a black-and-white printer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cluster.storage import atomic_file
from downstream.reporting.words import arm_name, percent
from vaegan.images import encode_png, grid
from vaegan.webpage.figures import MUTED, RC, RULE, to_png

ARM_STYLES: dict[str, tuple[str, str]] = {
    "real": ("#1d2329", "o"),
    "class_weights": ("#E69F00", "v"),
    "duplicate_real": ("#0072B2", "s"),
    "classical": ("#009E73", "^"),
    "synthetic": ("#D55E00", "D"),
    "classical_synthetic": ("#CC79A7", "P"),
    "synthetic_only": ("#56B4E9", "X"),
}
"""Colour and marker of each arm, the same in every figure."""

SPARE_STYLES = (("#8c6bb1", "<"), ("#7f7f00", ">"), ("#a65628", "p"), ("#4d4d4d", "h"))


def arm_style(arm: str, arms: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of an arm; arms unknown to this file get spare ones in their order."""
    if arm in ARM_STYLES:
        return ARM_STYLES[arm]
    unknown = [name for name in arms if name not in ARM_STYLES]
    return SPARE_STYLES[unknown.index(arm) % len(SPARE_STYLES)]


def forest(gains: Sequence[dict[str, Any]], path: Path, *, against: str, limits: tuple[float, float]) -> None:
    """One row per gain: a point, its interval as a line, a dashed line at zero; fractions apart.

    Args:
        gains: `findings` gains against one baseline, in the order of the rows from the top.
        limits: of the x axis, in units of the metric; the same for both baselines, so that panels compare.
    """
    arms = list(dict.fromkeys(gain["arm"] for gain in gains))
    several = len({gain["ratio"] for gain in gains if gain["ratio"]}) > 1
    rows = _forest_rows(gains)
    with rc_context(RC):
        figure = Figure(figsize=(5.6, 0.9 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            if isinstance(row, str):
                axes.text(0, y, row, transform=axes.get_yaxis_transform(), va="center", weight="bold", color=MUTED,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3)  # fmt: skip
            else:
                _forest_row(axes, y, row, arm_style(row["arm"], arms), limits)
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set(xlim=limits, ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(
            [y for y, row in enumerate(rows) if not isinstance(row, str)],
            [_row_label(row, several) for row in rows if not isinstance(row, str)],
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"gain in {gains[0]['metric_name']} over {arm_name(against).lower()}\n← worse      better →")
        _save(figure, path)


def scores_by_fraction(points: Sequence[dict[str, Any]], path: Path, *, metric_name: str) -> None:
    """Mean score of each arm against the fraction of real data, every run as a faint dot.

    Args:
        points: dictionaries with arm, ratio, fraction, mean and `values` (one per run).
    """
    series = list(dict.fromkeys((point["arm"], point["ratio"]) for point in points))
    arms = list(dict.fromkeys(arm for arm, _ in series))
    fractions = sorted({point["fraction"] for point in points})
    ratios = len({ratio for _, ratio in series if ratio}) > 1
    with rc_context(RC):
        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for order, (arm, ratio) in enumerate(series):
            mine = sorted((p for p in points if (p["arm"], p["ratio"]) == (arm, ratio)), key=lambda p: p["fraction"])
            colour, marker = arm_style(arm, arms)
            shift = 0.5 * (order / max(len(series) - 1, 1) - 0.5)  # arms side by side, so that dots don't hide dots
            x = np.array([fractions.index(point["fraction"]) for point in mine]) + shift
            for position, point in zip(x, mine, strict=True):
                axes.plot([position] * len(point["values"]), point["values"], ls="", marker=".", ms=7, color=colour,
                          alpha=0.35, mew=0)  # fmt: skip
            axes.plot(x, [point["mean"] for point in mine], color=colour, marker=marker, ms=7, lw=1.2, mec="white",
                      mew=0.8, label=arm_name(arm) + (f", ratio {ratio:g}" if ratios and ratio else ""))  # fmt: skip
        axes.xaxis.set_major_locator(FixedLocator(list(range(len(fractions)))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: percent(fractions[round(x)])))
        axes.set(xlim=(-0.5, len(fractions) - 0.5), xlabel="real training images used", ylabel=metric_name)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def contact_sheet(images: Sequence[np.ndarray], path: Path, *, columns: int = 8) -> None:
    """Images (each (H, W, C) uint8) in one row per `columns`, white between them; written as PNG."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode_png(grid(np.stack(images), columns=min(columns, len(images)))))


def forest_limits(gains: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Limits of an x axis that holds every interval and zero, with a margin."""
    ends = [0.0] + [end for gain in gains if gain["value"] is not None for end in gain["interval"]]
    margin = 0.06 * max(max(ends) - min(ends), 0.01)
    return min(ends) - margin, max(ends) + margin


def _forest_rows(gains: Sequence[dict[str, Any]]) -> list[str | dict[str, Any]]:
    """The gains with a heading before each fraction."""
    rows: list[str | dict[str, Any]] = []
    for fraction in dict.fromkeys(gain["fraction"] for gain in gains):
        rows.append(f"{percent(fraction)} of the real training images")
        rows += [gain for gain in gains if gain["fraction"] == fraction]
    return rows


def _forest_row(axes: Axes, y: int, gain: dict[str, Any], style: tuple[str, str], limits: tuple[float, float]) -> None:
    if gain["value"] is None:
        axes.text(limits[0], y, "  no complete pair of runs", va="center", color=MUTED, fontsize=8, style="italic")
        return
    colour, marker = style
    low, high = gain["interval"]
    axes.plot([low, high], [y, y], color=colour, lw=3.2 if gain["primary"] else 1.6, solid_capstyle="butt")
    axes.plot(gain["value"], y, marker=marker, ms=8 if gain["primary"] else 6.5, color=colour, mec="white", mew=0.8)


def _row_label(gain: dict[str, Any], several_ratios: bool) -> str:
    ratio = f" ×{gain['ratio']:g}" if gain["ratio"] and several_ratios else ""
    return f"{arm_name(gain['arm'])}{ratio}" + (" *" if gain["primary"] else "")


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(to_png(figure))
