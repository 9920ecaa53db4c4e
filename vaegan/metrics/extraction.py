"""From images to rows of numbers: blocks are read ahead while the network computes, and what is known is not computed.

`extract` gives features, `extract_moments` their moments where the rows would not fit into memory, `map_blocks`
whatever a function of pixels gives. All give the same for any batch size, block size, number of readers or workers, but
for the rounding of the network; blocks are merged in one order.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
from tqdm import tqdm

from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.moments import Moments
from vaegan.metrics.sources import Block, ImageSource, Progress, no_progress

Arrays = dict[str, np.ndarray]
"""By name, each with a row per image."""


Start = Callable[[Block], Callable[[], Arrays]]
"""Begins with a block and returns what gives its arrays, perhaps after waiting for them."""


def extract(
    source: ImageSource,
    extractor: Extractor,
    *,
    batch_size: int | None = None,
    cache: FeatureCache | None = None,
    readers: int = 2,
    progress: Progress = no_progress,
) -> Features:
    """Features of all images of a source, in its order.

    Args:
        batch_size: images per forward pass, None for what suits the device; changes speed and memory, not the numbers.
        cache: where features are looked up and kept; None computes all of them.
        readers: threads that read and decode ahead, 1 or more.
        progress: called with images done and images in all, after each block.

    Raises:
        UserError: a feature is not finite, or a file can't be read any more.
    """
    function = partial(feature_arrays, extractor, batch_size=batch_size)
    arrays = map_blocks(source, extractor.key, function, cache=cache, readers=readers, progress=progress)
    return Features(arrays["features"], arrays.get("probabilities"))


def extract_moments(
    source: ImageSource,
    extractor: Extractor,
    *,
    batch_size: int | None = None,
    cache: FeatureCache | None = None,
    readers: int = 2,
    progress: Progress = no_progress,
) -> Moments:
    """Moments of a source's features, in float64, of which no more than a few blocks are in memory at a time."""
    function = partial(feature_arrays, extractor, batch_size=batch_size)
    total: Moments | None = None
    for arrays in stream_blocks(source, extractor.key, function, cache=cache, readers=readers, progress=progress):
        part = Moments.of(arrays["features"])
        total = part if total is None else total.merge(part)
    assert total is not None, "a source has images"
    return total


def map_blocks(
    source: ImageSource,
    key: str,
    function: Callable[[np.ndarray], Arrays],
    *,
    cache: FeatureCache | None = None,
    readers: int = 2,
    progress: Progress = no_progress,
) -> Arrays:
    """A function's arrays of all images, in the source's order; see `stream_blocks`."""
    return gather(len(source), stream_blocks(source, key, function, cache=cache, readers=readers, progress=progress))


def stream_blocks(
    source: ImageSource,
    key: str,
    function: Callable[[np.ndarray], Arrays],
    *,
    cache: FeatureCache | None = None,
    readers: int = 2,
    progress: Progress = no_progress,
) -> Iterator[Arrays]:
    """A function's arrays block by block, in the source's order.

    Args:
        key: everything besides the pixels that moves the numbers: what they are cached under.
        function: uint8 (n, H, W, C) to arrays of n rows; called in this thread, with n as it comes.
    """
    with ThreadPoolExecutor(readers) as pool, Keeper(key, cache) as keeper:

        def start(block: Block) -> Callable[[], Arrays]:
            reading = pool.submit(_known_or_read, keeper, block)

            def finish() -> Arrays:
                arrays, pixels = reading.result()
                return keeper.keep(block, function(pixels)) if arrays is None else arrays

            return finish

        yield from in_order(source, start, ahead=readers, progress=progress)


def in_order(source: ImageSource, start: Start, *, ahead: int, progress: Progress = no_progress) -> Iterator[Arrays]:
    """Arrays block by block, in the source's order; `ahead` blocks are begun before the one that is waited for ends."""
    waiting: deque[tuple[Block, Callable[[], Arrays]]] = deque()
    todo = iter(source.blocks)
    done = 0
    while True:
        for block in islice(todo, ahead + 1 - len(waiting)):
            waiting.append((block, start(block)))
        if not waiting:
            return
        block, finish = waiting.popleft()
        arrays = finish()
        done += block.count
        progress(done, len(source))
        yield arrays


class Keeper:
    """A cache for one key, or none; written in a thread beside the computing. A context manager: its end waits."""

    def __init__(self, key: str, cache: FeatureCache | None) -> None:
        self.key, self.cache = key, cache
        self._pool = ThreadPoolExecutor(1)
        self._writing: list[Future[None]] = []

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()
        for each in self._writing:
            each.result()
        if self.cache is not None and self._writing:
            self.cache.cut()

    def known(self, block: Block) -> Arrays | None:
        """A block's arrays if they were computed before."""
        return self.cache.get(block.sha256, self.key) if self.cache is not None else None

    def keep(self, block: Block, arrays: Arrays) -> Arrays:
        """The same arrays, on their way to the cache."""
        if self.cache is not None:
            self._writing.append(self._pool.submit(self.cache.put, block.sha256, self.key, arrays))
        return arrays


def gather(count: int, parts: Iterator[Arrays]) -> Arrays:
    """Arrays of consecutive blocks as one of `count` rows each, never held twice."""
    result: Arrays = {}
    at = 0
    for part in parts:
        rows = len(next(iter(part.values())))
        for name, values in part.items():
            if at == 0:
                result[name] = np.empty((count, *values.shape[1:]), values.dtype)
            result[name][at : at + rows] = values
        at += rows
    assert at == count, f"{at} rows of {count} images"
    return result


def feature_arrays(extractor: Extractor, pixels: np.ndarray, *, batch_size: int | None = None) -> Arrays:
    """Features and, where the network has classes, probabilities, by name."""
    found = extractor.features(pixels, batch_size)
    arrays = {"features": found.features, "probabilities": found.probabilities}
    return {name: values for name, values in arrays.items() if values is not None}


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar of images on stderr for a command's eyes; where stderr is no terminal, nothing."""
    with tqdm(desc=what, unit="image", file=sys.stderr, disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _known_or_read(keeper: Keeper, block: Block) -> tuple[Arrays | None, np.ndarray]:
    """A block's arrays if they are known, else its pixels."""
    arrays = keeper.known(block)
    return arrays, np.empty(0, np.uint8) if arrays is not None else block.read()
