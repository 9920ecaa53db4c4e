"""What the ablation's Ray tasks do: plain functions of arrays and paths, which write their result under its final name.

Each returns quickly when its file is there already. Everything runs on one thread: cells and generators are many, and
their sum is what takes time; it also makes a cell's numbers a function of its seeds alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.errors import UserError
from cluster.provenance import provenance
from cluster.storage import atomic_file, file_sha256, read_json, write_json
from downstream.arms import ExtraClasses, training_rows
from downstream.fit import FitSettings, fit_and_predict
from downstream.plan import Cell, Generator
from downstream.scores import METRICS, score
from vaegan.checkpoint import MODEL
from vaegan.classifier import Task
from vaegan.evaluation import evaluate_images
from vaegan.images import pixel_hash
from vaegan.loop import train_loop
from vaegan.metrics.features import make_extractor
from vaegan.recipe import Recipe, TrainConfig
from vaegan.runs import SoloRun
from vaegan.sampler import Sampler
from vaegan.shards import DatasetWriter, Images, Manifest, dataset_sha256, read_manifest, read_split

POOL_CHUNK = 1024


@dataclass(frozen=True)
class Data:
    """A dataset in memory: what every task of an ablation reads, put into Ray's object store once."""

    path: Path
    sha256: str
    manifest: Manifest
    train: Images
    val: Images
    test: Images

    @classmethod
    def read(cls, path: Path) -> Data:
        """Read all splits, without images that nobody labelled: a classifier neither learns from them nor is judged.

        Raises:
            UserError: it isn't a dataset, lacks a split (or labelled images in one), or has no classes.
        """
        manifest = read_manifest(path)
        if len(manifest.classes) < 2 and manifest.task == "multiclass":
            raise UserError(f"{path} has {len(manifest.classes)} class: expected at least two to tell apart")
        splits = [read_split(path, name).labelled_only() for name in ("train", "val", "test")]
        for name, images in zip(("train", "val", "test"), splits, strict=True):
            if not len(images):
                raise UserError(f"{path} has no labelled image in {name}: expected some of each class")
        return cls(path, dataset_sha256(path), manifest, *splits)

    @property
    def task(self) -> Task:
        return "multilabel" if self.manifest.task == "multilabel" else "multiclass"


RESULTS_SCHEMA = pa.schema(
    [
        pa.field("arm", pa.string()),
        pa.field("classifier", pa.string()),
        pa.field("fraction", pa.float64()),
        pa.field("ratio", pa.float64()),
        pa.field("generator_seed", pa.int64()),
        pa.field("pool_seed", pa.int64()),
        pa.field("classifier_seed", pa.int64()),
        pa.field("num_real", pa.int64()),
        pa.field("num_extra", pa.int64()),
        pa.field("steps", pa.int64()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        pa.field("seconds", pa.float64()),
        *(pa.field(metric, pa.float64()) for metric in METRICS),
        pa.field("per_class", pa.string()),
        pa.field("scores", pa.list_(pa.float32())),
    ]
)
"""One row per cell; `scores` are the probabilities on the test split, (N, K) flattened."""


def held_out_hashes(data: Data) -> dict[str, str]:
    """Pixel hash of every val and test image, to its name."""
    return {
        pixel_hash(pixels): f"{name} image {image_id}"
        for name, images in (("val", data.val), ("test", data.test))
        for pixels, image_id in zip(images.pixels, images.image_id, strict=True)
    }


def training_images(images: Images, held_out: dict[str, str]) -> list[dict[str, str]]:
    """Names and hashes of the images that a generator may see.

    Raises:
        UserError: one of them is also in val or test.
    """
    found = []
    for pixels, image_id in zip(images.pixels, images.image_id, strict=True):
        digest = pixel_hash(pixels)
        if digest in held_out:
            raise UserError(
                f"training image {image_id} is {held_out[digest]}, pixel for pixel: it would leak into "
                "what generators learn; prepare the dataset again, which moves such copies out of train"
            )
        found.append({"image_id": str(image_id), "sha256": digest})
    return found


def train_generator(
    data: Data,
    rows: np.ndarray,
    generator: Generator,
    recipe: Recipe,
    run_dir: Path,
    images_seen: list[dict[str, str]],
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train (or resume, or find trained) one generator on some rows of train.

    Returns:
        its entry in ablation.json.
    """
    torch.set_num_threads(1)
    started_s = time.time()
    about = run_dir / "generator.json"
    if about.exists():
        return read_json(about)
    write_json(run_dir / "training_images.json", {"dataset_sha256": data.sha256, "images": images_seen})
    batch_size = min(recipe.batch_size, len(rows))  # a fraction may hold fewer images than the recipe's batch
    settings = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)} | {
        "batch_size": batch_size,
        "total_images": max(1, recipe.total_images // batch_size) * batch_size,
    }
    config = TrainConfig(
        **settings, data=data.path, run_dir=run_dir, seed=generator.seed, num_workers=0, name=f"ablation-{generator.id}"
    )
    model = train_loop(config, data.train.take(rows), run=SoloRun(run_dir, config.keep_checkpoints, device))
    entry = {
        "fraction": generator.fraction,
        "generator_seed": generator.seed,
        "num_images": len(rows),
        "run_dir": str(run_dir),
        "model_sha256": file_sha256(model / MODEL),
        "seconds": round(time.time() - started_s, 1),
    }
    write_json(about, entry)
    return entry


def make_pool(
    data: Data,
    model: Path,
    labels: np.ndarray,
    seed: int,
    latent: str,
    out: Path,
    *,
    device: str = "cpu",
) -> int:
    """Write a pool: one synthetic image per row of labels (N, K), at indices 0, 1, … of the seed. Returns N.

    A pool that is there is kept if it is long enough; a longer one begins with the same images.
    """
    torch.set_num_threads(1)
    if (out / "manifest.json").exists():
        there = read_manifest(out).splits["train"].num_images
        if there >= len(labels):
            return there
        shutil.rmtree(out)
    started_s = time.time()
    sampler = Sampler.from_model(model, device=device)
    about = data.manifest
    with DatasetWriter(
        out, task=about.task, classes=about.classes, height=about.height, width=about.width, channels=about.channels
    ) as writer:
        for at in range(0, len(labels), POOL_CHUNK):
            writer.add("train", sampler.sample(labels[at : at + POOL_CHUNK], seed, at, latent=latent))
        inputs = {"model": file_sha256(model / MODEL)}
        writer.finish(provenance=provenance(seed=seed, started_s=started_s, inputs=inputs))
    return len(labels)


def measure(data: Data, synthetic: Path, extractors: tuple[str, ...], out: Path, *, device: str = "cpu") -> None:
    """Write the metrics of synthetic images against all real training images, whatever fraction the generator saw.

    One reference makes the numbers of all fractions comparable; what a fraction's generator lacks shows as distance.
    """
    torch.set_num_threads(1)
    inputs = {"real": data.sha256, "synthetic": dataset_sha256(synthetic)}
    question = {"extractors": list(extractors), "inputs": inputs}
    if out.exists() and read_json(out).get("question") == question:
        return
    built = [make_extractor(spec, real_train=data.train, task=data.task, device=device) for spec in extractors]
    images = read_split(synthetic, "train")
    result = evaluate_images(data.train, images, built, held_out=data.val, inputs=inputs)
    write_json(out, {"question": question, **result})


def run_cell(
    data: Data,
    rows: np.ndarray,
    cell: Cell,
    pool: Path | None,
    settings: FitSettings,
    extra_classes: ExtraClasses,
    subset_seed: int,
    out: Path,
) -> dict[str, Any]:
    """Fit, predict, score and write one cell. An exception becomes a row with status "failed".

    Args:
        rows: the fraction's rows of train. pool: dataset of its synthetic rows.

    Returns:
        "status", "error" and "seconds" of the row.
    """
    torch.set_num_threads(1)
    started_s = time.time()
    try:
        row = _fitted_row(data, rows, cell, pool, settings, extra_classes, subset_seed)
    except Exception as error:  # one cell's failure must not sink the grid, whatever it is
        traceback.print_exc()
        row = failed_row(cell, settings, f"{type(error).__name__}: {' '.join(str(error).split())}")
    row["seconds"] = round(time.time() - started_s, 3)
    write_row(out, row)
    return {name: row[name] for name in ("status", "error", "seconds")}


def _fitted_row(
    data: Data,
    rows: np.ndarray,
    cell: Cell,
    pool: Path | None,
    settings: FitSettings,
    extra_classes: ExtraClasses,
    subset_seed: int,
) -> dict[str, Any]:
    real = data.train.take(rows)
    synthetic = None if pool is None else read_split(pool, "train")
    if synthetic is not None and cell.pool is not None and cell.pool.generator is None:  # ready rows: draw some
        synthetic = synthetic.take(np.random.default_rng([subset_seed, cell.pool.seed]).permutation(len(synthetic)))
    chosen = training_rows(
        cell.arm,
        real.labels,
        None if synthetic is None else synthetic.labels,
        ratio=cell.ratio,
        task=data.task,
        extra_classes=extra_classes,
        seed=subset_seed,
    )
    # The object store hands out read-only arrays, which torch warns about: copy what it will read.
    val, test = (images.take(np.arange(len(images))) for images in (data.val, data.test))
    val_p, test_p = fit_and_predict(
        cell.classifier, chosen, real, synthetic, val, test, task=data.task, settings=settings, seed=cell.seed
    )
    scores = score(test.labels, test_p, val.labels, val_p, task=data.task, classes=data.manifest.classes)
    return cell.key | {
        "num_real": chosen.num_real,
        "num_extra": chosen.num_extra,
        "steps": settings.steps,
        "status": "ok",
        "error": None,
        **{metric: scores[metric] for metric in METRICS},
        "per_class": json.dumps(scores["per_class"]),
        "scores": test_p.astype(np.float32).reshape(-1),
    }


def failed_row(cell: Cell, settings: FitSettings, error: str) -> dict[str, Any]:
    """The row of a cell that could not be fitted."""
    return cell.key | {"steps": settings.steps, "status": "failed", "error": error[:1000], "seconds": 0.0}


def write_row(path: Path, row: dict[str, Any]) -> None:
    """Write one row of RESULTS_SCHEMA, atomically; columns it lacks are null."""
    table = pa.Table.from_pylist([{field.name: row.get(field.name) for field in RESULTS_SCHEMA}], schema=RESULTS_SCHEMA)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def is_done(path: Path) -> bool:
    """Whether a cell's file is there with status ok; a failed cell is tried again."""
    if not path.exists():
        return False
    try:
        return pq.read_table(path, columns=["status"])["status"][0].as_py() == "ok"
    except (OSError, pa.ArrowInvalid):  # damaged: fit it again
        return False
