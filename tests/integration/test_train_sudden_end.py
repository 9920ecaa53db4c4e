"""A run in one process that is killed with SIGKILL, wherever that is: the same command ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vaegan.recipe import TrainConfig

pytestmark = pytest.mark.integration

# Runs commands in forks of a process that has imported torch, which takes longer than to train. Each is told at which
# of its file operations to end itself: an audit event of Python's, or "half", in the middle of a file of tensors.
FORKS = """
import json, os, signal, sys
import torch._dynamo
import vaegan.checkpoint
from vaegan.train import main

def end_at(operation, name):
    def ends(event, path):
        if event == operation and os.path.basename(path).startswith(name):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event.startswith("os.") or event == "open" and arguments[2] & os.O_WRONLY:
            if isinstance(arguments[0], (str, os.PathLike)):
                ends(event, os.fspath(arguments[0]))

    def save_file(tensors, path):
        whole(tensors, path)
        size = os.path.getsize(path)
        os.truncate(path, size // 2)
        ends("half", os.path.dirname(path))
        whole(tensors, path)

    sys.addaudithook(hook)
    whole, vaegan.checkpoint.save_file = vaegan.checkpoint.save_file, save_file

print("ready", flush=True)
answers = os.dup(1)
os.dup2(2, 1)
for line in sys.stdin:
    argv, operation, name = json.loads(line)
    pid = os.fork()
    if pid == 0:
        end_at(operation, name)
        os._exit(main(argv))
    os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\\n".encode())
"""

Train = Callable[..., int]
ANSWER_S = 120


@pytest.fixture(scope="module")
def train(command_line: Callable[[TrainConfig], list[str]]) -> Iterator[Train]:
    """`vaegan.train` in a process of its own, killed before it does `operation` on a file whose name begins so."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS], cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout

    def answer() -> str:
        late = threading.Timer(ANSWER_S, process.kill)
        late.start()
        line = process.stdout.readline()
        late.cancel()
        assert line, f"the process that trains ended, or did not answer within {ANSWER_S} s"
        return line

    def train(config: TrainConfig, operation: str = "", name: str = "") -> int:
        print(json.dumps([command_line(config), operation, name]), file=process.stdin, flush=True)
        return int(answer())

    assert answer() == "ready\n"
    yield train
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


@pytest.fixture(scope="module")
def whole(tiny_run: TrainConfig, train: Train) -> TrainConfig:
    """A run that nothing disturbed."""
    config = replace(tiny_run, run_dir=tiny_run.run_dir.with_name("undisturbed"), num_workers=0)
    assert train(config) == 0
    return config


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        pytest.param("open", "stats.jsonl", id="first line of the log"),
        pytest.param("half", ".checkpoint_000000032", id="half of the first checkpoint"),
        pytest.param("half", ".best_000000032", id="half of the best checkpoint"),
        pytest.param("os.rename", ".samples_000000064", id="grid without its name"),
        pytest.param("half", ".checkpoint_000000064", id="half of the second checkpoint"),
        pytest.param("os.rename", ".checkpoint_000000064", id="checkpoint without its name"),
        pytest.param("os.remove", "state.safetensors", id="half of an old checkpoint removed"),
        pytest.param("half", ".model", id="half of the model"),
        pytest.param("os.rename", ".model-", id="model without its name"),
    ],
)
def test_a_run_killed_while_it_writes_ends_as_if_it_had_not_been(
    whole: TrainConfig, train: Train, assert_same_end, tmp_path: Path, operation: str, name: str
):
    config = replace(whole, run_dir=tmp_path / whole.run_dir.name)
    assert train(config, operation, name) == -signal.SIGKILL
    assert not (config.run_dir / "model").exists()
    assert train(config) == 0
    assert_same_end(whole, config)


def test_a_run_killed_from_outside_ends_as_if_it_had_not_been(
    whole: TrainConfig, train: Train, command_line, assert_same_end, wait_until, tmp_path: Path
):
    config = replace(whole, run_dir=tmp_path / whole.run_dir.name)
    command = [sys.executable, "-m", "vaegan.train", *command_line(config)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        wait_until(lambda: list(config.run_dir.glob("checkpoint_*")), "a checkpoint", pause=0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (config.run_dir / "model").exists()
    assert train(config) == 0
    assert_same_end(whole, config)
