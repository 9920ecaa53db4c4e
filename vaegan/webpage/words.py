"""Numbers, times and lists as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime


def percent(fraction: float) -> str:
    """0.02 -> "2 %"."""
    return f"{100 * fraction:g} %"


def number(value: float | None, digits: int = 3) -> str:
    """0.0312 -> "0.031"; a dash where there is no number. The minus is a true one."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def magnitude(value: float | None) -> str:
    """A number of unknown scale with three significant digits: 0.00123, 41.7, 5,310."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(text: str | None) -> str:
    """An ISO 8601 time as people write it: "2 January 2026, 12:00 UTC"; other text as it is."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return text or "not recorded"
    zone = time.strftime(" %Z") if time.tzinfo else ""
    return f"{time.day} {MONTHS[time.month - 1]} {time.year}, {time:%H:%M}{zone}"


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip


def counted(count: int, noun: str) -> str:
    """ "1 seed", "3 seeds", "1,341 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def joined(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
