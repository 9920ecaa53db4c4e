import json
from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import UserError
from vaegan.importers.base import Address, Record
from vaegan.preparation.decoding import Decoding
from vaegan.preparation.spool import Spool, decode_part, records_per_part

HOW = Decoding(size=8, channels=1, aspect="crop", classes=("a", "b"), multilabel=False)


def records(count, **values):
    rng = np.random.default_rng(count)
    images = [rng.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(count)]
    return [Record(f"n{i}", image, f"i{i}", ("ab"[i % 2],), **values) for i, image in enumerate(images)]


@pytest.fixture
def spool(tmp_path):
    found = Spool(tmp_path / "work", {"a": (1, 2)}, HOW)
    found.open()
    return found


def fill(spool, *parts):
    for part in parts:
        decode_part(part, spool.how, spool.part(spool.num_parts))
        spool.num_parts += 1


def test_what_goes_in_comes_out_in_order_over_parts_with_nothing_and_with_everything_wrong(spool):
    good, bad = records(5), records(3, problem="odd")
    fill(spool, good[:2], bad, good[2:], [])
    assert spool.accepted(["image_id"])["image_id"].to_pylist() == [f"i{i}" for i in range(5)]
    pixels = np.concatenate(list(spool.pixels()))
    np.testing.assert_array_equal(pixels[..., 0], [each.image for each in good])
    assert [len(spool.rest(number)) for number in range(4)] == [0, 3, 0, 0]
    assert spool.thumbnails().shape == (5, 32, 32)


def test_nothing_that_can_be_used_is_empty_arrays_not_an_error(spool):
    fill(spool, records(3, left_out="lateral"))
    assert spool.thumbnails().shape == (0, 32, 32)
    assert len(spool.accepted(["image_id", "labels"])) == 0
    assert spool.rest(0)["left_out"].to_pylist() == ["lateral"] * 3


def test_addresses_of_synthetic_images_survive(spool):
    fill(spool, records(2, synthetic=Address("m", 2**40, 7)) + records(1))
    table = spool.accepted(["model", "seed", "index", "synthetic"])
    assert table.to_pylist()[1:] == [
        {"model": "m", "seed": 2**40, "index": 7, "synthetic": True},
        {"model": None, "seed": None, "index": None, "synthetic": False},
    ]


def test_parts_stay_for_the_same_stamp_and_go_for_another(spool, tmp_path):
    fill(spool, records(2))
    same = Spool(tmp_path / "work", {"a": [1, 2]}, HOW)
    same.open()
    assert same.part(0).exists()
    other = Spool(tmp_path / "work", {"a": [1, 3]}, HOW)
    other.open()
    assert not other.part(0).exists()
    assert json.loads((tmp_path / "work" / "stamp.json").read_text()) == {"a": [1, 3]}
    other.remove()
    other.remove()
    assert not (tmp_path / "work").exists()


def test_a_part_that_fails_halfway_leaves_no_file_of_its_name(spool):
    with pytest.raises(UserError, match="n1: odd"):
        decode_part(
            [*records(1), Record("n1", b"", "i", ("a",), problem="odd")],
            replace(HOW, strict=True),
            spool.part(0),
        )
    assert [path.name for path in spool.folder.iterdir()] == ["stamp.json"]


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (64, 1), (256, 3), (1024, 3)])
def test_parts_are_bounded_in_rows_and_bytes(size, channels):
    rows = records_per_part(size, channels)
    assert 16 <= rows <= 512
    assert rows * size * size * channels <= 64 * 2**20
