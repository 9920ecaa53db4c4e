"""Reading for training: shuffled epochs beside other loaders, how long a step waits, and how films are best stored.

    python benchmarks/reading.py                  20,000 films at 64 px, all rivals: some minutes
    python benchmarks/reading.py --size 256       3,000 films at 256 px
    python benchmarks/reading.py --quick          2,000 films, without Ray Data, one table of encodings: under 45 s
    python benchmarks/reading.py --films FOLDER   real films instead of the phantom's, from Parquet files with a column
                                                  `image` of image files (such as shared/data/nih_cxr_1000_256)

epochs     films/s of a shuffled epoch as float32 batches, streamed from a dataset of ours: over each rival's
stall      a step's own time over its time with waiting for batches, of 20 ms, with the next window read meanwhile
encodings  bytes and films/s of each way to store pixels in Parquet, one thread; raw with zstd over PNG

Every contestant's films are compared before times: all of an epoch, each once. Exit status 1 if one falls short.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common.measure import conditions, in_turn, ratios, spread, verdict
from common.reading_rivals import RIVALS, Epochs, installed, write_dataset
from PIL import Image
from torch import Tensor

from vaegan.acceleration import keep_freed_memory
from vaegan.images import decode, resize
from vaegan.phantom import PhantomConfig, phantom
from vaegan.reading import ReadingConfig, ShardReader, open_split, shuffled
from vaegan.reading.stream import _Loading
from vaegan.tensors import to_tensor

BATCH = 64
WINDOW_MB = 16  # a stream of several windows; a default one would hold all of these films
STEP_S = 0.02
# memmap_batched is a bound, not a rival: bytes that are in memory already, with nothing to unpack
GOALS = dict.fromkeys(RIVALS, 1.0) | {"memmap_batched": 0.25}
STALL_GOAL, QUICK_STALL_GOAL = 0.98, 0.9  # few steps: one that meets others' load weighs
DIFFERENT = 1000  # films drawn; more are copies, shifted and numbered


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    folder: Path
    films: Path | None
    size: int
    count: int
    rounds: int
    quick: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few films and rounds")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (default 64)")
    parser.add_argument("--count", type=int, help="films (default 82 million pixels; 2000 with --quick)")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default 5; 3 with --quick)")
    parser.add_argument("--films", type=Path, help="folder of Parquet files with real films")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, help="these comparisons")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    for name, value in conditions().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            Path(folder),
            films=arguments.films,
            size=arguments.size,
            count=arguments.count or (2000 if arguments.quick else max(3000, 82_000_000 // arguments.size**2)),
            rounds=arguments.rounds or (3 if arguments.quick else 5),
            quick=arguments.quick,
        )
        met = [COMPARISONS[name](plan) for name in arguments.only or COMPARISONS]
    return 0 if all(met) else 1


# ---------------------------------------------------------------------------------------------------------------- films
@cache
def drawn(films: Path | None, size: int, count: int) -> np.ndarray:
    """Films, uint8 (at most `count`, size, size, 1): the phantom's, or real ones."""
    if films is None:
        return phantom(PhantomConfig(patients=count), size=size, seed=0).pixels[:count]
    found: list[np.ndarray] = []
    for file in sorted(films.glob("*.parquet")):
        for value in pq.read_table(file, columns=["image"]).column(0).to_pylist():
            data = value["bytes"] if isinstance(value, dict) else value
            found.append(resize(decode(data, constant=True), size, 1))
            if len(found) == count:
                return np.stack(found)
    return np.stack(found)


def numbered(plan: Plan) -> np.ndarray:
    """`plan.count` films that all differ: each bears its number in its first four pixels."""
    some = drawn(plan.films, plan.size, min(plan.count, DIFFERENT))
    films = np.empty((plan.count, *some.shape[1:]), dtype=np.uint8)
    for at in range(0, plan.count, len(some)):
        part = films[at : at + len(some)]
        part[:] = np.roll(some, at // len(some) * 3, axis=2)[: len(part)]
    films[:, 0, :4, 0] = np.arange(plan.count)[:, None] // 64 ** np.arange(4) % 64
    return films


def seen(batches: Iterator[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Number and sum of pixels of each film, in the order seen."""
    numbers, sums = [], []
    for x in batches:
        assert x.dtype == torch.float32
        pixels = x.add(1).mul(127.5).round()
        numbers.append((pixels[:, 0, 0, :4].numpy() @ 64.0 ** np.arange(4)).astype(int))
        sums.append(pixels.double().sum(dim=(1, 2, 3)).numpy().astype(int))
    return np.concatenate(numbers), np.concatenate(sums)


# --------------------------------------------------------------------------------------------------------------- epochs
def compare_epochs(plan: Plan) -> bool:
    """Whether an epoch of ours, streamed, takes no longer than each rival's."""
    films = numbered(plan)
    write_dataset(plan.folder / "dataset", films, rows_per_group=32 if plan.quick else None)
    print(f"\nepochs: {len(films)} films of {plan.size} px in batches of {BATCH}, float32, in files in the page cache")
    with ExitStack() as stack:
        contestants: dict[str, Epochs] = {"memory": from_memory(plan), "stream": from_files(plan)}
        for name, (package, make) in RIVALS.items():
            if not installed(name):
                print(f"  {name} is left out, as {package} isn't installed: pip install -e '.[bench]' brings it")
            elif name == "ray" and plan.quick:
                print("  ray is left out of --quick: its cluster and each of its epochs take seconds to begin")
            else:
                if name == "ray":
                    from cluster.session import connect

                    stack.enter_context(connect())
                contestants[name] = make(plan.folder, films, BATCH)
        if not all(same_films(name, films, epochs(0)) for name, epochs in contestants.items()):
            return False
        times = in_turn({name: partial(exhaust, epochs) for name, epochs in contestants.items()}, plan.rounds)
    for name, each in times.items():
        rates = [len(films) / seconds for seconds in each]
        print(f"  {name:16} {spread(rates, digits=0):>28} films/s")
    judged = [name for name in times if name in RIVALS and not (plan.quick and name == "memmap_batched")]
    met = []
    for name in judged:
        met.append(verdict(f"stream_{name}", statistics.median(ratios(times[name], times["stream"])), GOALS[name]))
    if not plan.quick:  # 2,000 films are a few milliseconds of either
        memory = statistics.median(ratios(times["memmap_batched"], times["memory"]))
        met.append(verdict("memory_memmap_batched", memory, 0.9))
    return all(met)


def from_memory(plan: Plan) -> Epochs:
    """Ours, the split in memory."""
    images = open_split(plan.folder / "dataset", "train", ReadingConfig())
    steps = len(images) // BATCH

    def epoch(number: int) -> Iterator[Tensor]:
        batches = shuffled(images, seed=0, batch_size=BATCH, start=number * steps, stop=(number + 1) * steps)
        return (to_tensor(pixels) for pixels, _ in batches)

    return epoch


def from_files(plan: Plan) -> Epochs:
    """Ours, streamed."""
    reader = ShardReader(plan.folder / "dataset", "train", ReadingConfig(window_mb=2 if plan.quick else WINDOW_MB))
    steps = len(reader) // BATCH

    def epoch(number: int) -> Iterator[Tensor]:
        batches = reader.batches(seed=0, batch_size=BATCH, start=number * steps, stop=(number + 1) * steps)
        return (to_tensor(pixels) for pixels, _ in batches)

    return epoch


def same_films(name: str, films: np.ndarray, batches: Iterator[Tensor]) -> bool:
    """Whether an epoch has each film at most once, unchanged, in another order, and all but an incomplete batch."""
    numbers, sums = seen(batches)
    right = np.array_equal(sums, films.reshape(len(films), -1).sum(axis=1, dtype=int)[numbers])
    all_there = len(np.unique(numbers)) == len(numbers) >= len(films) - len(films) % BATCH
    near = np.abs(np.diff(numbers))
    if not (right and all_there and np.median(near) > 16):
        print(f"error: {name} gives other films: {len(np.unique(numbers))} of {len(films)}", file=sys.stderr)
        return False
    return True


def exhaust(epochs: Epochs) -> None:
    """One epoch; the networks' work is left out."""
    for _ in epochs(1):
        pass


# ---------------------------------------------------------------------------------------------------------------- stall
def compare_stall(plan: Plan) -> bool:
    """Whether steps wait for almost nothing once the first batch is there."""
    dataset = plan.folder / "stall"
    write_dataset(dataset, numbered(plan), rows_per_group=16 if plan.quick else None)
    reader = ShardReader(dataset, "train", ReadingConfig(window_mb=1 if plan.quick else WINDOW_MB))
    steps = min(len(reader) // BATCH, 60 if plan.quick else 300)
    found = {
        "ahead": waiting(reader.batches(seed=0, batch_size=BATCH, stop=10**6), steps),
        "when needed": waiting(when_needed(reader), steps),
    }
    print(f"\nstall: {steps} steps of {1000 * STEP_S:.0f} ms, {BATCH} films of {plan.size} px each")
    for name, (first_s, waits) in found.items():
        share = sum(waits) / (sum(waits) + len(waits) * STEP_S)
        print(
            f"  window read {name:12} first batch after {1000 * first_s:6.1f} ms, then {share:7.2%} of the time "
            f"waiting, {1000 * max(waits):6.1f} ms at most"
        )
    _, waits = found["ahead"]
    return verdict(
        "stall",
        len(waits) * STEP_S / (sum(waits) + len(waits) * STEP_S),
        QUICK_STALL_GOAL if plan.quick else STALL_GOAL,
    )


def waiting(batches: Any, steps: int) -> tuple[float, list[float]]:
    """Seconds until the first batch, and for which each later step waits."""
    waits = []
    with closing(batches):
        for _ in range(steps):
            started_s = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - started_s)
            time.sleep(STEP_S)
    return waits[0], waits[1:]


def when_needed(reader: ShardReader) -> Iterator[np.ndarray]:
    """The same stream by the same threads, each window read when the one before is used up."""
    from concurrent.futures import ThreadPoolExecutor

    order = reader.order(seed=0, batch_size=BATCH)
    with ThreadPoolExecutor(reader.config.threads) as pool:
        for epoch, window, skip in order.windows_from(0, 10**6):
            pixels, _ = _Loading(reader, window, order.places(epoch, window), skip, pool).rows()
            for at in range(0, len(pixels), BATCH):
                yield pixels[at : at + BATCH]


# ------------------------------------------------------------------------------------------------------------ encodings
@dataclass(frozen=True)
class Encoding:
    """A way to store films in a Parquet column."""

    column: Callable[[np.ndarray], pa.Array]
    back: Callable[[pa.Array, tuple[int, int]], np.ndarray]
    """From a column to uint8 (N, H, W, 1)."""
    options: dict[str, Any]
    lossless: bool = True


def raw(films: np.ndarray) -> pa.Array:
    """Fixed-size binary."""
    flat = np.ascontiguousarray(films).reshape(len(films), -1)
    return pa.Array.from_buffers(pa.binary(flat.shape[1]), len(flat), [None, pa.py_buffer(flat)])


def from_raw(column: pa.Array, shape: tuple[int, int]) -> np.ndarray:
    """A view of the column's bytes."""
    return np.frombuffer(column.buffers()[1], dtype=np.uint8).reshape(len(column), *shape, 1)


def rows_apart(films: np.ndarray) -> pa.Array:
    """Each row of pixels less the one above it, as PNG's filter `up`."""
    apart = films.copy()
    apart[:, 1:] -= films[:, :-1]
    return raw(apart)


def rows_together(column: pa.Array, shape: tuple[int, int]) -> np.ndarray:
    """The sums down each column of pixels."""
    return np.add.accumulate(from_raw(column, shape), axis=1, dtype=np.uint8)


def files_as(kind: str, **options: Any) -> Callable[[np.ndarray], pa.Array]:
    """Films as image files."""

    def column(films: np.ndarray) -> pa.Array:
        found = []
        for film in films:
            sink = BytesIO()
            Image.fromarray(film[:, :, 0]).save(sink, kind, **options)
            found.append(sink.getvalue())
        return pa.array(found, pa.binary())

    return column


def from_files_column(column: pa.Array, shape: tuple[int, int]) -> np.ndarray:
    """Image files decoded by Pillow."""
    films = np.empty((len(column), *shape, 1), dtype=np.uint8)
    for row, value in enumerate(column):
        films[row, :, :, 0] = np.asarray(Image.open(BytesIO(value.as_buffer())).convert("L"))
    return films


def _plain(**options: Any) -> dict[str, Any]:
    return dict(use_dictionary=False, **options)


ENCODINGS = {
    "raw": Encoding(raw, from_raw, _plain(compression="none")),
    "raw, lz4": Encoding(raw, from_raw, _plain(compression="lz4")),
    "raw, zstd 1": Encoding(raw, from_raw, _plain(compression="zstd", compression_level=1)),
    "raw, zstd 3": Encoding(raw, from_raw, _plain(compression="zstd", compression_level=3)),
    "raw, zstd 1, dictionary tried": Encoding(raw, from_raw, dict(compression="zstd", compression_level=1)),
    "row differences, zstd 1": Encoding(rows_apart, rows_together, _plain(compression="zstd", compression_level=1)),
    "row differences, zstd 3": Encoding(rows_apart, rows_together, _plain(compression="zstd", compression_level=3)),
    "PNG": Encoding(files_as("PNG"), from_files_column, _plain(compression="none")),
    "WebP, lossless": Encoding(
        files_as("WEBP", lossless=True, method=2), from_files_column, _plain(compression="none")
    ),
    "JPEG 95": Encoding(files_as("JPEG", quality=95), from_files_column, _plain(compression="none"), lossless=False),
}


def compare_encodings(plan: Plan) -> bool:
    """A table for each size, and whether raw pixels with zstd are read faster than PNG files."""
    met = []
    for size in (plan.size,) if plan.quick else (64, 128, 256):
        for group_mb in (1,) if plan.quick else (1, 4):
            met.append(encodings_at(plan, size, group_mb))
    return all(met)


def encodings_at(plan: Plan, size: int, group_mb: int) -> bool:
    """Whether it holds at a size, for row groups of that many megabytes of pixels."""
    rows = group_mb * 2**20 // size**2
    groups = 2 if plan.quick else max(4, 16 // group_mb)
    films = drawn(plan.films, size, min(rows * groups, 400 if plan.quick else 1000))
    films = np.resize(films, (rows * groups, size, size, 1))
    paths: dict[str, Path] = {}
    for name, encoding in ENCODINGS.items():
        paths[name] = plan.folder / f"{name}.parquet"
        table = pa.table({"image": encoding.column(films)})
        pq.write_table(table, paths[name], row_group_size=rows, **encoding.options)
        if encoding.lossless:
            back = np.concatenate([decoded(paths[name], encoding, size, group) for group in range(groups)])
            assert np.array_equal(back, films), name
    work = {name: partial(read, paths[name], ENCODINGS[name], size, groups) for name in ENCODINGS}
    times = in_turn(work, 2 if plan.quick else 5)
    kind = "the phantom's" if plan.films is None else plan.films.name
    print(f"\nencodings: {len(films)} films of {size} px ({kind}), row groups of {rows} ({group_mb} MB), one thread")
    for name, each in times.items():
        rates = [len(films) / seconds for seconds in each]
        size_ratio = paths[name].stat().st_size / films.nbytes
        print(
            f"  {name:30} {paths[name].stat().st_size / len(films):9.0f} bytes ({size_ratio:5.1%} of raw) "
            f"{spread(rates, digits=0):>30} films/s"
        )
    ratio = statistics.median(ratios(times["PNG"], times["raw, zstd 1"]))
    return verdict(f"encoding_png_{size}_{group_mb}mb", ratio, 1.0)


def decoded(path: Path, encoding: Encoding, size: int, group: int) -> np.ndarray:
    """The films of a row group, uint8."""
    with pq.ParquetFile(path) as file:
        column = file.read_row_group(group, use_threads=False).column(0).combine_chunks()
    return encoding.back(column, (size, size))


def read(path: Path, encoding: Encoding, size: int, groups: int) -> None:
    """All films of a file as float tensors, a row group at a time."""
    for group in range(groups):
        to_tensor(np.array(decoded(path, encoding, size, group)))


COMPARISONS: dict[str, Callable[[Plan], bool]] = {
    "epochs": compare_epochs,
    "stall": compare_stall,
    "encodings": compare_encodings,
}


if __name__ == "__main__":
    sys.exit(main())
