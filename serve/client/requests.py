"""What is asked: each route's request as data, which either client sends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from cluster.errors import UserError

ARROW = "application/vnd.apache.arrow.stream"
MODEL_HEADER = "serve_multiplexed_model_id"
"""Ray Serve sends a request with it to a replica that has the model loaded already."""

Classes = str | Sequence[str]
"""One class, or several for a model of co-occurring findings; () for a model without classes."""


@dataclass(frozen=True)
class Request:
    """One HTTP request, but for the address and the keys of the service."""

    method: str
    path: str
    accept: str = "application/json"
    params: dict[str, Any] = field(default_factory=dict)
    json: dict[str, Any] | None = None
    content: bytes | None = None
    model: str | None = None
    version: str | None = None

    def options(self) -> dict[str, Any]:
        """Arguments of httpx's `build_request`."""
        headers = {"Accept": self.accept}
        if self.content is not None:
            headers["Content-Type"] = "application/octet-stream"  # the service looks at the bytes, not at the name
        if self.model is not None and self.version is not None:
            headers[MODEL_HEADER] = quote(f"{self.model}/{self.version}")
        given = {name: getattr(self, name) for name in ("params", "json", "content") if getattr(self, name)}
        return {"headers": headers, **given}


@dataclass(frozen=True, kw_only=True)
class Order:
    """`count` images at indices start, start + 1, … of one model, label and seed.

    Raises:
        UserError: `count` is less than 1.
    """

    model: str
    classes: tuple[str, ...]
    count: int
    seed: int
    start: int = 0
    version: str | None = None
    latent: str = "prior"
    truncation: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count is {self.count}, expected 1 or more; ask for some images")

    def request(self) -> Request:
        """The order as a stream of Arrow record batches."""
        body = {
            "model": self.model,
            "version": self.version,
            "labels": list(self.classes),
            "count": self.count,
            "seed": self.seed,
            "start": self.start,
            "latent": self.latent,
            "truncation": self.truncation,
        }
        return Request("POST", "/v1/samples", ARROW, json=body, model=self.model, version=self.version)

    def addresses(self, known: Sequence[str], version: str) -> list[str]:
        """The images' addresses, NAME/VERSION/CLASSES/SEED/INDEX and what differs from the usual latents as a query.

        Args:
            known: all classes of the model; an address names its classes in that order.
        """
        names = "+".join(name for name in known if name in self.classes) or "none"
        query = [f"latent={self.latent}"] if self.latent != "prior" else []
        query += [f"truncation={float(self.truncation)!r}"] if self.truncation != 1 else []
        suffix = "?" + "&".join(query) if query else ""
        rows = range(self.start, self.start + self.count)
        return [f"{self.model}/{version}/{names}/{self.seed}/{index}{suffix}" for index in rows]


def names_of(classes: Classes) -> tuple[str, ...]:
    """One class or several as a tuple."""
    return (classes,) if isinstance(classes, str) else tuple(classes)


def models() -> Request:
    return Request("GET", "/v1/models")


def image(address: str) -> Request:
    """One image as PNG.

    Raises:
        UserError: `address` isn't one.
    """
    path, mark, query = address.partition("?")
    parts = path.split("/")
    if len(parts) != 5:
        raise UserError(f"{address!r} is no address, expected NAME/VERSION/CLASSES/SEED/INDEX; copy one whole")
    name, version, classes, seed, index = (quote(part, safe="+") for part in parts)
    url = f"/v1/models/{name}/{version}/images/{classes}/{seed}/{index}.png{mark}{query}"
    return Request("GET", url, "image/png", model=parts[0], version=parts[1])


def upload(
    route: str, image_bytes: bytes, model: str, classes: Classes, version: str | None, accept: str = "application/json"
) -> Request:
    """An image file sent to /v1/encode, /v1/reconstruct or /v1/anomaly.

    Raises:
        UserError: there are no bytes.
    """
    if not image_bytes:
        raise UserError("the image is empty, expected the bytes of a PNG, JPEG, BMP or TIFF file; read them from one")
    params: dict[str, Any] = {"model": model} | ({} if version is None else {"version": version})
    params |= {"class": list(names_of(classes))} if classes else {}
    return Request(
        "POST", f"/v1/{route}", accept, params=params, content=bytes(image_bytes), model=model, version=version
    )


def interpolation(
    model: str,
    classes: Classes,
    ends: tuple[tuple[int, int], tuple[int, int]],
    steps: int,
    version: str | None,
    latent: str,
    truncation: float,
) -> Request:
    """`steps` images on the way from the first (seed, index) to the second."""
    (from_seed, from_index), (to_seed, to_index) = ends
    body = {
        "model": model,
        "version": version,
        "labels": list(names_of(classes)),
        "from": {"seed": from_seed, "index": from_index},
        "to": {"seed": to_seed, "index": to_index},
        "steps": steps,
        "latent": latent,
        "truncation": truncation,
    }
    return Request("POST", "/v1/interpolate", ARROW, json=body, model=model, version=version)
