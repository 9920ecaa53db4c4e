"""Whatever a record holds, it becomes a row with pixels or with a reason."""

import io
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vaegan.images import check_pixels, resize
from vaegan.importers.base import Record
from vaegan.preparation.decoding import OUTSIDE, Decoding, decode_record, why_left_out
from vaegan.preparation.identity import Pseudonyms

HOW = Decoding(size=8, channels=1, aspect="crop", classes=("a", "b"), multilabel=False)
FILM = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)


def record(image=FILM, **values):
    return Record(**{"name": "n", "image": image, "image_id": "i", "labels": ("a",)} | values)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


ARRAYS = {
    "one dimension": np.arange(9),
    "four dimensions": np.zeros((2, 3, 4, 5)),
    "nothing": np.empty((0, 0)),
    "no rows": np.empty((0, 5), np.uint8),
    "two channels": np.random.default_rng(0).integers(0, 256, (9, 9, 2), dtype=np.uint8),
    "five channels": np.random.default_rng(0).integers(0, 256, (9, 9, 5), dtype=np.uint8),
    "text": np.array([["a", "b"], ["c", "d"]]),
    "objects": np.array([[{}, []], [None, 1]], dtype=object),
    "complex": np.array([[1j, 2], [3, 4]]),
    "not finite": np.array([[np.inf, 0], [1, 2]]),
    "constant": np.ones((5, 5)),
    "a scalar": np.array(3),
    "bytes of nothing": b"",
    "bytes": b"\x89PNG\r\n\x1a\n",
    "text in bytes": b"no image at all",
    "a DICOM file": b"\0" * 128 + b"DICM" + b"\0" * 99,
    "a square that is constant": np.pad(np.ones((9, 9), np.uint8), ((0, 0), (9, 9))),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("aspect", ["crop", "pad", "squash"])
def test_no_record_raises_or_warns(name, aspect):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = decode_record(record(ARRAYS[name]), replace(HOW, aspect=aspect))
    assert (row.pixels is None) == (row.problem is not None)
    assert row.problem is not None or (name == "a square that is constant" and aspect != "crop")


@pytest.mark.parametrize(
    "array",
    [
        np.where(FILM > 99, 1e308, -1e308),
        np.linspace(0, 1e-300, 144).reshape(12, 12),
        np.arange(144).reshape(12, 12) > 70,
        np.arange(144, dtype=np.int64).reshape(12, 12) + 2**62,
        np.arange(144, dtype=np.uint64).reshape(12, 12) + 2**63,
        np.arange(144, dtype=np.float16).reshape(12, 12),
        np.arange(432, dtype=np.uint16).reshape(12, 12, 3),
        FILM[::-1, ::-1].T,
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_numbers_become_pixels_or_a_reason_without_a_warning(array, channels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = decode_record(record(array), replace(HOW, channels=channels))
    if row.problem is None:
        assert row.pixels.shape == (8, 8, channels)
        assert row.pixels.dtype == np.uint8


def test_a_record_and_its_row_go_to_another_process_and_back():
    row = decode_record(pickle.loads(pickle.dumps(record(png(FILM)))), pickle.loads(pickle.dumps(HOW)))
    np.testing.assert_array_equal(row.pixels, resize(FILM[..., None], 8, 1))
    assert pickle.loads(pickle.dumps(row)).pixel_hash == row.pixel_hash


def test_pixels_of_the_right_size_are_those_of_the_file_and_the_files_hash_is_sha256_of_its_bytes(tmp_path):
    import hashlib

    (tmp_path / "x.png").write_bytes(png(FILM[:8, :8]))
    row = decode_record(record(tmp_path / "x.png"), HOW)
    np.testing.assert_array_equal(row.pixels[..., 0], FILM[:8, :8])
    assert row.file_sha256 == hashlib.sha256((tmp_path / "x.png").read_bytes()).digest()
    assert (row.height, row.width, row.colour) == (8, 8, False)


def test_grey_saved_as_colour_is_grey_and_colour_is_colour():
    grey, colour = np.dstack([FILM] * 3), np.dstack([FILM, FILM.T, FILM])
    assert not decode_record(record(png(grey)), HOW).colour
    assert decode_record(record(png(colour)), HOW).colour
    assert not decode_record(record(np.clip(grey + np.array([0, 4, 9]), 0, 255).astype(np.uint8)), HOW).colour


def test_labels_are_renamed_and_those_not_asked_for_leave_an_image_out_only_where_it_has_no_other():
    how = replace(HOW, new_names={"old": "b"}, multilabel=True)
    assert decode_record(record(labels=("old", "z")), how).labels.tolist() == [0, 1]
    assert decode_record(record(labels=("z",)), how).labels.tolist() == [0, 0]
    assert why_left_out(record(labels=("z",)), how) is None
    assert why_left_out(record(labels=("z",)), HOW) == "of a class that was not asked for"
    assert why_left_out(record(labels=("z",), problem="broken"), HOW) is None


def test_a_reason_wins_over_being_left_out_and_nothing_is_read_for_either(tmp_path):
    nowhere = tmp_path / "nowhere.png"
    row = decode_record(record(nowhere, problem="odd", left_out="lateral"), HOW)
    assert (row.problem, row.left_out, row.file_sha256) == ("odd", None, b"")
    row = decode_record(record(nowhere, left_out="lateral"), HOW)
    assert (row.problem, row.left_out) == (None, "lateral")
    assert "No such file" in decode_record(record(nowhere), HOW).problem


@pytest.mark.parametrize("subset", [0.1, 0.5, 0.9])
def test_a_subset_takes_about_its_share_of_patients_all_of_their_images_and_more_of_the_same_when_it_grows(subset):
    how = replace(HOW, subset=subset, seed=3)
    taken = {i for i in range(4000) if how.takes(f"p{i}")}
    assert len(taken) / 4000 == pytest.approx(subset, abs=4 * (subset * (1 - subset) / 4000) ** 0.5)
    assert taken <= {i for i in range(4000) if replace(how, subset=min(1, subset + 0.1)).takes(f"p{i}")}
    assert taken != {i for i in range(4000) if replace(how, seed=4).takes(f"p{i}")}
    assert [decode_record(record(patient_id=f"p{i}"), how).left_out is None for i in range(50)] == [
        i in taken for i in range(50)
    ]
    alone = [decode_record(record(image_id=f"p{i}"), how) for i in range(50)]  # each its own patient
    assert [row.left_out is None for row in alone] == [i in taken for i in range(50)]
    assert {row.left_out for row in alone} <= {None, OUTSIDE}


def test_a_subset_and_hashing_don_t_depend_on_each_other():
    plain, hidden = replace(HOW, subset=0.5), replace(HOW, subset=0.5, pseudonym=Pseudonyms(b"x" * 32))
    ids = [f"p{i}" for i in range(60)]
    assert [decode_record(record(image_id=i), plain).left_out for i in ids] == [
        decode_record(record(image_id=i), hidden).left_out for i in ids
    ]


def test_names_are_kept_only_where_a_linkage_was_asked_for():
    how = replace(HOW, pseudonym=Pseudonyms(b"x" * 32))
    row = decode_record(record(name="Mustermann.png", patient_id="Mustermann", group="ward=Mustermann"), how)
    assert "Mustermann" not in str(row)
    kept = decode_record(record(name="Mustermann.png", patient_id="Mustermann"), replace(how, keep_names=True))
    assert (kept.source, kept.source_patient) == ("Mustermann.png", "Mustermann")
    assert kept.patient_id == row.patient_id == how.pseudonym("Mustermann")


def test_scaled_pixels_are_those_of_check_pixels():
    deep = (FILM.astype(np.uint16) * 200)[:8, :8]
    np.testing.assert_array_equal(decode_record(record(deep), HOW).pixels, check_pixels(deep))
