"""The order of images of several classes, and who gets which: a pure function of a seed. Knows no service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cluster.errors import UserError
from serve.client.requests import Classes, names_of


@dataclass(frozen=True)
class Part:
    """Some images of a block: `count` of the same classes, from index `start` on, and where in the block they stand.

    classes: names. positions: (count,), ascending.
    """

    classes: tuple[str, ...]
    start: int
    count: int
    positions: np.ndarray


@dataclass(frozen=True)
class Mix:
    """An endless order of addresses in blocks, each with the same number of images of each class, shuffled.

    Position p of the order is in block p // block_size. The images of a class take its indices start, start + 1, …
    in order, so that no address comes twice, each block costs one request per class, and any block is known without
    those before it.

    classes: the class or classes of each kind of image. parts: how many of each kind in sum(parts) images.
    seed: of the addresses, and of the shuffling. start: each class's first index.
    block_size: a multiple of sum(parts).
    """

    classes: tuple[tuple[str, ...], ...]
    parts: tuple[int, ...]
    seed: int
    start: int
    block_size: int

    @classmethod
    def of(cls, parts: Mapping[Classes, int], *, seed: int, start: int = 0, block_size: int = 512) -> Mix:
        """The mix with as many images of each class as `parts` says in their sum: {"normal": 1, "effusion": 3}.

        Args:
            parts: from one class, or a tuple of several, or () for a model without any, to a whole number.
            block_size: lowered to the multiple of the sum of parts below it, or raised to that sum.

        Raises:
            UserError: a part is no whole number from 1 on, or there is none.
        """
        bad = [value for value in parts.values() if not isinstance(value, int) or isinstance(value, bool) or value < 1]
        if bad or not parts:
            found = bad[0] if bad else "nothing"
            raise UserError(
                f"the mix of classes has {found!r} as a part, expected whole numbers from 1 on; "
                'for a quarter of one class and the rest of another write {"one": 1, "another": 3}'
            )
        if seed < 0 or start < 0:
            raise UserError(f"seed {seed}, start {start}: expected 0 or more")
        whole = sum(parts.values())
        size = max(1, block_size // whole) * whole
        return cls(tuple(map(names_of, parts)), tuple(parts.values()), seed, start, size)

    def block(self, number: int, size: int | None = None) -> list[Part]:
        """The images of a block, by class; only those at its first `size` positions where that is given."""
        per_class = [count * (self.block_size // sum(self.parts)) for count in self.parts]
        order = np.repeat(np.arange(len(per_class)), per_class)
        np.random.default_rng([self.seed, number]).shuffle(order)
        order = order[:size]
        parts = []
        for kind, (classes, count) in enumerate(zip(self.classes, per_class, strict=True)):
            positions = np.flatnonzero(order == kind)
            if len(positions):
                parts.append(Part(classes, self.start + number * count, len(positions), positions))
        return parts

    def blocks(self, count: int | None, share: int = 0, shares: int = 1) -> Iterator[tuple[int, int]]:
        """Number and size of the blocks that hold the order's first `count` positions, for one of several shares.

        Block b belongs to share b modulo `shares`; all shares together are the whole order. Endless where `count` is
        None.
        """
        number = share
        while count is None or number * self.block_size < count:
            left = self.block_size if count is None else count - number * self.block_size
            yield number, min(self.block_size, left)
            number += shares

    def addresses(self, count: int) -> Iterator[tuple[tuple[str, ...], int]]:
        """Classes and index of the order's first `count` positions."""
        for number, size in self.blocks(count):
            found: list[tuple[tuple[str, ...], int]] = [((), 0)] * size
            for part in self.block(number, size):
                for position, index in zip(part.positions, range(part.start, part.start + part.count), strict=True):
                    found[position] = (part.classes, index)
            yield from found
