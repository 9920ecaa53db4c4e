"""Features computed by Ray actors are those of one process."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from cluster.errors import UserError
from cluster.storage import read_json
from vaegan.actors import extraction_workers
from vaegan.evaluate import main
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.domain import domain_extractor
from vaegan.metrics.extraction import extract
from vaegan.metrics.features import make_extractor
from vaegan.metrics.sources import ImageSource, open_source, source_of
from vaegan.shards import Images

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None, num_classes=3).state_dict(), path)
    return f"torchvision:squeezenet1_1={path}"


@pytest.fixture(scope="module")
def source() -> ImageSource:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 1), dtype=np.uint8)
    names = [str(row) for row in range(600)]
    return source_of(Images.real(pixels, np.zeros((600, 0), np.uint8), names, names))


def test_workers_give_the_features_of_one_process_in_the_same_order(spec, source, tmp_path):
    assert len(source.blocks) > 2
    build = partial(make_extractor, spec, device="cpu")
    expected = extract(source, build())
    seen: list[tuple[int, int]] = []
    cache = FeatureCache(tmp_path)
    with extraction_workers(build, 2, batch_size=5) as workers:
        found = workers.extract(source, cache=cache, progress=lambda *done: seen.append(done))
    assert workers.stamp == build().stamp
    assert seen[-1] == (600, 600)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-4)
    again = extract(source, build(), cache=cache)
    np.testing.assert_array_equal(again.features, found.features, "one process finds what the workers kept")


def test_a_users_mistake_in_a_worker_is_one_sentence():
    missing = partial(make_extractor, "torchvision:squeezenet1_1=/nowhere.pth", device="cpu")
    with pytest.raises(UserError, match=r"no weights file /nowhere\.pth") as caught, extraction_workers(missing, 1):
        pass
    assert "\n" not in str(caught.value)


def test_an_extractor_that_was_trained_here_is_sent_and_a_file_that_changes_is_named(source, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    names = ["a", "b"]
    two = Images.real(np.stack([pixels, 255 - pixels])[..., None], np.eye(2, dtype=np.uint8), names, names)
    trained = domain_extractor(two, "multiclass", steps=2)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    changing = open_source(tmp_path)
    Image.fromarray(255 - pixels).save(tmp_path / "one.png")
    with extraction_workers(lambda: trained, 1) as workers:
        assert workers.stamp == trained.stamp
        found = workers.extract(source)
        np.testing.assert_allclose(found.features, extract(source, trained).features, rtol=1e-5, atol=1e-5)
        with pytest.raises(UserError, match=r"one\.png has changed since"):
            workers.extract(changing)


def test_the_command_computes_on_workers_what_it_computes_alone(tmp_path, capsys):
    rng = np.random.default_rng(1)
    for name in ("real", "synthetic"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (80, 32, 32), dtype=np.uint8))
    paths = [f"--real={tmp_path}/real.npy", f"--synthetic={tmp_path}/synthetic.npy", "--cache=none", "--skip-privacy"]
    assert main([*paths, f"--out={tmp_path}/alone.json", "--extractors", "gist"]) == 0
    assert main([*paths, f"--out={tmp_path}/spread.json", "--extractors", "gist", "--workers", "2"]) == 0
    alone, spread = (read_json(tmp_path / f"{name}.json")["numbers"] for name in ("alone", "spread"))
    for mine, theirs in zip(alone, spread, strict=True):
        assert theirs["value"] == pytest.approx(mine["value"], rel=1e-4, abs=1e-4)
