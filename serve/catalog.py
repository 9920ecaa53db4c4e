"""The models of a registry: what there is, which version is current, and those that a replica holds in memory."""

import asyncio
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.storage import read_json
from serve.problems import Problem, listed, shown
from serve.telemetry import Telemetry
from vaegan.checkpoint import CARD, MODEL, MODEL_JSON, ModelInfo, read_card, read_info
from vaegan.registry import SUMS, ModelEntry, Registry
from vaegan.sampler import Sampler

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log

UNCONDITIONAL = "none"
Load = Callable[[str], Awaitable[Sampler]]
"""NAME/VERSION to its sampler, from memory or from the registry."""


@dataclass(frozen=True)
class Listing:
    """One version of one model, as its folder describes it."""

    entry: ModelEntry
    info: ModelInfo
    document: Mapping[str, Any]
    """The content of its model.json."""
    card: str

    @classmethod
    def read(cls, registry: Registry, entry: ModelEntry) -> "Listing":
        """Raises UserError or OSError where the model's folder is damaged."""
        registry.verify(entry)
        info = read_info(entry.path)
        if info.address_prefix != f"{entry.name}/{entry.version}":  # its addresses would lead elsewhere
            raise UserError(f"{entry.path} holds {info.address_prefix}, expected the name of its folders")
        return cls(entry, info, read_json(entry.path / MODEL_JSON), read_card(entry.path))

    @property
    def id(self) -> str:
        """NAME/VERSION."""
        return f"{self.entry.name}/{self.entry.version}"

    @property
    def privacy(self) -> Mapping[str, Any]:
        """What the last privacy audit found; empty before the first."""
        return self.document.get("privacy") or {}

    def parse_classes(self, text: str) -> tuple[str, ...]:
        """The classes of an address: names joined by +, or "none". Names of this model that hold a + are understood."""
        if text == UNCONDITIONAL and text not in self.info.classes:
            return ()
        return _match_names(text, self.info.classes) or tuple(text.split("+"))


@dataclass(frozen=True)
class LoadedModel:
    """One version of one model, ready to sample."""

    listing: Listing
    sampler: Sampler

    @property
    def info(self) -> ModelInfo:
        return self.listing.info

    @property
    def id(self) -> str:
        """NAME/VERSION."""
        return self.listing.id

    def labels(self, names: Sequence[str], status: int) -> np.ndarray:
        """Multi-hot uint8 (K,) of class names.

        Raises:
            Problem: `status`, for a name that isn't a class of this model, or several where one is meant.
        """
        unknown = [name for name in names if name not in self.info.classes]
        if unknown:
            have = f"expected {listed(self.info.classes)}" if self.info.classes else "which has none; name no class"
            raise Problem(status, f"{shown(unknown[0])} is not a class of model {self.id}, {have}")
        try:
            return self.sampler.labels_of(names)[0]
        except UserError as error:
            raise Problem(status, str(error)) from None


def _unavailable(id: str) -> Problem:
    return Problem(
        503, f"model {id} could not be loaded; ask the operator of this service", headers={"Retry-After": "60"}
    )


def _match_names(text: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """`names` that `text` joins by +, each at most once; None where it doesn't."""
    if text in names:
        return (text,)
    for name in names:
        if text.startswith(f"{name}+"):
            rest = _match_names(text[len(name) + 1 :], [other for other in names if other != name])
            if rest is not None:
                return (name, *rest)
    return None


@dataclass(frozen=True)
class Stock:
    """What a registry held at one look."""

    listings: Mapping[str, Listing] = field(default_factory=dict)
    """By NAME/VERSION, those that are whole, oldest first within a name."""
    damaged: tuple[str, ...] = ()
    """NAME/VERSION of the others."""
    current: Mapping[str, str] = field(default_factory=dict)
    """By name, NAME/VERSION of what a request without a version gets."""

    def find(self, name: str, version: str | None, status: int = 404) -> Listing:
        """One model; its current version where `version` is None.

        Raises:
            Problem: `status` where there is no such model or version, 503 where it is damaged.
        """
        wanted = self.current.get(name) if version is None else f"{name}/{version}"
        if wanted is not None and wanted in self.listings:
            return self.listings[wanted]
        broken = [id for id in self.damaged if id == wanted or (version is None and id.startswith(f"{name}/"))]
        if broken:
            raise _unavailable(broken[-1])
        versions = [listing.entry.version for listing in self.listings.values() if listing.entry.name == name]
        if versions:
            raise Problem(status, f"no version {shown(version)} of model {name}, expected {listed(versions)}")
        raise Problem(status, f"no model {shown(name)}, expected {listed(list(self.current))}")


class RecentlyUsed:
    """Keeps what `load` returned for the last `size` ids; one load of an id at a time, off the event loop."""

    def __init__(self, load: Callable[[str], Sampler], size: int) -> None:
        self.load, self.size = load, size
        self.kept: OrderedDict[str, Sampler] = OrderedDict()
        self.locks: dict[str, asyncio.Lock] = {}

    async def __call__(self, id: str) -> Sampler:
        async with self.locks.setdefault(id, asyncio.Lock()):
            if id not in self.kept:
                self.kept[id] = await asyncio.to_thread(self.load, id)
        self.kept.move_to_end(id)
        while len(self.kept) > self.size:
            dropped, _ = self.kept.popitem(last=False)
            self.locks.pop(dropped, None)
        return self.kept[id]


class Catalog:
    """Answers which models there are, and loads them when they are asked for.

    Args:
        root: the registry's folder.
        max_models: models in memory at once.
        telemetry: counts loads.
        keep: makes the memory out of a function that loads, `RecentlyUsed` by default.
    """

    def __init__(
        self,
        root: Path,
        *,
        device: str = "cpu",
        max_models: int = 8,
        telemetry: Telemetry | None = None,
        keep: Callable[[Callable[[str], Sampler], int], Load] = RecentlyUsed,
    ) -> None:
        self.registry, self.device, self.max_models = Registry(root), device, max_models
        self.telemetry = telemetry or Telemetry()
        self.stock = Stock()
        self._seen: dict[str, tuple[object, Listing | None]] = {}
        self._load = keep(self._read_sampler, max_models)
        self._loaded: weakref.WeakSet[Sampler] = weakref.WeakSet()

    @property
    def num_loaded(self) -> int:
        """Models in memory, those too that are only waiting for their last request."""
        return len(self._loaded)

    def look(self) -> Stock:
        """What the registry holds now; a folder that did not change since the last look isn't read again.

        Raises:
            UserError: the registry's own folder isn't there.
        """
        Registry(self.registry.root)  # gone for a moment, it must not look like one without models
        listings, damaged, seen = {}, [], {}
        for entry in self.registry.models():
            id = f"{entry.name}/{entry.version}"
            try:
                stamp: object = tuple(
                    (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
                    for path in (entry.path / name for name in (MODEL_JSON, MODEL, CARD, SUMS))
                )
            except OSError as error:
                stamp = str(error)
            known = self._seen.get(id)
            seen[id] = known if known is not None and known[0] == stamp else (stamp, self._read(entry, id))
            listing = seen[id][1]
            if listing is None:
                damaged.append(id)
            else:
                listings[id] = listing
        self._seen = seen
        return Stock(listings, tuple(damaged), self._current(listings))

    async def refresh(self) -> None:
        """Look again. A version that is about to become current is loaded before it does."""
        stock = await asyncio.to_thread(self.look)
        current = dict(stock.current)
        for name, id in stock.current.items():
            before = self.stock.current.get(name)
            if id != before:
                try:
                    await self._load(id)
                except Exception as error:
                    logger.error("model %s can't become current: %s", id, error)
                    if before is not None and before in stock.listings:  # it goes on serving
                        current[name] = before
        self.stock = Stock(stock.listings, stock.damaged, current)

    async def warm_up(self) -> None:
        """The first look: load current versions, the newest first, until memory is full."""
        stock = await asyncio.to_thread(self.look)
        damaged = list(stock.damaged)
        newest = sorted(stock.current.values(), key=lambda id: -_age(stock.listings[id].entry))
        for id in newest[: self.max_models]:
            try:
                await self._load(id)
            except Exception as error:  # whatever is wrong with one model, the others still answer
                logger.error("model %s is unavailable: %s", id, error)
                damaged.append(id)
        whole = {id: listing for id, listing in stock.listings.items() if id not in damaged}
        self.stock = Stock(whole, tuple(damaged), self._current(whole))

    async def get(self, listing: Listing) -> LoadedModel:
        """A model in memory.

        Raises:
            Problem: 503 where it can't be loaded.
        """
        try:
            return LoadedModel(listing, await self._load(listing.id))
        except Exception as error:
            logger.error("model %s is unavailable: %s", listing.id, error)
            raise _unavailable(listing.id) from None

    def _read(self, entry: ModelEntry, id: str) -> Listing | None:
        try:
            return Listing.read(self.registry, entry)
        except Exception as error:  # whatever is wrong with one folder, the other models still answer
            logger.error("model %s is unavailable: %s", id, error)
            return None

    def _current(self, listings: Mapping[str, Listing]) -> dict[str, str]:
        """By name the version that was chosen, else the newest; a chosen one that isn't there counts as not chosen."""
        current = {listing.entry.name: id for id, listing in listings.items()}  # oldest first: the last stays
        for name in current:
            chosen = f"{name}/{self.registry.chosen(name)}"
            if chosen in listings:
                current[name] = chosen
        return current

    def _read_sampler(self, id: str) -> Sampler:
        """Load a model's weights and use them once, so that the first request doesn't wait for that."""
        began_s = time.monotonic()
        name, version = id.split("/")
        try:
            entry = self.registry.resolve(name, version)
            self.registry.verify(entry)
            sampler = Sampler.from_model(entry.path, self.device)
            labels = np.zeros((2, len(sampler.info.classes)), dtype=np.uint8)
            labels[:, :1] = 1
            sampler(labels, 0, np.arange(2))
        except Exception:
            self.telemetry.model_load_ended(id, outcome="failed", seconds=time.monotonic() - began_s)
            raise
        self._loaded.add(sampler)
        self.telemetry.model_load_ended(id, outcome="loaded", seconds=time.monotonic() - began_s)
        return sampler


def _age(entry: ModelEntry) -> float:
    return (entry.path / MODEL_JSON).stat().st_mtime
