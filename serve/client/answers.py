"""What comes back, as arrays: PNG, JSON, and tables of Arrow rows."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.errors import UserError
from serve.client.arrow import StreamDecoder
from serve.client.retry import strange
from vaegan import shards
from vaegan.shards import Images


@dataclass(frozen=True)
class Encoding:
    """q(z|x) of one image.

    model, version, classes: which encoder was asked, and with which labels.
    mu, log_var: mean and log variance of each latent dimension, float32 (D,).
    """

    model: str
    version: str
    classes: tuple[str, ...]
    mu: np.ndarray
    log_var: np.ndarray


def json_of(response: httpx.Response) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ServiceError: it is something else.
    """
    try:
        found = response.json()
    except ValueError:
        raise strange(response, "no JSON") from None
    if not isinstance(found, dict):
        raise strange(response, f"JSON of a {type(found).__name__} where an object was expected")
    return found


def models(response: httpx.Response) -> list[dict[str, Any]]:
    found = json_of(response).get("models")
    if not isinstance(found, list):
        raise strange(response, "JSON without a list of models")
    return found


def find_model(models: list[dict[str, Any]], model: str, version: str | None) -> dict[str, Any]:
    """What GET /v1/models says of a model's version, the latest where it is None.

    Raises:
        UserError: there is none that could be loaded.
    """
    for about in models:
        wanted = about["latest"] if version is None else about["version"] == version
        if about["name"] == model and about["available"] and wanted:
            return about
    there = ", ".join(f"{about['name']}/{about['version']}" for about in models if about["available"]) or "none"
    name = model if version is None else f"{model}/{version}"
    raise UserError(f"the service has no model {name}: it has {there}; ask for one of those")


def encoding(response: httpx.Response) -> Encoding:
    found = json_of(response)
    try:
        mu, log_var = (np.array(found[name], dtype=np.float32) for name in ("mu", "log_var"))
        return Encoding(found["model"], found["version"], tuple(found["classes"]), mu, log_var)
    except (KeyError, TypeError, ValueError):
        raise strange(response, "JSON without the mu and log_var of an encoding") from None


def pixels(response: httpx.Response) -> np.ndarray:
    """A PNG as uint8 (H, W, C)."""
    try:
        with Image.open(io.BytesIO(response.content), formats=["PNG"]) as png:
            found = np.asarray(png)
    except (OSError, SyntaxError, ValueError):
        raise strange(response, "no PNG") from None
    return found[:, :, None] if found.ndim == 2 else found


def images(response: httpx.Response, count: int) -> Images:
    """A whole Arrow stream of `count` rows."""
    decoder = StreamDecoder()
    try:
        batches = [as_rows(batch) for batch in decoder.feed(response.content)]
    except pa.ArrowInvalid as error:
        raise strange(response, f"no rows of images ({error})") from None
    found = sum(batch.num_rows for batch in batches)
    if not decoder.ended or found != count:
        raise strange(response, f"{found} images where {count} were asked for")
    return shards.from_table(pa.Table.from_batches(batches))


def as_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if it is of the schema that its own metadata describes.

    Raises:
        pa.ArrowInvalid: it isn't.
    """
    try:
        about = about_rows(batch.schema)
        expected = shards.schema(
            **{name: about[name] for name in ("task", "classes", "height", "width", "channels")}  # as is: compared next
        )
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise pa.ArrowInvalid(f"rows without a description of their images: {error!r}") from None
    if not batch.schema.equals(expected):
        raise pa.ArrowInvalid("rows of another schema than images have")
    return batch


def about_rows(schema: pa.Schema) -> dict[str, Any]:
    """What the metadata of `vaegan.shards.schema` says: task, classes, height, width, channels."""
    return json.loads((schema.metadata or {})[b"augray"])


class Rebatch:
    """Tables of any length in, Images of `size` rows out; the last may have fewer."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"batch_size is {size}, expected 1 or more; leave it out for the default")
        self._size = size
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> Iterator[Images]:
        """The batches that `table` completes."""
        self._waiting.append(table)
        rows = sum(part.num_rows for part in self._waiting)
        if rows < self._size:
            return
        joined = pa.concat_tables(self._waiting)
        full = rows // self._size * self._size
        self._waiting = [joined.slice(full)] if full < rows else []
        for at in range(0, full, self._size):
            yield shards.from_table(joined.slice(at, self._size))

    def rest(self) -> Iterator[Images]:
        """What is left."""
        if self._waiting:
            yield shards.from_table(pa.concat_tables(self._waiting))
        self._waiting = []
