import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from vaegan.duplicates import thumbnail
from vaegan.images import decode, resize
from vaegan.phantom import CLASSES, PhantomConfig, phantom
from vaegan.preparation.shortcuts import FILMS, MIN_PATIENTS, shortcut_warnings


@pytest.fixture(scope="module")
def films():
    """Thumbnails, labels and patients of 320 phantom patients: nothing but lesions tells their classes."""
    images = phantom(PhantomConfig(patients=320), size=64, seed=1)
    _, patients = np.unique(images.patient_id.astype(str), return_inverse=True)
    return np.array([thumbnail(image) for image in images.pixels]), images.labels, patients


def ask(thumbnails, labels, patients, classes=CLASSES, heights=None, widths=None, seed=0):
    size = np.full(len(thumbnails), 64)
    return shortcut_warnings(
        thumbnails,
        labels,
        patients,
        size if heights is None else heights,
        size if widths is None else widths,
        classes,
        seed=seed,
    )


def drawn(patients, classes=2, seed=0):
    """A class for each patient that has nothing to do with the films, one-hot."""
    rng = np.random.default_rng(seed)
    return np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, patients.max() + 1)[patients]]


def marked(thumbnails, labels, share, seed=0):
    """A letter of 3 x 2 pixels in the upper left corner, on a share of the second class's films."""
    rng = np.random.default_rng(seed)
    on = (labels[:, 1] > 0) & (rng.random(len(labels)) < share)
    thumbnails = thumbnails.copy()
    thumbnails[on, 1:4, 2:4] = 250
    return thumbnails


def test_disease_alone_is_no_shortcut(films):
    assert ask(*films)[0] == []


@pytest.mark.parametrize("seed", range(3))
def test_classes_drawn_by_lot_are_never_told_from_any_part(films, seed):
    thumbnails, _, patients = films
    rng = np.random.default_rng(seed + 100)
    sizes = rng.integers(800, 2000, (2, patients.max() + 1))[:, patients]
    sentences, numbers = ask(thumbnails, drawn(patients, 2, seed), patients, ("a", "b"), *sizes, seed=seed)
    assert sentences == []
    assert set(numbers) == {"corners", "border", "exposure", "size"}
    assert all(part["classes"]["b"]["low"] < 0.5 for part in numbers.values())


def test_fourteen_findings_drawn_by_lot_raise_no_false_alarm(films):
    thumbnails, _, patients = films
    rng = np.random.default_rng(0)
    labels = (rng.random((patients.max() + 1, 14)) < rng.choice([0.05, 0.1, 0.3], 14))[patients].astype(np.uint8)
    assert ask(thumbnails, labels, patients, [f"finding {k}" for k in range(14)])[0] == []


def test_a_marker_is_found_in_its_corner_and_nowhere_else(films):
    thumbnails, labels, patients = films
    sentences, numbers = ask(marked(thumbnails, labels, 0.7), labels, patients)
    assert len(sentences) == 1
    assert sentences[0].startswith("The four corners alone tell consolidation (AUROC .8")
    assert "from the other classes (chance .50, the upper left one by itself .8" in sentences[0]
    found = numbers["corners"]["classes"]["consolidation"]
    assert found["low"] < found["auroc"] < 0.9
    assert found["best_corner"] == "upper left"
    plain = ask(*films)[1]
    assert {part: numbers[part] for part in ("border", "exposure")} == {
        part: plain[part] for part in ("border", "exposure")
    }


def test_two_exclusive_classes_are_one_question(films):
    thumbnails, _, patients = films
    labels = drawn(patients)
    sentences, numbers = ask(marked(thumbnails, labels, 0.8), labels, patients, ("well", "ill"))
    assert "tell well from ill with AUROC" in sentences[0]
    assert list(numbers["corners"]["classes"]) == ["ill"]


def test_one_finding_is_told_from_films_without_it(films):
    thumbnails, _, patients = films
    labels = drawn(patients)
    sentences, _ = ask(marked(thumbnails, labels, 0.8), labels[:, 1:], patients, ("ill",))
    assert "tell ill (AUROC" in sentences[0]
    assert "from films without it" in sentences[0]


def test_brighter_films_of_one_class_are_a_matter_of_exposure_alone(films):
    thumbnails, _, patients = films
    labels = drawn(patients)
    brighter = np.where(labels[:, 1, None, None] > 0, np.minimum(thumbnails.astype(int) + 25, 255), thumbnails)
    sentences, _ = ask(brighter.astype(np.uint8), labels, patients, ("a", "b"))
    assert [sentence.partition(" alone")[0] for sentence in sentences] == ["The mean, contrast and percentiles of grey"]


@pytest.mark.parametrize("others", [(2000, 2000), (1000, 2000)], ids=["larger", "either side"])
def test_a_scanner_of_another_size_is_found(films, others):
    """Also where no line parts the sizes: one class's lies between two of the other."""
    thumbnails, _, patients = films
    labels = drawn(patients)
    height = np.where(labels[:, 1] > 0, 1500, np.array(others)[patients % 2])
    sentences, _ = ask(thumbnails, labels, patients, ("a", "b"), height, height)
    assert len(sentences) == 1
    assert sentences[0].startswith("Height and width of the original images alone tell a from b with AUROC 1.00")


def test_too_few_patients_say_nothing_however_clear_the_marker(films):
    """Many films of few people: each side needs patients, not films."""
    thumbnails, _, patients = films
    few = patients < 2 * (MIN_PATIENTS - 1)
    labels = np.eye(2, dtype=np.uint8)[patients[few] % 2]
    sentences, numbers = ask(marked(thumbnails[few], labels, 1.0), labels, patients[few], ("a", "b"))
    assert sentences == []
    assert numbers == {"not_asked": ["b"]}


def test_a_patient_with_most_of_the_films_does_not_stop_the_rest_from_being_asked(films):
    thumbnails, labels, patients = films
    rows = np.concatenate([np.zeros(5000, dtype=int), np.arange(len(patients))])
    sentences, numbers = ask(marked(thumbnails, labels, 0.8)[rows], labels[rows], patients[rows])
    assert len(sentences) == 1
    assert all(found["films"] <= FILMS for found in numbers["corners"]["classes"].values())


@pytest.mark.parametrize("classes", [0, 1, 3])
def test_sets_with_nothing_to_ask_are_answered(classes):
    blank = np.zeros((40, 32, 32), dtype=np.uint8)
    labels = np.ones((40, classes), dtype=np.uint8)
    names = [f"c{k}" for k in range(classes)]
    assert ask(blank, labels, np.arange(40), names)[0] == []
    assert ask(blank[:0], labels[:0], np.arange(0), names)[0] == []


def test_films_that_are_all_the_same_are_answered(films):
    _, _, patients = films
    assert ask(np.full((len(patients), 32, 32), 7, dtype=np.uint8), drawn(patients), patients, ("a", "b")) == ([], {})


def test_the_answer_is_the_seeds_and_fits_into_a_manifest(films):
    thumbnails, _, patients = films
    first, again = (ask(thumbnails, drawn(patients), patients, ("a", "b"), seed=4) for _ in range(2))
    assert first == again
    assert json.loads(json.dumps(first[1])) == first[1]


def test_as_many_films_as_nih_has_are_sampled_in_seconds_from_a_file(films, tmp_path):
    thumbnails, _, _ = films
    rng = np.random.default_rng(0)
    path = tmp_path / "thumbnails"
    stored = np.memmap(path, dtype=np.uint8, mode="w+", shape=(112_120, 32, 32))
    stored[:] = thumbnails[rng.integers(0, len(thumbnails), len(stored))]
    labels = (rng.random((len(stored), 14)) < 0.05).astype(np.uint8)
    before = time.process_time()
    sentences, _ = ask(stored, labels, rng.integers(0, 30_805, len(stored)), [f"finding {k}" for k in range(14)])
    assert sentences == []
    assert time.process_time() - before < 30  # half of it on an idle machine


@pytest.mark.parametrize(
    ("folder", "warned"), [("kermany_cxr_224", {"corners", "border", "exposure"}), ("nih_cxr_1000_256", {"border"})]
)
def test_real_films_of_two_sources_are_known_by_their_rims(shared, folder, warned):
    """Of Kermany's a fifth of the films is enough."""
    table = pq.read_table(shared / "data" / folder, columns=["image", "label", "patient_id"])
    rows = table.take(np.arange(0, len(table), 5 if len(table) > 5000 else 1)).to_pylist()
    thumbnails = np.array([thumbnail(resize(decode(row["image"]), 64, 1)) for row in rows])
    _, patients = np.unique([row["patient_id"] for row in rows], return_inverse=True)
    labels = np.eye(2, dtype=np.uint8)[[row["label"] for row in rows]]
    sentences, numbers = ask(thumbnails, labels, patients, ("NORMAL", "PNEUMONIA"))
    telling = {part for part, found in numbers.items() if found["classes"]["PNEUMONIA"]["low"] > found["threshold"]}
    assert telling == warned
    assert len(sentences) == len(warned)
