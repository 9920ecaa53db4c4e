"""findings.parquet: images that belong together, pair by pair and with a look at each, for people to judge."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from vaegan import duplicates
from vaegan.images import encode_png, reduced
from vaegan.preparation.settling import REMOVED, Pair, Rows, Settlement
from vaegan.preparation.spool import Spool
from vaegan.shards import FINDINGS_SCHEMA, SPLITS

MAX_PICTURES = 1000
PICTURE = 96  # px a side, at most


def findings_table(rows: Rows, settlement: Settlement, spool: Spool) -> pa.Table:
    """All pairs, leaks first; the first `MAX_PICTURES` with pictures."""
    pairs = settlement.pairs
    pictures = _pictures(spool, {i for pair in pairs[:MAX_PICTURES] for i in (pair.row, pair.other)})
    found = [_row(pair, rows, settlement, spool.how.classes, pictures) for pair in pairs]
    return pa.Table.from_pylist(found, schema=FINDINGS_SCHEMA)


def _row(
    pair: Pair, rows: Rows, settlement: Settlement, classes: Sequence[str], pictures: dict[int, bytes]
) -> dict[str, Any]:
    def labels(i: int) -> str | None:
        if not rows.labelled[i]:
            return None
        return "|".join(name for name, on in zip(classes, rows.labels[i], strict=True) if on)

    def split(i: int) -> str:
        at = settlement.before[i]
        return SPLITS[at] if at >= 0 else ""

    a, b = pair.row, pair.other
    copies = pair.kind in ("exact", "near")
    return {
        "kind": pair.kind,
        "image_id": rows.image_id[a].as_py(),
        "other_image_id": rows.image_id[b].as_py(),
        "split": split(a),
        "other_split": split(b),
        "labels": labels(a),
        "other_labels": labels(b),
        "removed": bool(settlement.split[a] == REMOVED),
        "correlation": float(duplicates.correlation(rows.thumbnails[[a]], rows.thumbnails[[b]])[0]) if copies else None,
        "thumbnail": pictures.get(a),
        "other_thumbnail": pictures.get(b),
    }


def _pictures(spool: Spool, wanted: set[int]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    start = 0
    for pixels in spool.pixels() if wanted else ():
        for i in sorted(wanted.intersection(range(start, start + len(pixels)))):
            found[i] = encode_png(reduced(pixels[i - start], PICTURE), level=6)
        start += len(pixels)
    return found
