"""metrics.json and its pictures to metrics.html: one file that needs no other, and no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from vaegan.evaluation import plots, words
from vaegan.evaluation.embedding import Embedding
from vaegan.evaluation.gallery import Gallery
from vaegan.images import encode_png
from vaegan.webpage.html import data_uri, environment, stylesheet
from vaegan.webpage.words import counted, duration, joined, magnitude, moment, percent

TEMPLATES = Path(__file__).parent / "templates"
PIXELS = "pixels"
"""The name of the extractor that is none: its numbers come from the images themselves."""
OVERLAPS = (("recall", "precision"), ("coverage", "density"))
"""Metrics of the axes, across and up."""
FILTERS: dict[str, Callable[..., Any]] = {
    "counted": counted, "duration": duration, "joined": joined, "magnitude": magnitude, "moment": moment,
    "percent": percent, "metric_name": words.metric_name, "cell_label": words.cell_label, "span": words.span,
    "plain": words.plain, "short_label": words.short_label, "floor_words": words.floor_words,
    "stretch_words": words.stretch_words, "verdict_word": words.verdict_word,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A figure as PNG, with a text for those who can't see it."""

    png: bytes
    alt: str
    caption: str


@dataclass(frozen=True, eq=False)
class ExtractorGroup:
    """One extractor's numbers."""

    extractor: Mapping[str, Any]
    numbers: dict[str, Mapping[str, Any]]
    """By metric."""

    @property
    def name(self) -> str:
        return str(self.extractor["name"])

    def methods(self, key: str) -> list[Any]:
        """The different values that the numbers have of `interval_method` or `floor_detail`."""
        found: list[Any] = []
        for number in self.numbers.values():
            if number[key] is not None and number[key] not in found:
                found.append(number[key])
        return found

    @property
    def floor_has_other_counts(self) -> bool:
        """Whether the values at the floor's counts differ from the values, so that the table needs both."""
        return any(number["value_at_floor_n"] != number["value"] for number in self.numbers.values())


def render_html(result: Mapping[str, Any], gallery: Gallery) -> str:
    """The whole page as one HTML text. The same input gives the same bytes.

    Args:
        result: the content of metrics.json.
    """
    every = extractor_groups(result["numbers"])
    groups = [group for group in every if group.name != PIXELS]
    privacy = result.get("privacy")
    similarity = next((n for n in result["numbers"] if n["metric"] == "ms_ssim"), None)
    return _environment().get_template("metrics.html.j2").render(
        r=result,
        gallery=gallery,
        every=every,
        groups=groups,
        privacy=privacy,
        verdict=verdict(privacy),
        copies=words.copies_sentence((privacy or {}).get("suspicious_pairs", ())[: len(gallery.suspicious)]),
        metrics=metrics_of(groups),
        closeness=[(group.name, words.closeness(group.numbers)) for group in groups],
        disagreement=words.disagreement([group.numbers for group in groups]),
        diversity=words.diversity_sentence(similarity),
        warnings=warnings(result["numbers"]),
        balls=Plot(plots.balls(), BALLS_ALT, ""),
        overlaps=overlap_plots(groups),
        misses=[(misses, *words.misses_words(misses)) for misses in gallery.misses],
        maps=map_plots(gallery.embeddings),
        similarities=similarity_plot(gallery, similarity),
        biases=bias_plots(result.get("bias") or ()),
        css=stylesheet(TEMPLATES / "metrics.css"),
    )  # fmt: skip


def verdict(privacy: Mapping[str, Any] | None) -> dict[str, Any]:
    """The box at the top: its kind, its headline, and of each scope name, verdict and reason."""
    scopes = [] if privacy is None else [
        (words.SCOPES.get(scope, scope), told["verdict"], told["sentence"])
        for scope, told in privacy["scopes"].items()
    ]  # fmt: skip
    return {"kind": words.verdict_kind(privacy), "headline": words.verdict_headline(privacy), "scopes": scopes}


BALLS_ALT = (
    "Two drawings with made-up points. Left: a ball around each real image; three of four synthetic images lie in one: "
    "precision is three quarters. Right: a ball around each synthetic image; four of five real images lie in one: "
    "recall is four fifths."
)


@cache
def _environment() -> Environment:
    made = environment(TEMPLATES, FILTERS)
    made.filters["picture"] = lambda pixels: data_uri(encode_png(pixels, level=9))
    made.globals |= {"METRICS": words.METRICS, "BETTER": words.BETTER, "SETS": words.SETS, "SCOPES": words.SCOPES,
                     "SCOPE_MEANINGS": words.SCOPE_MEANINGS}  # fmt: skip
    return made


def extractor_groups(numbers: Sequence[Mapping[str, Any]]) -> list[ExtractorGroup]:
    """Numbers by extractor, in their order. Two extractors may share a name: the whole stamp tells them apart."""
    groups: list[ExtractorGroup] = []
    for number in numbers:
        group = next((group for group in groups if group.extractor == number["extractor"]), None)
        if group is None:
            group = ExtractorGroup(number["extractor"], {})
            groups.append(group)
        group.numbers[number["metric"]] = number
    return groups


def metrics_of(groups: Sequence[ExtractorGroup]) -> list[str]:
    """The rows of the table: every metric that any extractor has, known ones first in the page's order."""
    found = dict.fromkeys(metric for group in groups for metric in group.numbers)
    return sorted(found, key=lambda metric: list(words.METRICS).index(metric) if metric in words.METRICS else 99)


def warnings(numbers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each warning once, with the numbers it belongs to."""
    found: dict[str, list[str]] = {}
    for number in numbers:
        if number["warning"]:
            found.setdefault(number["warning"], []).append(number["label"])
    return [(joined(labels), warning) for warning, labels in found.items()]


def overlap_plots(groups: Sequence[ExtractorGroup]) -> list[Plot]:
    """Precision against recall and density against coverage, for each extractor that has them."""
    names = {metric: name for metric, (name, _) in words.METRICS.items()}
    drawn = []
    for group in groups:
        for across, up in OVERLAPS:
            if across in group.numbers and up in group.numbers:
                png = plots.overlap(group.numbers, across=across, up=up, words=names)
                drawn.append(Plot(png, words.overlap_alt(group.name, group.numbers, (up, across)), group.name))
    return drawn


def map_plots(embeddings: Sequence[Embedding]) -> list[Plot]:
    drawn = []
    for embedding in embeddings:
        counts = Counter(map(str, embedding.sets))
        for kind, how in (("pca", "main directions"), ("tsne", "t-SNE")):
            alt = words.map_alt(embedding.extractor, counts, kind)
            drawn.append(Plot(plots.point_map(embedding, kind), alt, f"{embedding.extractor}, {how}"))
    return drawn


def similarity_plot(gallery: Gallery, number: Mapping[str, Any] | None) -> Plot | None:
    real, synthetic = gallery.similarities_real, gallery.similarities_synthetic
    if real is None or synthetic is None or not np.size(real) or not np.size(synthetic):
        return None
    alt = words.similarity_alt(number, (len(real), len(synthetic)))
    return Plot(plots.similarities(real, synthetic), alt, "Pairs within a class, their means as lines")


def bias_plots(entries: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Plot | None]]:
    """Each entry of `bias` with its figure, which it has where there is a line to draw."""
    return [
        (entry, Plot(plots.bias(entry), words.bias_alt(entry), entry["label"]) if entry.get("infinity") else None)
        for entry in entries
    ]
