"""The judge: a generator's images beside held-out real films, and real films in the generator's place as the floor."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.storage import read_json, text_sha256, write_json
from quality_study.cases import CaseData, shared_folder
from quality_study.generators import Generator
from quality_study.tstr import STEPS, classifier_auroc
from vaegan.evaluation.comparison import Comparison, Rows
from vaegan.evaluation.measure import units
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extraction import extract
from vaegan.metrics.extractor import Extractor
from vaegan.metrics.features import make_extractor
from vaegan.metrics.intervals import DEFAULT
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.neighbours import nearest
from vaegan.metrics.privacy.alignment import detail
from vaegan.metrics.privacy.copies import CANDIDATES, Fingerprints, Matches, find_matches
from vaegan.metrics.privacy.proximity import neighbour_ratio
from vaegan.metrics.sources import source_of
from vaegan.shards import Images

JUDGE_VERSION = 1
"""Raised when a change here or in `vaegan.metrics` moves a number: every model is then judged again, none retrained."""
SEED = 2020
"""Of every draw: synthetic images, the floor's films, subsets."""
FLOOR_DRAWS = 5
WEIGHTS = {
    "inception": ("inception:768", "inception_v3_imagenet_to_mixed7_fp16.safetensors"),
    "squeezenet": ("torchvision:squeezenet1_1", "squeezenet1_1_imagenet.safetensors"),
}
WITHOUT_WEIGHTS = "gist"
SLOW = ("inception",)
"""Extractors that take more time than all else of a judgement: of the sources that a recipe doesn't draw from they see
every fourth image, and give the kernel distance alone, whose expectation does not depend on the number of images."""
EVERY = 4
DISTANCES = ("frechet_distance", "kernel_distance")
"""Those whose gap to the floor is of interest; of the others the floor stands beside them."""


@dataclass(frozen=True)
class JudgeSettings:
    """How much the judge looks at."""

    num_synthetic: int = 1000
    """Images of a model, and of real films in the floor; fewer where there are fewer: `synthetic_count`."""
    classifier_steps: int = STEPS
    without_weights: bool = False
    """Judge with `gist`, which needs no file: --quick."""

    @property
    def extractors(self) -> tuple[str, ...]:
        return (WITHOUT_WEIGHTS,) if self.without_weights else tuple(WEIGHTS)


class Judge:
    """What is the same for every model of a case, and the comparison of one model with it.

    Args:
        folder: where features and floors are kept.
    """

    def __init__(self, data: CaseData, reference: str, settings: JudgeSettings, folder: Path) -> None:
        self.data, self.reference, self.settings = data, reference, settings
        self.cache = FeatureCache(folder / "features")
        self.folder = folder / "floors"
        self.extractors = {name: _extractor(name) for name in settings.extractors}
        self.count = synthetic_count(data, settings.num_synthetic)
        self.labels = self._proportioned(data.reference.labels)
        self._reference_rows = {name: self._rows(data.reference, each) for name, each in self.extractors.items()}
        self._pool_rows = {name: self._rows(data.pool, each) for name, each in self.extractors.items()}

    # ------------------------------------------------------------------------------------------------------- the floor
    @property
    def floor(self) -> dict[str, Any]:
        """What real training films score in the synthetic ones' place, mean over draws; computed once a case.

        Films of the whole's training part, with the reference's labels and as many as the synthetic images, also where
        the generator has seen a hundred of them: it is the population that it should reach.
        """
        path = self.folder / f"{self.data.case.name}-{self.reference}.json"
        about = {
            "judge": JUDGE_VERSION, "case": self.data.case.deciding, "count": self.count, "draws": FLOOR_DRAWS,
            "extractors": [each.key for each in self.extractors.values()],
        }  # fmt: skip
        key = text_sha256(repr(about))
        if path.exists() and (found := read_json(path))["key"] == key:
            return found
        rng = np.random.default_rng(SEED)
        draws = [self._real_rows(rng) for _ in range(FLOOR_DRAWS)]
        metrics: dict[str, float] = {}
        for name in self.extractors:
            scores = [self._distances(name, self._pool_rows[name].take(rows)) for rows in draws]
            metrics |= {f"{name}_{metric}": _mean([s[metric] for s in scores]) for metric in scores[0]}
        copies = self._matches(self.data.reference.pixels, self._reference_rows[self._first]).copied
        found = {"key": key, "metrics": metrics, "copies": int(copies.sum()), "num_held_out": len(copies)}
        write_json(path, found)
        return found

    def real_auroc(self, seed: int) -> float | None:
        """AUROC of the classifier trained on the case's own real films; None with one class."""
        if self.data.train.labels.shape[1] < 2:
            return None
        path = self.folder / f"{self.data.case.name}-{self.reference}-real-{seed}.json"
        key = text_sha256(repr([JUDGE_VERSION, self.data.case.deciding, self.settings.classifier_steps]))
        if not path.exists() or read_json(path)["key"] != key:
            write_json(path, {"key": key} | self._classifier(self.data.train.pixels, self.data.train.labels, seed))
        return read_json(path)["auroc"]

    # -------------------------------------------------------------------------------------------------------- the model
    def judge(self, generator: Generator, latent: str, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
        """A record's numbers.

        Args:
            latent: the source that the recipe draws from, judged in full; of the others the distances alone.
            seed: the run's, for the classifier.

        Raises:
            UserError: the model has no such source.
        """
        if latent not in generator.sources:
            raise UserError(f"no latent source {latent!r} in the model: it has {', '.join(generator.sources)}")
        started_s = time.monotonic()
        floor = self.floor
        pixels = generator.sample(self.labels, SEED, latent)
        progress(f"judging {self.count} samples of {latent}")
        rows = {name: self._rows(_unnamed(pixels), each) for name, each in self.extractors.items()}
        metrics = self._all_distances(rows)
        progress("looking for copies")
        privacy = self._privacy(pixels, rows[self._first])
        others = {}
        for source in (each for each in generator.sources if each != latent):
            progress(f"judging samples of {source}, in short")
            others[source] = self._in_short(generator.sample(self.labels, SEED, source))
        progress("training a classifier")
        return {
            "latent": latent,
            "metrics": metrics | privacy | self._reconstruction(generator) | self._tstr(generator, latent, seed),
            "other_sources": others,
            "floor": floor["metrics"] | {name: floor[name] for name in ("copies", "num_held_out")},
            "num_training": len(self.data.train),
            "num_reference": len(self.data.reference),
            "num_synthetic": self.count,
            "covariance": {name: self._comparison(name, self._pool_rows[name]).covariance for name in self.extractors},
            "judge_s": round(time.monotonic() - started_s, 1),
        }

    def _all_distances(self, rows: dict[str, Rows]) -> dict[str, float]:
        """By extractor and metric, with the gaps."""
        by_name = {name: self._distances(name, each) for name, each in rows.items()}
        found = {f"{name}_{metric}": value for name, each in by_name.items() for metric, value in each.items()}
        return found | _gaps(found, self.floor["metrics"])

    def _in_short(self, pixels: np.ndarray) -> dict[str, float]:
        """The numbers that take little time; see `SLOW`."""
        quick = {name: each for name, each in self.extractors.items() if name not in SLOW}
        found = self._all_distances({name: self._rows(_unnamed(pixels), each) for name, each in quick.items()})
        for name in set(self.extractors) - set(quick):
            some = self._rows(_unnamed(pixels[::EVERY]), self.extractors[name]).features.features
            real = self._reference_rows[name].features.features
            found[f"{name}_kernel_distance"] = kernel_distance(real, some, seed=SEED).value
        return found | _gaps(found, self.floor["metrics"])

    def _privacy(self, pixels: np.ndarray, rows: Rows) -> dict[str, float]:
        """How near the images lie to the generator's own training films, and how many are copies of one."""
        member, other = self._pool_rows[self._first].take(self.data.rows), self._reference_rows[self._first]
        real = np.concatenate([member.features.features, other.features.features])
        _, patients = np.unique(np.concatenate([member.patients, other.patients]), return_inverse=True)
        is_member = np.arange(len(real)) < len(member)
        ratio = neighbour_ratio(rows.features.features, real, patients, is_member, seed=SEED)
        return {"neighbour_ratio": ratio.median, "copies": int(self._matches(pixels, rows).copied.sum())}

    def _matches(self, pixels: np.ndarray, rows: Rows) -> Matches:
        """For each image the training film most like it."""
        train = self.data.train
        member = self._pool_rows[self._first].take(self.data.rows)
        near = nearest(rows.features.features, member.features.features, CANDIDATES)
        _, patients = np.unique(train.patient_id.astype(str), return_inverse=True)
        return find_matches(
            Fingerprints.of(pixels), Fingerprints.of(train.pixels), patients,
            lambda chosen: detail(pixels[chosen]), lambda chosen: detail(train.pixels[chosen]),
            {self._first: near.rows},
        )  # fmt: skip

    def _reconstruction(self, generator: Generator) -> dict[str, float]:
        """Mean squared error in [-1, 1] of held-out films decoded from their posteriors' means."""
        found = generator.reconstruct(self.data.reference.pixels, self.data.reference.labels)
        if found is None:
            return {}
        error = (found.astype(np.float64) - self.data.reference.pixels) / 127.5
        return {"reconstruction_mse": float(np.square(error).mean())}

    def _tstr(self, generator: Generator, latent: str, seed: int) -> dict[str, float]:
        """AUROC of a classifier trained on as many synthetic films as the case has real ones, with their labels."""
        real = self.real_auroc(seed)
        if real is None:
            return {}
        labels = self.data.train.labels
        found = self._classifier(generator.sample(labels, SEED + 1, latent), labels, seed)["auroc"]
        return {"tstr_auroc": found, "real_auroc": real, "tstr_over_real": found / real}

    def _classifier(self, pixels: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
        task: Any = self.data.task
        return classifier_auroc(
            pixels, labels, self.data.reference, task=task, seed=seed, steps=self.settings.classifier_steps
        )

    # ------------------------------------------------------------------------------------------------------------ parts
    @property
    def _first(self) -> str:
        """The extractor that nearest neighbours are looked up with."""
        return next(iter(self.extractors))

    def _rows(self, images: Images, extractor: Extractor) -> Rows:
        return Rows(extract(source_of(images), extractor, cache=self.cache, readers=1), units(images))

    def _distances(self, name: str, rows: Rows) -> dict[str, float]:
        comparison = self._comparison(name, rows)
        found = comparison.metrics(comparison.real, rows) | {"c2st_auc": comparison.auc(comparison.real, rows).auc}
        found.pop("classifier_score", None)  # photographs' classes say nothing of films
        return found

    def _comparison(self, name: str, rows: Rows) -> Comparison:
        """Which covariance is estimated how follows from the counts, which are the same for models and floor."""
        rows = rows.take(np.arange(self.count))
        return Comparison(self.extractors[name], self._reference_rows[name], rows, None, "", SEED, DEFAULT)

    def _proportioned(self, labels: np.ndarray) -> np.ndarray:
        """`count` label vectors in the proportions of these."""
        kinds, shares = _kinds(labels)
        return np.repeat(kinds, _apportioned(shares, self.count), axis=0)

    def _real_rows(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of the pool whose labels are `self.labels`, drawn without repetition."""
        kinds, wanted = np.unique(self.labels, axis=0, return_counts=True)
        there = [np.flatnonzero((self.data.pool.labels == kind).all(axis=1)) for kind in kinds]
        drawn = [rng.choice(rows, count, replace=False) for rows, count in zip(there, wanted, strict=True)]
        return np.concatenate(drawn)


def synthetic_count(data: CaseData, most: int) -> int:
    """How many images are compared: `most`, or as many as the pool has in the reference's proportions of labels."""
    kinds, shares = _kinds(data.reference.labels)
    available = [(data.pool.labels == kind).all(axis=1).sum() for kind in kinds]
    return min(most, *(int(there / share) for there, share in zip(available, shares, strict=True)))


def _kinds(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct label vectors (M, K) and their shares (M,)."""
    kinds, counts = np.unique(labels, axis=0, return_counts=True)
    return kinds, counts / counts.sum()


def _apportioned(shares: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers that sum to `count`: rounded down, the largest remainders up."""
    exact = shares * count
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _gaps(metrics: dict[str, float], floor: dict[str, float]) -> dict[str, float]:
    """Each distance minus what real films have."""
    return {f"{name}_gap": metrics[name] - floor[name] for name in metrics if name.endswith(DISTANCES)}


def _extractor(name: str) -> Extractor:
    if name == WITHOUT_WEIGHTS:
        return make_extractor(name)
    spec, file = WEIGHTS[name]
    path = shared_folder() / "weights" / file
    if not path.exists():
        raise UserError(f"no {path}: the judge needs it; set AUGRAY_SHARED to the folder that has weights/{file}")
    return make_extractor(f"{spec}={path}", device="cpu")


def _unnamed(pixels: np.ndarray) -> Images:
    """Synthetic images, each a patient of its own."""
    names = [f"synthetic {row}" for row in range(len(pixels))]
    return Images.real(pixels, np.zeros((len(pixels), 0), np.uint8), names, names)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
