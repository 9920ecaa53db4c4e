"""Features computed on a Ray cluster: actors that each hold the network once and are handed blocks of images.

Which worker computes a block has no effect on its numbers, and blocks come back in their order, so any number of
workers gives what one process gives. Files must be visible to all nodes under the same path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.errors import UserError
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extraction import Arrays, Keeper, feature_arrays, gather, in_order
from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.sources import Block, ImageSource, Progress, no_progress

BLOCKS_PER_WORKER = 2
"""One that is computed, and one that is read meanwhile."""
MAX_RESTARTS = 2
"""Of a worker whose node or process died; what it had not finished is computed again."""

Build = list[ray.ObjectRef[Any]]
"""One reference to the function that makes the extractor."""


@contextmanager
def extraction_workers(
    build: Callable[[], Extractor], num_workers: int, *, batch_size: int | None = None, gpus_per_worker: float = 0
) -> Iterator[Workers]:
    """Workers of a cluster that is connected (`cluster.session.connect`), for as long as the context lasts.

    Args:
        build: makes the extractor, in each worker once: `functools.partial(make_extractor, "inception=FILE")`. A
            `domain` one, trained here, is sent as it is: `lambda: extractor`.
        batch_size: images per forward pass; None for what suits the worker's device.

    Raises:
        UserError: a worker can't build the extractor, or builds another one than the rest.
    """
    workers = Workers(build, num_workers, batch_size, gpus_per_worker)
    try:
        workers.check()
        yield workers
    finally:
        workers.stop()


class Workers:
    """Actors with one extractor; see `extraction_workers`."""

    def __init__(
        self, build: Callable[[], Extractor], num_workers: int, batch_size: int | None, gpus_per_worker: float
    ) -> None:
        worker: Any = ray.remote(_Worker).options(
            num_cpus=1, num_gpus=gpus_per_worker, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS,
            max_concurrency=BLOCKS_PER_WORKER,
        )  # fmt: skip
        self.actors = [worker.remote(batch_size) for _ in range(num_workers)]
        self.build = [ray.put(build)]  # in a list, since Ray would send a bare reference's value with each block
        self.busy: dict[Any, list[ray.ObjectRef[Any]]] = {actor: [] for actor in self.actors}
        self.key = ""
        self.stamp: dict[str, str | int] = {}

    def check(self) -> None:
        """Wait until all have built the extractor, and see that it is the same."""
        found = [_result(actor.about.remote(self.build)) for actor in self.actors]
        self.key, self.stamp = found[0]
        for key, _ in found[1:]:
            if key != self.key:
                raise UserError(
                    f"workers have different extractors ({self.key} and {key}): put the same weights file, torch and "
                    "kind of device on all nodes"
                )

    def extract(
        self, source: ImageSource, *, cache: FeatureCache | None = None, progress: Progress = no_progress
    ) -> Features:
        """Features of all images of a source, in its order; see `vaegan.metrics.extraction.extract`.

        The cache is looked up and written in this process, so only this machine needs its folder.
        """
        with Keeper(self.key, cache) as keeper:

            def start(block: Block) -> Callable[[], Arrays]:
                known = keeper.known(block)
                if known is not None:
                    return lambda: known
                waited_for = self._submit(block)
                return lambda: keeper.keep(block, _result(waited_for))

            ahead = BLOCKS_PER_WORKER * len(self.actors)
            arrays = gather(len(source), in_order(source, start, ahead=ahead, progress=progress))
        return Features(arrays["features"], arrays.get("probabilities"))

    def stop(self) -> None:
        """End the workers."""
        for actor in self.actors:
            ray.kill(actor)

    def _submit(self, block: Block) -> ray.ObjectRef[Any]:
        """Hand a block to the worker that has least to do."""
        for actor, refs in self.busy.items():
            if refs:
                _, self.busy[actor] = ray.wait(refs, num_returns=len(refs), timeout=0)
        actor = min(self.actors, key=lambda each: len(self.busy[each]))
        ref = actor.arrays.remote(self.build, block)
        self.busy[actor].append(ref)
        return ref


class _Worker:
    """What an actor runs: reads one block while it computes another."""

    def __init__(self, batch_size: int | None) -> None:
        self.batch_size = batch_size
        self.extractor: Extractor | None = None
        self.turn = threading.Lock()

    def about(self, build: Build) -> tuple[str, dict[str, str | int]]:
        """The extractor's key and stamp."""
        with self.turn:
            extractor = self._built(build)
        return extractor.key, extractor.stamp

    def arrays(self, build: Build, block: Block) -> Arrays:
        """Features of a block."""
        pixels = block.read()
        with self.turn:
            return feature_arrays(self._built(build), pixels, batch_size=self.batch_size)

    def _built(self, build: Build) -> Extractor:
        """Built in the first call, not with the actor: Ray tells an error there as a death, and sends nothing again."""
        if self.extractor is None:
            self.extractor = ray.get(build[0])()
        return self.extractor


def _result(ref: ray.ObjectRef[Any]) -> Any:
    """A task's result; a user's mistake as it was told there, without Ray's traceback."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
