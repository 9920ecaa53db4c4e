"""Figure 1 of the paper for a run of ours, and its Table 1 as a figure below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.storage import atomic_file
from vaegan.evaluation.paper import TABLE_1
from vaegan.webpage.figures import INK, MUTED, RC, RULE, to_png


def plot(document: dict[str, Any], path: Path) -> None:
    """Figure 1 (distance against epoch, one panel per extractor, with intervals and floor) and Table 1 below it."""
    count = len(document["real"])
    with rc_context(RC):
        figure = Figure(figsize=(4.8 * count, 6.4), layout="constrained")
        panels = figure.subplots(2, count, squeeze=False, sharex=True)
        epochs = [point["epoch"] for point in document["checkpoints"]]
        for column in range(count):
            _distances(panels[0, column], document, column, epochs)
            _table_1(panels[1, column], document, column, epochs)
        with atomic_file(path) as temporary:
            temporary.write_bytes(to_png(figure))


def _distances(axes: Axes, document: dict[str, Any], column: int, epochs: list[float]) -> None:
    name = document["real"][column]["extractor"]["name"]
    numbers = [
        next(n for n in p["numbers"] if n["metric"] == "frechet_distance" and n["extractor"]["name"] == name)
        for p in document["checkpoints"]
    ]
    values = [n["value"] for n in numbers]
    ends = np.array([n["interval"] for n in numbers])
    axes.fill_between(epochs, ends[:, 0], ends[:, 1], color="#0072B2", alpha=0.2, lw=0)
    axes.plot(epochs, values, color="#0072B2", marker="o", ms=5, mec="white", label="ours, 95 % interval")
    axes.axhline(numbers[-1]["floor"], color=INK, lw=1, ls=(0, (4, 3)), label="real against real")
    axes.set(xscale="log", yscale="log", ylabel=numbers[0]["label"].split(",")[0], title=name)
    axes.grid(color=RULE, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _table_1(axes: Axes, document: dict[str, Any], column: int, epochs: list[float]) -> None:
    scores = [point["scores"][column] for point in document["checkpoints"]]
    real = document["real"][column]
    if real["mean"] is None:
        axes.text(0.5, 0.5, "no class probabilities,\nno classifier score", transform=axes.transAxes, ha="center",
                  va="center", color=MUTED)  # fmt: skip
        axes.set_yticks([])
    else:
        means, stds = [score["mean"] for score in scores], [score["std"] for score in scores]
        axes.errorbar(epochs, means, stds, color="#0072B2", marker="o", ms=5, mec="white", capsize=2,
                      label="ours, ± standard deviation over splits")  # fmt: skip
        axes.axhline(real["mean"], color=INK, lw=1, ls=(0, (4, 3)), label="our real images")
        theirs = [(e, mean, std) for _, e, mean, std in TABLE_1 if e]
        axes.errorbar([e for e, *_ in theirs], [m for _, m, _ in theirs], [s for *_, s in theirs], color="#D55E00",
                      marker="s", ms=5, mec="white", ls="", capsize=2, label="the paper's Table 1")  # fmt: skip
        axes.set_ylabel(real["label"].split(",")[0])
        axes.legend(frameon=False, fontsize=8)
    axes.set(xscale="log", xlabel="epoch")
    axes.grid(color=RULE, linewidth=0.6)
