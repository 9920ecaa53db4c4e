"""Which figures a report has, what each shows in words, and the gallery of example images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.reporting import plots, words
from downstream.reporting.findings import BASELINES
from downstream.reporting.page import Example, ExampleGroup, Plot
from downstream.reporting.results import Results
from vaegan.images import encode_png
from vaegan.shards import Images, from_table

PER_CLASS = 8


def draw_plots(findings: dict[str, Any], examples: Sequence[ExampleGroup], out: Path) -> list[Plot]:
    """Draw every figure into out/plots and describe it."""
    drawn = []
    for number, classifier in enumerate(findings["design"]["classifiers"]):
        tag = "" if number == 0 else f"-{_file_part(classifier)}"
        drawn += _forests(findings, classifier, out, tag)
        drawn += _scores(findings, classifier, out, tag)
    for number, group in enumerate(examples):
        drawn += _sheets(group, number, out)
    return drawn


def example_groups(results: Results) -> list[ExampleGroup]:
    """The gallery: up to eight real and eight synthetic images of each class; images without any class come last."""
    if results.examples is None or not results.examples.num_rows:
        return []
    classes = list(results.manifest["dataset"]["classes"])
    images = from_table(results.examples)
    addresses = [address(images, row) for row in range(len(images))]
    groups = [_group(images, addresses, np.flatnonzero(images.labels[:, k]), name) for k, name in enumerate(classes)]
    groups.append(_group(images, addresses, np.flatnonzero(images.labels.sum(axis=1) == 0), "no class"))
    return [group for group in groups if group.real or group.synthetic]


def address(images: Images, row: int) -> str:
    """A synthetic image's address, which its image_id is (`vaegan.sampler.Sampler.sample`); "" for a real one."""
    return "" if images.source[row] == "real" else str(images.image_id[row])


def _group(images: Images, addresses: Sequence[str], rows: np.ndarray, name: str) -> ExampleGroup:
    def of(source: str) -> list[Example]:
        mine = [row for row in rows if images.source[row] == source][:PER_CLASS]
        return [
            Example(
                pixels=images.pixels[row],
                png=encode_png(images.pixels[row], level=9),
                alt=f"{source} image {i} of class {name}",
                address=addresses[row] if source == "synthetic" else "",
            )
            for i, row in enumerate(mine, start=1)
        ]

    return ExampleGroup(name=name, real=of("real"), synthetic=of("synthetic"))


def _forests(findings: dict[str, Any], classifier: str, out: Path, tag: str) -> list[Plot]:
    mine = [gain for gain in findings["gains"] if gain["classifier"] == classifier]
    limits = plots.forest_limits(mine)
    drawn = []
    for against in BASELINES:
        if gains := [gain for gain in mine if gain["against"] == against]:
            file = f"plots/gain-over-{against.replace('_', '-')}{tag}.png"
            plots.forest(gains, out / file, against=against, limits=limits)
            drawn.append(Plot(file, _forest_alt(gains, against, classifier), "gain", classifier))
    return drawn


def _forest_alt(gains: Sequence[dict[str, Any]], against: str, classifier: str) -> str:
    told = "; ".join(
        f"{words.arm_name(g['arm'])}{' times ' + format(g['ratio'], 'g') if g['ratio'] else ''} at "
        f"{words.percent(g['fraction'])}: {words.signed(g['value'])} ({words.interval(g['interval'])})"
        for g in gains
    )
    return (
        f"Forest plot of the gain in {gains[0]['metric_name']} over {words.arm_name(against)}, "
        f"{words.classifier_name(classifier)}. {told}."
    )


def _scores(findings: dict[str, Any], classifier: str, out: Path, tag: str) -> list[Plot]:
    metric = findings["primary"]["metric"]
    points = [
        {"arm": s["arm"], "ratio": s["ratio"], "fraction": s["fraction"], **s["metrics"][metric]}
        for s in findings["scores"]
        if s["classifier"] == classifier and s["metrics"][metric]["mean"] is not None
    ]
    if not points:
        return []
    file, name = f"plots/{metric}-by-fraction{tag}.png", words.metric_name(metric)
    plots.scores_by_fraction(points, out / file, metric_name=name)
    told = "; ".join(
        f"{words.arm_name(p['arm'])} at {words.percent(p['fraction'])}: {words.number(p['mean'])}" for p in points
    )
    return [Plot(file, f"{name} of each arm against the share of real images used, a dot per run. Means: {told}.",
                 "score", classifier)]  # fmt: skip


def _sheets(group: ExampleGroup, number: int, out: Path) -> list[Plot]:
    drawn = []
    for source, examples in (("real", group.real), ("synthetic", group.synthetic)):
        if examples:
            file = f"plots/examples-{number}-{source}.png"
            plots.contact_sheet([example.pixels for example in examples], out / file)
            alt = f"{len(examples)} {source} images of class {group.name}"
            drawn.append(Plot(file, alt, "examples", group.name))
    return drawn


def _file_part(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)
