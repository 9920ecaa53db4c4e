import numpy as np
import pytest

from cluster.errors import UserError
from vaegan.phantom import BLOCK, PhantomConfig, phantom, phantom_blocks


@pytest.fixture(scope="module")
def films():
    return phantom(PhantomConfig(patients=2 * BLOCK), size=32, seed=0)


def test_same_seed_same_bytes_and_another_seed_other_ones():
    config = PhantomConfig(patients=3)
    first, again, other = (phantom(config, size=32, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.pixels.shape != other.pixels.shape or (first.pixels != other.pixels).any()


@pytest.mark.parametrize("patients", [1, 5, BLOCK, BLOCK + 3])
def test_the_first_patients_do_not_depend_on_how_many_are_asked_for(films, patients):
    few = phantom(PhantomConfig(patients=patients), size=32, seed=0)
    np.testing.assert_array_equal(few.pixels, films.pixels[: len(few)])
    np.testing.assert_array_equal(few.labels, films.labels[: len(few)])
    assert list(few.image_id) == list(films.image_id[: len(few)])


def test_blocks_joined_are_the_whole(films):
    blocks = list(phantom_blocks(PhantomConfig(patients=2 * BLOCK), size=32, seed=0))
    assert [len(set(block.patient_id)) for block in blocks] == [BLOCK, BLOCK]
    np.testing.assert_array_equal(np.concatenate([block.pixels for block in blocks]), films.pixels)


def test_patients_have_one_diagnosis_and_one_to_three_films(films):
    patients, counts = np.unique(films.patient_id.astype(str), return_counts=True)
    assert len(patients) == 2 * BLOCK
    assert set(counts) == {1, 2, 3}
    assert all(len(np.unique(films.labels[films.patient_id == p], axis=0)) == 1 for p in patients)
    assert len(set(films.image_id)) == len(films)
    assert (films.labels.sum(axis=1) == 1).all()


@pytest.mark.parametrize("prevalence", [(0.4, 0.3, 0.3), (0.9, 0.05, 0.05), (0.0, 1.0, 0.0)])
def test_every_block_of_patients_has_the_prevalence_asked_for(prevalence):
    films = phantom(PhantomConfig(patients=BLOCK, prevalence=prevalence), size=32, seed=1)
    first_films = np.unique(films.patient_id.astype(str), return_index=True)[1]
    np.testing.assert_allclose(films.labels[first_films].mean(axis=0), prevalence, atol=1 / BLOCK)


def test_anatomy_is_the_same_at_every_size():
    large = phantom(PhantomConfig(patients=12), size=128, seed=3)
    small = phantom(PhantomConfig(patients=12), size=32, seed=3)
    averaged = large.pixels.reshape(len(large), 32, 4, 32, 4).mean(axis=(2, 4))
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(averaged, small.pixels, strict=True)]
    assert min(correlations) > 0.98


def test_films_of_one_patient_look_more_alike_than_those_of_two(films):
    flat = films.pixels.reshape(len(films), -1).astype(float)
    correlation = np.corrcoef(flat)
    same = films.patient_id[:, None] == films.patient_id[None]
    np.fill_diagonal(correlation, np.nan)
    assert np.nanmean(correlation[same]) > np.nanmean(correlation[~same])


def test_lesions_are_where_and_as_bright_as_their_name_says():
    """The same patients with and without their lesion: only the diseased change, get denser, effusions low down."""
    sick = phantom(PhantomConfig(patients=BLOCK), size=64, seed=2)
    well = phantom(PhantomConfig(patients=BLOCK, conspicuity=0), size=64, seed=2)
    change = sick.pixels.astype(int) - well.pixels.astype(int)
    normal, consolidation, effusion = (sick.labels[:, k] == 1 for k in range(3))
    assert not change[normal].any()
    gain = change.mean(axis=(1, 2, 3))
    assert (gain >= 0).all()
    assert np.mean(gain[~normal] > 0.2) > 0.8  # the others are too early to show, or hidden by the heart
    rows = np.arange(64)[:, None, None]
    height = lambda chosen: (change[chosen] * rows).sum() / change[chosen].sum()  # noqa: E731
    assert height(effusion) > 40 > height(consolidation)


def test_pixels_use_the_range_without_clipping_much(films):
    assert films.pixels.dtype == np.uint8
    assert np.mean(films.pixels == 255) < 0.01
    assert films.pixels.reshape(len(films), -1).std(axis=1).min() > 25


@pytest.mark.parametrize(
    ("settings", "size", "says"),
    [
        ({"patients": 0}, 64, "expected 1 or more"),
        ({"prevalence": (0.5, 0.5, 0.5)}, 64, "sum to 1"),
        ({"conspicuity": -1.0}, 64, "expected 0 or more"),
        ({}, 16, "32 to 256"),
    ],
)
def test_impossible_phantoms_are_refused_with_what_was_expected(settings, size, says):
    with pytest.raises(UserError, match=says):
        list(phantom_blocks(PhantomConfig(**settings), size=size, seed=0))
