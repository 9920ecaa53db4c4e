"""Images of a split for training: whole in memory, or streamed from their files; see `order` and `stream`."""

from vaegan.reading.choice import (
    TrainingImages,
    files_sha256,
    first_of_each_class,
    open_split,
    order_name,
    pixel_blocks,
    shuffled,
)
from vaegan.reading.order import MIN_GROUPS, Order, Part, Window
from vaegan.reading.stream import ReadingConfig, Rows, ShardReader

__all__ = [
    "MIN_GROUPS", "Order", "Part", "ReadingConfig", "Rows", "ShardReader", "TrainingImages", "Window",
    "files_sha256", "first_of_each_class", "open_split", "order_name", "pixel_blocks", "shuffled",
]  # fmt: skip
