import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaegan.images import resize
from vaegan.importers.base import ColumnsConfig
from vaegan.preparation.pipeline import prepare
from vaegan.shards import FINDINGS, FINDINGS_SCHEMA, read_manifest


@pytest.fixture
def root(tmp_path, films, save):
    """train/ and test/ of different patients, with a film of each kind that shouldn't be there."""
    for i, film in enumerate(films):
        save(tmp_path / "in" / ("test" if i >= 60 else "train") / "AB"[i % 2] / f"p{i}-0.png", film)
    save(tmp_path / "in/train/A/p100-exact.png", films[60])
    save(tmp_path / "in/train/B/p101-near.jpg", np.clip(films[61] * 1.15, 0, 255).astype(np.uint8), quality=40)
    save(tmp_path / "in/train/A/p62-another.png", films[0][::-1])
    save(tmp_path / "in/train/B/p0-again.png", films[0])  # p0-0 is of class A
    return tmp_path / "in"


def rows(config):
    table = pq.read_table(config.out / FINDINGS)
    assert table.schema.equals(FINDINGS_SCHEMA)
    return {row["image_id"]: row for row in table.to_pylist()}


def told(row):
    return tuple(
        row[name] for name in ("kind", "other_image_id", "split", "other_split", "labels", "other_labels", "removed")
    )


def test_each_pair_is_told_with_both_splits_labels_and_what_became_of_it(root, config):
    manifest = prepare(config(root, size=64))
    found = rows(config(root))
    assert {name: told(row) for name, row in found.items()} == {
        "p62-another": ("patient", "p62-0", "train", "test", "A", "A", True),
        "p100-exact": ("exact", "p60-0", "train", "test", "A", "A", True),
        "p101-near": ("near", "p61-0", "train", "test", "B", "B", True),
        "p0-again": ("exact", "p0-0", found["p0-again"]["split"], found["p0-0"]["split"] if "p0-0" in found else
                     found["p0-again"]["other_split"], "B", "A", False),
    }  # fmt: skip
    assert found["p0-again"]["split"] == found["p0-again"]["other_split"]
    assert found["p62-another"]["correlation"] is None
    assert found["p100-exact"]["correlation"] == pytest.approx(1, abs=1e-5)
    assert 0.992 <= found["p101-near"]["correlation"] < 1
    assert read_manifest(config(root).out).tables.keys() >= {FINDINGS}
    assert manifest.report["leaks"]["images"] == 3
    assert manifest.report["duplicates"]["groups_with_conflicting_labels"] == 1


@pytest.mark.parametrize(("size", "side"), [(64, 64), (128, 96)])
def test_the_pictures_are_those_of_the_pair(root, config, films, size, side):
    prepare(config(root, size=size))
    row = rows(config(root))["p100-exact"]
    film = resize(films[60][..., None], size, 1)
    expected = film if size == side else resize(film, side, 1)
    for name in ("thumbnail", "other_thumbnail"):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row[name]))), expected[..., 0])
    other = rows(config(root))["p62-another"]
    one, two = (np.asarray(Image.open(io.BytesIO(other[n]))) for n in ("thumbnail", "other_thumbnail"))
    assert one.shape == two.shape == (side, side)
    assert (one != two).any()


def test_what_is_kept_is_told_and_not_called_removed(root, config):
    prepare(config(root, leaks="keep"))
    assert {row["removed"] for row in rows(config(root)).values()} == {False}
    assert len(rows(config(root))) == 4


def test_copies_in_a_split_that_is_made_here_are_told_with_the_split_they_share(folder, config, films, save):
    save(folder / "B" / "p90-copy.png", films[5])
    prepare(config(folder))
    (row,) = rows(config(folder)).values()
    assert told(row)[:2] == ("exact", "p1-5")
    assert row["split"] == row["other_split"] != ""


def test_a_group_in_two_splits_is_told_as_one(tmp_path, films, save, config):
    lines = ["path,label,split,hospital"]
    for i, film in enumerate(films[:40]):
        save(tmp_path / "in" / f"{i}.png", film)
        lines.append(f"{i}.png,{'AB'[i % 2]},{'train' if i < 30 else 'test'},{'h1' if i in (3, 33) else ''}")
    (tmp_path / "in" / "t.csv").write_text("\n".join(lines))
    settings = config(tmp_path / "in", patient_regex=None, columns=ColumnsConfig(group="hospital"))
    prepare(settings)
    (row,) = rows(settings).values()
    assert (row["image_id"], *told(row)) == ("3.png", "group", "33.png", "train", "test", "B", "B", True)


def test_no_findings_is_an_empty_table_of_the_same_columns(folder, config):
    prepare(config(folder))
    assert rows(config(folder)) == {}
