import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.checkpoint import read_card, read_info
from vaegan.evaluate import EvaluateConfig, evaluate, main
from vaegan.evaluation.audit import model_scores
from vaegan.evaluation.measure import Sets
from vaegan.loop import train_loop
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.domain import domain_extractor
from vaegan.metrics.sources import open_source
from vaegan.registry import Registry, publish
from vaegan.runs import SoloRun
from vaegan.sample import SampleConfig, synthesize
from vaegan.sampler import Sampler
from vaegan.shards import DatasetWriter, Images, read_split

NAMES = ["frechet_distance", "kernel_distance", "classifier_score", "precision", "recall", "density", "coverage",
         "c2st_auc", "ms_ssim"]  # fmt: skip


def images(count, seed, size=32, classes=2):
    """A bright spot left or right at a place of its own, over noise; every film of another patient."""
    rng = np.random.default_rng(seed)
    right = np.arange(count) % classes
    pixels = rng.normal(90, 12, size=(count, size, size, 1))
    for row, side in enumerate(right):
        y, x, width, height = rng.integers(2, size // 2 - 4), rng.integers(1, 5), *rng.integers(4, 9, size=2)
        left = x + side * size // 2
        pixels[row, y : y + height, left : left + width] += rng.uniform(40, 120)
    ids = [f"{seed}-{i}" for i in range(count)]
    return Images.real(pixels.clip(0, 255).astype(np.uint8), np.eye(classes, dtype=np.uint8)[right], ids, ids)


def write(path, **splits):
    first = next(iter(splits.values()))
    _, height, width, channels = first.pixels.shape
    names = ("left", "right")[: first.labels.shape[1]]
    with DatasetWriter(path, task="multiclass", classes=names, height=height, width=width, channels=channels) as writer:
        for split, rows in splits.items():
            writer.add(split, rows)
        writer.finish()
    return path


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path / "cache"))
    return {
        "real": write(tmp_path / "real", train=images(80, 0), val=images(100, 2)),
        "synthetic": write(tmp_path / "synthetic", train=images(60, 1)),
        "out": tmp_path / "metrics" / "metrics.json",
    }


def flags(paths, *more):
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))] + list(more)


def test_the_command_writes_numbers_page_and_table_and_a_second_run_keeps_them(datasets, capsys):
    assert main(flags(datasets, "--skip-privacy")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"domain CNN +GIST filters", printed)  # two extractors side by side, with no weights at hand
    assert "80 real, 60 synthetic" in printed
    assert "privacy: not measured" in printed
    written = datasets["out"].read_text()
    content = json.loads(written)
    assert [n["metric"] for n in content["numbers"] if n["extractor"]["name"] in ("domain CNN", "pixels")] == NAMES
    assert set(content["provenance"]["inputs"]) == {"real", "synthetic", "held_out"}
    page = datasets["out"].with_suffix(".html")
    assert "GIST filters" in page.read_text()
    assert main(flags(datasets, "--skip-privacy")) == 0
    assert datasets["out"].read_text() == written
    assert "is there already" in capsys.readouterr().err
    assert set(datasets["out"].parent.iterdir()) == {datasets["out"], page}
    page.unlink()
    assert main(flags(datasets, "--skip-privacy")) == 0
    assert page.exists()


def test_features_are_computed_once_and_found_in_the_cache_by_another_question(datasets, monkeypatch):
    config = {"extractors": ("gist",), "skip_privacy": True}
    first = evaluate(EvaluateConfig(**datasets, **config))
    found = []
    get = FeatureCache.get
    monkeypatch.setattr(FeatureCache, "get", lambda *args: found.append(get(*args)) or found[-1])
    other = evaluate(EvaluateConfig(**datasets, **config, seed=1))
    assert found
    assert all(arrays is not None for arrays in found)
    assert other["numbers"][0]["value"] == first["numbers"][0]["value"]


def test_copies_fail_the_gate_with_status_1_and_the_page_shows_them(datasets, tmp_path, capsys):
    real = read_split(datasets["real"], "train")
    copies = images(60, 1)
    copies.pixels[:12] = real.pixels[30:42, :, ::-1]  # mirrored
    datasets["synthetic"] = write(tmp_path / "copies", train=copies)
    assert main(flags(datasets, "--extractors", "gist")) == 1
    assert "privacy: fail" in capsys.readouterr().out
    privacy = json.loads(datasets["out"].read_text())["privacy"]
    assert privacy["scopes"]["images"]["verdict"] == "fail"
    assert "model" not in privacy["scopes"]
    pairs = [pair for pair in privacy["suspicious_pairs"] if pair["copy"]]
    assert {(pair["synthetic_id"], pair["real_id"]) for pair in pairs} <= {(f"1-{i}", f"0-{30 + i}") for i in range(12)}
    assert len(pairs) == 10
    assert "0-30" in datasets["out"].with_suffix(".html").read_text()


def test_without_held_out_images_there_is_too_little_to_say_and_the_status_is_3(datasets, capsys):
    assert main(flags(datasets, "--held-out-split", "none", "--extractors", "gist")) == 3
    assert "too little data to say" in capsys.readouterr().out


def test_patients_on_both_sides_are_refused(datasets, tmp_path, capsys):
    datasets["real"] = write(tmp_path / "leaky", train=images(80, 0), val=images(100, 0))
    assert main(flags(datasets, "--extractors", "gist")) == 2
    assert "80 patients are in" in capsys.readouterr().err
    assert not datasets["out"].exists()


def test_any_two_sets_of_images_can_be_compared(datasets, tmp_path, capsys):
    folder = tmp_path / "films"
    for row, pixels in enumerate(images(40, 3, size=48).pixels):
        path = folder / ("odd" if row % 2 else "even") / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :, 0]).save(path)
    (folder / "odd" / "broken.png").write_bytes(b"no image")
    np.savez(tmp_path / "theirs.npz", images=images(30, 4, size=40).pixels)
    both = {"real": folder, "synthetic": tmp_path / "theirs.npz", "out": datasets["out"]}
    assert main(flags(both, "--skip-privacy")) == 2
    assert "48x48x1 and the synthetic ones 40x40x1" in capsys.readouterr().err
    assert main(flags(both, "--skip-privacy", "--size", "32")) == 0
    sets = json.loads(datasets["out"].read_text())["sets"]
    assert (sets["real"]["num_images"], sets["real"]["rejected"], sets["real"]["shape"]) == (40, 1, [32, 32, 1])
    assert sets["held_out"] is None


@pytest.fixture
def model(config):
    """A tiny model, and the dataset it was trained on."""
    return train_loop(config, read_split(config.data, "train"), run=SoloRun(config.run_dir, 0, "cpu"))


def test_a_model_is_sampled_attacked_and_its_card_says_what_was_found(model, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path / "cache"))
    entry = publish(model, tmp_path / "registry", "chest/1")
    paths = {"real": config.data, "model": entry.path, "out": tmp_path / "metrics.json"}
    status = main(flags(paths, "--count", "40", "--extractors", "gist"))
    result = json.loads(paths["out"].read_text())
    assert status == {"pass": 0, "fail": 1, "too little data to say": 3}[result["privacy"]["verdict"]]
    assert result["sets"]["synthetic"]["name"] == "40 samples of chest/1, prior, seed 0"
    assert result["sets"]["synthetic"]["classes"] == {"left": 20, "right": 20}  # as the real ones
    assert "model" in result["privacy"]["scopes"]
    assert str(entry.path / "card.md") in capsys.readouterr().out
    assert f"**Verdict: {result['privacy']['verdict']}.**" in read_card(entry.path)
    assert read_info(entry.path).privacy["verdict"] == result["privacy"]["verdict"]
    registry = Registry(tmp_path / "registry")
    registry.verify(registry.resolve("chest"))


def test_a_model_that_was_trained_on_other_images_is_refused(model, datasets, capsys):
    other = {"real": datasets["real"], "model": model, "out": datasets["out"]}
    assert main(flags(other, "--count", "40", "--extractors", "gist")) == 2
    assert "was trained on other images" in capsys.readouterr().err
    assert "Not audited" in read_card(model)


def test_samples_of_another_model_are_refused(model, config, tmp_path, capsys):
    drawn = tmp_path / "drawn"
    synthesize(SampleConfig(model=model, out=drawn, count=20))
    manifest = json.loads((drawn / "manifest.json").read_text())
    manifest["report"]["sample"] |= {"model": "other/3", "tensors_sha256": "f" * 64}
    (drawn / "manifest.json").write_text(json.dumps(manifest))
    paths = {"real": config.data, "model": model, "synthetic": drawn, "out": tmp_path / "metrics.json"}
    assert main(flags(paths, "--extractors", "gist")) == 2
    assert "was drawn from other/3 (tensors ffffffffffff), not from model/1" in capsys.readouterr().err


def test_the_papers_table_and_figure_come_from_a_runs_checkpoints(model, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path / "cache"))
    paths = {"paper": config.run_dir, "real": config.data, "out": tmp_path / "paper.json"}
    assert main(flags(paths, "--extractors", "domain", "gist", "--paper-checkpoints", "2")) == 0
    document = json.loads(paths["out"].read_text())
    kept = sorted(path.name for path in config.run_dir.glob("checkpoint_*"))
    assert [point["checkpoint"] for point in document["checkpoints"]] == [kept[0], kept[-1]]
    assert document["checkpoints"][-1]["epoch"] == 2  # 96 images of 48
    table = (tmp_path / "paper.md").read_text()
    assert table in capsys.readouterr().out
    assert "1.8431 ± 0.4186" in table
    assert "172,662 is not on the standard scale" in table
    assert "no classes" in table  # GIST has none, so no score is made up for it
    with Image.open(tmp_path / "paper.png") as figure:
        assert figure.width > 1000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--extractors", "nonsense"], "unknown extractor 'nonsense'"),
        (["--extractors", "torchvision:resnet18"], "--extractors torchvision:resnet18=FILE"),
        (["--extractors", "torchvision:resnet18=absent.pth"], "no weights file absent.pth"),
        (["--extractors", "domain", "--weights", "x.pth"], "--weights x.pth is for the one extractor without =FILE"),
        (["--extractors", "domain", "domain"], "named twice"),
        (["--real-split", "test"], "has no test split"),
        (["--real", "absent"], "no folder or file absent"),
        (["--out", "."], "is a folder"),
        (["--count", "-1"], "--count is -1"),
        (["--paper", "absent"], "absent has no checkpoint_* folders"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(datasets, more, message, capsys):
    assert main(flags(datasets, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not datasets["out"].exists()


def test_synthetic_images_or_a_model_must_be_given(datasets):
    with pytest.raises(ValueError, match="expected --synthetic DATASET, or --model"):
        EvaluateConfig(real=datasets["real"], out=datasets["out"])


def test_a_real_set_without_classes_has_no_default_domain_extractor(datasets, tmp_path):
    single = images(60, 5)
    single.labels = np.ones((60, 1), np.uint8)
    datasets["real"] = write(tmp_path / "single", train=single)
    found = evaluate(EvaluateConfig(**datasets, skip_privacy=True))
    assert {number["extractor"]["name"] for number in found["numbers"]} == {"GIST filters", "pixels"}
    with pytest.raises(UserError, match="learns to tell classes apart"):
        evaluate(EvaluateConfig(**datasets, extractors=("domain",)))


def test_an_audit_of_some_of_many_images_names_the_right_ones(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr("vaegan.evaluation.audit.MAX_SYNTHETIC", 40)
    real = read_split(datasets["real"], "train")
    every = images(60, 1)
    every.pixels[:] = real.pixels[:60]  # each a copy of its own number
    datasets["synthetic"] = write(tmp_path / "copies", train=every)
    privacy = evaluate(EvaluateConfig(**datasets, extractors=("gist",)))["privacy"]
    assert privacy["settings"]["num_synthetic"] == 40
    assert privacy["checks"][0]["detail"]["copies_of_members"] == 40
    assert all(
        pair["synthetic_id"].split("-")[1] == pair["real_id"].split("-")[1] for pair in privacy["suspicious_pairs"]
    )


def test_grey_films_saved_in_colour_are_compared_with_grey_ones(datasets, tmp_path):
    folder = tmp_path / "colour"
    folder.mkdir()
    for row, pixels in enumerate(images(40, 3).pixels):
        Image.fromarray(pixels[:, :, 0]).convert("RGB").save(folder / f"{row:03d}.png")
    np.save(tmp_path / "grey.npy", images(40, 3).pixels)
    paths = {"real": datasets["real"], "out": datasets["out"], "extractors": ("gist",), "skip_privacy": True}
    of_colour = evaluate(EvaluateConfig(**paths, synthetic=folder))
    of_grey = evaluate(EvaluateConfig(**paths, synthetic=tmp_path / "grey.npy"))
    for a, b in zip(of_colour["numbers"], of_grey["numbers"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-3, abs=1e-3)


def half_labelled(path, count=60):
    """Images of which the first half has a label, all of it `right`."""
    rows = images(count, 5)
    rows.labels[:] = [0, 1]
    rows.labelled = np.arange(count) < count // 2
    with DatasetWriter(path, task="multiclass", classes=("left", "right"), height=32, width=32, channels=1) as writer:
        writer.allow_unlabelled()
        writer.add("train", rows)
        writer.finish()
    return path


def test_images_are_drawn_with_the_labels_that_real_images_have_and_all_are_compared(model, tmp_path, monkeypatch):
    monkeypatch.setenv("AUGRAY_CACHE", str(tmp_path / "cache"))
    paths = {"real": half_labelled(tmp_path / "half"), "model": model, "out": tmp_path / "metrics.json"}
    main(flags(paths, "--count", "40", "--extractors", "gist", "--skip-privacy", "true"))
    sets = json.loads(paths["out"].read_text())["sets"]
    assert sets["synthetic"]["classes"] == {"left": 0, "right": 40}
    assert (sets["real"]["num_images"], sets["real"]["classes"]) == (60, {"left": 0, "right": 30})


def test_a_model_that_needs_labels_is_not_asked_how_well_it_knows_images_without_one(model, config, tmp_path):
    source = open_source(half_labelled(tmp_path / "half"), "train")
    with pytest.raises(UserError, match=r"30 images of .* have no label"):
        model_scores(Sampler.from_model(model), Sets(real=source, synthetic=source, held_out=source))


def test_the_domain_extractor_learns_from_labelled_images_alone(tmp_path):
    rows = images(40, 0)
    rows.labelled = np.arange(40) < 30
    lies = replace(rows, labels=np.where(rows.labelled[:, None], rows.labels, 1 - rows.labels))
    first, second = (domain_extractor(each, "multiclass", steps=3) for each in (rows, lies))
    assert first.weights_sha256 == second.weights_sha256
