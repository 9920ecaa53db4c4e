"""Features that are kept: found again whole, or not at all."""

import os

import numpy as np
import pytest

from vaegan.metrics.cache import FeatureCache, default_folder


def arrays(seed=0, rows=5):
    rng = np.random.default_rng(seed)
    return {
        "features": rng.normal(size=(rows, 3)).astype(np.float32),
        "hash": rng.integers(0, 9, rows).astype(np.uint64),
    }


def only_file(folder):
    (path,) = folder.rglob("*.safetensors")
    return path


def assert_same(found, expected):
    assert found is not None
    assert list(found) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def test_what_was_put_is_found_under_its_block_and_key_alone(tmp_path):
    cache = FeatureCache(tmp_path)
    assert cache.get("block", "key") is None
    cache.put("block", "key", arrays())
    assert_same(FeatureCache(tmp_path).get("block", "key"), arrays())
    assert cache.get("block", "another key") is None
    assert cache.get("another block", "key") is None
    assert cache.problem is None


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-1], lambda data: data[:40], lambda data: b"x" * len(data),
    lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
], ids=["empty", "cut short", "cut in the header", "something else", "one bit"])  # fmt: skip
def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path, damage):
    cache = FeatureCache(tmp_path)
    cache.put("block", "key", arrays())
    path = only_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("block", "key") is None
    cache.put("block", "key", arrays(seed=1))
    assert_same(cache.get("block", "key"), arrays(seed=1))


def test_an_entry_in_the_place_of_another_is_not_taken_for_it(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put("block", "key", arrays())
    path = only_file(tmp_path)
    os.rename(path, path.with_name("other.safetensors"))
    assert cache.get("other", "key") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = FeatureCache(tmp_path)
    for number in range(10):
        cache.put(f"block{number}", "key", arrays())
        os.utime(tmp_path / only(tmp_path, number), (number, number))
    size = only(tmp_path, 0).stat().st_size
    cache.get("block0", "key")  # used again
    FeatureCache(tmp_path, max_bytes=10 * size).cut()
    assert sum(cache.get(f"block{number}", "key") is not None for number in range(10)) == 10
    for number in range(1, 10):
        os.utime(only(tmp_path, number), (number, number))
    FeatureCache(tmp_path, max_bytes=5 * size).cut()
    assert [number for number in range(10) if cache.get(f"block{number}", "key") is not None] == [0, 7, 8, 9]


def only(folder, number):
    (path,) = folder.rglob(f"block{number}.safetensors")
    return path


def test_a_folder_that_can_not_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file")
    cache.put("block", "key", arrays())
    assert cache.get("block", "key") is None
    assert cache.problem is not None
    assert "could not be kept" in cache.problem


def test_nothing_half_written_is_left(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put("block", "key", arrays())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["block.safetensors"]


def test_the_default_folder_is_the_users_or_the_one_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("AUGRAY_CACHE", "")
    assert default_folder().parts[-3:] == (".cache", "augray", "features")
