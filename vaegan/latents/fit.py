"""Which latent sources a model gets, how each is fitted, and how a model's file holds them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vaegan.latents.flow import Flow
from vaegan.latents.gaussian import MIN_IMAGES, Gaussians, pooled
from vaegan.latents.mixture import Mixture
from vaegan.latents.perclass import PerClass
from vaegan.latents.posterior import Posterior

SourceName = Literal["mixture", "gaussian", "full_mixture", "flow"]


class LatentSource(Protocol):
    """A distribution of latents given labels, drawn from by address."""

    def sample(
        self, labels: np.ndarray, seed: np.ndarray | int, index: np.ndarray, truncation: float, stream: int = 0
    ) -> np.ndarray:
        """Latents (N, D), float32, for labels (N, K) and addresses (N,)."""

    def tensors(self) -> dict[str, np.ndarray]:
        """What a model's file holds of it."""


_READERS: dict[str, Callable[[Mapping[str, np.ndarray]], LatentSource]] = {
    "mixture": lambda tensors: PerClass.from_tensors(tensors, Mixture.from_tensors),
    "gaussian": lambda tensors: PerClass.from_tensors(tensors, Gaussians.from_tensors),
    "full_mixture": lambda tensors: PerClass.from_tensors(tensors, Gaussians.from_tensors),
    "flow": Flow.from_tensors,
}
SOURCES = tuple(_READERS)
"""All that can be fitted, in the order in which a model lists them."""


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Which distributions of latents are fitted to training images when a model is exported, beside the prior."""

    sources: tuple[SourceName, ...] = ("mixture", "gaussian")
    """Of mixture (diagonal), gaussian, full_mixture, and flow, which takes a minute and wants a thousand images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # JSON has lists
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown or len(set(self.sources)) < len(self.sources):
            raise ValueError(
                f"latents.sources is {', '.join(self.sources)}: expected some of {', '.join(SOURCES)}, each once"
            )


def groups_of(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Rows of all images (-1) and of each class, from labels (N, K)."""
    return {-1: np.arange(len(labels))} | {k: np.flatnonzero(labels[:, k]) for k in range(labels.shape[1])}


def fit_latents(
    images: Posterior, config: LatentsConfig, groups: Mapping[int, np.ndarray] | None = None
) -> dict[str, LatentSource]:
    """Latent sources by name, fitted to the posteriors of training images; a pure function of its arguments.

    Each source has the density of all images, which serves rows without a class or with several, and that of each class
    with enough of them: two for the diagonal mixture, `MIN_IMAGES` for the rest. Fewer than two images give none.

    Args:
        groups: rows of `images` behind each class's densities and, at -1, behind that of all; by default all there are.
    """
    if len(images) < 2:
        return {}
    groups = groups_of(images.labels) if groups is None else groups
    found: dict[str, LatentSource] = {}
    if "mixture" in config.sources:
        z = images.sample()
        found["mixture"] = PerClass({k: Mixture.fit(z[rows]) for k, rows in groups.items() if len(rows) > 1})
    if set(config.sources) <= {"mixture"}:
        return found
    target = pooled(images)
    enough = {k: images.take(rows) for k, rows in groups.items() if k < 0 or len(rows) >= MIN_IMAGES}
    gaussians = PerClass({k: Gaussians.fit(group, target) for k, group in enough.items()})
    fits: dict[str, Callable[[], LatentSource]] = {
        "gaussian": lambda: gaussians,
        "full_mixture": lambda: PerClass({k: Gaussians.fit_mixture(group, target) for k, group in enough.items()}),
        "flow": lambda: Flow.fit(images, gaussians),
    }
    return found | {name: fit() for name, fit in fits.items() if name in config.sources}


def tensors(sources: Mapping[str, LatentSource]) -> dict[str, np.ndarray]:
    """What a model's file holds of its sources: SOURCE.PART."""
    return {f"{name}.{part}": value for name, source in sources.items() for part, value in source.tensors().items()}


def of_sources(names: Iterable[str]) -> list[str]:
    """Those of a file's tensors that belong to latent sources, not to networks."""
    return [name for name in names if name.partition(".")[0] in _READERS]


def from_tensors(stored: Mapping[str, np.ndarray]) -> dict[str, LatentSource]:
    """The sources that `tensors` wrote, as they were; other tensors may stand among them."""
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name in of_sources(stored):
        source, _, part = name.partition(".")
        grouped.setdefault(source, {})[part] = stored[name]
    return {name: read(grouped[name]) for name, read in _READERS.items() if name in grouped}
