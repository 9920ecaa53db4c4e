import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from vaegan.importers.base import Record
from vaegan.preparation.decoding import Decoding
from vaegan.preparation.pipeline import prepare
from vaegan.preparation.pools import FEW_RECORDS, Interrupted, Part, _in_processes, choose_pool, in_order

HOW = Decoding(size=8, channels=1, aspect="crop", classes=("a",), multilabel=False)


def test_results_come_in_order_and_no_more_jobs_are_started_than_asked_for():
    under_way, most = set(), []

    def job(number):
        under_way.add(number)
        most.append(len(under_way))

        def wait():
            under_way.discard(number)
            return number

        return wait

    assert list(in_order(map(job, range(20)), ahead=3)) == list(range(20))
    assert max(most) == 4
    assert list(in_order(iter([]), ahead=3)) == []


def parts(folder, count):
    rng = np.random.default_rng(0)
    for number in range(count):
        films = [rng.integers(0, 256, (9, 9), dtype=np.uint8) for _ in range(number + 1)]
        yield Part([Record("n", film, "i", ("a",)) for film in films], folder / f"part-{number:06d}.arrow")


@pytest.mark.parametrize(("num_records", "num_workers"), [(10, 0), (10, 1), (10, 2)])
def test_every_pool_counts_each_parts_records_and_writes_its_files(tmp_path, num_records, num_workers):
    run = choose_pool(num_records, num_workers)
    assert list(run(parts(tmp_path, 5), HOW)) == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("part-*.arrow"))) == len(list(tmp_path.glob("part-*.rest"))) == 5


def test_few_records_are_no_reason_to_start_processes():
    assert "_in_threads" in choose_pool(FEW_RECORDS - 1, 0).__qualname__
    assert "_in_processes" in choose_pool(FEW_RECORDS, 0).__qualname__
    assert "_in_threads" in choose_pool(10**6, 1).__qualname__
    assert "_in_processes" in choose_pool(1, 2).__qualname__


def children():
    """Process ids of the workers that this process started."""
    return [process.pid for process in multiprocessing.active_children()]


def test_a_worker_that_is_killed_ends_it_with_a_sentence_and_what_is_decoded_stays(many, config):
    """As the kernel does when memory runs out."""
    settings = config(many, size=8)
    work = settings.out.with_name(".data.work")

    def kill():
        while not list(work.glob("part-*.arrow")):
            time.sleep(0.001)
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Interrupted, match="fewer --num-workers; what is decoded is kept"):
        prepare(settings, _in_processes(2))
    killer.join()
    assert list(work.glob("part-*.arrow"))
    prepare(settings)
    assert [path.name for path in settings.out.parent.iterdir()] == ["data"]
