"""Figures of metrics.html, each as PNG bytes: the same for the same numbers.

Every figure is drawn for a column of about 260 px: wide pages set four side by side, a phone shows one at a time. A
set has one look everywhere, the same as in the ablation's report: real images filled and black, synthetic ones hollow
and vermilion, held-out real ones small and sky blue (Okabe and Ito's colours), so that a black-and-white printer keeps
them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from vaegan.evaluation.embedding import Embedding
from vaegan.webpage.figures import INK, MUTED, RC, RULE, to_png

COLOURS = {"real": INK, "held-out": "#56B4E9", "synthetic": "#D55E00"}
MARKERS = ("o", "^", "s", "D", "v", "P")
WIDTH = 2.7  # inches
SMALL = 7.5  # points, of legends
BINS = 20
LOOK = RC | {"font.size": 8}

Number = Mapping[str, Any]
"""One entry of `numbers` of metrics.json."""


def balls() -> bytes:
    """What precision and recall count, on made-up points: a picture to read the other figures by."""
    real = np.array([[0.9, 2.3], [1.5, 2.9], [2.2, 2.4], [1.5, 1.9], [3.3, 1.1]])
    synthetic = np.array([[1.3, 2.5], [1.9, 2.1], [2.2, 3.1], [3.7, 2.9]])
    with rc_context(LOOK):
        figure = Figure(figsize=(1.3 * WIDTH, 2.05), layout="constrained")
        for axes, centres, others, kinds, title in zip(
            figure.subplots(1, 2),
            (real, synthetic),
            (synthetic, real),
            (("real", "synthetic"), ("synthetic", "real")),
            ("precision: 3 of 4 inside", "recall: 4 of 5 inside"),
            strict=True,
        ):
            for centre in centres:
                axes.add_patch(Circle(tuple(centre), 0.78, color=COLOURS[kinds[0]], alpha=0.12, lw=0))
            for points, kind in zip((centres, others), kinds, strict=True):
                axes.plot(*points.T, **_marks(kind, "o", 5))
            axes.set(xlim=(0, 4.6), ylim=(0.2, 3.8), aspect="equal", xticks=[], yticks=[])
            axes.spines[["left", "bottom"]].set_visible(False)
            axes.set_title(title, fontsize=SMALL)
        return to_png(figure)


def overlap(numbers: Mapping[str, Number], *, across: str, up: str, words: Mapping[str, str]) -> bytes:
    """Two shares of one extractor against each other, with their intervals as a cross and what real images score.

    Args:
        numbers: of one extractor, by metric.
        across, up: the metrics of the axes, such as recall and precision.
        words: name of each metric, for the axes.
    """
    x, y = numbers[across], numbers[up]
    with rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.add_subplot()
        colour = COLOURS["synthetic"]
        for number, horizontal in ((x, True), (y, False)):
            if number["interval"]:
                ends, other = number["interval"], [(y if horizontal else x)["value"]] * 2
                axes.plot(*((ends, other) if horizontal else (other, ends)), color=colour, lw=1.6)
        axes.plot(x["value"], y["value"], label="synthetic images", **_marks("synthetic", "o", 8))
        if x["floor"] is not None and y["floor"] is not None:
            axes.plot(x["floor"], y["floor"], label="real images in their place", **_marks("real", "D", 7))
            _reached(axes, (x["value_at_floor_n"], y["value_at_floor_n"]), (x["value"], y["value"]))
        highest = [1.0, *(value for value in (y["value"], y["floor"], *(y["interval"] or ())) if value is not None)]
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05 * max(highest), 1.05 * max(highest)))
        axes.set(xlabel=f"{words[across]}: variety found →", ylabel=f"{words[up]}: looks real →")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=SMALL)
        return to_png(figure)


def point_map(embedding: Embedding, kind: str) -> bytes:
    """Feature rows in two dimensions.

    Args:
        kind: "pca" or "tsne".
    """
    points = embedding.pca if kind == "pca" else embedding.tsne
    names = _by_count(embedding.classes)
    size = 4.2 if len(points) < 1000 else 3.2
    with rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for which, marker in zip(names, MARKERS, strict=False):
            for name in COLOURS:
                mine = (embedding.sets == name) & (embedding.classes == which)
                axes.plot(*points[mine].T, **_marks(name, marker, size, alpha=0.5))
        if kind == "pca":
            axes.set_xlabel(f"1st direction ({100 * embedding.explained[0]:.0f} % of real variance)")
            axes.set_ylabel(f"2nd direction ({100 * embedding.explained[1]:.0f} %)")
        else:
            axes.set(xticks=[], yticks=[], xlabel="t-SNE: neighbours only, no scale")
            axes.spines[["left", "bottom"]].set_color(RULE)
        axes.margins(0.04)
        figure.legend(
            handles=_map_legend(embedding, names), loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL,
            handletextpad=0.2, columnspacing=1.0,
        )  # fmt: skip
        return to_png(figure)


def similarities(real: np.ndarray, synthetic: np.ndarray) -> bytes:
    """Histograms of MS-SSIM of random pairs, (P,) and (Q,), each with its mean."""
    both = np.concatenate([real, synthetic])
    edges = np.linspace(np.floor(10 * both.min()) / 10, max(np.ceil(10 * both.max()) / 10, 0.1), BINS + 1)
    with rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for name, values, style in (("real", real, "-"), ("synthetic", synthetic, "--")):
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(100 * shares, edges, color=COLOURS[name], lw=1.6, ls=style, label=f"{name} pairs")
            axes.stairs(100 * shares, edges, color=COLOURS[name], alpha=0.12, fill=True)
            axes.axvline(float(values.mean()), color=COLOURS[name], lw=1.2, ls=style)
        axes.set(xlim=(edges[0], edges[-1]), xlabel="MS-SSIM of a pair (1: equal)", ylabel="% of the pairs")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL)
        return to_png(figure)


def bias(entry: Mapping[str, Any]) -> bytes:
    """Fréchet distances against 1/N with their straight line, and where it meets 1/N = 0.

    Args:
        entry: of `bias` of metrics.json, with `infinity`.
    """
    counts = np.array([point["num_images"] for point in entry["points"]], float)
    values = np.array([point["value"] for point in entry["points"]], float)
    spreads = np.array([point.get("std") or 0.0 for point in entry["points"]], float)
    end = entry["infinity"]
    with rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        furthest = 1.08 / counts.min()
        colour = COLOURS["synthetic"]
        axes.plot([0, furthest], [end["value"], end["value"] + end["slope"] * furthest], color=colour, lw=1, alpha=0.6)
        axes.errorbar(1 / counts, values, spreads, color=colour, mfc="white", marker="o", ms=6, ls="", capsize=2.5,
                      label="at N synthetic and real images")  # fmt: skip
        _end_of_line(axes, end, "synthetic", "with ever more images")
        if entry.get("floor_infinity"):
            _end_of_line(axes, entry["floor_infinity"], "real", "real images in their place")
        axes.set_xlim(-0.04 * furthest, furthest)
        order = np.argsort(-counts)
        axes.set_xticks([0, *1 / counts[order]], ["∞", *(f"{count:,.0f}" for count in counts[order])])
        axes.set(xlabel="N, spaced by 1/N", ylabel="Fréchet distance")
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=SMALL)
        return to_png(figure)


def _marks(name: str, marker: str, size: float, alpha: float = 1.0) -> dict[str, Any]:
    """Plot arguments of a set's points: synthetic ones are hollow."""
    hollow = name == "synthetic"
    return {
        "ls": "", "marker": marker, "ms": size * (0.8 if name == "held-out" else 1), "color": COLOURS[name],
        "mfc": "white" if hollow and alpha == 1 else "none" if hollow else COLOURS[name],
        "mew": 0.2 * size if hollow else 0, "alpha": alpha,
    }  # fmt: skip


def _reached(axes: Axes, at_floor_n: tuple[float | None, float | None], value: tuple[float, float]) -> None:
    """The synthetic images at the counts of the floor, which is what may be compared with it."""
    x, y = at_floor_n
    if x is None or y is None or at_floor_n == value:
        return
    axes.plot(x, y, ls="", marker="x", ms=7, mew=1.8, color=COLOURS["synthetic"],
              label="synthetic, as many as those real ones")  # fmt: skip


def _end_of_line(axes: Axes, end: Mapping[str, Any], name: str, label: str) -> None:
    if end.get("interval"):
        axes.plot([0, 0], end["interval"], color=COLOURS[name], lw=2.4, alpha=0.6, clip_on=False)
    axes.plot(0, end["value"], label=label, clip_on=False, zorder=3,
              **_marks(name, "D", 7))  # fmt: skip


def _by_count(classes: np.ndarray) -> list[str]:
    """Class names, the most frequent first."""
    names, counts = np.unique(classes.astype(str), return_counts=True)
    return [str(names[i]) for i in np.argsort(-counts, kind="stable")]


def _map_legend(embedding: Embedding, names: Sequence[str]) -> list[Line2D]:
    sets = [
        Line2D([], [], label=f"{name} ({np.sum(embedding.sets == name):,})", **_marks(name, "o", 5))
        for name in COLOURS
        if (embedding.sets == name).any()
    ]
    if len(names) == 1:
        return sets
    return sets + [
        Line2D([], [], ls="", marker=marker, ms=5, color=MUTED, label=_short(name))
        for name, marker in zip(names, MARKERS, strict=False)
    ]


def _short(name: str, longest: int = 24) -> str:
    """A class name that fits a legend. Matplotlib would read dollars as mathematics."""
    cut = name if len(name) <= longest else name[: longest - 1] + "…"
    return cut.replace("$", r"\$")
