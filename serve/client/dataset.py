"""`SyntheticStream`: a service's images as a PyTorch dataset, fetched while the network trains."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cluster.errors import UserError
from serve.client.answers import find_model
from serve.client.mix import Mix
from serve.client.requests import Classes
from serve.client.retry import Retry
from serve.client.sync import Client
from vaegan.tensors import to_tensor

Item = tuple[Tensor, Tensor]
CLOSE_TIMEOUT_S = 5.0
"""Longest that closing an iterator waits for its thread: one that hears nothing from the service ends by itself."""


class SyntheticStream(IterableDataset[Item]):
    """Images of a service in an order that the seed alone decides, endless or `count` of them.

    The order is cut into blocks (see `serve.client.mix.Mix`), which are dealt to the consumers, that is to every worker
    of a DataLoader on every rank: together they get exactly the addresses that one alone would, none twice. Each
    consumer asks for one class of one block at a time, in a thread of its own that is `prefetch_blocks` ahead.

    Iterating again gives the same images again. An instance holds settings only: a DataLoader may fork or spawn.

    Args:
        url: where the service is.
        model: its name. The newest version is looked up once, now; name one where several processes must agree.
        mix: images of each class in the sum of all parts, such as {"normal": 1, "effusion": 3}; a tuple of classes for
            co-occurring findings, () for a model without classes. None: equally many of each class.
        seed: of the addresses and of their order.
        count: images in all, over every rank and worker; None for ever.
        start: each class's first index.
        batch_size: ready batches of so many (the last of a consumer may have fewer), for DataLoader(batch_size=None);
            None yields single images.
        dtype: "float32" in [-1, 1], or "uint8" as they are.
        rank, world_size: which of how many processes this is.
        block_size: images of one block; also how evenly `count` can be dealt.
        prefetch_blocks: blocks that wait in memory at most; one more is under way.
        api_key, retry, timeout_s: as of `Client`.

    Attributes:
        model, version, classes: which model it is; y's columns are its classes.
        image_shape: (C, H, W).
        mix: the order, see `Mix`.

    Yields:
        (x, y): x (C, H, W) and y float32 (K,), the labels; with `batch_size` (B, C, H, W) and (B, K).

    Raises:
        ServiceError: the service can't be asked, now or while iterating.
        UserError: no such model, version or class.
    """

    def __init__(
        self,
        url: str,
        model: str,
        mix: Mapping[Classes, int] | None = None,
        *,
        seed: int,
        count: int | None = None,
        start: int = 0,
        version: str | None = None,
        latent: str = "prior",
        truncation: float = 1.0,
        batch_size: int | None = None,
        dtype: Literal["float32", "uint8"] = "float32",
        rank: int = 0,
        world_size: int = 1,
        block_size: int = 512,
        prefetch_blocks: int = 2,
        api_key: str | None = None,
        retry: Retry | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}, since world_size is {world_size}")
        for name, value in (("count", count), ("batch_size", batch_size), ("prefetch_blocks", prefetch_blocks)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        if dtype not in ("float32", "uint8"):
            raise ValueError(f"dtype is {dtype!r}, expected float32 or uint8")
        self._client = dict(url=url, api_key=api_key, retry=retry, timeout_s=timeout_s)
        with Client(**self._client) as client:  # type: ignore[arg-type]
            about = find_model(client.models(), model, version)
        self.model, self.version, self.classes = model, str(about["version"]), tuple(about["classes"])
        self.image_shape = (int(about["channels"]), int(about["size"]), int(about["size"]))
        self.mix = Mix.of(mix or _all_classes(about), seed=seed, start=start, block_size=block_size)
        unknown = sorted({name for names in self.mix.classes for name in names} - set(self.classes))
        if unknown:
            raise UserError(
                f"no class {', '.join(unknown)} in model {model}/{self.version}: expected some of "
                f"{', '.join(self.classes) or 'none'}; name those in the mix"
            )
        self._image = dict(version=self.version, latent=latent, truncation=truncation)
        self._count, self._batch_size, self._dtype = count, batch_size, dtype
        self._rank, self._world_size, self._prefetch = rank, world_size, prefetch_blocks
        self._given = 0
        self._resume = 0

    def state_dict(self) -> dict[str, int]:
        """How many images the newest iterator of this very object has given; a DataLoader's workers have copies."""
        return {"images": self._given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next iterator begins where that one stood, for a consumer with the same rank and number of consumers."""
        self._resume = int(state["images"])

    def __iter__(self) -> Iterator[Item]:
        skip, self._resume = self._resume, 0
        self._given = skip
        return self._items(skip)

    def _items(self, skip: int) -> Generator[Item, None, None]:
        blocks = self._prefetched(skip)
        try:
            for pixels, labels in _cut(blocks, self._batch_size or 1):
                self._given += len(pixels)
                x = to_tensor(pixels) if self._dtype == "float32" else torch.from_numpy(pixels).permute(0, 3, 1, 2)
                y = torch.from_numpy(labels.astype(np.float32))
                yield (x[0], y[0]) if self._batch_size is None else (x, y)
        finally:
            blocks.close()

    def _prefetched(self, skip: int) -> Generator[Block, None, None]:
        """This consumer's blocks, fetched by a thread that lives as long as this generator."""
        waiting: queue.Queue[Block | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(
            target=_deliver, args=(self._blocks(skip, stop), waiting, stop), name="augray-prefetch", daemon=True
        )
        thread.start()
        try:
            while (item := waiting.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(CLOSE_TIMEOUT_S)

    def _blocks(self, skip: int, stop: threading.Event) -> Generator[Block, None, None]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        return _fetch(
            self.mix,
            self.mix.blocks(self._count, self._rank * workers + number, self._world_size * workers),
            skip,
            self.model,
            self._image,
            self._client,
            stop,
        )


Block = tuple[np.ndarray, np.ndarray]
"""Pixels uint8 (N, H, W, C) and labels uint8 (N, K)."""


def _all_classes(about: Mapping[str, Any]) -> dict[Classes, int]:
    return dict.fromkeys(about["classes"] or [()], 1)


def _fetch(
    mix: Mix,
    blocks: Iterator[tuple[int, int]],
    skip: int,
    model: str,
    image: Mapping[str, Any],
    client_arguments: Mapping[str, Any],
    stop: threading.Event,
) -> Generator[Block, None, None]:
    """Blocks in their order, less the first `skip` images; ends early when `stop` is set."""
    with Client(**client_arguments, pause=stop.wait) as client:
        for number, size in blocks:
            if skip >= size:
                skip -= size
                continue
            pixels: np.ndarray | None = None
            for part in mix.block(number, size):
                at = 0
                for images in client.stream(
                    model, part.classes, count=part.count, seed=mix.seed, start=part.start, **image
                ):
                    if stop.is_set():
                        return
                    if pixels is None:
                        pixels = np.empty((size, *images.pixels.shape[1:]), np.uint8)
                        labels = np.empty((size, images.labels.shape[1]), np.uint8)
                    rows = part.positions[at : at + len(images)]
                    pixels[rows], labels[rows] = images.pixels, images.labels
                    at += len(images)
            assert pixels is not None, "a block holds at least one image"
            yield pixels[skip:], labels[skip:]
            skip = 0


def _deliver(
    blocks: Generator[Block, None, None], waiting: queue.Queue[Block | BaseException | None], stop: threading.Event
) -> None:
    """Put blocks into a queue until they or the reader's patience end; then what ended them: an error, or None."""
    end: BaseException | None = None
    try:
        for block in blocks:
            if not _put(waiting, block, stop):
                break
    except BaseException as error:  # whatever it is, the reader must hear of it: it would wait for ever
        end = error
    finally:
        blocks.close()
    _put(waiting, end, stop)


def _put(
    waiting: queue.Queue[Block | BaseException | None], item: Block | BaseException | None, stop: threading.Event
) -> bool:
    """Wait for room, but not longer than until `stop`. Says whether the item was put."""
    while not stop.is_set():
        try:
            waiting.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _cut(blocks: Iterator[Block], size: int) -> Generator[Block, None, None]:
    """Blocks of any length as blocks of `size` rows; the last may have fewer."""
    rest: Block | None = None
    for block in blocks:
        joined = block if rest is None else (np.concatenate([rest[0], block[0]]), np.concatenate([rest[1], block[1]]))
        full = len(joined[0]) // size * size
        for at in range(0, full, size):
            yield joined[0][at : at + size], joined[1][at : at + size]
        rest = (joined[0][full:], joined[1][full:]) if full < len(joined[0]) else None
    if rest is not None:
        yield rest
