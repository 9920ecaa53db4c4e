"""metrics.json as text for a terminal."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> str:
    """metrics.json as text for a terminal: one block per extractor."""
    lines: list[str] = []
    previous = None
    for number in result["numbers"]:
        extractor = number["extractor"]
        if extractor != previous:
            floor = number["floor_detail"]
            fewer = (floor["num_reference"], floor["num_other"]) != (number["num_real"], number["num_synthetic"])
            lines += [
                "",
                f"{extractor['name']}, {extractor['layer']}, weights {extractor['weights_sha256'][:12]}",
                f"resize: {extractor['resize']}",
                f"{number['num_real']} real, {number['num_synthetic']} synthetic; real vs real: {floor['against']}, "
                f"{floor['num_reference']} against {floor['num_other']}",
                f"{'':<40}{'value':>11}  {'95 % interval':<22}{'real vs real':>12}" + "  value at its N" * fewer,
            ]
            previous = extractor
        low, high = number["interval"]
        label = number["label"].removesuffix(f", {extractor['name']}")
        label += f" ({'lower' if number['better'] == 'lower' else 'higher'} is better)"
        span = f"[{low:.4g}, {high:.4g}]"
        at_floor_n = f"{number['value_at_floor_n']:>16.4g}" if fewer else ""
        lines.append(f"{label:<40}{number['value']:>11.4g}  {span:<22}{number['floor']:>12.4g}{at_floor_n}")
    warnings = {number["warning"] for number in result["numbers"] if number["warning"]}
    return "\n".join([*lines, "", *(f"warning: {warning}" for warning in sorted(warnings))]).strip("\n")
