import numpy as np

from vaegan.evaluation.audit import fingerprints
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.privacy.copies import Fingerprints
from vaegan.metrics.sources import source_of
from vaegan.shards import Images


def test_fingerprints_are_kept_and_found_again(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 1), dtype=np.uint8)
    names = [str(row) for row in range(30)]
    source = source_of(Images.real(pixels, np.zeros((30, 0), np.uint8), names, names))
    cache = FeatureCache(tmp_path)
    first = fingerprints(source, cache)
    assert cache.problem is None
    monkeypatch.setattr(Fingerprints, "of", None)  # what is found needs no computing
    again = fingerprints(source, cache)
    for name, values in first.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], values)
