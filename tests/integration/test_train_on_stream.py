"""The example: training on a live stream is training on shards of the same addresses, bit for bit."""

import importlib.util
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import uvicorn

from cluster.session import free_port
from serve.api import make_api
from serve.backend import Backend
from serve.config import ServiceConfig
from vaegan.phantom import PhantomConfig, phantom
from vaegan.sample import main as write_shards
from vaegan.shards import DatasetWriter

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
CLASSES = ("normal", "consolidation", "effusion")
STEPS = 12
MIX = ["normal=1", "effusion=2"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_on_stream", ROOT / "examples" / "train_on_stream.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 patients of the phantom at 32 px, split in three."""
    images = phantom(PhantomConfig(patients=90), size=32, seed=0)
    part = np.array([int(name.encode()[-1]) % 3 for name in images.patient_id])
    path = tmp_path_factory.mktemp("data") / "phantom"
    with DatasetWriter(path, task="multiclass", classes=CLASSES, height=32, width=32, channels=1) as writer:
        for number, name in enumerate(("train", "val", "test")):
            writer.add(name, images.take(np.flatnonzero(part == number)))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    publish = runpy.run_path(str(ROOT / "tests" / "serve" / "untrained.py"))["publish_untrained"]
    root = tmp_path_factory.mktemp("service") / "registry"
    publish(root, "chest/1", CLASSES)
    return root


@pytest.fixture(scope="module")
def url(registry: Path) -> Iterator[str]:
    """The service over that registry, in a thread."""
    port = free_port()
    backend = Backend(ServiceConfig(registry=registry))
    server = uvicorn.Server(uvicorn.Config(make_api(backend), host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "uvicorn ended at once"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def arguments(data: Path, url: str) -> list[str]:
    flags = f"--data {data} --url {url} --model chest --steps {STEPS} --batch-size 16 --synthetic-per-batch 6"
    return [*flags.split(), "--image-seed", "3", "--truncation", "0.8", "--mix", *MIX]


def test_stream_and_shards_give_bit_equal_predictions(example, arguments, registry, data, url, tmp_path, capsys):
    flags = f"--model {registry}/chest/1 --out {tmp_path}/shards --count 400 --seed 3 --truncation 0.8"
    assert write_shards(flags.split()) == 0
    assert example.main([*arguments, "--shards", str(tmp_path / "shards")]) == 0
    printed = capsys.readouterr().out
    assert "predictions equal bit for bit" in printed
    config = example.StreamConfig(
        data=data, url=url, model="chest", mix=tuple(MIX), shards=tmp_path / "shards", steps=STEPS, batch_size=16,
        synthetic_per_batch=6, image_seed=3, truncation=0.8,
    )  # fmt: skip
    real, stream, shards = example.compare(config)
    np.testing.assert_array_equal(stream.probabilities, shards.probabilities)
    assert stream.auroc == shards.auroc
    assert not np.array_equal(real.probabilities, stream.probabilities)  # the synthetic rows are really trained on


def test_without_shards_it_reports_the_gain_alone(example, arguments, capsys):
    assert example.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14].strip() for line in lines[1:]] == ["real", "real + stream"]


def test_mistakes_are_told_in_a_sentence(example, arguments, registry, tmp_path, capsys):
    write_shards(f"--model {registry}/chest/1 --out {tmp_path}/few --count 3 --seed 3 --truncation 0.8".split())
    capsys.readouterr()
    assert example.main([*arguments, "--shards", str(tmp_path / "few")]) == 2
    assert "write it with: python -m vaegan.sample" in capsys.readouterr().err
    assert example.main([*arguments, "--mix", "normal"]) == 2
    assert "expected CLASS=NUMBER" in capsys.readouterr().err
    assert example.main([*arguments, "--mix", "cat=1"]) == 2
    assert "no class cat in model chest/1" in capsys.readouterr().err
    assert example.main([*arguments, "--synthetic-per-batch", "16"]) == 2
    assert "at least one image of either kind" in capsys.readouterr().err
