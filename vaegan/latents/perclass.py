"""A latent source of one part for each class, and one for all images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class Density(Protocol):
    """A distribution of latents without labels."""

    def sample(self, seed: np.ndarray | int, index: np.ndarray, truncation: float, stream: int = 0) -> np.ndarray: ...

    def log_density(self, z: np.ndarray) -> np.ndarray: ...

    def tensors(self) -> dict[str, np.ndarray]: ...


Part = TypeVar("Part", bound=Density)


@dataclass(frozen=True)
class PerClass(Generic[Part]):
    """Densities by class index; -1 is that of all images together."""

    parts: dict[int, Part]

    def part_of(self, labels: np.ndarray) -> np.ndarray:
        """Which part (N,) serves rows of labels (N, K): that of their class if they have just one and it has a part."""
        if not labels.shape[1]:
            return np.full(len(labels), -1)
        single = np.where(labels.sum(axis=1) == 1, labels.argmax(axis=1), -1)
        return np.where(np.isin(single, list(self.parts)), single, -1)

    def by_part(self, labels: np.ndarray, rows_of: Callable[[Part, np.ndarray], np.ndarray]) -> np.ndarray:
        """What `rows_of(part, rows)` gives for the rows of each part, in the order of the labels (N, K)."""
        number = self.part_of(labels)
        groups = [(int(k), np.flatnonzero(number == k)) for k in np.unique(number)] or [(-1, np.arange(0))]
        found = np.concatenate([rows_of(self.parts[k], rows) for k, rows in groups])
        return found[np.argsort(np.concatenate([rows for _, rows in groups]))]

    def sample(
        self, labels: np.ndarray, seed: np.ndarray | int, index: np.ndarray, truncation: float, stream: int = 0
    ) -> np.ndarray:
        """Latents (N, D), float32, for labels (N, K) and addresses (N,)."""
        seeds = np.broadcast_to(np.asarray(seed, dtype=np.int64), np.shape(index))
        return self.by_part(
            labels, lambda part, rows: part.sample(seeds[rows], np.asarray(index)[rows], truncation, stream)
        )

    def log_density(self, z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """log p(z | labels) (N,), in nats."""
        return self.by_part(labels, lambda part, rows: part.log_density(z[rows]))

    def tensors(self) -> dict[str, np.ndarray]:
        """What a model's file holds of it: NUMBER.PART."""
        return {f"{k}.{name}": value for k, part in self.parts.items() for name, value in part.tensors().items()}

    @staticmethod
    def from_tensors(
        tensors: Mapping[str, np.ndarray], part: Callable[[Mapping[str, np.ndarray]], Any]
    ) -> "PerClass[Any]":
        """What `tensors` returned, as it was; `part` makes one of its own tensors."""
        grouped: dict[int, dict[str, np.ndarray]] = {}
        for name, value in tensors.items():
            number, _, rest = name.partition(".")
            grouped.setdefault(int(number), {})[rest] = value
        return PerClass({number: part(grouped[number]) for number in sorted(grouped)})


def below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
