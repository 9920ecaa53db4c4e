import threading
import time
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import UserError
from cluster.storage import read_json, write_json
from vaegan.checkpoint import checkpoints
from vaegan.export import MAX_ENCODED, data_sha256, fit_sources
from vaegan.latents import LatentsConfig
from vaegan.loop import train_loop
from vaegan.reading import (
    MIN_GROUPS,
    BalancedOrder,
    Order,
    ReadingConfig,
    ShardReader,
    first_of_each_class,
    num_unlabelled,
    open_split,
    order_name,
    rarest_label,
    shuffled,
    with_labelled,
)
from vaegan.sampler import Sampler
from vaegan.shards import DatasetWriter, Images, read_split
from vaegan.tensors import UNLABELLED

STREAM = ReadingConfig(memory_gb=0, window_mb=1)


def numbered(count: int, size: int = 4) -> Images:
    """Images whose first two pixels tell their row, in classes that lie one after another."""
    pixels = np.zeros((count, size, size, 1), dtype=np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.arange(count) % 256, np.arange(count) // 256
    labels = np.eye(3, dtype=np.uint8)[np.arange(count) * 3 // count]
    return Images.real(pixels, labels, [f"p{i // 2}" for i in range(count)], [f"i{i}" for i in range(count)])


def rows_of(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, 0, 0, 0].astype(int) + 256 * pixels[:, 0, 1, 0].astype(int)


@pytest.fixture
def stored(tmp_path):
    """1,003 numbered images in files of 60 and row groups of 7: the last of each file and of all is shorter."""
    path = tmp_path / "numbered"
    with DatasetWriter(
        path, task="multiclass", classes="abc", height=4, width=4, channels=1, rows_per_file=60, rows_per_group=7
    ) as writer:
        writer.add("train", numbered(1003))
        writer.finish()
    return path


class Small(ShardReader):
    """A reader with nine windows in an epoch of `stored`, where a megabyte would hold all."""

    window_rows = 112


def seen(reader: ShardReader, **how) -> np.ndarray:
    """The rows of all batches, one batch a row."""
    how = dict(seed=5, batch_size=24, start=0, stop=41) | how
    return np.array([rows_of(pixels) for pixels, _ in reader.batches(**how)])


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_an_epoch_shows_each_row_once_over_all_workers_in_equally_many_batches(stored, world_size):
    reader = Small(stored, "train", replace(STREAM, files_at_once=4))
    parts = [seen(reader, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {part.shape for part in parts} == {(41, 24 // world_size)}  # 41 x 24 = 984 of 1,003
    rows = np.concatenate([part.ravel() for part in parts])
    assert len(np.unique(rows)) == 984


def test_which_rows_are_left_over_differs_by_epoch(stored):
    batches = seen(Small(stored, "train", STREAM), stop=5 * 41).reshape(5, -1)
    left = [frozenset(range(1003)) - set(epoch) for epoch in batches.tolist()]
    assert len(set(left)) == 5


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_a_stream_that_begins_at_any_step_goes_on_as_one_from_the_start(stored, rank, world_size):
    reader = Small(stored, "train", replace(STREAM, files_at_once=3))
    about = dict(rank=rank, world_size=world_size)
    whole = seen(reader, stop=100, **about)
    for start in (0, 1, 17, 40, 41, 42, 82, 99):
        assert np.array_equal(seen(reader, start=start, stop=100, **about), whole[start:]), start


def test_order_is_a_function_of_seed_epoch_rank_and_number_of_workers_alone(stored):
    first, second = (Small(stored, "train", replace(STREAM, threads=threads)) for threads in (1, 4))
    assert np.array_equal(seen(first, stop=82), seen(second, stop=82))
    epochs = seen(first, stop=82).reshape(2, -1)
    others = [epochs[1], seen(first, seed=6).ravel(), seen(first, batch_size=48, stop=20, world_size=2).ravel()]
    for other in others:
        assert not np.array_equal(epochs[0][: len(other)], other)


def test_labels_stay_with_their_images(stored):
    reader, whole = Small(stored, "train", STREAM), read_split(stored, "train")
    for pixels, labels in reader.batches(seed=0, batch_size=24, stop=60):
        rows = rows_of(pixels)
        assert np.array_equal(pixels, whole.pixels[rows])
        assert np.array_equal(labels, whole.labels[rows])


def test_resuming_reads_no_row_group_of_the_windows_before(stored):
    class Watched(Small):
        files_read = 0

        def _path(self, file):
            self.files_read += 1
            return super()._path(file)

    reader = Watched(stored, "train", STREAM)
    windows = reader.order(seed=5, batch_size=24).windows(0)
    assert len(windows) == 9
    assert all(len(window.parts) >= MIN_GROUPS for window in windows)
    files = len({part.file for part in windows[-1].parts})
    reader.files_read = 0
    seen(reader, start=40)
    assert reader.files_read == files


def test_rows_of_one_row_group_meet_little_more_often_than_by_chance():
    """64 row groups in a window: two rows of a batch are of the same one in 1 of 64 cases, and 1 of 256 by chance."""
    order = Order(groups=((64,) * 16,) * 16, seed=0, batch_size=32, window_rows=64 * 64, files_at_once=16)
    same, pairs = 0, 0
    for window in order.windows(0):
        groups = np.concatenate([np.full(64, part.file * 16 + part.group) for part in window.parts])
        mixed = np.empty(len(window), dtype=int)
        mixed[order.places(0, window)] = groups
        for batch in mixed.reshape(-1, 32):
            equal = batch[:, None] == batch
            same, pairs = same + equal.sum() - 32, pairs + 32 * 31
    assert 0.8 / 64 < same / pairs < 1.2 / 64


def test_workers_of_few_files_at_once_read_few_files():
    order = Order(groups=((10,) * 4,) * 64, seed=0, batch_size=8, window_rows=160, files_at_once=4)
    for rank in range(4):
        mine = replace(order, rank=rank, world_size=4).windows(0)
        assert len({part.file for window in mine for part in window.parts}) <= 20  # of 64, a quarter is 16
        for one, two in pairwise(mine):
            assert len({part.file for window in (one, two) for part in window.parts}) <= 12


def test_the_step_does_not_wait_once_the_first_window_is_there(tmp_path):
    """A step takes ten times as long as reading its batch; reading a window takes as long as many steps."""
    path = tmp_path / "slow"
    with DatasetWriter(
        path, task="multiclass", classes="abc", height=4, width=4, channels=1, rows_per_file=64, rows_per_group=4
    ) as writer:
        writer.add("train", numbered(512))
        writer.finish()

    class Slow(ShardReader):
        window_rows = 64

        def _path(self, file):
            time.sleep(0.02)  # a window of 16 row groups is in up to 8 files: 0.08 s with two threads
            return super()._path(file)

    waits = []
    with closing(Slow(path, "train", STREAM).batches(seed=0, batch_size=4, stop=128)) as batches:
        for _ in range(96):
            started_s = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - started_s)
            time.sleep(0.02)
    assert waits[0] > 0.05
    assert np.sort(waits[1:])[-3] < 0.02  # two of 95 may meet a busy machine


def test_a_stream_that_is_left_ends_its_threads(stored):
    batches = Small(stored, "train", STREAM).batches(seed=0, batch_size=24, stop=10**6)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("augray-read")]


@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_a_damaged_file_is_told_in_a_sentence_though_a_thread_met_it(stored, damage):
    reader = Small(stored, "train", STREAM)
    file = stored / "train-00003.parquet"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"train-00003.parquet can't be read .* prepare the dataset again"):
        seen(reader)


def test_files_of_another_dataset_are_told_in_a_sentence(stored):
    (stored / "train-00000.parquet").write_bytes((stored / "train-00016.parquet").read_bytes())
    with pytest.raises(UserError, match=r"train-00000.parquet isn't the file that the manifest lists"):
        seen(Small(stored, "train", STREAM))
    with pytest.raises(UserError, match="hold 986 images and its manifest says 1003"):
        read_split(stored, "train")


def test_a_split_in_files_answers_as_one_in_memory(stored):
    reader, whole = ShardReader(stored, "train", STREAM), read_split(stored, "train")
    assert len(reader) == len(whole)
    assert np.array_equal(reader.labels, whole.labels)
    assert data_sha256(reader) == data_sha256(whole)
    rows = np.array([1002, 0, 61, 60, 61, 500])
    for name in ("pixels", "labels", "patient_id", "image_id", "source"):
        assert np.array_equal(getattr(reader.take(rows), name), getattr(whole.take(rows), name)), name
    assert len(reader.take([])) == 0
    for one, two in zip(first_of_each_class(reader, 2), first_of_each_class(whole, 2), strict=True):
        assert one.tolist() == two.tolist()


def test_a_dataset_whose_manifest_tells_no_row_groups_is_streamed_in_the_same_order(stored):
    before = seen(Small(stored, "train", STREAM))
    manifest = read_json(stored / "manifest.json")
    assert sum(map(sum, manifest["splits"]["train"].pop("row_groups").values())) == 1003
    write_json(stored / "manifest.json", manifest)
    assert np.array_equal(seen(Small(stored, "train", STREAM)), before)


def test_a_split_is_streamed_only_beyond_the_budget(stored):
    size = 1003 * 16 / 2**30
    assert isinstance(open_split(stored, "train", ReadingConfig(memory_gb=size)), Images)
    assert isinstance(open_split(stored, "train", ReadingConfig(memory_gb=size * 0.99)), ShardReader)


def state(run_dir):
    return load_file(checkpoints(run_dir)[-1] / "state.safetensors")


def test_a_streamed_run_killed_between_checkpoints_ends_bit_equal_to_one_that_was_not(config, tmp_path):
    class KilledError(RuntimeError):
        pass

    def kill(line):
        if line["images"] == 80:
            raise KilledError

    config = replace(config, reading=STREAM)
    whole, broken = (replace(config, run_dir=tmp_path / name) for name in ("whole", "broken"))
    train_loop(whole)
    with pytest.raises(KilledError):
        train_loop(broken, progress=kill)
    model = train_loop(broken)
    first, second = state(whole.run_dir), state(broken.run_dir)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (model / "model.safetensors").read_bytes() == (whole.run_dir / "model/model.safetensors").read_bytes()
    assert read_json(whole.run_dir / "config.json")["order"].startswith("streamed")
    in_memory = replace(config, run_dir=tmp_path / "memory", reading=ReadingConfig())
    train_loop(in_memory)
    assert not torch.equal(first["average.dense.weight"], state(in_memory.run_dir)["average.dense.weight"])


def test_a_run_does_not_go_on_in_another_order_of_images(config):
    train_loop(config)
    with pytest.raises(UserError, match=r"differs in the order of images \(permuted\)"):
        train_loop(replace(config, reading=STREAM))
    more_memory = replace(config, reading=ReadingConfig(memory_gb=8))
    assert train_loop(more_memory)
    assert order_name(open_split(config.data, "train", more_memory.reading)) == "permuted"


def test_mixtures_are_the_same_from_memory_and_from_files_and_take_a_bounded_sample(config):
    sampler = Sampler.from_model(train_loop(config))
    whole, stream = (open_split(config.data, "train", how) for how in (ReadingConfig(), STREAM))
    labels = whole.labels

    def fitted(images, most):
        return fit_sources(sampler, images, labels, LatentsConfig(sources=("mixture",)), most)["mixture"].parts

    for one, two in zip(fitted(whole, MAX_ENCODED).values(), fitted(stream, MAX_ENCODED).values(), strict=True):
        assert np.array_equal(one.means, two.means)
        assert np.array_equal(one.stds, two.stds)
    asked = []

    class Watched(ShardReader):
        def take(self, rows):
            asked.extend(rows)
            return super().take(rows)

    assert set(fitted(Watched(config.data, "train", STREAM), 6)) == {-1, 0, 1}
    assert len(asked) <= 18


def rare(counts=(83, 10, 7)) -> np.ndarray:
    """One-hot labels of classes of very different sizes, mixed."""
    labels = np.eye(len(counts), dtype=np.uint8)[np.repeat(np.arange(len(counts)), counts)]
    return np.random.default_rng(0).permutation(labels)


def test_balanced_batches_have_each_class_equally_often_within_one():
    labels = rare()
    order = BalancedOrder(labels, seed=5, batch_size=16)
    for step in range(50):
        found = labels[order.batch(step)].sum(axis=0)
        assert found.sum() == 16
        assert found.max() - found.min() <= 1
    total = sum(labels[order.batch(step)].sum(axis=0) for step in range(50))
    assert total.max() - total.min() <= 1


def test_every_image_of_a_class_comes_equally_often_within_one_at_any_step_however_rare_the_class():
    labels = rare()
    order = BalancedOrder(labels, seed=5, batch_size=16)
    times = np.zeros(100, dtype=int)
    for step in range(200):
        np.add.at(times, order.batch(step), 1)
        for column in labels.T:
            mine = times[column > 0]
            assert mine.max() - mine.min() <= 1
    assert times[labels[:, 2] > 0].min() >= 200 * 16 // 3 // 7  # 152 times, and the common class 12 or 13 times
    assert times[labels[:, 0] > 0].max() <= 13


def test_a_balanced_order_is_shuffled_and_differs_by_seed_and_by_round():
    labels = rare((8, 8))
    order, other = (BalancedOrder(labels, seed=seed, batch_size=16) for seed in (5, 6))
    rounds = np.array([order.batch(step) for step in range(20)])  # each step is one round over both classes
    assert (np.sort(rounds) == np.arange(16)).all()
    assert len({tuple(rows) for rows in rounds.tolist()}) == 20
    assert not np.array_equal(rounds[0], other.batch(0))
    first_half = labels[rounds[:, :8], 0].mean(axis=1)  # classes take no turns that a batch norm's halves could tell
    assert len(set(first_half.tolist())) > 2
    follows = {(int(rows[i]), int(rows[i + 1])) for rows in rounds for i in range(15)}
    assert len(follows) > 150  # of 240 pairs


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_workers_see_the_balanced_batches_of_one_from_any_step(world_size):
    images = numbered(1003)
    images = images.take(np.flatnonzero((images.labels[:, 0] > 0) | (np.arange(1003) % 10 == 0)))

    def part(start, rank=0, size=1):
        how = dict(seed=5, batch_size=24, start=start, stop=60, rank=rank, world_size=size, balanced=True)
        return np.array([rows_of(pixels) for pixels, _ in shuffled(images, **how)])

    whole = part(0)
    for start in (0, 1, 37, 59):
        parts = [part(start, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole[start:])


def test_an_image_of_several_classes_is_drawn_for_its_rarest_and_one_of_none_for_a_class_of_its_own():
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=np.uint8)
    assert rarest_label(labels).tolist() == [0, 0, 1, 2, 1, -1, -1]
    order = BalancedOrder(labels, seed=0, batch_size=8)
    times = np.bincount(np.concatenate([order.batch(step) for step in range(4)]), minlength=7)
    assert times.tolist() == [4, 4, 4, 8, 4, 4, 4]  # four groups, eight times each


def test_balanced_pixels_keep_their_labels_and_an_order_without_balance_is_what_it_was():
    images = numbered(100)
    for pixels, labels in shuffled(images, seed=5, batch_size=24, start=0, stop=9, balanced=True):
        assert np.array_equal(labels, images.labels[rows_of(pixels)])
    plain = [rows_of(pixels) for pixels, _ in shuffled(images, seed=5, batch_size=24, start=0, stop=4)]
    assert np.array_equal(np.concatenate(plain), np.random.default_rng([5, 0]).permutation(100)[:96])


def test_balance_is_refused_in_a_sentence_where_it_can_not_be_had(config, stored):
    streamed = replace(config, reading=STREAM, balance_classes=True)
    with pytest.raises(UserError, match=r"balance_classes needs the training images in memory.*reading.memory_gb to"):
        train_loop(streamed)
    assert not config.run_dir.exists()
    with pytest.raises(UserError, match="balance_classes needs the training images in memory"):
        next(shuffled(Small(stored, "train", STREAM), seed=0, batch_size=8, start=0, stop=1, balanced=True))
    nameless = replace(numbered(10), labels=np.zeros((10, 0), dtype=np.uint8))
    with pytest.raises(UserError, match="balance_classes needs classes, and the dataset has none"):
        next(shuffled(nameless, seed=0, batch_size=8, start=0, stop=1, balanced=True))


@pytest.fixture
def half_labelled(tmp_path):
    """As `stored`, every other row without a label."""
    path = tmp_path / "half"
    with DatasetWriter(
        path, task="multiclass", classes="abc", height=4, width=4, channels=1, rows_per_file=60, rows_per_group=7
    ) as writer:
        writer.allow_unlabelled()
        writer.add("train", replace(numbered(1003), labelled=np.arange(1003) % 2 == 0))
        writer.finish()
    return path


@pytest.mark.parametrize("chosen", ["as stored", "fewer"])
def test_a_row_without_a_label_is_marked_in_batches_from_memory_and_from_files(half_labelled, chosen):
    memory, files = read_split(half_labelled, "train"), Small(half_labelled, "train", STREAM)
    labelled = np.arange(1003) % 2 == 0
    if chosen == "fewer":
        labelled = np.arange(1003) % 4 == 0
        memory, files = with_labelled(memory, labelled), with_labelled(files, labelled)
    truth = np.where(labelled[:, None], numbered(1003).labels, UNLABELLED)
    for images in (memory, files):
        for pixels, labels in shuffled(images, seed=5, batch_size=24, start=0, stop=50):
            assert np.array_equal(labels, truth[rows_of(pixels)])
        assert np.array_equal(images.has_label, labelled)
        assert num_unlabelled(images) == np.sum(~labelled)
        assert not images.labels[~labelled].any()
        some = images.take([5, 4, 1000])
        assert some.has_label.tolist() == labelled[[5, 4, 1000]].tolist()
        assert not some.labels[~some.has_label].any()
        firsts = first_of_each_class(images, 3)
        assert all(labelled[rows].all() for rows in firsts)
    assert np.array_equal(memory.labels, files.labels)
    assert np.array_equal(memory.patient_id, files.patient_id)


def test_the_order_of_images_does_not_depend_on_who_was_labelled(stored, half_labelled):
    assert np.array_equal(seen(Small(stored, "train", STREAM)), seen(Small(half_labelled, "train", STREAM)))


def test_balance_is_refused_where_some_images_have_no_class_to_balance(half_labelled):
    with pytest.raises(UserError, match="501 of 1003 have no label"):
        next(shuffled(read_split(half_labelled, "train"), seed=0, batch_size=8, start=0, stop=1, balanced=True))
