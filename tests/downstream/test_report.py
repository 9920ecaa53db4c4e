"""The report of an ablation folder: its words follow its numbers, its page stands alone, and nothing is left out."""

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.storage import write_json
from downstream import statistics
from downstream.report import ReportConfig, main, write_report
from downstream.reporting.findings import FID_SHA256_PREFIX, metric_label
from downstream.reporting.results import read_results
from downstream.reporting.words import ARMS, number, signed
from downstream.scores import judged_classes, score
from vaegan.shards import Images, schema, to_table

ARM_ROWS = {  # arm: whether it has extra rows, whether a generator drew them
    "real": (False, False),
    "class_weights": (False, False),
    "duplicate_real": (True, False),
    "classical": (False, False),
    "synthetic": (True, True),
    "classical_synthetic": (True, True),
    "synthetic_only": (True, True),
}


@dataclass(frozen=True)
class Made:
    """What a made-up ablation looks like; `effects` is each arm's separation of the classes, in sd of the logits."""

    effects: dict[str, float]
    classes: tuple[str, ...] = ("normal", "consolidation", "effusion")
    task: str = "multiclass"
    num_patients: int = 50
    fractions: tuple[float, ...] = (0.1,)
    ratios: tuple[float, ...] = (1.0,)
    generator_seeds: tuple[int, ...] = (0, 1)
    pool_seeds: tuple[int, ...] = (0,)
    classifier_seeds: tuple[int, ...] = (0, 1)
    classifiers: tuple[str, ...] = ("small_cnn",)
    failed: tuple[str, ...] = ()
    noise: float = 0.05


NOTHING = Made(effects=dict.fromkeys(ARM_ROWS, 1.0))
HELPFUL = replace(NOTHING, effects=NOTHING.effects | {"synthetic": 4.0, "classical_synthetic": 4.0})
HARMFUL = replace(NOTHING, effects=NOTHING.effects | {"synthetic": 0.0, "real": 3.0, "duplicate_real": 3.0})


def make_ablation(folder: Path, made: Made) -> Path:
    """Write a finished ablation's folder with simulated probabilities and their true scores."""
    rng = np.random.default_rng(1)
    labels, patients = _truth(made, rng)
    val_labels, _ = _truth(made, rng)
    difficulty, val_difficulty = rng.normal(size=labels.shape), rng.normal(size=val_labels.shape)
    folder.mkdir(parents=True)
    rows = []
    for about in _cells(made):
        strength = made.effects[about["arm"]] * (1 + 0.3 * np.log10(about["fraction"] / 0.1))
        own = np.random.default_rng([about["classifier_seed"], about["generator_seed"] or 0, len(about["arm"])])
        p, val_p = (
            _probabilities(strength * y + hard + made.noise * own.normal(size=y.shape), made.task)
            for y, hard in ((labels, difficulty), (val_labels, val_difficulty))
        )
        rows.append(about | _outcome(about, made, score(labels, p, val_labels, val_p, task=made.task,
                                                        classes=made.classes), p))  # fmt: skip
    write_json(folder / "config.json", {"data": "data/chest", "out": str(folder), "batch_size": 64})
    pq.write_table(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA), folder / "results.parquet")
    pq.write_table(
        pa.table({"image_id": [f"i{i}" for i in range(len(labels))], "patient_id": patients,
                  "labels": pa.array(labels.tolist(), pa.list_(pa.uint8(), len(made.classes)))}),
        folder / "test.parquet",
    )  # fmt: skip
    _write_examples(folder, made, rng)
    _write_metrics(folder, made)
    write_json(folder / "ablation.json", _manifest(folder, made, rows))
    return folder


RESULT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("arm", "classifier", "status", "error", "per_class")]
    + [(name, pa.float64()) for name in ("fraction", "ratio", "seconds", "auroc", "auprc", "balanced_accuracy", "f1",
                                         "sensitivity_at_90_specificity", "brier", "ece")]
    + [(name, pa.int64()) for name in ("generator_seed", "pool_seed", "classifier_seed", "num_real", "num_extra",
                                       "steps")]
    + [("scores", pa.list_(pa.float32()))]
)  # fmt: skip


def _truth(made: Made, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    count, k = 2 * made.num_patients, len(made.classes)
    if made.task == "multiclass":
        labels = np.eye(k, dtype=np.uint8)[rng.integers(0, k, size=count)]
    else:
        labels = (rng.random((count, k)) < 0.3).astype(np.uint8)
    return labels, [f"p{i // 2}" for i in range(count)]


def _cells(made: Made):
    for classifier in made.classifiers:
        for fraction in made.fractions:
            for arm, (extra, generated) in ARM_ROWS.items():
                for ratio in made.ratios if extra else (0.0,):
                    for g in made.generator_seeds if generated else (None,):
                        for p in made.pool_seeds if generated else (None,):
                            for seed in made.classifier_seeds:
                                yield {
                                    "arm": arm, "classifier": classifier, "fraction": fraction, "ratio": ratio,
                                    "generator_seed": g, "pool_seed": p, "classifier_seed": seed,
                                    "num_real": round(1000 * fraction), "num_extra": round(1000 * fraction * ratio),
                                    "steps": 300, "seconds": 4.2,
                                }  # fmt: skip


def _probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    if task == "multilabel":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _outcome(about: dict, made: Made, scores: dict, p: np.ndarray) -> dict:
    if about["arm"] in made.failed and about["classifier_seed"] == made.classifier_seeds[0]:
        return {"status": "failed", "error": "RuntimeError: loss is not finite <after step 17>", "scores": None}
    per_class = json.dumps(scores.pop("per_class"))
    return {"status": "ok", "error": None, "scores": p.astype(np.float32).ravel(), "per_class": per_class, **scores}


def _write_examples(folder: Path, made: Made, rng: np.random.Generator) -> None:
    k, size = len(made.classes), 16
    labels = np.repeat(np.eye(k, dtype=np.uint8), 3, axis=0)
    pixels = rng.integers(0, 255, (len(labels), size, size, 1), dtype=np.uint8)
    real = Images.real(pixels, labels, ["p"] * len(labels), [f"r{i}" for i in range(len(labels))])
    names = [made.classes[row] for row in labels.argmax(axis=1)]
    synthetic = replace(
        real,
        image_id=np.array([f"small/1/{name}/7/{i}" for i, name in enumerate(names)], dtype=object),  # as a Sampler's
        source=np.array(["synthetic"] * len(labels), dtype=object),
        model=np.array(["small/1"] * len(labels), dtype=object),
        seed=np.full(len(labels), 7),
        index=np.arange(len(labels)),
    )
    shape = schema(task=made.task, classes=made.classes, height=size, width=size, channels=1)
    pq.write_table(to_table(Images.concatenate([real, synthetic]), shape), folder / "examples.parquet")


def _write_metrics(folder: Path, made: Made) -> None:
    inception = {"name": "Inception v3 (FID)", "layer": "2048", "weights_sha256": FID_SHA256_PREFIX + "ab" * 28,
                 "resize": "299 px", "dim": 2048}  # fmt: skip
    squeeze = {"name": "torchvision:squeezenet1_1", "layer": "pool", "weights_sha256": "cd" * 32, "resize": "224 px",
               "dim": 512}  # fmt: skip
    common = {
        "interval": [40.0, 44.0], "interval_method": "jackknife", "better": "lower", "floor": 12.5,
        "value_at_floor_n": 43.75, "settings": "divided by N - 1", "num_real": 100, "num_synthetic": 100,
        "floor_detail": {"against": "held-out real images", "num_reference": 100, "num_other": 80, "repeats": 4},
    }  # fmt: skip
    few = "100 images for 2,048 dimensions: shrunk covariance"
    numbers = [
        {"metric": "fid", "label": "FID", "value": 41.7, "extractor": inception, "warning": few, **common},
        {"metric": "frechet_distance", "label": "Fréchet distance, SqueezeNet 1.1", "value": 42.25,
         "extractor": squeeze, "warning": None, **common},
    ]  # fmt: skip
    for fraction in made.fractions:
        for seed in made.generator_seeds:
            write_json(folder / "metrics" / f"f{fraction:g}_g{seed}.json", {"numbers": numbers, "provenance": {}})


def _manifest(folder: Path, made: Made, rows: list[dict]) -> dict:
    failed = sum(row["status"] == "failed" for row in rows)
    return {
        "dataset": {"path": "data/chest", "sha256": "12" * 32, "classes": list(made.classes), "task": made.task,
                    "height": 16, "width": 16, "channels": 1, "splits": {}},
        "primary": {"arm": "synthetic", "metric": "auroc", "fraction": min(made.fractions), "ratio": made.ratios[0],
                    "classifier": made.classifiers[0], "against": ["real", "duplicate_real"]},
        "judged_classes": judged_classes(len(made.classes), made.task),
        "arms": list(ARM_ROWS), "fractions": list(made.fractions), "ratios": list(made.ratios),
        "classifiers": list(made.classifiers),
        "seeds": {"generator": list(made.generator_seeds), "pool": list(made.pool_seeds),
                  "classifier": list(made.classifier_seeds)},
        "cells": {"planned": len(rows), "ok": len(rows) - failed, "failed": failed},
        "generators": [{"fraction": f, "generator_seed": g, "num_images": round(1000 * f), "run_dir": "generators/x",
                        "model_sha256": "34" * 32, "seconds": 61.0}
                       for f in made.fractions for g in made.generator_seeds],
        "provenance": {"command": "ablate.py --data data/chest", "git_revision": "5678abcd",
                       "packages": {"torch": "2.0"}, "hardware": {"cpu": "some cpu", "cores": 2}, "seed": 0,
                       "inputs": {}, "finished": "2026-01-02T12:00:00+00:00", "wall_s": 3600.0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def made_report(tmp_path_factory):
    """Report of a `Made` ablation, made once for each: (folder of the ablation, folder of the report)."""
    done: dict[str, tuple[Path, Path]] = {}

    def make(made: Made) -> tuple[Path, Path]:
        if repr(made) not in done:
            folder = make_ablation(tmp_path_factory.mktemp("ablation") / "out", made)
            done[repr(made)] = folder, write_report(ReportConfig(results=folder, resamples=200)).parent
        return done[repr(made)]

    return make


class Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def read(folder: Path) -> tuple[Page, dict, str]:
    html = (folder / "report.html").read_text(encoding="utf-8")
    return Page(html), json.loads((folder / "report.json").read_text()), (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("made", "word", "headline"),
    [
        (HELPFUL, "helps", "Synthetic images help"),
        (NOTHING, "no evidence", "No evidence that synthetic images help"),
        (HARMFUL, "harms", "Synthetic images harm"),
    ],
)
def test_verdict_says_what_both_intervals_say(made_report, made, word, headline):
    page, findings, markdown = read(made_report(made)[1])
    verdict = findings["verdict"]
    assert verdict["word"] == word
    intervals = [gain["interval"] for gain in verdict["against"].values()]
    assert set(verdict["against"]) == {"real", "duplicate_real"}
    assert all(low > 0 for low, _ in intervals) == (word == "helps")
    assert all(high < 0 for _, high in intervals) == (word == "harms")
    assert headline in page.text
    assert f"## Verdict: {headline}" in markdown
    for gain in verdict["against"].values():
        assert signed(gain["value"]) in verdict["plain"]
        for text in (page.text, markdown):
            assert signed(gain["value"]) in text
            assert number(gain["minimum_detectable_effect"]) in text


def test_a_gain_over_the_real_images_alone_is_not_enough_to_help(made_report):
    repeats_as_good = replace(HELPFUL, effects=HELPFUL.effects | {"duplicate_real": 4.0})
    _, findings, _ = read(made_report(repeats_as_good)[1])
    assert findings["verdict"]["against"]["real"]["direction"] == "better"
    assert findings["verdict"]["word"] == "no evidence"
    assert "repeats cost nothing" in findings["verdict"]["plain"]


def test_json_has_the_numbers_of_the_statistics(made_report):
    folder, out = made_report(HELPFUL)
    _, findings, _ = read(out)
    results = read_results(folder)
    for against in ("real", "duplicate_real"):
        expected = statistics.compare(
            results.rows, results.labels, results.patients, arm="synthetic", against=against, fraction=0.1, ratio=1.0,
            classifier="small_cnn", classes=[0, 1, 2], resamples=200,
        )  # fmt: skip
        gain = findings["verdict"]["against"][against]
        assert gain["value"] == expected.value
        assert gain["interval"] == list(expected.interval)
        assert gain["minimum_detectable_effect"] == expected.minimum_detectable_effect
    entry = next(s for s in findings["scores"] if s["arm"] == "synthetic")
    aurocs = [row["auroc"] for row in results.ok if row["arm"] == "synthetic"]
    assert entry["num_runs"] == len(aurocs) == 4
    assert entry["metrics"]["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
    assert entry["metrics"]["auroc"]["sd"] == pytest.approx(np.std(aurocs, ddof=1))
    assert entry["metrics"]["brier"]["worst"] == max(row["brier"] for row in results.ok if row["arm"] == "synthetic")


def test_every_arm_class_and_generator_number_is_on_both_pages(made_report):
    page, findings, markdown = read(made_report(HELPFUL)[1])
    for text in (page.text, markdown):
        for expected in [name for name, _ in ARMS.values()] + ["normal", "consolidation", "effusion", "41.7", "42.2"]:
            assert expected in text
        assert FID_SHA256_PREFIX + "ab" * 28 in text
        assert "shrunk covariance" in text
        assert "5678abcd" in text
        assert "12" * 32 in text
        assert "34" * 32 in text
        assert "not corrected" in text
        assert "held-out real images, 100 against 80 images" in text
        assert "43.8" in text
    assert {g["arm"] for g in findings["gains"]} == set(ARM_ROWS) - {"real"}
    assert sum(g["primary"] for g in findings["gains"]) == 2


def test_the_page_stands_alone(made_report):
    _, out = made_report(HELPFUL)
    html = (out / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "poster")]
    assert references
    assert all(value.startswith("data:image/png;base64,") for value in references)
    assert not re.search(r"https?:|url\(|@import", html)
    described = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert all(described)
    assert len(described) == page.tags.count("img")


def test_markdown_refers_only_to_plots_that_exist(made_report):
    _, out = made_report(HELPFUL)
    files = re.findall(r"\]\(([^)]+)\)", (out / "report.md").read_text())
    assert len(files) >= 3 + 2 * 3  # two forests, one score plot, real and synthetic sheets of three classes
    assert all((out / file).read_bytes().startswith(b"\x89PNG") for file in files)


def test_class_names_cannot_write_html_or_markdown(made_report):
    evil = ("normal", "<script>alert(1)</script>", "a|b](http://x) <img src=x onerror=y>")
    page, _, markdown = read(made_report(replace(NOTHING, classes=evil))[1])
    assert "script" not in page.tags
    assert not any(name == "onerror" for _, name, _ in page.attributes)
    assert evil[1] in page.text  # shown as they are
    assert evil[2] in page.text
    outside_code = re.sub(r"```.*?```", "", markdown, flags=re.S)
    assert "<script" not in outside_code
    assert "<img" not in outside_code
    assert not re.search(r"(?<!\\)\]\(http", outside_code)
    table = [line for line in outside_code.splitlines() if r"a\|b" in line and line.startswith("|")]
    assert table
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 14 for line in table)


def test_failed_runs_are_listed_and_counted_and_leave_the_rest_usable(made_report):
    page, findings, markdown = read(made_report(replace(NOTHING, failed=("classical", "synthetic")))[1])
    assert len(findings["failed"]) == 1 + 2
    for text in (page.text, markdown.replace("&lt;", "<").replace("&gt;", ">")):
        assert "loss is not finite <after step 17>" in text
        assert "3 of 20 runs failed" in text
    assert findings["verdict"]["word"] is not None
    assert findings["verdict"]["against"]["real"]["num_cells"] == 2
    assert any("missing or failed" in note for note in findings["verdict"]["cautions"])


def test_without_any_finished_synthetic_run_there_is_a_report_and_no_verdict(made_report):
    one_seed = replace(NOTHING, failed=("synthetic",), classifier_seeds=(0,))
    page, findings, _ = read(made_report(one_seed)[1])
    assert findings["verdict"]["word"] is None
    assert "No verdict" in page.text
    assert "could not be made" in page.text
    assert "Classical augmentation" in page.text


def test_two_exclusive_classes_are_scored_as_one_question(made_report):
    page, findings, _ = read(made_report(replace(NOTHING, classes=("NORMAL", "PNEUMONIA")))[1])
    assert all(list(entry["per_class"]) == ["PNEUMONIA"] for entry in findings["scores"])
    assert "the scores are those of finding PNEUMONIA" in page.text


def test_multilabel_several_fractions_ratios_and_classifiers_all_appear(made_report):
    wide = replace(NOTHING, task="multilabel", fractions=(0.02, 0.1), ratios=(1.0, 4.0), num_patients=30,
                   classifiers=("small_cnn", "resnet18"), generator_seeds=(0,), classifier_seeds=(0,))  # fmt: skip
    page, findings, _ = read(made_report(wide)[1])
    seen = {(g["classifier"], g["fraction"], g["ratio"]) for g in findings["gains"] if g["arm"] == "synthetic"}
    assert seen == {(c, f, r) for c in wide.classifiers for f in wide.fractions for r in wide.ratios}
    assert findings["primary"]["fraction"] == 0.02
    assert "ResNet-18" in page.text
    assert "2 % of the real training images" in page.text
    assert sum(plot["file"].startswith("plots/gain") for plot in findings["plots"]) == 4
    assert any("Only one generator seed" in note for note in findings["verdict"]["cautions"])


def test_few_positives_and_few_patients_are_cautioned(made_report):
    few = replace(NOTHING, num_patients=12)
    cautions = read(made_report(few)[1])[1]["verdict"]["cautions"]
    assert any("12 test patients" in note for note in cautions)
    assert any("test images with " in note for note in cautions)


def test_examples_carry_their_addresses(made_report):
    page, findings, markdown = read(made_report(HELPFUL)[1])
    assert findings["examples"]["effusion"] == [f"small/1/effusion/7/{i}" for i in (6, 7, 8)]
    assert "small/1/effusion/7/6" in page.text
    assert "small/1/effusion/7/6" in markdown


@pytest.mark.parametrize("label", ["FID", "KID", "Inception Score", "IS, squeezenet"])
def test_only_the_fid_networks_numbers_have_its_names(label):
    squeeze = {"name": "SqueezeNet 1.1", "layer": "2048", "weights_sha256": "cd" * 32}
    fid_network = squeeze | {"weights_sha256": FID_SHA256_PREFIX + "0" * 56}
    entry = {"metric": "frechet_distance", "label": label}
    assert metric_label(entry | {"extractor": squeeze}) == "frechet distance, SqueezeNet 1.1"
    assert metric_label(entry | {"extractor": fid_network | {"layer": "768"}}) == "frechet distance, SqueezeNet 1.1"
    assert metric_label(entry | {"extractor": fid_network}) == label


def test_the_fid_network_is_the_one_the_metrics_mean():
    inception = pytest.importorskip("vaegan.metrics.inception")
    assert inception.FID_SHA256_PREFIX == FID_SHA256_PREFIX


def test_a_comparison_changed_after_the_start_is_said_to_be_changed(tmp_path):
    folder = make_ablation(tmp_path / "run", replace(NOTHING, num_patients=15))
    primary = json.loads((folder / "ablation.json").read_text())["primary"]
    write_json(folder / "named.json", {"time": "2026-01-01T08:00:00+00:00", "primary": primary})
    page, findings, _ = read(write_report(ReportConfig(results=folder, resamples=100)).parent)
    assert "first written 1 January 2026, 08:00 UTC" in " ".join(page.text.split())
    assert not any("changed after" in note for note in findings["verdict"]["cautions"])
    write_json(folder / "named.json", {"time": "2026-01-01T08:00:00+00:00", "primary": primary | {"fraction": 0.5}})
    _, findings, _ = read(write_report(ReportConfig(results=folder, resamples=100)).parent)
    assert any("changed after" in note for note in findings["verdict"]["cautions"])


def test_an_ablation_without_the_synthetic_arm_has_a_report_and_no_verdict(tmp_path):
    folder = make_ablation(tmp_path / "run", replace(NOTHING, num_patients=15))
    manifest = json.loads((folder / "ablation.json").read_text())
    write_json(folder / "ablation.json", manifest | {"primary": None, "generators": [], "ratios": []})
    rows = pq.read_table(folder / "results.parquet")
    pq.write_table(rows.filter([arm in ("real", "classical") for arm in rows["arm"].to_pylist()]),
                   folder / "results.parquet")  # fmt: skip
    page, findings, _ = read(write_report(ReportConfig(results=folder, resamples=100)).parent)
    assert findings["verdict"]["word"] is None
    assert "left out Real + synthetic" in page.text
    assert [gain["arm"] for gain in findings["gains"]] == ["classical"]


def test_same_results_same_bytes(made_report, tmp_path):
    folder, out = made_report(HELPFUL)
    again = write_report(ReportConfig(results=folder, out=tmp_path / "again", resamples=200)).parent
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((out / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_the_command_prints_the_page_last_and_tells_mistakes_in_one_sentence(tmp_path, capsys):
    folder = make_ablation(tmp_path / "run", replace(NOTHING, num_patients=15))
    assert main(["--results", str(folder), "--out", str(tmp_path / "out"), "--resamples", "100"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: no folder")
    assert "\n" not in told


@pytest.mark.parametrize("missing", ["ablation.json", "results.parquet", "test.parquet"])
def test_an_unfinished_ablation_names_what_is_missing_and_the_command(tmp_path, missing):
    folder = make_ablation(tmp_path / "run", replace(NOTHING, num_patients=15))
    (folder / missing).unlink()
    with pytest.raises(
        UserError, match=rf"isn't finished: {missing} missing.*downstream\.ablate --config .*config\.json"
    ):
        read_results(folder)


def test_a_folder_that_is_no_ablation_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not an ablation's folder"):
        read_results(tmp_path)


def test_a_damaged_table_is_refused(tmp_path):
    folder = make_ablation(tmp_path / "run", replace(NOTHING, num_patients=15))
    data = (folder / "results.parquet").read_bytes()
    (folder / "results.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="can't be read as Parquet"):
        read_results(folder)
