import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from serve.access.keyfile import Limits
from serve.access.quotas import Quotas

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp()


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas_of(clock: Clock) -> Callable[..., Quotas]:
    """Quotas of one key "lab"; with `file`, as after a restart."""

    def build(file: Path | None = None, **limits: int) -> Quotas:
        return Quotas({"lab": Limits(**limits)}, file, clock)

    return build


def test_a_key_without_limits_and_an_unknown_one_are_never_refused(quotas_of):
    quotas = quotas_of()
    for key in ("lab", "unknown"):
        assert all(quotas.take(key, 10**9) is None for _ in range(100))
        assert {entry["left"] for entry in quotas.usage(key).values()} == {None}
        quotas.give_back(key, 10**12)
        assert quotas.take(key, 1) is None


def test_requests_run_out_and_come_back_one_by_one(quotas_of, clock):
    quotas = quotas_of(requests_per_minute=6)
    assert [quotas.take("lab", 0) for _ in range(6)] == [None] * 6
    refusal = quotas.take("lab", 0)
    assert refusal.retry_after_s == 10
    assert "6 requests a minute" in refusal.sentence
    assert "10 s" in refusal.sentence
    clock.now += 10
    assert quotas.take("lab", 0) is None
    assert quotas.take("lab", 0) is not None


def test_one_order_may_be_larger_than_the_bucket_and_is_paid_for_by_waiting(quotas_of, clock):
    quotas = quotas_of(images_per_minute=5000)
    assert quotas.take("lab", 100_000) is None
    assert quotas.usage("lab")["images_per_minute"] == {"limit": 5000, "left": 0}
    refusal = quotas.take("lab", 1)
    assert refusal.retry_after_s == math.ceil(95_001 / 5000 * 60)
    clock.now += refusal.retry_after_s - 1
    assert quotas.take("lab", 1) is not None
    clock.now += 1
    assert quotas.take("lab", 100_000) is None


@pytest.mark.parametrize("seed", range(5))
def test_over_any_time_a_key_gets_no_more_than_its_rate_its_bucket_and_one_order(quotas_of, clock, seed):
    rng = np.random.default_rng(seed)
    quotas = quotas_of(images_per_minute=100, requests_per_minute=30)
    taken, requests = [], []
    for _ in range(2000):
        clock.now += rng.exponential(1.0)
        count = int(rng.integers(1, 60))
        if quotas.take("lab", count) is None:
            taken.append((clock.now, count))
            requests.append(clock.now)
    times, counts = np.array(taken).T
    total = np.concatenate([[0], np.cumsum(counts)])
    for first in range(0, len(times), 7):
        for last in range(first, len(times), 11):
            minutes = (times[last] - times[first]) / 60
            assert total[last + 1] - total[first] <= 100 * (minutes + 1) + counts[last] + 1e-6
            assert last + 1 - first <= 30 * (minutes + 1) + 1e-6
    assert total[-1] >= 0.9 * 100 * (times[-1] - NOON) / 60  # who always asks gets what it may have


@pytest.mark.parametrize("seed", range(5))
def test_an_order_is_admitted_after_the_time_that_its_refusal_named(quotas_of, clock, seed):
    rng = np.random.default_rng(seed)
    quotas = quotas_of(images_per_minute=7, requests_per_minute=3, images_per_day=300)
    for _ in range(500):
        count = int(rng.integers(0, 20))
        refusal = quotas.take("lab", count)
        if refusal is not None:
            assert refusal.retry_after_s >= 1
            clock.now += refusal.retry_after_s
            assert quotas.take("lab", count) is None
        clock.now += rng.uniform(0, 10)


def test_a_day_is_counted_to_the_image_and_renewed_at_midnight_utc(quotas_of, clock):
    quotas = quotas_of(images_per_day=100)
    assert quotas.take("lab", 60) is None
    refusal = quotas.take("lab", 41)
    assert refusal.retry_after_s == 12 * 3600
    assert "40 left of this key's 100 a day" in refusal.sentence
    assert quotas.take("lab", 40) is None
    assert quotas.take("lab", 1) is not None
    assert quotas.usage("lab")["images_per_day"] == {"limit": 100, "left": 0, "renewed": "2026-05-05T00:00:00Z"}
    clock.now += 12 * 3600 - 0.01
    assert quotas.take("lab", 1).retry_after_s == 1
    clock.now += 0.01
    assert quotas.take("lab", 100) is None


def test_an_order_above_the_whole_day_is_told_to_be_smaller_rather_than_to_wait(quotas_of):
    refusal = quotas_of(images_per_day=100).take("lab", 101)
    assert "ask for fewer" in refusal.sentence
    assert "try again" not in refusal.sentence


def test_a_refused_order_costs_nothing(quotas_of):
    quotas = quotas_of(requests_per_minute=2, images_per_minute=50, images_per_day=100)
    for _ in range(10):
        assert quotas.take("lab", 101) is not None
    assert [entry["left"] for entry in quotas.usage("lab").values()] == [2, 50, 100]


def test_an_order_without_images_passes_a_bucket_in_debt(quotas_of):
    quotas = quotas_of(images_per_minute=5, images_per_day=9)
    assert quotas.take("lab", 9) is None
    assert quotas.take("lab", 0) is None


def test_what_is_given_back_can_be_taken_again_and_never_more_than_that(quotas_of):
    quotas = quotas_of(images_per_minute=50, images_per_day=100)
    assert quotas.take("lab", 100) is None
    quotas.give_back("lab", 90)
    assert [entry["left"] for entry in quotas.usage("lab").values()] == [None, 40, 90]
    quotas.give_back("lab", 10**6)
    assert [entry["left"] for entry in quotas.usage("lab").values()] == [None, 50, 100]
    assert quotas.take("lab", 100) is None
    assert quotas.take("lab", 1) is not None


def test_keys_do_not_share_a_quota(clock):
    quotas = Quotas({"a": Limits(images_per_day=1), "b": Limits(images_per_day=1)}, clock=clock)
    assert quotas.take("a", 1) is None
    assert quotas.take("b", 1) is None
    assert quotas.take("a", 1) is not None


def test_a_clock_that_is_set_back_gives_nothing_and_takes_nothing(quotas_of, clock):
    quotas = quotas_of(images_per_minute=60)
    assert quotas.take("lab", 60) is None
    clock.now -= 3600
    assert quotas.take("lab", 1).retry_after_s == 1
    clock.now += 1
    assert quotas.take("lab", 1) is None


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that interrupt each other after a few instructions instead of 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_together_take_no_more_than_the_limits(tmp_path, quotas_of, hasty_threads):
    quotas = quotas_of(tmp_path / "quotas.json", images_per_day=1000, requests_per_minute=700)
    admitted: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for number in range(1000):
            if quotas.take("lab", 2) is None:
                admitted.append(2)
                if number % 10 == 0:
                    quotas.give_back("lab", 2)
                    admitted.append(-2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 1000 - quotas.usage("lab")["images_per_day"]["left"] <= 1000
    assert sum(n > 0 for n in admitted) <= 700
    quotas.close()
    assert json.loads((tmp_path / "quotas.json").read_text())["images"] == {"lab": sum(admitted)}


def test_a_restart_does_not_renew_the_day_and_midnight_does(tmp_path, quotas_of, clock):
    file = tmp_path / "quotas.json"
    quotas = quotas_of(file, images_per_day=100)
    assert quotas.take("lab", 70) is None
    quotas.close()
    again = quotas_of(file, images_per_day=100)
    assert again.take("lab", 31) is not None
    assert again.take("lab", 30) is None
    again.close()
    clock.now += 12 * 3600
    assert quotas_of(file, images_per_day=100).take("lab", 100) is None


def test_a_killed_process_forgets_a_second_at_most(tmp_path, quotas_of, clock):
    file = tmp_path / "quotas.json"
    quotas = quotas_of(file, images_per_day=100)
    clock.now += 1
    for _ in range(9):
        assert quotas.take("lab", 10) is None
        clock.now += 0.2
    left = quotas_of(file, images_per_day=100).usage("lab")["images_per_day"]["left"]  # nobody closed the first
    assert 10 <= left <= 10 + 50


def test_the_count_of_a_key_that_was_removed_waits_for_its_return(tmp_path, quotas_of, clock):
    file = tmp_path / "quotas.json"
    quotas = quotas_of(file, images_per_day=5)
    assert quotas.take("lab", 5) is None
    quotas.close()
    other = Quotas({"other": Limits(images_per_day=5)}, file, clock)
    assert other.take("other", 5) is None
    other.close()
    assert quotas_of(file, images_per_day=5).take("lab", 1) is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"5", b'{"day": "2026-05-04"}', b'{"day": 5, "images": {}}',
     b'{"day": "2026-05-04", "images": {"lab": -1}}', b'{"day": "2026-05-04", "images": {"lab": true}}',
     b'{"day": "2026-05-04", "images": {"lab": "1"}}', b'{"day": "2026-05-04", "images": [1]}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_is_kept_aside_and_counting_begins_anew(tmp_path, quotas_of, caplog, content):
    file = tmp_path / "quotas.json"
    file.write_bytes(content)
    assert quotas_of(file, images_per_day=5).take("lab", 5) is None
    assert (tmp_path / "quotas.json.damaged").read_bytes() == content
    assert "was damaged" in caplog.text
    assert quotas_of(file, images_per_day=5).usage("lab")["images_per_day"]["limit"] == 5


def test_a_file_that_can_not_be_written_is_found_at_the_start(tmp_path, quotas_of):
    (tmp_path / "a-file").write_text("")
    with pytest.raises(OSError, match="a-file"):
        quotas_of(tmp_path / "a-file" / "quotas.json", images_per_day=5)


def test_while_the_file_can_not_be_written_counting_goes_on(tmp_path, quotas_of, clock, caplog):
    folder = tmp_path / "folder"
    quotas = quotas_of(folder / "quotas.json", images_per_day=5)
    (folder / "quotas.json").unlink()
    folder.rmdir()
    folder.write_text("in the way")
    clock.now += 2
    assert quotas.take("lab", 5) is None
    assert quotas.take("lab", 1) is not None
    assert "can't be written" in caplog.text
    folder.unlink()
    quotas.close()
    assert quotas_of(folder / "quotas.json", images_per_day=5).take("lab", 1) is not None
