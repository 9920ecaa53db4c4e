"""In what order rows of a dataset's files are seen that are too many for memory: arithmetic, nothing is read here.

The files are permuted by (seed, epoch), and so are the row groups of each `files_at_once` of them. The result is one
sequence of all rows, cut into equal runs, one for each worker, less an incomplete last batch: every row is seen at most
once in an epoch, all workers take equally many batches, and which rows are left over differs by epoch. A worker's run
is cut into windows of whole row groups, and a window's rows are permuted by (seed, epoch, place).

Order is therefore a function of row groups, settings, seed, epoch, rank and number of workers, and any step of any
epoch can be the first. Each of N workers reads an N-th: their batches together aren't those that one would see.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

MIN_GROUPS = 16
"""Row groups in a window, where a worker has so many: neighbours in a file rarely meet in a batch."""


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of a row group: all of them, but where one worker's run ends and the next one's begins."""

    file: int
    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows that are mixed with each other."""

    at: int
    """Where the first row stands in the epoch's sequence."""
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(part.stop - part.start for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which rows one of several workers sees, and when: arithmetic on row groups' lengths, nothing is read."""

    groups: tuple[tuple[int, ...], ...]
    """For each file, the number of rows in each of its row groups."""
    seed: int
    batch_size: int
    """Of all workers together."""
    window_rows: int
    files_at_once: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return sum(map(sum, self.groups)) // self.batch_size

    @property
    def share(self) -> int:
        """Rows of a batch that this worker gets."""
        return self.batch_size // self.world_size

    def sequence(self, epoch: int) -> list[tuple[int, int]]:
        """(file, row group) of all row groups in the order of an epoch, the same for all workers."""
        rng = np.random.default_rng([self.seed, epoch])
        files = rng.permutation(len(self.groups))
        found: list[tuple[int, int]] = []
        for some in np.array_split(files, max(1, len(files) // self.files_at_once)):
            pool = [(int(file), group) for file in some for group in range(len(self.groups[file]))]
            found += [pool[i] for i in rng.permutation(len(pool))]
        return found

    def windows(self, epoch: int) -> list[Window]:
        """What this worker reads in an epoch: together `steps_per_epoch` times `share` rows."""
        rows = self.steps_per_epoch * self.share
        parts, at = [], -self.rank * rows  # of the row group's first row, counted from the run's
        for file, group in self.sequence(epoch):
            length = self.groups[file][group]
            start, stop = max(0, -at), min(length, rows - at)
            if start < stop:
                parts.append(Part(file, group, start, stop))
            at += length
        # as many as memory asks for, unless that would leave fewer than MIN_GROUPS in one
        number = max(1, min(-(-rows // self.window_rows), len(parts) // MIN_GROUPS))
        windows, at = [], self.rank * rows
        for some in np.array_split(np.arange(len(parts)), number):
            windows.append(Window(at, tuple(parts[i] for i in some)))
            at += len(windows[-1])
        return windows

    def windows_from(self, step: int, stop: int) -> Iterator[tuple[int, Window, int]]:
        """(epoch, window, rows to leave out at its beginning) from a step to before `stop`, over all epochs."""
        left = (stop - step) * self.share
        skip = step % self.steps_per_epoch * self.share
        for epoch in count(step // self.steps_per_epoch):
            for window in self.windows(epoch):
                if left <= 0:
                    return
                if skip < len(window):
                    yield epoch, window, skip
                    left -= len(window) - skip
                skip = max(0, skip - len(window))

    def places(self, epoch: int, window: Window) -> np.ndarray:
        """Where in the window each of its rows goes, (len(window),), row by row of its parts."""
        return np.random.default_rng([self.seed, epoch, window.at]).permutation(len(window))
