"""Findings and figures to pages: one HTML file that needs nothing else, and Markdown beside its plots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from downstream.reporting import words
from vaegan.webpage.html import data_uri, environment, stylesheet

WORDS = ("arm_name", "metric_name", "classifier_name", "percent", "number", "signed", "interval", "magnitude",
         "duration", "moment", "counted", "joined")  # fmt: skip
"""Functions of `words` that the templates use as filters."""

TEMPLATES = Path(__file__).parent.parent / "templates"


@dataclass(frozen=True)
class Plot:
    """A figure on disk: `file` relative to the report's folder, with a text for those who can't see it."""

    file: str
    alt: str
    topic: str
    """Which part of the page it belongs to: "gain", "score" or "examples"."""
    about: str = ""
    """What sets it apart within its topic: the classifier, the class."""


@dataclass(frozen=True)
class Example:
    """One image of the gallery, as uint8 (H, W, C) and as PNG; `address` is a synthetic image's, "" for a real one."""

    pixels: np.ndarray
    png: bytes
    alt: str
    address: str


@dataclass(frozen=True)
class ExampleGroup:
    """Images of one class, real and synthetic."""

    name: str
    real: list[Example]
    synthetic: list[Example]


def render_html(findings: dict[str, Any], plots: list[Plot], examples: list[ExampleGroup], folder: Path) -> str:
    """The whole page as one HTML text; images and CSS are inside it."""
    sources = {plot.file: data_uri((folder / plot.file).read_bytes()) for plot in plots if plot.topic != "examples"}
    template = _environment(autoescape=True).get_template("report.html.j2")
    css = stylesheet(TEMPLATES / "report.css")
    return template.render(f=findings, plots=plots, examples=examples, css=css, sources=sources)


def render_markdown(findings: dict[str, Any], plots: list[Plot], examples: list[ExampleGroup]) -> str:
    """The same content as Markdown; plots are files beside it."""
    template = _environment(autoescape=False).get_template("report.md.j2")
    text = template.render(f=findings, plots=plots, examples=examples)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def _environment(*, autoescape: bool) -> Environment:
    filters = {name: getattr(words, name) for name in WORDS} | {"md": escape_markdown}
    made = environment(TEMPLATES, filters, autoescape=autoescape)
    made.globals |= {"METRICS": words.METRICS, "LOWER_IS_BETTER": words.LOWER_IS_BETTER}
    return made


def escape_markdown(text: Any) -> str:
    """Text that Markdown shows as it is: a class name must not open a table cell, a link or an HTML tag."""
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", flat)
