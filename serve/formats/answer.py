"""What every writer is told of the images of an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from vaegan import shards
from vaegan.checkpoint import ModelInfo
from vaegan.shards import Images


@dataclass(frozen=True)
class Answer:
    """`count` images of one model, each with its address."""

    info: ModelInfo
    count: int
    address: Callable[[int], str]
    """Of the image at a position, 0 ... count - 1."""
    rows: Callable[[int, np.ndarray], Images]
    """Rows of a dataset: of the position of the first, and pixels uint8 (N, H, W, C)."""

    @property
    def schema(self) -> pa.Schema:
        """Of the rows as a table."""
        info = self.info
        return shards.schema(
            task=info.task, classes=info.classes, height=info.size, width=info.size, channels=info.channels
        )


class Writer(Protocol):
    """Turns images into the bytes of an answer: `prepare` in any thread and order, then `add` in order, `finish`.

    `close` frees what it holds, after that or instead of it.
    """

    def prepare(self, offset: int, pixels: np.ndarray) -> Any: ...

    def add(self, prepared: Any) -> bytes: ...

    def finish(self) -> bytes: ...

    def close(self) -> None: ...
