"""The end of an ablation: its cells become the files that the report reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.provenance import provenance
from cluster.storage import atomic_file, file_sha256, read_json, write_json
from downstream.arms import EXTRA_ARMS
from downstream.plan import Generator, Pool
from downstream.scores import judged_classes
from downstream.study import Study, results_sha256
from downstream.tasks import is_done
from vaegan.shards import Images, dataset_sha256, read_split, schema, to_table

EXAMPLES_PER_CLASS = 8


def is_finished(study: Study) -> bool:
    """Whether ablation.json is there, for these cells, all done."""
    if not study.folder.manifest.exists():
        return False
    manifest = read_json(study.folder.manifest)
    same = manifest.get("config_sha256") == results_sha256(study.config) and manifest["cells"]["planned"] == len(
        study.cells
    )
    return same and all(is_done(study.folder.cell(cell)) for cell in study.cells)


def collect(study: Study, started_s: float) -> None:
    """Write results.parquet, test.parquet, examples.parquet and, last, ablation.json."""
    folder, data = study.folder, study.data
    table = pa.concat_tables([pq.read_table(folder.cell(cell)) for cell in study.cells])
    _write_table(folder.root / "results.parquet", table)
    test = pa.table(
        {
            "image_id": pa.array(data.test.image_id, pa.string()),
            "patient_id": pa.array(data.test.patient_id, pa.string()),
            "labels": pa.array(data.test.labels.tolist(), pa.list_(pa.uint8(), data.test.labels.shape[1])),
        }
    )
    _write_table(folder.root / "test.parquet", test)
    about = data.manifest
    layout = schema(
        task=about.task, classes=about.classes, height=about.height, width=about.width, channels=about.channels
    )
    _write_table(folder.root / "examples.parquet", to_table(_examples(study), layout))
    write_json(folder.manifest, _manifest(study, table, started_s))


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _examples(study: Study) -> Images:
    """Up to eight images of each class: real ones of the smallest fraction, synthetic ones of its first generator."""
    fraction = min(study.config.fractions)
    parts = [_some_per_class(study.data.train.take(study.subsets[fraction]))]
    path = study.config.synthetic
    if study.config.trains_generators:
        path = study.folder.pool(Pool(Generator(fraction, 0), fraction, 0))
    if study.config.needs_synthetic and path is not None and (path / "manifest.json").exists():
        parts.append(_some_per_class(read_split(path, "train")))
    return Images.concatenate(parts)


def _some_per_class(images: Images) -> Images:
    rows = [np.flatnonzero(images.labels[:, k])[:EXAMPLES_PER_CLASS] for k in range(images.labels.shape[1])]
    return images.take(np.unique(np.concatenate(rows)))


def _manifest(study: Study, table: pa.Table, started_s: float) -> dict[str, Any]:
    config, folder, data = study.config, study.folder, study.data
    about = data.manifest
    status = table["status"].to_pylist()
    judged = judged_classes(len(about.classes), about.task)
    generated = config.needs_synthetic
    inputs = {"dataset": data.sha256}
    if config.trains_generators and config.recipe:
        inputs["recipe"] = file_sha256(config.recipe)
    if generated and config.synthetic:
        inputs["synthetic"] = dataset_sha256(config.synthetic)
    trained = [folder.generator(generator) / "generator.json" for generator in study.generators]
    return {
        "dataset": {
            "path": str(config.data),
            "sha256": data.sha256,
            "classes": list(about.classes),
            "task": about.task,
            "height": about.height,
            "width": about.width,
            "channels": about.channels,
            "splits": {
                name: {
                    "num_images": len(images),
                    "num_patients": len(np.unique(images.patient_id.astype(str))),
                    "per_class": about.splits[name].per_class,
                }
                for name, images in (("train", data.train), ("val", data.val), ("test", data.test))
            },
        },
        "config_sha256": results_sha256(config),
        "judged_classes": judged,
        "positive_class": about.classes[judged[0]] if len(judged) == 1 else None,
        "primary": config.resolved_primary(),
        "arms": list(config.arms),
        "fractions": sorted(config.fractions),
        "ratios": list(config.ratios) if EXTRA_ARMS.intersection(config.arms) else [],
        "classifiers": list(config.classifiers),
        "seeds": {
            "generator": list(range(config.generator_seeds)) if config.trains_generators else [],
            "pool": list(range(config.pool_seeds)) if generated else [],
            "classifier": list(range(config.classifier_seeds)),
            "subset": config.subset_seed,
        },
        "subsets": [
            {
                "fraction": fraction,
                "num_images": len(rows),
                "num_patients": len(np.unique(data.train.patient_id[rows].astype(str))),
                "per_class": dict(zip(about.classes, map(int, data.train.labels[rows].sum(axis=0)), strict=True)),
            }
            for fraction, rows in sorted(study.subsets.items())
        ],
        "cells": {"planned": len(status), "ok": status.count("ok"), "failed": status.count("failed")},
        "generators": [read_json(path) for path in trained if path.exists()],
        "provenance": provenance(seed=config.subset_seed, started_s=started_s, inputs=inputs),
    }
