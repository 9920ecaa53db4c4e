import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from vaegan.inspection.reading import batches, open_shards, pixels_at
from vaegan.shards import Images, from_table, read_manifest, read_split


@pytest.fixture
def data(tools, splits, tmp_path):
    return tools.write(tmp_path / "data", **splits)


def test_batches_are_all_rows_in_order(data, tools):
    manifest = read_manifest(data)
    found = {}
    for shard, table in batches(open_shards(data, manifest, verify=True), manifest):
        found.setdefault(shard.split, []).append(table)
    for split, tables in found.items():
        expected = read_split(data, split)
        pixels = np.concatenate([from_column(table) for table in tables])
        names = [name for table in tables for name in table.column("image_id").to_pylist()]
        assert np.array_equal(pixels, expected.pixels)
        assert names == expected.image_id.tolist()


def from_column(table):
    return np.array([np.frombuffer(row, np.uint8) for row in table.column("image").to_pylist()]).reshape(-1, 24, 24, 1)


def test_any_rows_come_in_the_order_asked_for(data):
    manifest = read_manifest(data)
    shards = open_shards(data, manifest, verify=False)
    everything = np.concatenate([read_split(data, split).pixels for split in manifest.splits])
    rows = np.random.default_rng(0).integers(0, len(everything), 40)
    assert np.array_equal(pixels_at(shards, rows, manifest), everything[rows])
    assert pixels_at(shards, [], manifest).shape == (0, 24, 24, 1)


def cut(data):
    path = data / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def flip(data):
    path = data / "test-00000.parquet"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def other_size(data):
    path = data / "val-00000.parquet"
    path.write_bytes((data.parent / "large" / "val-00000.parquet").read_bytes())


DAMAGE = [
    (lambda data: (data / "val-00000.parquet").unlink(), True, "val-00000.parquet is missing"),
    (lambda data: (data / "rejects.parquet").unlink(), True, "rejects.parquet is missing"),
    (cut, True, "isn't the file that was written"),
    (cut, False, "can't be read"),
    (flip, True, "--verify false"),
    (other_size, False, "column image should be of type fixed_size_binary[576]"),
]


@pytest.mark.parametrize(("damage", "verify", "message"), DAMAGE)
def test_a_damaged_dataset_is_one_sentence(data, tools, tmp_path, damage, verify, message):
    tools.write(tmp_path / "large", val=tools.rows(12, 1, size=32))
    damage(data)
    with pytest.raises(UserError) as told:
        open_shards(data, read_manifest(data), verify=verify)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["splits"]["val"]["files"].update({"../secret.parquet": "ab" * 32}),
        lambda m: m["splits"]["val"]["files"].update({"val-00000.parquet": 3}),
        lambda m: m["splits"]["val"].update(files=["val-00000.parquet"]),
        lambda m: m.update(height="64"),
        lambda m: m.update(width=-1),
        lambda m: m.update(width=10**30),
        lambda m: m.update(channels=2),
        lambda m: m.update(classes=["mass", "mass", "scar"]),
        lambda m: m.update(classes=["mass", "fluid", 3]),
        lambda m: m.update(classes=["mass"]),
        lambda m: m.update(tables=[]),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(data, tools, change):
    tools.edit_manifest(data, change)
    with pytest.raises(UserError):
        open_shards(data, read_manifest(data), verify=False)


def test_a_row_without_a_name_is_refused(data):
    path = data / "train-00000.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("image_id")
    names = [None, *table.column("image_id").to_pylist()[1:]]
    pq.write_table(table.set_column(place, "image_id", [names]), path)
    manifest = read_manifest(data)
    with pytest.raises(UserError, match="a row without image_id"):
        list(batches(open_shards(data, manifest, verify=False), manifest))


def test_an_unconditional_model_s_samples_are_read(tools, tmp_path):
    rows = tools.rows(7, 0)
    rows = Images.real(rows.pixels, np.zeros((7, 0), np.uint8), rows.patient_id, rows.image_id)
    data = tools.write(tmp_path / "data", classes=(), train=rows)
    manifest = read_manifest(data)
    tables = [table for _, table in batches(open_shards(data, manifest, verify=True), manifest)]
    assert sum(len(from_table(table)) for table in tables) == 7
