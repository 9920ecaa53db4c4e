"""`vaegan.prepare` beside what a researcher writes instead: a loop with Pillow, torchvision's ImageFolder.

All turn the same files into the same grey pixels. Preparing also checks and hashes every file, finds copies and
patients in two splits, looks for shortcuts, and writes shards; the others end with an array in memory.
"""

import contextlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from common.measure import cpu_seconds, in_turn, ratios, spread, verdict
from vaegan import duplicates
from vaegan.phantom import PhantomConfig, phantom
from vaegan.preparation import decoding, pipeline, pools
from vaegan.preparation.config import PrepareConfig
from vaegan.preparation.pipeline import prepare
from vaegan.preparation.pools import cores
from vaegan.shards import SPLITS, DatasetWriter, read_manifest, read_split

SIZE = 64
BATCH = 64
SHARED = ("kermany_cxr_224", "nih_cxr_1000_256")
HOSPITAL = 1024  # px
GRAIN = 2.0  # grey levels: makes enlarged films' PNG files as large as NIH's, 0.4 MB
QUALITY = 92
CLASSES = ("NORMAL", "PNEUMONIA")
TOLERANCE = {"png": (0, 0), "jpeg": (4, 0.25)}
"""Grey levels by which a pixel, and the mean over all, may differ from the loop's. Of a JPEG much larger than asked for
a part of its resolution is decoded, which moves pixels by two levels on most films; else they are equal."""
LARGE = "1024"
GOAL, SMALL_GOAL = 1.0, 0.3
"""Of films of 1024 px, and of small ones: these decode in half a millisecond, and hashes, copies, traps and splits cost
as much again. 1 was the goal for all, and small films fall short of it (docs/log.md)."""
QUICK = 0.5
"""With --quick goals are half as high: the start of processes weighs beside so few films."""
Pixels = tuple[list[str], np.ndarray]
"""Names without suffix, and uint8 (N, 64, 64)."""


@dataclass(frozen=True)
class Films:
    """Image files in a folder per class.

    kind: how they were compressed, a key of TOLERANCE.
    """

    name: str
    folder: Path
    kind: str
    count: int

    @property
    def mean_bytes(self) -> float:
        """Of a file."""
        return sum(file.stat().st_size for file in self.folder.rglob("*.*")) / self.count


@dataclass
class Contestant:
    """A way to the pixels; `run` is what is timed, `pixels` what came out of the last run."""

    name: str
    run: Callable[[], object]
    pixels: Callable[[], Pixels]


def compare_prepare(folder: Path, *, quick: bool, rounds: int, most: int | None = None) -> bool:
    """Print every table and verdict; whether all goals are met.

    Args:
        most: films of a set.
    """
    met = []
    for films in film_sets(folder, quick=quick, most=most):
        print(f"\nprepare, {films.name}: {films.count} films of {films.mean_bytes / 1e3:.0f} kB, to {SIZE} px, grey")
        goal = (GOAL if LARGE in films.name else SMALL_GOAL) * (QUICK if quick else 1)
        met.append(race(films, folder, rounds, goal))
        if not quick or films.kind == "png":
            print(f"  where one process spends its time: {spent(films, folder)}")
    return all(met)


def race(films: Films, folder: Path, rounds: int, goal: float) -> bool:
    """Compare pixels, then times; the verdicts of preparing with all cores."""
    alone, all_cores = (ours(f"prepare, {how}", films, folder, n) for how, n in (("1 process", 1), ("all cores", 0)))
    loop, here, workers = pillow(films), image_folder(films, 0), image_folder(films, cores())
    entrants = [alone, all_cores, loop, here, workers]
    processor_s: dict[str, float] = defaultdict(float)

    def measured(entrant: Contestant) -> None:
        started_s = cpu_seconds()
        entrant.run()
        processor_s[entrant.name] += cpu_seconds() - started_s

    times = in_turn({each.name: partial(measured, each) for each in entrants}, rounds)
    for each in entrants:
        rate, cost_ms = films.count / statistics.median(times[each.name]), processor_s[each.name] / rounds / films.count
        figures = f"{spread(times[each.name]):>24} s {rate:8.0f} images/s {1e3 * cost_ms:7.2f} ms of processor a film"
        print(f"  {each.name:24}{figures}   {apart(each, loop)}")
    if wrong := [each.name for each in entrants if not is_same(each, loop, films.kind)]:
        print(f"error: the pixels of {', '.join(wrong)} are others, so the times say nothing", file=sys.stderr)
        return False
    ratio = {each.name: statistics.median(ratios(times[loop.name], times[each.name])) for each in entrants}
    print(f"  a Pillow loop's speed is 1, one process of ours {ratio[alone.name]:.2f}, all {ratio[all_cores.name]:.2f}")
    met = [
        verdict(f"prepare_vs_{rival}_{films.name}", statistics.median(ratios(times[name], times[all_cores.name])), goal)
        for rival, name in (("pillow", loop.name), ("imagefolder", workers.name))
    ]
    return all(met)


# ---------------------------------------------------------------------------------------------------------------------
# Contestants


def ours(name: str, films: Films, folder: Path, num_workers: int) -> Contestant:
    """Preparing in this process, as the command does it."""
    out = folder / f"ours-{num_workers}"

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):  # bars
            prepare(PrepareConfig(images=films.folder, source="folder", out=out, size=SIZE, num_workers=num_workers))

    return Contestant(name, run, lambda: stored(out))


def stored(dataset: Path) -> Pixels:
    """All of a dataset, whatever its split."""
    parts = [read_split(dataset, split) for split in SPLITS if split in read_manifest(dataset).splits]
    names = [name for part in parts for name in part.image_id]
    return names, np.concatenate([part.pixels[..., 0] for part in parts])


def pillow(films: Films) -> Contestant:
    """The loop that one writes."""
    found: list[Pixels] = []

    def run() -> None:
        paths = sorted(films.folder.glob("*/*"))
        found[:] = [([path.stem for path in paths], np.stack([_by_hand(path) for path in paths]))]

    return Contestant("Pillow loop", run, lambda: found[0])


def _by_hand(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        grey = image.convert("L")
    side = min(grey.size)
    left, top = (grey.width - side) // 2, (grey.height - side) // 2
    square = grey.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def image_folder(films: Films, workers: int) -> Contestant:
    """torchvision's, in batches, until the last one is there."""
    found: list[Pixels] = []

    def run() -> None:
        dataset = ImageFolder(str(films.folder), _transform())
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=BATCH, num_workers=workers)
        x = torch.cat([batch for batch, _ in loader])
        names = [Path(path).stem for path, _ in dataset.samples]
        found[:] = [(names, (x[:, 0] * 255).round().to(torch.uint8).numpy())]

    return Contestant(f"ImageFolder, {workers} workers", run, lambda: found[0])


def _transform() -> Callable[[Image.Image], torch.Tensor]:
    lanczos = transforms.InterpolationMode.LANCZOS
    steps = [
        transforms.Grayscale(),
        transforms.Resize(SIZE, lanczos),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
    ]
    return transforms.Compose(steps)


def _differences(one: Contestant, other: Contestant) -> np.ndarray:
    (a_names, a), (b_names, b) = one.pixels(), other.pixels()
    order_a, order_b = np.argsort(a_names), np.argsort(b_names)
    assert [a_names[i] for i in order_a] == [b_names[i] for i in order_b], "one of them left out films"
    return np.abs(a[order_a].astype(np.int16) - b[order_b])


def apart(one: Contestant, other: Contestant) -> str:
    """By how many grey levels two differ, in words."""
    off = _differences(one, other)
    return f"off by {off.max()} at most, {off.mean():.2f} in the mean" if one is not other and off.any() else ""


def is_same(one: Contestant, other: Contestant, kind: str) -> bool:
    """Whether two gave the same pixels, within what is tolerated."""
    off = _differences(one, other)
    most, mean = TOLERANCE[kind]
    return bool(off.max() <= most and off.mean() <= mean)


# ---------------------------------------------------------------------------------------------------------------------
# Where time goes


def spent(films: Films, folder: Path) -> str:
    """Processor time of one process of ours, by what it is spent on. Others' load doesn't count."""
    seconds: dict[str, float] = defaultdict(float)
    pieces = [
        (decoding, "_data", "read and hash the file"),
        (decoding, "decode_for", "decode"),
        (decoding, "resize", "resize"),
        (decoding, "check_pixels", "check"),
        (decoding, "pixel_hash", "hashes"),
        (decoding, "perceptual_hash", "hashes"),
        (duplicates, "thumbnail", "thumbnail"),
        (pools, "decode_part", "rows and spill"),
        (pipeline, "settle", "copies and splits"),
        (pipeline, "shortcut_warnings", "shortcuts"),
        (pipeline, "findings_table", "findings"),
        (DatasetWriter, "add", "shards"),
        (DatasetWriter, "finish", "shards"),
        (pipeline, "provenance", "provenance"),
    ]
    with contextlib.ExitStack() as patched:
        for owner, name, what in pieces:
            patched.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), seconds, what)))
        started_s = time.process_time()
        ours("", films, folder, 1).run()
        total_s = time.process_time() - started_s
    seconds["the rest"] = total_s - sum(seconds.values())
    ms = {what: 1e3 * each / films.count for what, each in sorted(seconds.items(), key=lambda item: -item[1])}
    return ", ".join(f"{what} {each:.2f}" for what, each in ms.items()) + " ms a film"


def _timed(work: Callable[..., Any], seconds: dict[str, float], what: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started_s = time.thread_time()  # parts wait for the threads that decode them
        try:
            return work(*args, **kwargs)
        finally:
            seconds[what] += time.thread_time() - started_s

    return timed


# ---------------------------------------------------------------------------------------------------------------------
# Films


def film_sets(folder: Path, *, quick: bool, most: int | None = None) -> Iterator[Films]:
    """Real films as they are, and the same enlarged to what hospitals have, each in a folder that goes afterwards."""
    few, many = (min(each, most or each) for each in ((60, 400) if quick else (1000, 6000)))
    for source in SHARED[:1] if quick else SHARED:
        files, made_up = real_films(source, many)
        name = f"jpeg{_width(files[0][1])}" + ("_made_up" if made_up else "")
        yield from _written(folder, name, "jpeg", files)
    files, made_up = real_films(SHARED[-1], few)
    for kind in ("jpeg", "png"):
        enlarged = [(label, enlarge(data, kind, seed)) for seed, (label, data) in enumerate(files)]
        yield from _written(folder, f"{kind}{HOSPITAL}" + ("_made_up" if made_up else ""), kind, enlarged)


def real_films(source: str, count: int) -> tuple[list[tuple[str, bytes]], bool]:
    """(class, file) of up to `count` films, and whether they had to be made up."""
    folder = Path(os.environ.get("AUGRAY_SHARED", "../shared")) / "data" / source
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        print(f"no films in {folder}, so the phantom's at 256 px stand for them: set AUGRAY_SHARED to where they are")
        return phantom_films(count), True
    table = pq.read_table(parts, columns=["image", "label"])
    chosen = np.random.default_rng(0).permutation(len(table))[:count]
    rows = table.take(np.sort(chosen))
    labels = [CLASSES[label] for label in rows.column("label").to_pylist()]
    images = [image["bytes"] if isinstance(image, dict) else image for image in rows.column("image").to_pylist()]
    return list(zip(labels, images, strict=True)), False


def phantom_films(count: int) -> list[tuple[str, bytes]]:
    """The same from the phantom, as JPEG files of 256 px."""
    films = phantom(PhantomConfig(patients=count), size=256, seed=0)
    chosen = zip(films.labels[:count], films.pixels[:count, :, :, 0], strict=True)
    return [(CLASSES[int(labels[1:].any())], _encoded(Image.fromarray(film), "jpeg")) for labels, film in chosen]


def enlarge(data: bytes, kind: str, seed: int) -> bytes:
    """A film at 1024 px with grain, as a file of another kind."""
    large = Image.open(io.BytesIO(data)).convert("L").resize((HOSPITAL, HOSPITAL), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, GRAIN, (HOSPITAL, HOSPITAL)).astype(np.float32)
    return _encoded(Image.fromarray(np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)), kind)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": QUALITY} if kind == "jpeg" else {}))
    return buffer.getvalue()


def _width(data: bytes) -> int:
    return Image.open(io.BytesIO(data)).width


def _written(folder: Path, name: str, kind: str, files: list[tuple[str, bytes]]) -> Iterator[Films]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for i, (label, data) in enumerate(files):
            path = Path(place) / label / f"film_{i:06d}.{kind}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        yield Films(name, Path(place), kind, len(files))
