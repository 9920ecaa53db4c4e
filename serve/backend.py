"""What the routes of one replica share: its models, who may use them, and where that is counted and recorded."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import torch

from serve.access.audit import AuditError, AuditLog
from serve.access.keyfile import Key, Keys, Limits, read_keys
from serve.batching import BATCH, BATCH_ON_GPU, Batcher
from serve.catalog import Catalog, Listing, Load, LoadedModel, RecentlyUsed
from serve.config import ServiceConfig
from serve.gate import IMAGES, MODEL, Gate, Verdict, read_overrides
from serve.ledger import Ledger, LocalLedger
from serve.problems import Problem, busy
from serve.telemetry import Telemetry, merge
from vaegan.sampler import Sampler

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log

STUCK_S = 300.0
"""A forward pass that takes so long will never end; the replica is then no longer healthy."""
PUSH_EVERY_S = 5.0
GATES = {"sample": IMAGES, "reconstruct": MODEL}
"""What of a model's audit each scope depends on."""


class Backend:
    """One replica's models and books. `start` it before it answers, `stop` it after.

    Args:
        keys: of the service; None serves this host only, or everybody with `allow_anonymous`.
        ledger: what replicas share; one of its own by default.
        replica: its name in the audit log and the metrics.
        keep: see `Catalog`.
    """

    def __init__(
        self,
        config: ServiceConfig,
        keys: Keys | None = None,
        *,
        ledger: Ledger | None = None,
        replica: str = "local",
        keep: Callable[[Callable[[str], Sampler], int], Load] = RecentlyUsed,
    ) -> None:
        self.config, self.keys, self.replica = config, keys, replica
        self.telemetry = Telemetry(replica)
        self.catalog = Catalog(
            config.registry,
            device=config.device,
            max_models=config.max_models,
            telemetry=self.telemetry,
            keep=keep,
        )
        self.gate = _gate(config)
        self.batcher = Batcher(
            self.telemetry,
            max_waiting=config.max_waiting,
            timeout_s=config.timeout_s,
            batch=BATCH_ON_GPU if torch.device(config.device).type == "cuda" else BATCH,
            threads=config.torch_threads,
            encoders=config.encoders,
        )
        self._own = None if ledger is not None else LocalLedger(limits_of(keys), config.state)
        self.ledger: Ledger = ledger or self._own  # type: ignore[assignment]  # one of the two is there
        self.audit = AuditLog(None if config.state is None else config.state / "audit", replica)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the current models, then keep an eye on the registry."""
        await self.catalog.warm_up()
        self._tasks = [asyncio.create_task(self._refresh()), asyncio.create_task(self._push())]

    async def stop(self) -> None:
        """End what `start` began; nothing is asked any more."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.batcher.close()
        if self._own is not None:
            self._own.close()

    def check_health(self) -> None:
        """Raises RuntimeError when this replica will never answer again and should be replaced."""
        since = self.batcher.busy_since_s
        if since is not None and time.monotonic() - since > STUCK_S:
            raise RuntimeError(f"a forward pass has not ended in {STUCK_S:g} s")

    def find(
        self, name: str, version: str | None, key: Key, scope: str | None = None, status: int = 404
    ) -> tuple[Listing, Verdict | None]:
        """A model that `key` may use for `scope`, and what the privacy gate says; None where no scope asks it.

        Raises:
            Problem: `status` where there is none, 403 where the key or the gate forbids it, 503 where it is damaged.
        """
        if key.models and name not in key.models:
            self.telemetry.refused("scope", key.name)
            raise Problem(
                403,
                f"the key {key.name} may not use this model, expected one of {', '.join(sorted(key.models))}; "
                "ask the operator of this service",
            )
        listing = self.catalog.stock.find(name, version, status)
        if scope is None:
            return listing, None
        try:
            return listing, self.gate.check(listing.id, listing.privacy, GATES[scope])
        except Problem:
            self.telemetry.refused("gate", key.name)
            raise

    async def load(self, listing: Listing) -> LoadedModel:
        """A model in memory. Raises Problem, 503, where it can't be loaded."""
        return await self.catalog.get(listing)

    async def charge(self, key: Key, images: int) -> None:
        """Raises Problem, 429 with Retry-After, where a key has used up what it may take."""
        refusal = await self.ledger.take(key.name, images)
        if refusal is not None:
            self.telemetry.refused("quota", key.name)
            raise Problem(429, refusal.sentence, headers={"Retry-After": str(refusal.retry_after_s)})

    async def record(self, event: str, **fields: object) -> None:
        """Write to the audit log. Raises Problem, 503, where that fails: nothing is handed out unrecorded."""
        try:
            if self.audit.folder is None:
                self.audit.record(event, **fields)
            else:
                await asyncio.to_thread(self.audit.record, event, **fields)  # the disk takes its time
        except AuditError as error:
            logger.error("the audit log can't be written: %s", error)
            raise busy("what is handed out can't be recorded at the moment", 30) from None

    async def metrics(self) -> bytes:
        """The metrics of all replicas, as Prometheus reads them."""
        return merge(await self.ledger.exchange(self.replica, self._numbers()))

    def _numbers(self) -> bytes:
        self.telemetry.models_loaded_are(self.catalog.num_loaded)
        return self.telemetry.snapshot()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self.config.refresh_s)
            for what, read in (("keys", self._read_keys), ("overrides", self._read_gate), ("registry", self._look)):
                try:
                    await read()
                except Exception as error:  # a folder that is away for a moment, a file that is being edited
                    logger.error("the %s can't be read, what was read before holds: %s", what, error)

    async def _push(self) -> None:
        while True:
            await asyncio.sleep(PUSH_EVERY_S)
            try:
                await self.ledger.exchange(self.replica, self._numbers())
            except Exception as error:  # the ledger is being restarted
                logger.warning("the ledger does not answer: %s", error)

    async def _read_keys(self) -> None:
        if self.config.api_keys is None or self.keys is None:
            return
        keys = await asyncio.to_thread(read_keys, self.config.api_keys, {})
        if keys is not None and keys != self.keys:
            await self.ledger.limits_are(limits_of(keys))
            self.keys = keys
            logger.info("the keys have changed: %s", ", ".join(keys.names))

    async def _read_gate(self) -> None:
        self.gate = await asyncio.to_thread(_gate, self.config)

    async def _look(self) -> None:
        await self.catalog.refresh()


def _gate(config: ServiceConfig) -> Gate:
    file = config.gate_overrides
    return Gate({} if file is None else read_overrides(file), config.require_audit)


def limits_of(keys: Keys | None) -> dict[str, Limits]:
    """The limits of each key by its name."""
    return {key.name: key.limits for key in keys.keys} if keys else {}
