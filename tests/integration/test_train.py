"""`vaegan.train` on Ray Train: the same result as without Ray, whatever dies meanwhile, and a clear end if all is lost.

The cluster has three nodes on this machine: a head without CPUs, where the command and Ray Train's controller run, and
two of one CPU each for the workers.
"""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import UserError
from cluster.session import NAMESPACE, _loopback_only, environment, free_port
from vaegan.optimizers import OptimizerConfig
from vaegan.recipe import TrainConfig
from vaegan.train import train
from vaegan.watchdog import WatchdogConfig

pytestmark = pytest.mark.integration

TIMEOUT_S = 150  # for one run, with all that is done to it


class Nodes:
    """A Ray cluster of several nodes on this machine's loopback."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        port = free_port()
        self.cluster = Cluster()
        self.cluster.add_node(
            num_cpus=0, node_ip_address="127.0.0.1", include_dashboard=True, dashboard_host="127.0.0.1",
            dashboard_port=port,
        )  # fmt: skip
        self.workers = [self._start() for _ in range(2)]
        ray.init(
            self.cluster.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            # what cluster.session says of it: Ray Train may ask another cluster's dashboard otherwise
            runtime_env={"env_vars": {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}},
        )

    def _start(self) -> object:
        return self.cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")

    def complete(self) -> None:
        """Start nodes until there are two for workers; must be called from the main thread."""
        while len(self.workers) < 2:
            self.workers.append(self._start())

    def kill_one(self) -> None:
        """End all processes of one node at once, those of its workers with them."""
        self.cluster.remove_node(self.workers.pop(), allow_graceful=False)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    quick = {f"RAY_health_check_{name}_ms": "1000" for name in ("initial_delay", "period", "timeout")}
    with (
        _loopback_only(),
        environment(
            **quick,
            RAY_health_check_failure_threshold="3",
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15",
            RAY_USAGE_STATS_ENABLED="0",
        ),
    ):
        nodes = Nodes()
        yield nodes
        nodes.stop()


@pytest.fixture(autouse=True)
def two_workers_can_start(nodes: Nodes) -> None:
    nodes.complete()


@pytest.fixture(scope="module")
def config(tiny_run: TrainConfig) -> TrainConfig:
    """A run long enough to be disturbed: forty steps, a checkpoint every second one, all of which are kept."""
    return replace(tiny_run, total_images=640, keep_checkpoints=0)


@pytest.fixture(scope="module")
def whole(config: TrainConfig, nodes: Nodes) -> TrainConfig:
    """That run on two workers, undisturbed."""
    whole = replace(config, run_dir=config.run_dir.with_name("whole"))
    assert train(whole) == 0
    return whole


class Started:
    """`train` in a thread: nodes can be started in the main one alone."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.outcome: int | BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = train(self.config)
        except BaseException as error:
            self.outcome = error

    def wait_for(self, condition, what: str, wait_until, pause: float = 0.01) -> None:
        """Wait for something to be seen before the run ends."""
        wait_until(lambda: condition() or not self.thread.is_alive(), what, TIMEOUT_S, pause)
        assert self.outcome is None, f"the run ended before {what}: {self.outcome}"

    def finish(self) -> None:
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive(), f"the run did not end within {TIMEOUT_S} s"
        assert self.outcome == 0, self.outcome


def has_checkpoint(config: TrainConfig) -> bool:
    return any(config.run_dir.glob("checkpoint_*"))


def test_two_workers_do_what_one_process_does(whole: TrainConfig, log):
    alone = replace(whole, run_dir=whole.run_dir.with_name("alone"), num_workers=0)
    assert train(alone) == 0
    early = "checkpoint_000000128/state.safetensors"
    found = load_file(whole.run_dir / early)
    for name, value in load_file(alone.run_dir / early).items():
        # Adam's division by a root of squares amplifies rounding where a gradient is almost 0
        assert torch.allclose(value, found[name], atol=2e-3), name
    assert_close(log(alone), log(whole))


def test_a_worker_killed_while_it_writes_a_checkpoint_is_replaced_and_leaves_no_trace(
    whole, assert_same_end, wait_until
):
    broken = Started(replace(whole, run_dir=whole.run_dir.with_name("worker")))
    broken.wait_for(lambda: has_checkpoint(broken.config), "its first checkpoint", wait_until)
    (writer,) = writers(broken.config)
    assert belongs_to_us(writer), "the other of two clusters on this machine trains in our folder"

    def writing() -> bool:
        return any(broken.config.run_dir.glob(".checkpoint_*"))

    def caught() -> bool:
        """Stop the worker when it writes a checkpoint, and kill it if it still does by then."""
        if not writing():
            return False
        os.kill(writer, signal.SIGSTOP)
        unfinished = writing()
        os.kill(writer, signal.SIGKILL if unfinished else signal.SIGCONT)
        return unfinished

    broken.wait_for(caught, "it was caught writing a checkpoint", wait_until, pause=0)
    assert not (broken.config.run_dir / "model").exists()
    broken.finish()
    assert len(writers(broken.config)) == 2
    assert_same_end(whole, broken.config)


def test_a_killed_node_is_replaced_and_the_run_ends_as_if_it_had_not_been(whole, nodes, assert_same_end, wait_until):
    broken = Started(replace(whole, run_dir=whole.run_dir.with_name("node")))
    broken.wait_for(lambda: has_checkpoint(broken.config), "its first checkpoint", wait_until)
    nodes.kill_one()
    assert not (broken.config.run_dir / "model").exists()
    nodes.complete()
    broken.finish()
    assert_same_end(whole, broken.config)


def test_with_min_workers_a_run_goes_on_without_the_node_that_is_gone(whole, nodes, log, wait_until):
    elastic = replace(whole, run_dir=whole.run_dir.with_name("elastic"), min_workers=1)
    broken = Started(elastic)
    broken.wait_for(lambda: has_checkpoint(elastic), "its first checkpoint", wait_until)
    nodes.kill_one()
    kept = newest_checkpoint(elastic)
    assert not (elastic.run_dir / "model").exists()
    lost: list[tuple[int, int]] = []

    def watch() -> bool:
        images = int(log(elastic)[-1]["images"])
        if images < kept:
            lost.append((images, kept))
        return (elastic.run_dir / "model").exists()

    wait_until(watch, "the end of the run on one worker", TIMEOUT_S)
    broken.finish()
    assert not lost, "the run went back to before its last checkpoint"
    assert len(train_nodes()) == 1, "a second node was there after all"
    # Not bit-equal: one worker adds up a batch's gradients in another order than two, and Adam's division by a root of
    # squares makes that visible wherever a gradient is almost 0.
    assert_close(log(whole), log(elastic))
    before = [line for line in log(whole) if int(line["images"]) <= kept]
    assert log(elastic)[: len(before)] == before


def test_a_run_that_fails_for_good_says_why_and_is_not_begun_again(config: TrainConfig):
    hopeless = replace(
        config, run_dir=config.run_dir.with_name("hopeless"), optimizer=OptimizerConfig(learning_rate=1e30)
    )
    with pytest.raises(
        UserError, match=r"failed at image \d+: .* became NaN or infinite; .*; lower the learning rates"
    ):
        train(hopeless)
    assert len(writers(hopeless)) == 1


def test_after_a_rollback_both_workers_go_on_from_the_same_place(config: TrainConfig, log):
    rate, factor = 1e30, 1e-34
    back = replace(
        config,
        run_dir=config.run_dir.with_name("back"),
        total_images=128,
        optimizer=OptimizerConfig(learning_rate=rate),
        watchdog=WatchdogConfig(rate_factor=factor),
    )
    assert train(back) == 0
    event, *lines = log(back)
    assert (event["event"], event["images"], event["rollbacks"]) == ("rollback", 0, 1)
    assert len(writers(back)) == 1
    # as a run that began with the lower rate, on one worker: a second one that had not gone back would show
    slow = replace(
        back,
        run_dir=config.run_dir.with_name("slow"),
        num_workers=0,
        optimizer=OptimizerConfig(learning_rate=rate * factor),
    )
    assert train(slow) == 0
    assert_close(log(slow), lines)


def assert_close(expected: list[dict[str, object]], found: list[dict[str, object]]) -> None:
    """The same log up to rounding."""
    assert [line["images"] for line in found] == [line["images"] for line in expected]
    for name in ("prior", "like", "d_real", "d_sample"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=2e-2), name


def newest_checkpoint(config: TrainConfig) -> int:
    return max(int(path.name.removeprefix("checkpoint_")) for path in config.run_dir.glob("checkpoint_*"))


def writers(config: TrainConfig) -> set[int]:
    """Ids of the processes that wrote a run's TensorBoard files: the first worker of each attempt."""
    return {int(path.name.split(".")[-2]) for path in config.run_dir.glob("tensorboard/events.out.tfevents.*")}


def train_nodes() -> list[str]:
    """Living nodes that have a CPU."""
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def belongs_to_us(pid: int) -> bool:
    """Whether this process is an ancestor of `pid`: other clusters may run on this machine."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False
