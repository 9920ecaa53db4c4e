"""Images of a split for training: whole in memory, or streamed from their files; see `order` and `stream`."""

from vaegan.reading.balance import BalancedOrder, rarest_label
from vaegan.reading.choice import (
    TrainingImages,
    check_balance,
    files_sha256,
    first_of_each_class,
    num_unlabelled,
    open_split,
    order_name,
    pixel_blocks,
    shuffled,
    with_labelled,
)
from vaegan.reading.order import MIN_GROUPS, Order, Part, Window
from vaegan.reading.stream import ReadingConfig, Rows, ShardReader, marked_labels

__all__ = [
    "MIN_GROUPS", "BalancedOrder", "Order", "Part", "ReadingConfig", "Rows", "ShardReader", "TrainingImages", "Window",
    "check_balance", "files_sha256", "first_of_each_class", "marked_labels", "num_unlabelled", "open_split",
    "order_name", "pixel_blocks", "rarest_label", "shuffled", "with_labelled",
]  # fmt: skip
