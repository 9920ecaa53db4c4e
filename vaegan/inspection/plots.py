"""Figures of inspect.html, as PNG bytes: grey levels of classes within a split, and of splits beside each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vaegan.inspection.contents import Grey
from vaegan.webpage.figures import INK, RC, RULE, to_png

COLOURS = (INK, "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
BINS = 64
LOOK = RC | {"font.size": 8}


@dataclass(frozen=True)
class Plot:
    """A figure as PNG, with a text for those who can't see it."""

    png: bytes
    alt: str
    caption: str


def class_levels(grey: Grey, split: str) -> Plot:
    """Grey levels of a split's classes, the most frequent ones where there are more than colours."""
    groups = [g for g in range(1, len(grey.names)) if grey.num_images[g]]
    frequent = sorted(groups, key=lambda g: -grey.num_images[g])[: len(COLOURS)]
    chosen = [g for g in groups if g in frequent] or [0]
    more = f", the {len(chosen)} most frequent classes" if len(chosen) < len(groups) else ""
    curves = {grey.names[g]: grey.histogram[g] for g in chosen}
    return Plot(levels(curves), _alt(curves, split), f"{split}{more}")


def split_levels(grey: Mapping[str, Grey]) -> Plot:
    """Grey levels of the splits."""
    curves = {name: each.histogram[0] for name, each in grey.items()}
    return Plot(levels(curves), _alt(curves, "all splits"), "all images, by split")


def levels(curves: Mapping[str, NDArray[np.int64]]) -> bytes:
    """Histograms of 256 grey levels each as lines, in shares of their own sum."""
    edges = np.linspace(0, 256, BINS + 1)
    with rc_context(LOOK):
        figure = Figure(figsize=(3.1, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for (name, counts), colour, style in zip(curves.items(), COLOURS, STYLES, strict=False):
            shares = counts.reshape(BINS, -1).sum(axis=1) / max(counts.sum(), 1)
            axes.stairs(100 * shares, edges, baseline=None, color=colour, lw=1.5, ls=style, label=_short(name))
        axes.set(xlim=(0, 256), xlabel="grey level: black 0, white 255", ylabel="% of the pixels")
        axes.set_xticks([0, 64, 128, 192, 255])
        axes.set_ylim(bottom=0)
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(
            loc="outside lower center", ncols=3 if sum(map(len, curves)) < 18 else 2, frameon=False, fontsize=7.5
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a class named in another script
            return to_png(figure)


def _short(name: str) -> str:
    """A class's name in a legend, which takes no leading underscore and reads dollars as formulas."""
    name = name or "(no name)"
    return (name if len(name) <= 22 else name[:21] + "…").replace("$", r"\$").replace("_", " ", name.startswith("_"))


def _alt(curves: Mapping[str, NDArray[np.int64]], where: str) -> str:
    names: Sequence[str] = list(curves)
    middles = [int(np.searchsorted(counts.cumsum(), counts.sum() / 2)) for counts in curves.values()]
    told = ", ".join(f"{name} {middle}" for name, middle in zip(names, middles, strict=True))
    return f"Histograms of grey levels, {where}. Medians: {told}."
