"""What reading for training is compared with: other loaders of the same films, each in the form that suits it best.

Each takes a folder to keep its files in and films, uint8 (N, H, W, 1), and gives epochs: shuffled batches, float32 in
[-1, 1], (n, 1, H, W). All drop the incomplete last batch.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vaegan.images import encode_png
from vaegan.shards import DatasetWriter, Images, pixels_of
from vaegan.tensors import to_tensor

Epochs = Callable[[int], Iterator[Tensor]]
"""From the number of an epoch to its batches."""

WORKERS = 2
"""Processes of rivals that decode."""


def write_dataset(path: Path, films: np.ndarray, rows_per_group: int | None = None) -> Path:
    """Films as a dataset of ours."""
    names = [f"{number:07d}" for number in range(len(films))]
    labels = np.zeros((len(films), 1), dtype=np.uint8)
    about = dict(height=films.shape[1], width=films.shape[2], channels=1)
    with DatasetWriter(path, task="multilabel", classes=["any"], rows_per_group=rows_per_group, **about) as writer:
        for at in range(0, len(films), 1024):
            rows = slice(at, at + 1024)
            writer.add("train", Images.real(films[rows], labels[rows], names[rows], names[rows]))
        writer.finish()
    return path


def image_folder(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """torchvision's ImageFolder over PNG files, a DataLoader with workers that stay."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    below = folder / "png" / "any"
    below.mkdir(parents=True)
    for number, film in enumerate(films):
        (below / f"{number:07d}.png").write_bytes(encode_png(film))
    to_float = transforms.Compose([transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    loader = DataLoader(
        ImageFolder(str(folder / "png"), to_float), batch_size, shuffle=True, drop_last=True, **_workers()
    )
    return lambda _: (x for x, _ in loader)


def webdataset(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """Tar shards of PNG files, a buffer of 1,000 films in each worker; bytes become floats a batch at a time.

    Workers share shards out and each drops its own incomplete batch, unless that is kept: it is, here.
    """
    import webdataset as wds

    (folder / "tar").mkdir()
    step = -(-len(films) // 8)
    for shard, at in enumerate(range(0, len(films), step)):
        with wds.TarWriter(str(folder / "tar" / f"{shard:04d}.tar")) as tar:
            for number in range(at, min(at + step, len(films))):
                tar.write({"__key__": f"{number:07d}", "png": encode_png(films[number])})
    files = sorted(map(str, (folder / "tar").glob("*.tar")))
    data = (
        wds.WebDataset(files, shardshuffle=len(files), empty_check=False)
        .shuffle(1000)
        .decode("l8")
        .to_tuple("png")
        .batched(batch_size, partial=True)
    )
    loader = wds.WebLoader(data, batch_size=None, **_workers())
    return lambda _: (to_tensor(np.asarray(batch[0])[..., None]) for batch in loader)


def hugging_face_image(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """`datasets` with PNG bytes in its Image feature."""
    data = _hugging_face(folder, films, encoded=True)

    def collate(rows: list[dict[str, Any]]) -> np.ndarray:
        return np.stack([np.asarray(row["image"]) for row in rows])[..., None]

    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True, collate_fn=collate, **_workers())
    return lambda _: map(to_tensor, loader)


def hugging_face_array(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """`datasets` with raw pixels as an array, NumPy's format, rows of a permutation a batch at a time."""
    data = _hugging_face(folder, films, encoded=False).with_format("numpy")

    def epoch(number: int) -> Iterator[Tensor]:
        order = np.random.default_rng(number).permutation(len(films))
        for at in range(0, len(order) - batch_size + 1, batch_size):
            yield to_tensor(np.asarray(data[order[at : at + batch_size]]["image"], dtype=np.uint8)[..., None])

    return epoch


def memmap(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """A Dataset over one raw file in the page cache, film by film, as one would first write it."""
    return _memmap(folder, films, batch_size, _FilmByFilm)


def memmap_batched(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """The same with whole batches fetched at once: the page cache as memory."""
    return _memmap(folder, films, batch_size, _BatchByBatch)


def ray_data(folder: Path, films: np.ndarray, batch_size: int) -> Epochs:
    """Ray Data over our own Parquet files: order of files and a local buffer shuffled, Arrow's blocks to tensors."""
    import ray

    from vaegan.shards import read_manifest

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    dataset = folder / "dataset"
    files = [str(dataset / name) for name in read_manifest(dataset).splits["train"].files]
    metadata = pq.read_schema(files[0]).metadata

    def epoch(number: int) -> Iterator[Tensor]:
        data = ray.data.read_parquet(files, shuffle="files").select_columns(["image"])
        found = data.iter_batches(
            batch_size=batch_size, batch_format="pyarrow", local_shuffle_buffer_size=4096,
            local_shuffle_seed=number, drop_last=True, prefetch_batches=4,
        )  # fmt: skip
        for table in found:
            yield to_tensor(pixels_of(table.replace_schema_metadata(metadata)))

    return epoch


RIVALS: dict[str, tuple[str, Callable[[Path, np.ndarray, int], Epochs]]] = {
    "imagefolder": ("torchvision", image_folder),
    "webdataset": ("webdataset", webdataset),
    "hf_image": ("datasets", hugging_face_image),
    "hf_array": ("datasets", hugging_face_array),
    "memmap": ("torch", memmap),
    "memmap_batched": ("torch", memmap_batched),
    "ray": ("ray", ray_data),
}
"""By name: the package it needs, and what makes it."""


def installed(name: str) -> bool:
    """Whether a rival's package is there."""
    return importlib.util.find_spec(RIVALS[name][0]) is not None


def _workers() -> dict[str, Any]:
    return dict(num_workers=WORKERS, persistent_workers=True, multiprocessing_context="fork")


def _hugging_face(folder: Path, films: np.ndarray, *, encoded: bool) -> Any:
    """A dataset read from Parquet, as one that was downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    height, width = films.shape[1:3]
    kind = datasets.Image() if encoded else datasets.Array2D((height, width), "uint8")
    name = "image" if encoded else "array"

    def rows() -> Iterator[dict[str, Any]]:
        for film in films:
            yield {"image": {"bytes": encode_png(film), "path": None} if encoded else film[:, :, 0]}

    made = datasets.Dataset.from_generator(
        rows, features=datasets.Features({"image": kind}), cache_dir=str(folder / f"hf_{name}")
    )
    made.to_parquet(str(folder / f"{name}.parquet"))
    return datasets.Dataset.from_parquet(str(folder / f"{name}.parquet"), cache_dir=str(folder / f"hf_{name}_read"))


def _memmap(folder: Path, films: np.ndarray, batch_size: int, kind: type[Dataset[Any]]) -> Epochs:
    path = folder / "films.raw"
    if not path.exists():
        films.tofile(path)
    data = kind(np.memmap(path, dtype=np.uint8, mode="r", shape=films.shape))  # type: ignore[call-arg]
    if kind is _BatchByBatch:
        loader = DataLoader(data, batch_size, shuffle=True, drop_last=True, collate_fn=lambda x: x)
        return lambda _: map(to_tensor, loader)
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True, **_workers())
    return lambda _: iter(loader)


class _FilmByFilm(Dataset[Tensor]):
    def __init__(self, films: np.ndarray) -> None:
        self.films = films

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(np.array(self.films[row])).permute(2, 0, 1).float().div_(127.5).sub_(1)


class _BatchByBatch(_FilmByFilm):
    def __getitems__(self, rows: list[int]) -> np.ndarray:
        return self.films[rows]
