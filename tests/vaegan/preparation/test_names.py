import random
import re
import time
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vaegan.importers.folder import patient, patient_pattern
from vaegan.preparation.names import name_warnings


def unsaid(names):
    """Warnings where nobody said who the patients are."""
    return name_warnings(names, names, False, np.full(len(names), -1))


def said(names, patient_ids, source_split=None):
    split = np.full(len(names), -1) if source_split is None else source_split
    return name_warnings(names, patient_ids, True, split)


def proposed(sentence):
    """What stands in quotes after --patient-regex."""
    return re.search(r"--patient-regex[^']* '(.*?)'", sentence)[1]


SEVERAL_FILMS = {
    "person12_bacteria_34.jpeg": [f"train/ILL/person{i // 2}_bacteria_{i}.jpeg" for i in range(300)],
    "00001280_004.png": [f"{i // 2:08d}_{i % 2:03d}.png" for i in range(300)],
    "IM-0115-0001.jpeg": [f"NORMAL/IM-{i // 2:04d}-{i % 2:04d}.jpeg" for i in range(300)],
    "p7_1.png": [f"p{i // 2}_{i % 2}.png" for i in range(300)],
    "no suffix": [f"{i // 2:05d}_{i % 2}" for i in range(300)],
    "views": [f"{i // 2:05d}_{('frontal', 'Lateral')[i % 2]}.png" for i in range(300)],
    "a folder each": [f"NORMAL/patient{i // 2:03d}/{i % 2}.png" for i in range(300)],
    "a folder of studies each": [f"patient{i // 2:03d}/study{i % 2 + 1}/view1_frontal.jpg" for i in range(300)],
    "numbers restart in folders": [f"{'AB'[i // 150]}/{i % 150 // 2}_{i % 2}.png" for i in range(300)],
}


@pytest.mark.parametrize("names", SEVERAL_FILMS.values(), ids=SEVERAL_FILMS)
def test_the_expression_proposed_finds_the_patients_that_the_sentence_counts(names):
    """Asked of the importer that takes it, not of the code that proposes it."""
    (sentence,) = unsaid(names)
    pattern, _ = patient_pattern(proposed(sentence), names)
    patients = [patient(pattern, name) for name in names]
    assert None not in patients
    assert len(set(patients)) == 150
    assert "300 images came from 150 patients" in sentence
    assert f"({names[0]} and {names[1]}; at most 2 of one)" in sentence


_random = random.Random(0)
ONE_FILM_EACH = {
    "a counter": [f"img_{i:04d}.png" for i in range(3000)],
    "a counter for each class": [f"{name}/{name}-{i}.png" for name in ("COVID", "Viral Pneumonia") for i in range(900)],
    "numbers": [f"{i}.png" for i in range(3000)],
    "one film of each patient": [f"{i:08d}_000.png" for i in range(3000)],
    "uuids": [f"{uuid.UUID(int=_random.getrandbits(128))}.png" for _ in range(3000)],
    "hashes": [f"{_random.getrandbits(128):032x}.jpg" for _ in range(3000)],
    "times": [f"2020{i % 12 + 1:02d}{i % 28 + 1:02d}_{_random.randrange(10**6):06d}.jpg" for i in range(3000)],
    "phone photos": [f"IMG_2020{i % 12 + 1:02d}{i % 28 + 1:02d}_{i:06d}.jpg" for i in range(3000)],
    "DICOM UIDs": [f"1.2.840.113619.2.{_random.randrange(10**9)}.{i}" for i in range(3000)],
    "folders of a thousand": [f"images_{i // 1000:03d}/{i:08d}.png" for i in range(12_000)],
    "few files": ["1_1.png", "1_2.png", "2_1.png"],
    "no names": ["", "", ""],
    "nothing": [],
}


@pytest.mark.parametrize("names", ONE_FILM_EACH.values(), ids=ONE_FILM_EACH)
def test_names_that_say_nothing_of_patients_raise_no_hint(names):
    assert unsaid(names) == []


def test_names_that_are_no_utf8_are_read_all_the_same():
    names = [f"p{i // 2}_\udcff_{i}.png" for i in range(300)]
    assert "came from 150 patients" in unsaid(names)[0]


def test_a_few_names_may_be_otherwise():
    names = SEVERAL_FILMS["p7_1.png"] + [f"extra{i}.png" for i in range(10)]
    assert unsaid(names)[0].endswith("(10 names do not fit it).")


def kermany_like(train=200, test=40):
    """Numbers that restart for bacteria and virus; the splits share no child, but they share numbers."""
    names = [f"person{i}_{word}_{i + k}.jpeg" for word in ("bacteria", "virus") for i in range(train) for k in (0, 1)]
    split = np.array([(i // 2 + (400 - test) * (i >= 2 * train)) % 400 < test for i in range(len(names))])
    return names, np.where(split, 2, 0)


def test_one_number_for_two_people_is_seen_by_the_word_that_follows():
    names, split = kermany_like()
    (sentence,) = said(names, [re.match(r"person\d+", name)[0] for name in names], split)
    assert sentence.startswith("One patient, person0, has person0_bacteria_0.jpeg and person0_virus_0.jpeg, and so 200")
    assert "patients are in two of the source's splits, 0 would be if the word counted" in sentence
    pattern, _ = patient_pattern(proposed(sentence), names)
    assert len({patient(pattern, name) for name in names}) == 400


def test_the_same_is_seen_without_a_split_and_not_once_the_word_counts():
    names, split = kermany_like()
    assert len(said(names, [re.match(r"person\d+", name)[0] for name in names])) == 1
    assert said(names, [re.match(r"person\d+_[a-z]+", name)[0] for name in names], split) == []


def test_views_of_one_patient_are_no_two_people():
    names = [f"{i // 2:05d}_{('frontal', 'lateral')[i % 2]}_1.jpg" for i in range(300)]
    assert said(names, [name[:5] for name in names]) == []


def test_ids_that_names_do_not_hold_are_not_read_into_them():
    """From a table's column: who wrote it knew."""
    names = [f"{i}_{('bacteria', 'virus')[i % 2]}_1.jpg" for i in range(300)]
    assert said(names, [f"patient {i // 2}" for i in range(300)]) == []


def test_numbers_that_restart_in_each_split_are_seen():
    names = [f"{split}/p{i // 2}_{i % 2}.png" for split, count in (("train", 300), ("test", 80)) for i in range(count)]
    ids = [re.search(r"p\d+", name)[0] for name in names]
    (sentence,) = said(names, ids, np.repeat([0, 2], [300, 80]))
    assert sentence.startswith("40 of the 40 patients in the source's test split are found elsewhere too (such as p0)")
    (sentence,) = said(names, ids)
    assert sentence.startswith("40 of the 40 patients in test/ are found elsewhere too")


def test_a_few_patients_in_two_splits_are_left_to_the_search_for_leaks():
    names = [f"p{i // 2}_{i % 2}.png" for i in range(300)]
    split = np.where(np.arange(300) < 240, 0, 2)
    split[:20:2] = 2
    assert said(names, [name.partition("_")[0] for name in names], split) == []


def test_arrow_arrays_and_lists_are_the_same():
    names = SEVERAL_FILMS["p7_1.png"]
    assert unsaid(pa.array(names)) == unsaid(names) == unsaid(pa.chunked_array([names[:100], names[100:]]))


def test_as_many_names_as_nih_has_take_seconds():
    names = pa.array([f"{i // 4:08d}_{i % 4:03d}.png" for i in range(112_120)])
    ids = pa.array([f"{i // 4:08d}" for i in range(112_120)])
    before = time.process_time()
    assert "came from 28030 patients" in unsaid(names)[0]
    assert said(names, ids, np.arange(112_120) // 4 % 3) == []
    assert time.process_time() - before < 10  # a second on an idle machine


def test_real_names(shared):
    kermany = pq.read_table(shared / "data/kermany_cxr_224", columns=["source_id", "patient_id", "split"])
    nih = pq.read_table(shared / "data/nih_cxr_1000_256", columns=["source_id", "patient_id"])
    names, split = (
        kermany["source_id"],
        np.array([("train", "val", "test").index(s) for s in kermany["split"].to_pylist()]),
    )
    assert "1000 images came from 682 patients" in unsaid(nih["source_id"])[0]
    assert "5856 images came from 4169 patients" in unsaid(names)[0]
    assert said(nih["source_id"], nih["patient_id"]) == []
    assert said(names, kermany["patient_id"], split) == []
    bare = [re.search(r"person\d+|(?:NORMAL2-)?IM-\d+", name)[0] for name in names.to_pylist()]
    (sentence,) = said(names, bare, split)
    assert (
        "979 patients mix names with bacteria or virus; 170 patients are in two of the source's splits, 0 would"
        in sentence
    )
