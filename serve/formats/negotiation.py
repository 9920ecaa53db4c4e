"""Which format a client accepts."""

from dataclasses import dataclass

from serve.problems import Problem, shown


@dataclass(frozen=True)
class Format:
    name: str
    media_type: str
    suffix: str


PNG = Format("png", "image/png", ".png")
ZIP = Format("zip", "application/zip", ".zip")
NPZ = Format("npz", "application/x-npz", ".npz")
PARQUET = Format("parquet", "application/vnd.apache.parquet", ".parquet")
ARROW = Format("arrow", "application/vnd.apache.arrow.stream", ".arrows")
FORMATS = (PNG, ZIP, NPZ, PARQUET, ARROW)


def negotiate(accept: str | None, count: int) -> Format:
    """The format that an Accept header prefers (RFC 9110, 12.5.1); without one, PNG for one image and ZIP for more.

    Raises:
        Problem: 406 where none of the formats is acceptable, or only PNG is and several images are asked for.
    """
    default = PNG if count == 1 else ZIP
    offers = [default, *(f for f in FORMATS if f not in (default, PNG))]  # a PNG holds one image
    best = max(offers, key=lambda offer: _quality(accept or "*/*", offer.media_type))  # the first of equals
    if _quality(accept or "*/*", best.media_type) > 0:
        return best
    known = ", ".join(f.media_type for f in offers)
    if count > 1 and _quality(accept or "*/*", PNG.media_type) > 0:
        raise Problem(406, f"{PNG.media_type} holds one image and count is {count}; accept one of {known}")
    raise Problem(406, f"the header Accept is {shown(accept)}, expected one of {known}")


def _quality(accept: str, media_type: str) -> float:
    """The q of the most specific range in an Accept header that matches; 0 where none does or it makes no sense."""
    kind = media_type.split("/")[0]
    found = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        q = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            found[media_range] = float(q) if 0 <= float(q) <= 1 else 0.0  # NaN too is out of range
        except ValueError:
            found[media_range] = 0.0
    return next((found[r] for r in (media_type, f"{kind}/*", "*/*") if r in found), 0.0)
