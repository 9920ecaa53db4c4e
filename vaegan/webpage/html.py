"""Jinja templates to pages that stand alone: CSS and images inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

SHARED = Path(__file__).parent
"""Holds page.css and macros.html.j2, which a template of any folder imports by that name."""


def environment(folder: Path, filters: Mapping[str, Callable[..., Any]], *, autoescape: bool = True) -> Environment:
    """Templates of `folder`, with `filters` beside `pretty`, `breakable` and `png_uri`; an unknown name is an error."""
    made = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"pretty": pretty, "breakable": breakable, "png_uri": data_uri, **filters}
    return made


def stylesheet(own: Path) -> Markup:
    """The CSS that all pages share, then a page's own. Both are ours: nothing in them comes from a user."""
    return Markup("".join(path.read_text(encoding="utf-8") for path in (SHARED / "page.css", own)))


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def breakable(text: str) -> Markup:
    """Escaped text that may wrap after each slash, as an address in a narrow caption must."""
    return Markup("/<wbr>").join(escape(part) for part in text.split("/"))
