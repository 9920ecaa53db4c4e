"""How much each key has taken, and whether it may take more now."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cluster.storage import write_json
from serve.access.keyfile import Limits

SAVE_EVERY_S = 1.0

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log


@dataclass(frozen=True)
class Refusal:
    """Why a key may not take what it asked for."""

    sentence: str
    """What limit, what was found, what to do."""
    retry_after_s: int
    """1 or more. After so long the same order is admitted if the key takes nothing meanwhile, unless it is larger than
    the quota of a day."""


class Quotas:
    """Counts what keys take against their limits. Threads may share one.

    Requests and images per minute are token buckets, full at first, which hold one minute's worth. An order is
    admitted while one image at least is left, whatever its size, and may leave the bucket in debt: so a single stream
    can be larger than the bucket, and is paid for by waiting. Over any time of T minutes a key therefore gets at most
    (T + 1) times its limit and the rest of its last order. Images per day are a strict count per day in UTC.

    The counts of the day survive a restart in `file`, which is written at most once a second and by `close`: a process
    that is killed forgets what was taken less than a second after the last writing. A damaged file is moved to
    NAME.damaged with a warning in the log, and counting begins anew. While the file can't be written, which is logged,
    counting goes on in memory. A file belongs to one `Quotas` at a time.

    Args:
        limits: by the name of the key; other keys are without limit.
        file: JSON; without it a restart renews the quota of the day.
        clock: seconds since 1970.

    Raises:
        OSError: `file` can't be read or written; found here, at the start.
    """

    def __init__(
        self, limits: Mapping[str, Limits], file: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._file = clock, file
        now = clock()
        self._accounts = {key: _Account(value, now) for key, value in limits.items()}
        self._day = _day(now)
        self._taken_today: dict[str, int] = {}  # keys that were removed too: they may come back today
        self._lock = threading.Lock()
        self._saving = threading.Lock()  # taken before the other
        self._saved_at, self._saved = now, True
        if file is not None:
            self._taken_today = _read_counts(file, self._day)
            write_json(file, self._document())

    def limits_are(self, limits: Mapping[str, Limits]) -> None:
        """Go by other limits from now on; a key whose own did not change keeps its debts, and all keep their day."""
        with self._lock:
            now = self._clock()
            self._accounts = {
                key: account
                if (account := self._accounts.get(key)) is not None and account.limits == value
                else _Account(value, now)
                for key, value in limits.items()
            }

    def take(self, key: str, images: int) -> Refusal | None:
        """Take one request of `images` (0 or more) images: all of it, or nothing and the reason."""
        account = self._accounts.get(key)
        if account is None:
            return None
        with self._lock:
            now = self._turn_to_now(account)
            refusal = self._refusal(key, account, images, now)
            if refusal is not None:
                return refusal
            account.requests.level -= 1
            account.images.level -= images
            if images and account.limits.images_per_day is not None:
                self._taken_today[key] = self._taken_today.get(key, 0) + images
                self._saved = False
        self._save(only_when_due=True)
        return None

    def give_back(self, key: str, images: int) -> None:
        """Return images that were taken and not delivered; more than the key has taken has no effect.

        Images that were taken before midnight, UTC, and return after it count for the new day.
        """
        account = self._accounts.get(key)
        if account is None:
            return
        with self._lock:
            self._turn_to_now(account)
            # What is missing in the bucket, and in the day, was taken: nothing rises above that.
            account.images.level = min(account.images.level + images, account.images.capacity)
            if key in self._taken_today:
                self._taken_today[key] = max(self._taken_today[key] - images, 0)
                self._saved = False
        self._save(only_when_due=True)

    def usage(self, key: str) -> dict[str, Any]:
        """Each limit by its name: {"limit": None or int, "left": None or int}, 0 also while in debt.

        The one of the day has also "renewed", the time of the next midnight, as ISO 8601.
        """
        account = self._accounts.get(key) or _Account(Limits(), self._clock())
        with self._lock:
            now = self._turn_to_now(account)
            limits, per_day = account.limits, account.limits.images_per_day
            left_today = None if per_day is None else max(per_day - self._taken_today.get(key, 0), 0)
            midnight = _midnight_after(now).isoformat().replace("+00:00", "Z")
            return {
                "requests_per_minute": {"limit": limits.requests_per_minute, "left": account.requests.left()},
                "images_per_minute": {"limit": limits.images_per_minute, "left": account.images.left()},
                "images_per_day": {"limit": per_day, "left": left_today, "renewed": midnight},
            }

    def close(self) -> None:
        """Write what has not been written."""
        self._save(only_when_due=False)

    def _turn_to_now(self, account: "_Account") -> float:
        """Fill the buckets and begin a new day where one has begun. Under the lock. Returns the time."""
        now = self._clock()
        if _day(now) != self._day:
            self._day, self._taken_today, self._saved = _day(now), {}, False
        account.requests.fill(now)
        account.images.fill(now)
        return now

    def _refusal(self, key: str, account: "_Account", images: int, now: float) -> Refusal | None:
        """The limit that lasts longest of those that are in the way."""
        per_day, taken = account.limits.images_per_day, self._taken_today.get(key, 0)
        midnight_s = max(math.ceil(_midnight_after(now).timestamp() - now), 1)
        if per_day is not None and images > per_day:
            return Refusal(
                f"{images} images are more than this key's {per_day} a day, so that no day is long enough; "
                "ask for fewer in one request",
                midnight_s,
            )
        found = []
        if per_day is not None and taken + images > per_day:
            found.append(
                Refusal(
                    f"{images} images are more than the {per_day - taken} left of this key's {per_day} a day; ask for "
                    f"fewer, or try again after midnight UTC, in {midnight_s} s",
                    midnight_s,
                )
            )
        if images and (wait_s := account.images.wait_s()):
            found.append(
                Refusal(
                    f"this key has taken its {account.limits.images_per_minute} images a minute; "
                    f"try again in {wait_s} s",
                    wait_s,
                )
            )
        if wait_s := account.requests.wait_s():
            found.append(
                Refusal(
                    f"this key has sent its {account.limits.requests_per_minute} requests a minute; "
                    f"try again in {wait_s} s",
                    wait_s,
                )
            )
        return max(found, key=lambda refusal: refusal.retry_after_s, default=None)

    def _document(self) -> dict[str, Any]:
        return {"day": self._day, "images": dict(self._taken_today)}

    def _save(self, *, only_when_due: bool) -> None:
        """Write the counts, outside of the lock that `take` needs: a disk may be slow."""
        if self._file is None:
            return
        with self._saving:
            with self._lock:
                now = self._clock()
                # abs: a clock that was set back must not stop the writing.
                if self._saved or (only_when_due and abs(now - self._saved_at) < SAVE_EVERY_S):
                    return
                document = self._document()
                self._saved_at, self._saved = now, True
            try:
                write_json(self._file, document)
            except OSError as error:
                self._saved = False
                logger.error("%s can't be written (%s): a restart would renew quotas of today", self._file, error)


class _Bucket:
    """Tokens for one minute, refilled as time passes; without a limit it is always full."""

    def __init__(self, per_minute: int | None, now: float) -> None:
        self.capacity = self.level = math.inf if per_minute is None else float(per_minute)
        self._filled_at = now

    def fill(self, now: float) -> None:
        if math.isinf(self.capacity):
            return
        elapsed_s = max(now - self._filled_at, 0)  # a clock that was set back takes nothing away
        self.level = min(self.level + elapsed_s * self.capacity / 60, self.capacity)
        self._filled_at = now

    def wait_s(self) -> int:
        """0 while one token is left, else the whole seconds until there is."""
        missing = 1 - self.level
        return 0 if missing < 1e-6 else max(math.ceil(missing * 60 / self.capacity - 1e-6), 1)

    def left(self) -> int | None:
        return None if math.isinf(self.capacity) else max(math.floor(self.level + 1e-6), 0)


class _Account:
    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.requests = _Bucket(limits.requests_per_minute, now)
        self.images = _Bucket(limits.images_per_minute, now)


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def _midnight_after(now: float) -> datetime:
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + timedelta(days=1)


def _read_counts(file: Path, day: str) -> dict[str, int]:
    """What a quota file says of the day; nothing where it is of another day, absent, or damaged."""
    try:
        document = json.loads(file.read_bytes())
        saved_day, counts = document["day"], document["images"]
        if not isinstance(saved_day, str) or not all(type(n) is int and n >= 0 for n in counts.values()):
            raise ValueError("counts that are none")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        aside = file.with_name(file.name + ".damaged")
        os.replace(file, aside)
        logger.warning("%s was damaged and is now %s: the quotas of today begin anew", file, aside)
        return {}
    return counts if saved_day == day else {}
