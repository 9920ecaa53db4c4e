"""The paper's Table 1 and Figure 1 for a run of ours: scores of its checkpoints, beside what the paper prints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import read_json
from vaegan.checkpoint import checkpoints, images_at
from vaegan.evaluation.measure import FeaturesOf, Progress, Sets, compare
from vaegan.evaluation.synthesis import synthesize
from vaegan.export import ExportConfig, export_checkpoint
from vaegan.metrics.extractor import Extractor
from vaegan.metrics.inception_score import ClassifierScore, inception_score
from vaegan.metrics.intervals import Subsampling
from vaegan.metrics.sources import ImageSource
from vaegan.sampler import Sampler

TABLE_1 = (
    ("Real data", None, 1.8542, 0.4173),
    ("Epoch 1", 1, 1.1037, 0.0459),
    ("Epoch 100", 100, 1.6008, 0.2334),
    ("Epoch 350", 350, 1.7742, 0.4090),
    ("Final epoch", None, 1.8431, 0.4186),
)
"""Row, epoch if it has a number, mean and standard deviation of the Inception Score (Rguibi et al. 2023, Table 1)."""
FIGURE_1 = (172_662.0, 0.1334)
"""The Fréchet Inception distance of the first and of the final epoch, as the text gives them; no axis can be read."""
SPLITS = 10
SUBSAMPLING = Subsampling(replicates=20)
"""Half of what a single evaluation takes: there is one for each checkpoint."""

CAVEATS = (
    "The paper's Eq. 11, exp of the mean log p(y|x), can't exceed 1, yet Table 1 holds 1.84: our score is the usual "
    "exp(E KL(p(y|x) || p(y))) of Salimans et al. 2016, and the paper's may be another.",
    "The paper names neither the number of images nor of splits. The score grows with both the images of a split and "
    "the classes a classifier tells apart, so the two columns can't be compared to a digit.",
    "The classes are ImageNet's. On chest films the score says how evenly a classifier of dogs and cars guesses, of "
    "which the paper's own reference 39 (Barratt & Sharma 2018) warns. The real images' score shows how little there "
    "is to gain.",
    "A Fréchet Inception distance of 172,662 is not on the standard scale, and 0.1334 is less than real images have "
    "from other real ones at such counts (the floor). No curve of ours can lead from one to the other.",
    "Distances compare within one extractor, layer, resize and count only; each carries its stamp.",
)


def chosen_checkpoints(run_dir: Path, most: int) -> list[Path]:
    """Up to `most` checkpoints of a run: the first, the last, and between them at even ratios of images seen.

    Raises:
        UserError: there is none.
    """
    found = checkpoints(run_dir)
    if not found:
        raise UserError(
            f"{run_dir} has no checkpoint_* folders: expected a run with some; train with --keep-checkpoints 0, which "
            "keeps all"
        )
    seen = np.array([images_at(folder) for folder in found], float)
    wanted = np.geomspace(seen[0], seen[-1], most)
    rows = np.unique([int(np.abs(np.log(seen / each)).argmin()) for each in wanted])
    return [found[row] for row in rows]


def trajectory(
    run_dir: Path,
    real: ImageSource,
    held_out: ImageSource | None,
    extractors: Sequence[Extractor],
    *,
    features_of: FeaturesOf,
    most: int = 12,
    seed: int = 2020,
    device: str = "cpu",
    inputs: dict[str, str] | None = None,
    progress: Progress = lambda _line: None,
) -> dict[str, Any]:
    """The content of paper.json: all numbers of each checkpoint's samples, as many as there are real images.

    Args:
        real: the run's training images. most: checkpoints to measure; see `chosen_checkpoints`.
    """
    started_s = time.time()
    points = []
    batch_size = read_json(run_dir / "config.json")["config"]["batch_size"]
    images_an_epoch = max(1, len(real) // batch_size) * batch_size  # what doesn't fill a batch waits for the next epoch
    for folder in chosen_checkpoints(run_dir, most):
        progress(f"{folder.name}: sampling and measuring")
        with tempfile.TemporaryDirectory() as temporary:
            export_checkpoint(ExportConfig(checkpoint=folder, out=Path(temporary) / "model"))
            sampler = Sampler.from_model(Path(temporary) / "model", device)
        sets = Sets(real=real, synthetic=synthesize(sampler, real, len(real)), held_out=held_out)
        epoch = images_at(folder) / images_an_epoch
        points.append({"checkpoint": folder.name, "epoch": epoch, **_scores(sets, extractors, features_of, seed)})
    scores = [
        _score(extractor, features_of({"real": real}, extractor)["real"].probabilities, seed)
        for extractor in extractors
    ]
    return {
        "run": str(run_dir),
        "num_images": len(real),
        "real": scores,
        "checkpoints": points,
        "paper": {"table_1": [list(row) for row in TABLE_1], "figure_1": list(FIGURE_1)},
        "caveats": list(CAVEATS),
        "provenance": provenance(seed=seed, started_s=started_s, inputs=inputs or {}),
    }


def _scores(sets: Sets, extractors: Sequence[Extractor], features_of: FeaturesOf, seed: int) -> dict[str, Any]:
    numbers, scores = [], []
    for extractor in extractors:
        features = features_of(sets.all, extractor)
        numbers += compare(sets, extractor, features, seed, SUBSAMPLING).numbers()
        scores.append(_score(extractor, features["synthetic"].probabilities, seed))
    return {"numbers": numbers, "scores": scores}


def _score(extractor: Extractor, probabilities: np.ndarray | None, seed: int) -> dict[str, Any]:
    """Mean and standard deviation over ten splits, as Table 1 has them; none without classes."""
    name = "Inception Score" if extractor.is_fid_network else f"Classifier score, {extractor.name}"
    if probabilities is None:
        return {"extractor": extractor.stamp, "label": name, "mean": None, "std": None, "splits": 0}
    found: ClassifierScore = inception_score(probabilities, splits=min(SPLITS, len(probabilities)), seed=seed)
    return {"extractor": extractor.stamp, "label": name, "mean": found.value, "std": found.std, "splits": found.splits}


def markdown(document: dict[str, Any]) -> str:
    """Table 1 and what Figure 1 plots, ours beside the paper's, with the caveats."""
    names = [each["label"] for each in document["real"]]
    distances = [n for n in document["checkpoints"][0]["numbers"] if n["metric"] == "frechet_distance"]
    head = ["", *names, *(n["label"] for n in distances), "the paper's IS", "the paper's FID"]
    rows = [["Real data", *map(_mean_and_std, document["real"]), *(f"floor {n['floor']:.4g}" for n in distances),
             _paper_scores(["Real data"]), ""]]  # fmt: skip
    last = len(document["checkpoints"]) - 1
    for place, point in enumerate(document["checkpoints"]):
        numbers = [n for n in point["numbers"] if n["metric"] == "frechet_distance"]
        theirs = [name for name, epoch, *_ in TABLE_1 if epoch == round(point["epoch"])]
        theirs += ["Final epoch"] if place == last else []
        fids = {"Epoch 1": f"{FIGURE_1[0]:,.0f}", "Final epoch": f"{FIGURE_1[1]} (its final epoch)"}
        rows.append([
            f"Epoch {point['epoch']:.3g}" + (" (our final one)" if place == last else ""),
            *map(_mean_and_std, point["scores"]),
            *(f"{n['value']:.4g} ({n['interval'][0]:.4g} to {n['interval'][1]:.4g})" for n in numbers),
            _paper_scores(theirs),
            "; ".join(fids[name] for name in theirs if name in fids),
        ])  # fmt: skip
    table = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    seen = [f"Paper only: {r}, IS {mean} ± {std}." for r, e, mean, std in TABLE_1 if e and not _has(document, e)]
    stamps = [_stamp(score["extractor"], document["num_images"]) for score in document["real"]]
    caveats = [f"{number}. {text}" for number, text in enumerate(document["caveats"], 1)]
    return "\n".join(["# Table 1 and Figure 1, ours beside the paper's", "", *table, "", *seen, "", *stamps, "",
                      "## What can't be concluded", "", *caveats, ""])  # fmt: skip


def _stamp(extractor: dict[str, Any], count: int) -> str:
    return (
        f"- {extractor['name']}: {extractor['layer']}, weights {extractor['weights_sha256'][:12]}, resize "
        f"{extractor['resize']}; {count} real images, as many synthetic"
    )


def _has(document: dict[str, Any], epoch: int) -> bool:
    return any(round(point["epoch"]) == epoch for point in document["checkpoints"])


def _mean_and_std(score: dict[str, Any]) -> str:
    return "no classes" if score["mean"] is None else f"{score['mean']:.4f} ± {score['std']:.4f}"


def _paper_scores(names: Sequence[str]) -> str:
    """Some rows of Table 1, with the name of one that isn't our row's own."""
    about = {"Final epoch": " (its final epoch)"}
    return "; ".join(f"{mean} ± {std}{about.get(name, '')}" for name, _, mean, std in TABLE_1 if name in names)
