"""What a service's replicas share: used-up quotas, and the numbers of their metrics."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from serve.access.keyfile import Limits
from serve.access.quotas import Quotas, Refusal

GONE_AFTER_S = 30.0
"""A replica that has left no numbers for so long has ended."""


class Ledger(Protocol):
    """Kept in one place for all replicas of a service."""

    async def take(self, key: str, images: int) -> Refusal | None:
        """Charge a key for a request of so many images, or say why not."""

    async def give_back(self, key: str, images: int) -> None:
        """Images that were charged and not delivered."""

    async def limits_are(self, limits: Mapping[str, Limits]) -> None:
        """Go by other limits from now on."""

    async def exchange(self, replica: str, numbers: bytes) -> Mapping[str, bytes]:
        """Leave one replica's metrics, and get those of all."""


class LocalLedger:
    """A ledger in this very process: for one replica, or as the one that others ask.

    Args:
        limits: by key's name.
        state: folder where used quotas are kept over restarts; None forgets them.
    """

    def __init__(self, limits: Mapping[str, Limits], state: Path | None = None) -> None:
        self.quotas = Quotas(limits, None if state is None else state / "quotas.json")
        self.numbers: dict[str, tuple[float, bytes]] = {}

    async def take(self, key: str, images: int) -> Refusal | None:
        return self.quotas.take(key, images)

    async def give_back(self, key: str, images: int) -> None:
        self.quotas.give_back(key, images)

    async def limits_are(self, limits: Mapping[str, Limits]) -> None:
        self.quotas.limits_are(limits)

    async def exchange(self, replica: str, numbers: bytes) -> Mapping[str, bytes]:
        now = time.monotonic()
        self.numbers[replica] = (now, numbers)
        self.numbers = {name: value for name, value in self.numbers.items() if now - value[0] < GONE_AFTER_S}
        return {name: numbers for name, (_, numbers) in self.numbers.items()}

    def close(self) -> None:
        """Write what is not yet on disk."""
        self.quotas.close()
