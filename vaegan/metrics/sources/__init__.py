"""Images to measure, ours or not: `open_source` for what is at a path, `source_of` for what is in memory."""

from vaegan.metrics.sources.arrays import source_of
from vaegan.metrics.sources.base import ImageSource, Progress, no_progress
from vaegan.metrics.sources.blocks import Block
from vaegan.metrics.sources.opening import open_source, source_splits

__all__ = ["Block", "ImageSource", "Progress", "no_progress", "open_source", "source_of", "source_splits"]
