"""The service as a PyTorch dataset: which images come, to whom, and what is left behind."""

import gc
import pickle
import threading
from itertools import islice

import httpx
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cluster.errors import UserError
from serve.client import Retry, ServiceError
from serve.client.dataset import SyntheticStream
from serve.client.mix import Mix
from vaegan.tensors import to_tensor

MIX = {"normal": 1, "mass": 3}


@pytest.fixture
def stream(url):
    def build(mix=MIX, *, count=100, block_size=16, dtype="uint8", **options):
        options = dict(seed=4, count=count, block_size=block_size, dtype=dtype) | options
        return SyntheticStream(url, "chest", mix, **options)

    return build


@pytest.fixture
def seen(made_up):
    """Addresses of items or batches, in order."""

    def read(items):
        return [
            address for x, _ in items for address in made_up.addresses_in(np.atleast_1d(x.numpy().reshape(-1, 256)))
        ]

    return read


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "augray-prefetch"]


def test_a_block_holds_each_class_in_its_proportion_and_no_address_comes_twice():
    mix = Mix.of({"a": 1, ("b", "c"): 3}, seed=0, start=10, block_size=18)
    assert mix.block_size == 16
    found = list(mix.addresses(64))
    assert len(set(found)) == 64
    for at in range(0, 64, 16):
        assert [names for names, _ in found[at : at + 16]].count(("a",)) == 4
    assert sorted(index for names, index in found if names == ("a",)) == list(range(10, 26))
    assert found == list(Mix.of({"a": 1, ("b", "c"): 3}, seed=0, start=10, block_size=18).addresses(64))
    assert found != list(Mix.of({"a": 1, ("b", "c"): 3}, seed=1, start=10, block_size=18).addresses(64))
    assert found[:37] == list(mix.addresses(37))


@pytest.mark.parametrize("parts", [{}, {"a": 0}, {"a": 0.5, "b": 0.5}, {"a": True}])
def test_parts_that_are_no_whole_numbers_are_refused(parts):
    with pytest.raises(UserError, match="whole numbers"):
        Mix.of(parts, seed=0)


def test_items_are_the_mixs_addresses_in_order(stream, seen):
    data = stream()
    bit = {("normal",): (1, 0, 0), ("mass",): (0, 0, 1)}
    assert seen(data) == [(*bit[names], index) for names, index in data.mix.addresses(100)]
    assert seen(data) == seen(stream())  # and again
    x, y = next(iter(data))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1, 16, 16), torch.uint8, (3,), torch.float32)


def test_batches_are_the_items_and_floats_are_the_images_to_tensor(stream):
    items = list(stream())
    batches = list(stream(batch_size=30, dtype="float32"))
    assert [len(x) for x, _ in batches] == [30, 30, 30, 10]
    x, y = (torch.cat(column) for column in zip(*batches, strict=True))
    pixels = torch.stack([x for x, _ in items]).permute(0, 2, 3, 1).numpy()
    torch.testing.assert_close(x, to_tensor(pixels), rtol=0, atol=0)
    torch.testing.assert_close(y, torch.stack([y for _, y in items]), rtol=0, atol=0)


# Python 3.12 warns of every fork where there are threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_workers_get_what_one_would_and_nothing_twice(stream, seen):
    data = stream(count=90)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    addresses = seen(loader)
    assert len(addresses) == 90
    assert set(addresses) == set(seen(data))


def test_what_a_spawned_worker_is_sent_gives_the_same_images(stream, seen):
    data = stream()
    next(iter(data))
    assert seen(pickle.loads(pickle.dumps(data))) == seen(data)


def test_ranks_get_what_one_would_and_nothing_twice(stream, seen):
    shares = [seen(stream(rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(address for share in shares for address in share) == sorted(seen(stream()))
    assert [len(share) for share in shares] == [36, 32, 32]


def test_without_a_mix_every_class_comes_equally_often(stream, seen):
    bits = [address[:3] for address in seen(stream(None, count=90, block_size=30))]
    assert {bit: bits.count(bit) for bit in bits} == {(1, 0, 0): 30, (0, 1, 0): 30, (0, 0, 1): 30}


def test_a_stream_without_a_count_goes_on_and_holds_few_blocks(stream, service, seen):
    items = iter(stream(count=None, prefetch_blocks=1))
    assert len(set(seen(islice(items, 200)))) == 200
    # 13 blocks were read from, one may wait, one may stand before the queue, one may be under way
    assert service.sent <= (13 + 3) * 16
    del items


@pytest.mark.parametrize("how", ["close", "collect", "never begun"])
def test_an_iterator_that_is_left_early_leaves_no_thread(stream, how):
    items = iter(stream(count=None))
    if how != "never begun":
        next(items)
        assert len(prefetching()) == 1
    if how == "close":
        items.close()
    del items
    gc.collect()
    assert prefetching() == []


def test_a_finished_iterator_leaves_no_thread(stream):
    assert len(list(stream())) == 100
    assert prefetching() == []


def test_an_error_of_the_service_reaches_the_consumer(stream, service, made_up, seen):
    data = stream(retry=Retry(attempts=1))
    service.faults = [None, None, made_up.Fault(response=httpx.Response(403, json={"detail": "not for you"}))]
    items = iter(data)
    assert len(seen(islice(items, 16))) == 16  # the first block came whole
    with pytest.raises(ServiceError, match="not for you"):
        next(items)
    assert prefetching() == []


@pytest.mark.parametrize("given", [0, 1, 16, 37, 100])
def test_an_iterator_resumes_where_another_stood(stream, seen, given):
    data = stream()
    items = iter(data)
    first = seen(islice(items, given))
    state = data.state_dict()
    items.close()
    again = stream()
    again.load_state_dict(state)
    assert first + seen(again) == seen(stream())
    assert seen(again) == seen(stream())  # a position is resumed from once


def test_what_the_service_has_not_is_named_when_the_dataset_is_made(stream, url):
    with pytest.raises(UserError, match="no class cat in model chest/1: expected some of normal, effusion, mass"):
        stream({"cat": 1})
    with pytest.raises(UserError, match="no model lungs: it has chest/1"):
        SyntheticStream(url, "lungs", seed=0)
    with pytest.raises(UserError, match="no model chest/7"):
        SyntheticStream(url, "chest", seed=0, version="7")
    with pytest.raises(ValueError, match="rank is 2"):
        stream(rank=2, world_size=2)


def test_a_version_published_later_does_not_change_the_dataset(stream, service, seen):
    data = stream()
    service.version = "2"
    assert len(seen(data)) == 100
    asked = [r.headers["serve_multiplexed_model_id"] for r in service.requests if r.method == "POST"]
    assert set(asked) == {"chest/1"}
