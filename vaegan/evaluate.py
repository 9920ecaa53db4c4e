"""Compare synthetic images with real ones: every metric with its interval, its real-vs-real floor and its stamp.

    python -m vaegan.evaluate --real data/real --synthetic data/synthetic --out metrics.json \\
        --extractors domain torchvision:squeezenet1_1=squeezenet1_1.safetensors
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.cli import run_command
from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import file_sha256, read_json, write_json
from vaegan.classifier import Task
from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.features import make_extractor, split_spec, weights_file
from vaegan.metrics.frechet import Covariance, frechet_distance_of_features, needs_shrinkage
from vaegan.metrics.inception_score import inception_score
from vaegan.metrics.intervals import DEFAULT, Subsampling, disjoint_halves, interval, standard_errors
from vaegan.metrics.kernel import kernel_distance
from vaegan.metrics.manifold import manifold_metrics
from vaegan.shards import Images, dataset_sha256, read_manifest, read_split

FORMAT_VERSION = 1
MIN_IMAGES = 24
"""On either side: half of a half must still hold more than five neighbours."""
MIN_HELD_OUT = 100
"""A held-out split below it says less than two halves of the reference do."""
FLOOR_REPEATS = 5
SCORE_SPLITS = 10
IMAGES_PER_SCORE_SPLIT = 100
"""Fewer than that per split, and one split takes all: a score of a few images mostly tells how few they are."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Metric:
    """How a number is called and read."""

    words: str
    published_name: str | None
    """Its name with the FID network; other extractors' numbers never have it."""
    better: str
    lowest: float = -math.inf
    highest: float = math.inf


METRICS = {
    "frechet_distance": Metric("Fréchet distance", "FID", "lower", lowest=0),
    "kernel_distance": Metric("Kernel distance", "KID", "lower"),
    "classifier_score": Metric("Classifier score", "Inception Score", "higher", lowest=1),
    "precision": Metric("Precision", None, "higher", 0, 1),
    "recall": Metric("Recall", None, "higher", 0, 1),
    "density": Metric("Density", None, "higher", lowest=0),
    "coverage": Metric("Coverage", None, "higher", 0, 1),
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare a synthetic dataset with a real one; write metrics.json and print a table."""

    real: Path
    """Dataset with the real images."""
    synthetic: Path
    """Dataset with the synthetic images."""
    out: Path
    """File to write, such as metrics.json. One that answers the same question is kept."""
    real_split: str = "train"
    """Split of the real dataset to compare with; the domain extractor is trained on it."""
    synthetic_split: str = "train"
    """Split of the synthetic dataset."""
    held_out_split: str = "val"
    """Split of the real dataset for the real-vs-real floor; where it is absent or has fewer than 100 images, or with
    "none", two halves of --real-split that share no patient take its place."""
    extractors: tuple[str, ...] = ("domain",)
    """One or more of: domain (a classifier trained on the real images); inception or inception=FILE (the FID network,
    downloaded where no file is given); torchvision:ARCH=FILE (ARCH as squeezenet1_1, FILE a .safetensors or .pth)."""
    weights: Path | None = None
    """File for the one extractor that is given without =FILE."""
    seed: int = 2020
    """Of subsets, splits and the domain extractor; 2020 draws KID's and IS's as torch-fidelity does."""
    batch_size: int = 32
    """Images per forward pass; changes speed and memory, not the numbers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch-size ({self.batch_size}) must be at least 1")


def evaluate_images(
    real: Images,
    synthetic: Images,
    extractors: Sequence[Extractor],
    *,
    held_out: Images | None = None,
    seed: int = 2020,
    subsampling: Subsampling = DEFAULT,
    batch_size: int = 32,
    inputs: dict[str, str] | None = None,
    progress: Progress = lambda _line: None,
) -> dict[str, Any]:
    """The content of metrics.json: all metrics of `METRICS` under each extractor.

    Args:
        real: the reference. held_out: real images the generator has not seen, for the floor; None, or fewer than
            `MIN_HELD_OUT`, takes two halves of the reference.
        inputs: name of each thing read, to its sha256, for the provenance.

    Raises:
        UserError: too few images, or images of two different shapes.
    """
    started_s = time.time()
    _check(real, synthetic, held_out)
    unseen = None if held_out is None or len(held_out) < MIN_HELD_OUT else held_out
    numbers = []
    for extractor in extractors:
        progress(f"{extractor.name}: features of {len(real)} real and {len(synthetic)} synthetic images")
        comparison = Comparison(
            extractor,
            extractor.features(real.pixels, batch_size),
            extractor.features(synthetic.pixels, batch_size),
            None if unseen is None else extractor.features(unseen.pixels, batch_size),
            _floor_words(held_out, unseen),
            patients(real),
            seed,
            subsampling,
        )
        progress(f"{extractor.name}: metrics")
        numbers += comparison.numbers()
    return {
        "format": FORMAT_VERSION,
        "numbers": numbers,
        "provenance": provenance(seed=seed, started_s=started_s, inputs=inputs or {}),
    }


@dataclass(frozen=True)
class Comparison:
    """Real and synthetic features under one extractor."""

    extractor: Extractor
    real: Features
    synthetic: Features
    held_out: Features | None
    """Real images for the floor; None takes two halves of the reference."""
    floor_words: str
    patients: np.ndarray
    """(N,): the unit that each real image belongs to."""
    seed: int
    subsampling: Subsampling

    def numbers(self) -> list[dict[str, Any]]:
        """One entry of metrics.json per metric, in the order of `METRICS`."""
        values = self.metrics(self.real, self.synthetic)
        errors = standard_errors(
            lambda a, b: self.metrics(self.real.take(a), self.synthetic.take(b)),
            self.patients,
            np.arange(len(self.synthetic)),
            seed=self.seed,
            settings=self.subsampling,
        )
        floor, at_floor_n, about_floor = self.floor()
        counts = len(self.real), len(self.synthetic)
        return [
            {
                "metric": name,
                "label": self.label(name),
                "value": values[name],
                "interval": interval(values[name], errors[name], metric.lowest, metric.highest),
                "interval_method": self.subsampling.describe(*counts),
                "better": metric.better,
                "floor": floor[name],
                "value_at_floor_n": at_floor_n[name],
                "floor_detail": about_floor,
                "extractor": self.extractor.stamp,
                "settings": self.settings(name),
                "num_real": counts[0],
                "num_synthetic": counts[1],
                "warning": self.warning(name),
            }
            for name, metric in METRICS.items()
            if name in values
        ]

    @property
    def covariance(self) -> Covariance:
        """One estimator for the number, its interval and its floor, chosen by the number's own counts."""
        fewest = min(len(self.real), len(self.synthetic))
        return "ledoit-wolf" if needs_shrinkage(fewest, self.extractor.dim) else "sample"

    def metrics(self, real: Features, synthetic: Features) -> dict[str, float]:
        """All metrics of some rows. The classifier score is of the synthetic ones alone."""
        x, y = real.features, synthetic.features
        values = {
            "frechet_distance": frechet_distance_of_features(x, y, covariance=self.covariance),
            "kernel_distance": kernel_distance(x, y, seed=self.seed).value,
            **vars(manifold_metrics(x, y)),
        }
        if synthetic.probabilities is not None:
            splits = self.score_splits(len(synthetic))
            values["classifier_score"] = inception_score(synthetic.probabilities, splits=splits, seed=self.seed).value
        return values

    @staticmethod
    def score_splits(num_synthetic: int) -> int:
        return SCORE_SPLITS if num_synthetic >= SCORE_SPLITS * IMAGES_PER_SCORE_SPLIT else 1

    def floor(self) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """What other real images score in the synthetic ones' place, and the synthetic ones at the same counts.

        Returns:
            the two by metric, means over the repeats; and how they were computed.
        """
        rng = np.random.default_rng(self.seed)
        real_scores, synthetic_scores = [], []
        for _ in range(FLOOR_REPEATS):
            reference, other = self._real_pair(rng)
            same_count = rng.choice(len(self.synthetic), len(other), replace=False)
            real_scores.append(self.metrics(reference, other))
            synthetic_scores.append(self.metrics(reference, self.synthetic.take(np.sort(same_count))))
            if self.held_out is not None and len(other) == len(self.held_out) == len(self.synthetic):
                break  # nothing was drawn: a repeat would be the same
        about = {
            "against": self.floor_words,
            "num_reference": len(reference),
            "num_other": len(other),
            "repeats": len(real_scores),
        }
        return _means(real_scores), _means(synthetic_scores), about

    def _real_pair(self, rng: np.random.Generator) -> tuple[Features, Features]:
        """A reference and other real images, these as many as the synthetic ones or as many as there are."""
        if self.held_out is not None:
            reference, other = self.real, self.held_out
        else:
            first, second = disjoint_halves(rng, self.patients)
            reference, other = self.real.take(first), self.real.take(second)
        count = min(len(other), len(self.synthetic))
        return reference, other.take(np.sort(rng.choice(len(other), count, replace=False)))

    def label(self, name: str) -> str:
        metric = METRICS[name]
        shrunk = name == "frechet_distance" and self.covariance == "ledoit-wolf"
        if self.extractor.is_fid_network and metric.published_name and not shrunk:
            return metric.published_name
        return f"{metric.words}{' (Ledoit-Wolf covariance)' if shrunk else ''}, {self.extractor.name}"

    def settings(self, name: str) -> str:
        """What else moves the number, in words."""
        if name == "frechet_distance":
            return f"{self.covariance} covariance, divided by N - 1"
        if name == "kernel_distance":
            size = min(1000, len(self.real), len(self.synthetic))
            whole = size == len(self.real) == len(self.synthetic)
            subsets = "the whole sets" if whole else f"100 subsets of {size}"
            return f"cubic polynomial kernel, unbiased, {subsets}"
        if name == "classifier_score":
            splits = self.score_splits(len(self.synthetic))
            return f"{splits} {'split' if splits == 1 else 'splits'}"
        return "k = 3, surface inside" if name in ("precision", "recall") else "k = 5, surface outside"

    def warning(self, name: str) -> str | None:
        found = []
        if name == "frechet_distance" and self.covariance == "ledoit-wolf":
            fewest = min(len(self.real), len(self.synthetic))
            found.append(
                f"{fewest} images are fewer than {self.extractor.dim} features + 1, so a sample covariance is singular "
                "and this is the distance of shrunk ones, comparable with its floor only: trust the kernel distance"
            )
        if self.extractor.trained_on_reference and self.held_out is None:
            found.append(
                "the extractor was trained on the reference and the floor has no image it hasn't seen, so the floor is "
                "too good: give held-out real images"
            )
        return "; ".join(found) or None


def patients(images: Images) -> np.ndarray:
    """The unit each row belongs to, for drawing: its patient; the row itself where patients are unknown or too few."""
    ids = np.array([patient or f"\0{row}" for row, patient in enumerate(images.patient_id)], dtype=str)
    return ids if len(np.unique(ids)) >= MIN_IMAGES else np.arange(len(images)).astype(str)


def evaluate(config: EvaluateConfig, progress: Progress = lambda _line: None) -> dict[str, Any]:
    """Read both datasets, compare them and write metrics.json; or read it, if it answers the same question already."""
    manifest = read_manifest(config.real)
    files = _weights_files(config)
    held_out_split = config.held_out_split if config.held_out_split in manifest.splits else None
    inputs = {"real": dataset_sha256(config.real), "synthetic": dataset_sha256(config.synthetic)}
    inputs |= {spec: file_sha256(_existing(path)) for spec, path in files.items() if path}
    question = {
        "inputs": inputs,
        "splits": [config.real_split, config.synthetic_split, held_out_split],
        "extractors": list(files),
        "seed": config.seed,
    }
    kept = _answer_to(question, config.out)
    if kept:
        progress(f"{config.out} is there already, for the same images, extractors and seed")
        return kept
    real = read_split(config.real, config.real_split)
    synthetic = read_split(config.synthetic, config.synthetic_split)
    task: Task = "multilabel" if manifest.task == "multilabel" else "multiclass"
    extractors = []
    for spec, path in files.items():
        progress(f"{spec}: building the extractor")
        extractors.append(
            make_extractor(spec, weights=path, real_train=real, task=task, seed=config.seed, device=config.device)
        )
    result = evaluate_images(
        real,
        synthetic,
        extractors,
        held_out=read_split(config.real, held_out_split) if held_out_split else None,
        seed=config.seed,
        batch_size=config.batch_size,
        inputs=inputs,
        progress=progress,
    )
    result = {"question": question, **result}
    write_json(config.out, result)
    return result


def table(result: dict[str, Any]) -> str:
    """metrics.json as text for a terminal: one block per extractor."""
    lines: list[str] = []
    previous = None
    for number in result["numbers"]:
        extractor = number["extractor"]
        if extractor != previous:
            floor = number["floor_detail"]
            fewer = (floor["num_reference"], floor["num_other"]) != (number["num_real"], number["num_synthetic"])
            lines += [
                "",
                f"{extractor['name']}, {extractor['layer']}, weights {extractor['weights_sha256'][:12]}",
                f"resize: {extractor['resize']}",
                f"{number['num_real']} real, {number['num_synthetic']} synthetic; real vs real: {floor['against']}, "
                f"{floor['num_reference']} against {floor['num_other']}",
                f"{'':<40}{'value':>11}  {'95 % interval':<22}{'real vs real':>12}" + "  value at its N" * fewer,
            ]
            previous = extractor
        low, high = number["interval"]
        label = number["label"].removesuffix(f", {extractor['name']}")
        label += f" ({'lower' if number['better'] == 'lower' else 'higher'} is better)"
        span = f"[{low:.4g}, {high:.4g}]"
        at_floor_n = f"{number['value_at_floor_n']:>16.4g}" if fewer else ""
        lines.append(f"{label:<40}{number['value']:>11.4g}  {span:<22}{number['floor']:>12.4g}{at_floor_n}")
    warnings = {number["warning"] for number in result["numbers"] if number["warning"]}
    return "\n".join([*lines, "", *(f"warning: {warning}" for warning in sorted(warnings))]).strip("\n")


def main(argv: Sequence[str] | None = None) -> int:
    def command(config: EvaluateConfig) -> None:
        result = evaluate(config, progress=lambda line: print(line, file=sys.stderr, flush=True))
        print(table(result))
        print(f"\n{config.out}")

    return run_command(EvaluateConfig, command, prog="python -m vaegan.evaluate", argv=argv)


def _check(real: Images, synthetic: Images, held_out: Images | None) -> None:
    for name, images in {"real": real, "synthetic": synthetic}.items():
        if len(images) < MIN_IMAGES:
            raise UserError(
                f"{len(images)} {name} images: no metric means anything below {MIN_IMAGES}; sample or import more"
            )
    for name, others in {"synthetic": synthetic, "held-out": held_out}.items():
        if others is not None and others.pixels.shape[1:] != real.pixels.shape[1:]:
            raise UserError(
                f"the real images are {_shape(real)} and the {name} ones {_shape(others)} (height x width x channels): "
                "a difference in size would be measured as a difference in quality; prepare both alike"
            )


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _shape(images: Images) -> str:
    return "x".join(map(str, images.pixels.shape[1:]))


def _floor_words(offered: Images | None, used: Images | None) -> str:
    if used is not None:
        return "held-out real images against the whole reference"
    halves = "two halves of the reference that share no patient"
    return halves if offered is None else f"{halves} (the {len(offered)} held-out images are fewer than {MIN_HELD_OUT})"


def _weights_files(config: EvaluateConfig) -> dict[str, Path | None]:
    """Kind of each extractor (without `=FILE`) to its file; --weights goes to the one that names none."""
    kinds = [split_spec(spec) for spec in config.extractors]
    if not kinds:
        raise UserError("no extractor: expected at least one; type --extractors domain")
    if len({kind for kind, _ in kinds}) < len(kinds):
        raise UserError(f"an extractor is named twice in {' '.join(config.extractors)}; name each once")
    open_kinds = [kind for kind, path in kinds if path is None and kind != "domain"]
    if config.weights and len(open_kinds) != 1:
        raise UserError(
            f"--weights {config.weights} is for the one extractor without =FILE, but there are {len(open_kinds)}; "
            "type --extractors torchvision:ARCH=FILE inception=FILE"
        )
    return {split_spec(spec)[0]: weights_file(spec, config.weights) for spec in config.extractors}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"no weights file {path}: expected a .safetensors or .pth state dict; check the path after =")
    return path


def _answer_to(question: dict[str, Any], out: Path) -> dict[str, Any] | None:
    """What `out` holds if it was written for the same question by this version, else None."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: expected a file to write, such as {out / 'metrics.json'}")
    out.parent.mkdir(parents=True, exist_ok=True)  # an unwritable place is found before the work, not after
    if not out.exists():
        return None
    try:
        content = read_json(out)
    except UserError:
        return None
    same = isinstance(content, dict) and content.get("question") == question and content.get("format") == FORMAT_VERSION
    return content if same else None


if __name__ == "__main__":
    sys.exit(main())
