"""From images to features: invariant to how the work is cut up, computed once, read ahead."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extraction import extract, extract_moments, map_blocks, progress_bar, stream_blocks
from vaegan.metrics.extractor import Extractor
from vaegan.metrics.moments import Moments
from vaegan.metrics.sources import ImageSource, blocks, source_of
from vaegan.metrics.sources.blocks import ArrayBlock
from vaegan.shards import Images


def images(count, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    names = [str(row) for row in range(count)]
    return Images.real(pixels, np.zeros((count, 0), np.uint8), names, names)


def projection(seed=0):
    """A network of one layer, 5 features and 3 classes, that counts the images it sees."""
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) / 64
    network = CountingNetwork(weight)
    return Extractor("projection", "all", f"weights {seed}", "none", 5, network)


class CountingNetwork:
    def __init__(self, weight):
        self.weight, self.batches = weight, []

    def __call__(self, batch):
        self.batches.append(len(batch))
        found = batch.float().flatten(1) @ self.weight
        return found[:, :5], found[:, 5:]


def cut(source, sizes):
    """The same images in blocks of other sizes."""
    pixels = source.pixels(range(len(source)))
    ends = np.cumsum(sizes)
    parts = tuple(ArrayBlock.of(pixels[end - size : end]) for size, end in zip(sizes, ends, strict=True))
    return dataclasses.replace(source, blocks=parts)


def test_features_do_not_depend_on_blocks_batches_readers_or_order():
    source = source_of(images(600))
    whole = extract(source, projection(), batch_size=600)
    for other, options in {
        cut(source, [600]): {"batch_size": 7},
        cut(source, [1, 299, 100, 200]): {"readers": 1},
        source: {"readers": 5, "batch_size": 64},
    }.items():
        found = extract(other, projection(), **options)
        np.testing.assert_allclose(found.features, whole.features, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.probabilities, whole.probabilities, rtol=1e-5)
    order = np.random.default_rng(0).permutation(600)
    shuffled = extract(source_of(images(600).take(order)), projection())
    np.testing.assert_allclose(shuffled.features, whole.features[order], rtol=1e-5, atol=1e-5)


def test_moments_of_shards_merge_to_those_of_all_rows_in_float64():
    source = source_of(images(600))
    expected = Moments.of(extract(source, projection()).features)
    streamed = extract_moments(source, projection())
    parts = (range(250), range(250, 600))
    halves = [extract_moments(source_of(images(600).take(rows)), projection()) for rows in parts]
    for found in (streamed, halves[0].merge(halves[1])):
        assert found.count == 600
        assert found.scatter.dtype == np.float64
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-6, atol=1e-9)


def test_known_features_are_not_computed_again_and_are_equal_to_the_bit(tmp_path):
    cache, source = FeatureCache(tmp_path), source_of(images(600))
    first, again = projection(), projection()
    one, two = extract(source, first, cache=cache), extract(source, again, cache=cache)
    assert sum(first.network.batches) == 600
    assert again.network.batches == []
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    other = projection(seed=1)
    extract(source, other, cache=cache)
    assert sum(other.network.batches) == 600, "other weights are another key"


def test_one_more_image_or_a_damaged_entry_costs_its_block_alone(tmp_path):
    cache = FeatureCache(tmp_path)
    extract(source_of(images(600)), projection(), cache=cache)
    more = Images.concatenate([images(600), images(1, seed=1)])
    extractor = projection()
    extract(source_of(more), extractor, cache=cache)
    assert sum(extractor.network.batches) == 601 - 512
    next(tmp_path.rglob(f"{source_of(more).blocks[0].sha256}.safetensors")).write_bytes(b"damaged")
    extractor = projection()
    found = extract(source_of(more), extractor, cache=cache)
    assert sum(extractor.network.batches) == 256
    np.testing.assert_array_equal(found.features, extract(source_of(more), projection()).features)


@pytest.mark.parametrize("change", [
    {"layer": "other"}, {"resize": "other"}, {"weights_sha256": "other"}, {"dim": 6}, {"device": "meta"},
])  # fmt: skip
def test_the_key_holds_all_that_moves_the_numbers(change):
    assert dataclasses.replace(projection(), **change).key != projection().key


def test_blocks_are_read_ahead_but_not_all_at_once(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_BLOCK", 64)
    events = []
    lock = threading.Lock()

    class Told(ArrayBlock):
        def read(self, rows=None):
            with lock:
                events.append("read")
            return super().read(rows)

    source = source_of(images(640))
    told = tuple(Told(sha256=block.sha256, count=block.count, pixels=block.pixels) for block in source.blocks)
    most = 0
    for _ in stream_blocks(dataclasses.replace(source, blocks=told), "key", lambda p: {"n": p[:, 0, 0]}, readers=2):
        events.append("computed")
        most = max(most, events.count("read") - events.count("computed"))
    assert events.count("read") == len(told) == 10
    assert 1 <= most <= 3


def test_any_function_of_pixels_can_be_mapped_and_progress_counts_images(tmp_path):
    source = source_of(images(300))
    told = []
    found = map_blocks(
        source, "means", lambda pixels: {"mean": pixels.mean(axis=(1, 2, 3)), "first": pixels[:, 0, 0]},
        cache=FeatureCache(tmp_path), progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    np.testing.assert_allclose(found["mean"], images(300).pixels.mean(axis=(1, 2, 3)))
    assert found["first"].shape == (300, 1)
    assert told == [(256, 300), (300, 300)]


def test_an_error_in_a_block_ends_the_extraction_with_that_error(tmp_path):
    class Gone(ArrayBlock):
        def read(self, rows=None):
            raise UserError("the file is gone")

    source = source_of(images(10))
    gone = dataclasses.replace(source, blocks=(Gone(sha256="x", count=10, pixels=np.empty(0)),))
    with pytest.raises(UserError, match="the file is gone"):
        extract(gone, projection(), cache=FeatureCache(tmp_path))


def test_a_bar_is_silent_where_stderr_is_no_terminal(capfd):
    with progress_bar("features") as show:
        extract(source_of(images(10)), projection(), progress=show)
    assert capfd.readouterr() == ("", "")


def test_moments_of_a_source_fit_into_memory_that_its_features_would_not():
    """A million rows of 64 features would be 256 MB; blocks go one by one."""
    block = ArrayBlock.of(np.zeros((250, 2, 2, 1), np.uint8))

    def network(batch):
        return torch.ones(len(batch), 64), None

    many = ImageSource(
        "many", (2, 2, 1), (block,) * 40, np.zeros((10_000, 0), np.uint8), (), np.empty(10_000, object),
        np.empty(10_000, object),
    )  # fmt: skip
    assert extract_moments(many, Extractor("ones", "", "", "", 64, network)).count == 10_000
