"""Seed and index to numbers: a counter, so that image 5,000,000 of a seed costs no more than image 0."""

import numpy as np
from scipy.special import ndtri

from cluster.errors import UserError

MAX_SEED = 2**63 - 1  # what a Parquet int64 column and a JSON number in most languages can hold
_WORDS = 4  # 64-bit words in one counter step of Philox 4x64


def uniforms(seed: np.ndarray | int, index: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` uniforms in (0, 1) for each (seed, index): (N, count), float64.

    Philox 4x64-10 (Salmon et al. 2011) keyed by the seed, its counter at index x ceil(count / 4): a pure function of
    the address, whatever else is drawn with it. Runs of consecutive indices cost one call.

    Args:
        stream: numbers of the same address that have nothing to do with one another, from 0 to 2^64 - 1. Philox has a
            key of 128 bits; the seed is its lower half and the stream its upper, so that no two of them can meet.

    Raises:
        UserError: a seed or index outside 0 to 2^63 - 1.
    """
    index = np.asarray(index, dtype=np.int64)
    seeds = np.broadcast_to(np.asarray(seed, dtype=np.int64), index.shape)
    if len(index) and (index.min() < 0 or seeds.min() < 0):
        raise UserError(f"seed {seeds.min()}, index {index.min()}: expected both from 0 to {MAX_SEED}")
    steps = -(-count // _WORDS)
    found = np.empty((len(index), count))
    breaks = np.flatnonzero((np.diff(index) != 1) | (np.diff(seeds) != 0)) + 1
    for rows in np.split(np.arange(len(index)), breaks):
        if not len(rows):
            continue
        bits = np.random.Philox(key=int(seeds[rows[0]]) | stream << 64)
        bits.advance(int(index[rows[0]]) * steps)
        words = bits.random_raw(len(rows) * steps * _WORDS).reshape(len(rows), -1)[:, :count]
        found[rows] = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0 or 1: ndtri is finite
    return found


def normals(seed: np.ndarray | int, index: np.ndarray, count: int, stream: int = 0) -> np.ndarray:
    """`count` standard normals for each (seed, index): (N, count), float64; by inversion: one uniform makes one."""
    return ndtri(uniforms(seed, index, count, stream))


def prior(seed: np.ndarray | int, index: np.ndarray, dim: int, stream: int = 0) -> np.ndarray:
    """Standard normal latents (N, dim), float32."""
    return normals(seed, index, dim, stream).astype(np.float32)
