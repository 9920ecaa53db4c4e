"""What an ablation consists of: its configuration, its cells, and where their files are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.config import ClusterConfig
from cluster.errors import UserError
from downstream.arms import ARMS, EXTRA_ARMS, SYNTHETIC_ARMS, Arm, ExtraClasses
from downstream.classifiers import PIXELS, ClassifierName
from downstream.fit import FitSettings
from downstream.statistics import Metric


@dataclass(frozen=True, kw_only=True)
class Primary:
    """The one comparison that is named in advance; everything else is secondary."""

    arm: Arm = "synthetic"
    """Compared with real and with duplicate_real."""
    metric: Metric = "auroc"
    """Score that is compared."""
    fraction: float | None = None
    """Default: the smallest."""
    ratio: float | None = None
    """Default: the first given."""
    classifier: ClassifierName | None = None
    """Default: the first given."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Find out whether synthetic images make a classifier better, by how much, and whether that is more than chance.

    Trains generators on fractions of the training split, samples pools of images from them, fits classifiers with and
    without, and scores all of them on the same test images. The same command again does the missing work only; it may
    ask for more arms, fractions, ratios, classifiers or seeds than before.
    """

    data: Path
    """Dataset with train, val and test splits, as vaegan.prepare writes it."""
    out: Path
    """Folder for everything; on a cluster, on storage that all nodes share."""
    recipe: Path | None = None
    """Recipe of the generators, such as configs/demo.yaml; it must be conditional, since pools need labels."""
    synthetic: Path | None = None
    """Dataset with ready synthetic images to use instead of training generators."""
    arms: tuple[Arm, ...] = ARMS
    """What to train classifiers on."""
    fractions: tuple[float, ...] = (0.1,)
    """Shares of the training patients that count as what is there; each is inside the larger ones."""
    ratios: tuple[float, ...] = (1.0,)
    """Extra rows over real rows."""
    classifiers: tuple[ClassifierName, ...] = ("small_cnn",)
    """Which classifiers."""
    generator_seeds: int = 2
    """How many generators for each fraction."""
    pool_seeds: int = 2
    """How many pools of images from each generator."""
    classifier_seeds: int = 3
    """How many fits of each classifier to the same rows."""
    steps: int = 300
    """Optimiser steps of every fit, in every arm."""
    batch_size: int = 32
    """Images per optimiser step of the classifiers."""
    learning_rate: float = 3e-3
    """Of the classifiers; the small CNN's best of the tried ones. A resnet18 that starts from weights wants a tenth."""
    weights: Path | None = None
    """State dict that resnet18 starts from; without it, random numbers."""
    features: str = PIXELS
    """What logistic reads: pixels, or an extractor such as torchvision:squeezenet1_1=FILE."""
    extra_classes: ExtraClasses = "as_real"
    """Labels of extra rows: in the real rows' proportions, or each class equally often (balanced)."""
    latent: Literal["prior", "mixture", "gaussian", "full_mixture", "flow"] = "prior"
    """Where the generators' latent vectors come from; the recipe's latents.sources must have it."""
    extractors: tuple[str, ...] = ("domain",)
    """For the metrics of each generator's images; see vaegan.evaluate. None skips them: --extractors []."""
    primary: Primary = field(default_factory=Primary)
    """The comparison named in advance."""
    subset_seed: int = 0
    """Decides which patients a fraction holds."""
    min_images_per_class: int = 4
    """A fraction that holds fewer of a class is refused."""
    gpus_per_task: float = 0.0
    """Share of a GPU that each generator, pool, metric and cell takes; 0 keeps to CPUs."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Which Ray cluster."""

    def __post_init__(self) -> None:
        for name in ("arms", "fractions", "ratios", "classifiers"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}: expected at least one, and each once")
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions are {list(self.fractions)}: expected numbers above 0, 1 being all of train")
        if not all(0 < ratio <= 100 for ratio in self.ratios):
            raise ValueError(f"ratios are {list(self.ratios)}: expected numbers above 0, up to 100")
        for name in ("generator_seeds", "pool_seeds", "classifier_seeds", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: expected a number above 0")
        lacking = {"real", "duplicate_real"} - set(self.arms)
        if self.primary.arm in self.arms and lacking:
            raise ValueError(
                f"arms lack {' and '.join(sorted(lacking))}: {self.primary.arm} is judged against both; add them"
            )
        if self.primary.fraction not in (None, *self.fractions) or self.primary.ratio not in (None, *self.ratios):
            raise ValueError("primary.fraction and primary.ratio must be among fractions and ratios")
        if self.primary.classifier not in (None, *self.classifiers):
            raise ValueError(f"primary.classifier is {self.primary.classifier}: expected one of {self.classifiers}")
        if self.needs_synthetic and (self.recipe is None) == (self.synthetic is None):
            found = "neither" if self.recipe is None else "both"
            raise ValueError(
                f"{found} of recipe and synthetic given: expected one, such as --recipe configs/demo.yaml to train "
                "generators or --synthetic DATASET for ready images"
            )

    @property
    def needs_synthetic(self) -> bool:
        return bool(SYNTHETIC_ARMS.intersection(self.arms))

    @property
    def trains_generators(self) -> bool:
        return self.needs_synthetic and self.synthetic is None

    @property
    def fit(self) -> FitSettings:
        return FitSettings(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weights=self.weights,
            features=self.features,
            device="cuda" if self.gpus_per_task else "cpu",
        )

    def resolved_primary(self) -> dict[str, Any] | None:
        """The primary comparison with nothing left open, as ablation.json has it; None where its arm isn't planned."""
        if self.primary.arm not in self.arms:
            return None
        return {
            "arm": self.primary.arm,
            "metric": self.primary.metric,
            "fraction": self.primary.fraction or min(self.fractions),
            "ratio": self.primary.ratio or self.ratios[0],
            "classifier": self.primary.classifier or self.classifiers[0],
            "against": ["real", "duplicate_real"],
        }


@dataclass(frozen=True)
class Generator:
    """One generator to train."""

    fraction: float
    seed: int

    @property
    def id(self) -> str:
        return f"f{self.fraction:g}_g{self.seed}"


@dataclass(frozen=True)
class Pool:
    """One pool of synthetic rows: of a generator, or (generator None) drawn from ready ones."""

    generator: Generator | None
    fraction: float
    seed: int

    @property
    def id(self) -> str:
        return f"{self.generator.id}_p{self.seed}" if self.generator else f"p{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One fit of one classifier to one arm's rows."""

    arm: Arm
    classifier: ClassifierName
    fraction: float
    ratio: float  # 0 where the arm has no extra rows
    pool: Pool | None
    seed: int

    @property
    def id(self) -> str:
        ratio = f"_r{self.ratio:g}" if self.ratio else ""
        pool = f"_{self.pool.id}" if self.pool and not self.pool.generator else ""
        if self.pool and self.pool.generator:
            pool = f"_g{self.pool.generator.seed}_p{self.pool.seed}"
        return f"{self.classifier}_{self.arm}_f{self.fraction:g}{ratio}{pool}_s{self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """Its columns of results.parquet."""
        return {
            "arm": self.arm,
            "classifier": self.classifier,
            "fraction": self.fraction,
            "ratio": self.ratio,
            "generator_seed": self.pool.generator.seed if self.pool and self.pool.generator else None,
            "pool_seed": self.pool.seed if self.pool else None,
            "classifier_seed": self.seed,
        }


def plan_generators(config: AblateConfig) -> list[Generator]:
    """All generators to train, those of the largest fraction first."""
    if not config.trains_generators:
        return []
    fractions = sorted(config.fractions, reverse=True)
    return [Generator(fraction, seed) for fraction in fractions for seed in range(config.generator_seeds)]


def plan_cells(config: AblateConfig) -> list[Cell]:
    """All cells, sorted by fraction and arm."""
    return [
        Cell(arm, classifier, fraction, ratio, pool, seed)
        for fraction in sorted(config.fractions)
        for arm in config.arms
        for ratio in (config.ratios if arm in EXTRA_ARMS else (0.0,))
        for pool in _pools(config, arm, fraction)
        for classifier in config.classifiers
        for seed in range(config.classifier_seeds)
    ]


def _pools(config: AblateConfig, arm: Arm, fraction: float) -> Iterator[Pool | None]:
    if arm not in SYNTHETIC_ARMS:
        yield None
        return
    for generator_seed in range(config.generator_seeds) if config.trains_generators else (None,):
        generator = None if generator_seed is None else Generator(fraction, generator_seed)
        for seed in range(config.pool_seeds):
            yield Pool(generator, fraction, seed)


@dataclass(frozen=True)
class Folder:
    """The files of an ablation."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def named(self) -> Path:
        return self.root / "named.json"

    @property
    def manifest(self) -> Path:
        return self.root / "ablation.json"

    def generator(self, generator: Generator) -> Path:
        return self.root / "generators" / generator.id

    def pool(self, pool: Pool) -> Path:
        return self.root / "synthetic" / pool.id

    def metrics(self, generator: Generator | None) -> Path:
        return self.root / "metrics" / f"{generator.id if generator else 'synthetic'}.json"

    def cell(self, cell: Cell) -> Path:
        return self.root / "cells" / f"{cell.id}.parquet"


def check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise a UserError that names the settings in which an ablation begun in `folder` differs from this one."""
    differ = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differ:
        key = differ[0]
        raise UserError(
            f"{folder} holds an ablation that differs in {', '.join(differ)} ({key} was {before.get(key)!r} and is "
            f"{now.get(key)!r}): choose another --out, or repeat the first settings to finish it"
        )
