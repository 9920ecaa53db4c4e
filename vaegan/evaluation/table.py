"""metrics.json as text for a terminal: a row for each metric, extractors side by side, privacy below."""

from __future__ import annotations

import textwrap
from typing import Any

LABEL, COLUMN, WIDTH = 26, 52, 120
SCOPES = {"images": "images, to give out", "model": "the model, its weights and what encodes with it"}
ARROWS = {"lower": "↓", "higher": "↑", "as real": "="}


def table(result: dict[str, Any]) -> str:
    """Value, 95 % interval and real-vs-real floor of every number; stamps, warnings and verdicts in words.

    Where the floor has fewer images than the number, the number at the floor's count follows in brackets.
    """
    groups = _by_extractor(result["numbers"])
    lines = []
    for pair in (groups[at : at + 2] for at in range(0, len(groups), 2)):
        lines += ["", *_side_by_side(pair)]
    lines += ["", "↓ lower is better, ↑ higher, = as the real images have; (at n): the value at the floor's count", ""]
    for group in groups:
        lines += _wrapped(_stamp(group[0]))
    lines += ["", *_bias(result["bias"]), *_warnings(result["numbers"]), "", *_privacy(result["privacy"])]
    return "\n".join(lines).strip("\n")


def _by_extractor(numbers: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: list[list[dict[str, Any]]] = []
    for number in numbers:
        if groups and groups[-1][0]["extractor"] == number["extractor"]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _side_by_side(groups: list[list[dict[str, Any]]]) -> list[str]:
    names = [group[0]["extractor"]["name"] for group in groups]
    head = f"{'value':>9}  {'95 % interval':<22} {'floor':>8}"
    lines = [
        " " * LABEL + "".join(f"{name[: COLUMN - 2]:<{COLUMN}}" for name in names),
        " " * LABEL + "".join(f"{head:<{COLUMN}}" for _ in names),
    ]
    for metric in dict.fromkeys(number["metric"] for group in groups for number in group):
        found = [next((n for n in group if n["metric"] == metric), None) for group in groups]
        label = next(f"{_words(n)} {ARROWS[n['better']]}" for n in found if n)
        lines.append(f"{label:<{LABEL}}" + "".join(f"{_cell(number) if number else '':<{COLUMN}}" for number in found))
    return [line.rstrip() for line in lines]


def _words(number: dict[str, Any]) -> str:
    """The metric's name, short: its extractor stands above, a covariance below."""
    return number["label"].removesuffix(f", {number['extractor']['name']}").split(" (")[0]


def _cell(number: dict[str, Any]) -> str:
    low, high = number["interval"]
    floor = number["floor_detail"]
    fewer = (floor["num_reference"], floor["num_other"]) != (number["num_real"], number["num_synthetic"])
    at_floor = f" ({number['value_at_floor_n']:.3g})" if fewer and number["better"] != "as real" else ""
    return f"{number['value']:>9.4g}  {f'{low:.3g} to {high:.3g}':<22} {number['floor']:>8.3g}{at_floor}"


def _stamp(number: dict[str, Any]) -> str:
    extractor, floor = number["extractor"], number["floor_detail"]
    return (
        f"{extractor['name']}: {extractor['layer']}, weights {extractor['weights_sha256'][:12]}, resize "
        f"{extractor['resize']}; {number['num_real']} real, {number['num_synthetic']} synthetic; floor: "
        f"{floor['against']}, {floor['num_reference']} and {floor['num_other']}"
    )


def _bias(entries: list[dict[str, Any]]) -> list[str]:
    lines = []
    for entry in entries:
        if entry["infinity"] is None:
            lines += _wrapped(f"{entry['label']}, at infinitely many images: not extrapolated, {entry['why_not']}")
            continue
        low, high = entry["infinity"]["interval"]
        floor = entry["floor_infinity"]
        against = f", real against real {floor['value']:.3g}" if floor else ""
        points = ", ".join(f"{point['value']:.4g} at {point['num_images']}" for point in entry["points"])
        lines += _wrapped(
            f"{entry['label']}: {points}; at infinitely many images {entry['infinity']['value']:.4g} "
            f"({low:.3g} to {high:.3g}){against}"
        )
    return lines


def _warnings(numbers: list[dict[str, Any]]) -> list[str]:
    found = dict.fromkeys(number["warning"] for number in numbers if number["warning"])
    return [line for warning in found for line in _wrapped(f"warning: {warning}")]


def _privacy(audit: dict[str, Any] | None) -> list[str]:
    if audit is None:
        return ["privacy: not measured"]
    lines = [f"privacy: {audit['verdict']}"]
    for name, scope in audit["scopes"].items():
        lines += _wrapped(f"{SCOPES[name]}: {scope['verdict']}. {scope['sentence']}")
    for check in audit["checks"]:
        lines += _wrapped(f"- {check['verdict']}, {check['name']}: {check['sentence']}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
