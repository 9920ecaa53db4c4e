import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vaegan.images import encode_png
from vaegan.shards import DatasetWriter, Images

CLASSES = ("mass", "fluid", "scar")
FINDINGS = pa.schema(
    [
        ("kind", pa.string()), ("image_id", pa.string()), ("other_image_id", pa.string()), ("split", pa.string()),
        ("other_split", pa.string()), ("labels", pa.string()), ("other_labels", pa.string()), ("removed", pa.bool_()),
        ("correlation", pa.float32()), ("thumbnail", pa.binary()), ("other_thumbnail", pa.binary()),
    ]
)  # fmt: skip


def make_rows(count: int, seed: int, *, size: int = 24, channels: int = 1, name: str = "") -> Images:
    """Films of two patients each: smooth blobs of their own under noise, and any of three labels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(1, 9, (count, 4, 2))
    phase = rng.uniform(0, 6, (count, 4))
    field = np.sin(waves[:, :, :1, None] * y + waves[:, :, 1:, None] * x + phase[:, :, None, None]).sum(axis=1)
    pixels = (128 + 28 * field[..., None] + rng.normal(0, 2, (count, size, size, channels))).clip(0, 255)
    labels = (rng.random((count, len(CLASSES))) < 0.4).astype(np.uint8)
    ids = [f"{name or seed}-{i}" for i in range(count)]
    return Images.real(pixels.astype(np.uint8), labels, [f"{name or seed}-p{i // 2}" for i in range(count)], ids)


def write(
    path: Path, report=None, findings=None, rejects=(), task="multilabel", classes=CLASSES, **splits: Images
) -> Path:
    """A dataset of several files and row groups."""
    _, height, width, channels = next(iter(splits.values())).pixels.shape
    shape = dict(height=height, width=width, channels=channels)
    with DatasetWriter(path, task=task, classes=classes, **shape, rows_per_file=16, rows_per_group=5) as writer:
        for split, rows in splits.items():
            writer.add(split, rows)
        for name, reason in rejects:
            writer.reject(name, reason)
        if findings is not None:
            writer.table("findings.parquet", pa.Table.from_pylist(findings, schema=FINDINGS))
        writer.finish(report=report)
    return path


def finding(
    kind="near", *, split="train", other_split="test", labels="mass", other_labels="mass", removed=True, **other
):
    """A row of findings.parquet."""
    picture = encode_png(np.full((9, 9, 1), 7, np.uint8))
    return {
        "kind": kind, "image_id": "gone", "other_image_id": "stays", "split": split, "other_split": other_split,
        "labels": labels, "other_labels": other_labels, "removed": removed, "correlation": 0.9951,
        "thumbnail": picture, "other_thumbnail": picture,
    } | other  # fmt: skip


def edit_manifest(path: Path, change) -> None:
    """Let `change` edit the manifest's JSON in place."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    (path / "manifest.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def tools():
    """What the tests of this folder make datasets with."""

    class Tools:
        rows, write, finding, edit_manifest = map(staticmethod, (make_rows, write, finding, edit_manifest))
        classes = CLASSES

    return Tools


@pytest.fixture
def splits():
    """Three splits without a leak."""
    return {"train": make_rows(43, 0), "val": make_rows(12, 1), "test": make_rows(21, 2)}
