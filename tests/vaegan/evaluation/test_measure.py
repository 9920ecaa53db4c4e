import dataclasses
import json

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from vaegan.evaluation import evaluate_images, table
from vaegan.evaluation.measure import units
from vaegan.metrics.extractor import Extractor
from vaegan.metrics.intervals import Subsampling
from vaegan.shards import Images

QUICK = Subsampling(replicates=4)
NAMES = ["frechet_distance", "kernel_distance", "classifier_score", "precision", "recall", "density", "coverage",
         "c2st_auc"]  # fmt: skip
ALIKE = "ms_ssim"


def images(count, seed, size=16, noise=20.0, films_per_patient=1):
    """Two classes: a bright spot left or right, over noise."""
    rng = np.random.default_rng(seed)
    right = np.arange(count) // films_per_patient % 2
    pixels = rng.normal(100, noise, size=(count, size, size, 1))
    for row, side in enumerate(right):
        pixels[row, 4:12, 9 * side : 9 * side + 6] += 80
    ids = [f"{seed}-{i}" for i in range(count)]
    patient_ids = [f"{seed}-p{i // films_per_patient}" for i in range(count)]
    return Images.real(pixels.clip(0, 255).astype(np.uint8), np.eye(2, dtype=np.uint8)[right], patient_ids, ids)


def projection(dim=8, **changes):
    """A small extractor: random projections of the pixels, two of them as logits."""
    matrix = torch.randn(256, dim, generator=torch.Generator().manual_seed(0)) / 16

    def network(batch):
        features = batch.flatten(1).float() / 64 @ matrix
        return features, features[:, :2]

    whole = Extractor("a projection", "only", weights_sha256="0" * 64, resize="none", dim=dim, network=network)
    return dataclasses.replace(whole, **changes)


def by_name(result):
    return {number["metric"]: number for number in result["numbers"]}


def compare(real, synthetic, **options):
    options = {"extractors": [projection()], "subsampling": QUICK} | options
    return by_name(evaluate_images(real, synthetic, **options))


def test_every_number_carries_its_whole_stamp():
    numbers = compare(images(60, 0), images(50, 1))
    assert list(numbers) == [*NAMES, ALIKE]
    of_pixels = numbers.pop(ALIKE)
    assert of_pixels["extractor"]["resize"] == "none (16x16 as stored)"
    for number in numbers.values():
        assert number["label"].endswith(", a projection")
        assert number["extractor"] == {
            "name": "a projection", "layer": "only", "weights_sha256": "0" * 64, "resize": "none", "dim": 8,
        }  # fmt: skip
        assert (number["num_real"], number["num_synthetic"]) == (60, 50)
        low, high = number["interval"]
        assert low <= number["value"] <= high
        assert np.isfinite([number["value"], number["floor"], low, high]).all()
        assert number["settings"]
        assert number["interval_method"]
    json.dumps(list(numbers.values()), allow_nan=False)


def test_unseen_images_of_the_same_kind_come_out_nearer_than_blurred_ones_and_these_nearer_than_noise():
    real, same = images(120, 0), images(120, 1)
    blurred = dataclasses.replace(same, pixels=(same.pixels // 2 + np.roll(same.pixels, 4, axis=2) // 2))
    noise = dataclasses.replace(
        same, pixels=np.random.default_rng(0).integers(0, 256, same.pixels.shape).astype(np.uint8)
    )
    near, between, far = (compare(real, other) for other in (same, blurred, noise))
    for name in ("frechet_distance", "kernel_distance"):
        assert near[name]["value"] < between[name]["value"] < far[name]["value"]
        assert abs(near[name]["value_at_floor_n"] - near[name]["floor"]) < 0.1 * between[name]["value"]
    assert near["precision"]["value"] > far["precision"]["value"]
    assert near["coverage"]["value"] > between["coverage"]["value"] > far["coverage"]["value"]


def test_only_the_fid_network_gives_fid_kid_and_inception_score():
    fid_network = projection(is_fid_network=True)
    labels = {
        name: number["label"]
        for name, number in compare(images(40, 0), images(40, 1), extractors=[fid_network]).items()
    }
    assert labels["frechet_distance"] == "FID"
    assert labels["kernel_distance"] == "KID"
    assert labels["classifier_score"] == "Inception Score"
    others = [number["label"] for number in compare(images(40, 0), images(40, 1)).values()]
    assert not any(word in label for label in others for word in ("FID", "KID", "Inception"))


def test_fewer_images_than_features_are_warned_of_and_the_shrunk_distance_is_not_called_fid():
    wide = [projection(dim=40, is_fid_network=True)]
    few = compare(images(40, 0), images(60, 1), extractors=wide)["frechet_distance"]
    assert few["label"] == "Fréchet distance (Ledoit-Wolf covariance), a projection"
    assert "fewer than 40 features + 1" in few["warning"]
    assert "ledoit-wolf" in few["settings"]
    assert np.isfinite(few["value"])
    enough = compare(images(41, 0), images(60, 1), extractors=wide)["frechet_distance"]
    assert (enough["label"], enough["warning"]) == ("FID", None)


def test_held_out_images_given_as_synthetic_score_exactly_the_floor():
    held_out = images(110, 1)
    numbers = compare(images(130, 0), held_out, held_out=held_out)
    del numbers[ALIKE]  # its floor is the reference's own pairs
    for number in numbers.values():
        assert number["value"] == number["floor"] == number["value_at_floor_n"]
        assert number["floor_detail"]["num_other"] == 110
        assert number["floor_detail"]["against"].startswith("held-out real images")


def test_too_few_held_out_images_are_not_used_and_the_floor_says_so_and_at_which_counts_it_is():
    floor = compare(images(60, 0), images(50, 1), held_out=images(30, 2))["coverage"]["floor_detail"]
    assert "the 30 held-out images are fewer than 100" in floor["against"]
    assert (floor["num_reference"], floor["num_other"], floor["repeats"]) == (30, 30, 5)
    floor = compare(images(200, 0), images(50, 1))["coverage"]["floor_detail"]
    assert (floor["num_reference"], floor["num_other"]) == (100, 50)


def test_without_unseen_images_an_extractor_that_saw_the_reference_warns_of_its_floor():
    seen = [projection(trained_on_reference=True)]
    assert "too good" in compare(images(40, 0), images(40, 1), extractors=seen)["recall"]["warning"]
    held_out = images(100, 2)
    assert compare(images(40, 0), images(40, 1), extractors=seen, held_out=held_out)["recall"]["warning"] is None


def test_classes_without_probabilities_have_no_classifier_score():
    extractor = projection()
    mute = dataclasses.replace(extractor, network=lambda batch: (extractor.network(batch)[0], None))
    assert "classifier_score" not in compare(images(40, 0), images(40, 1), extractors=[mute])


def test_the_batch_size_changes_nothing_and_the_seed_only_what_is_drawn():
    real, synthetic = images(60, 0), images(40, 1)
    first = compare(real, synthetic, batch_size=64)
    for name, number in compare(real, synthetic, batch_size=7).items():
        assert number["value"] == pytest.approx(first[name]["value"], rel=1e-4), name
    other = compare(real, synthetic, seed=1)
    assert other["frechet_distance"]["value"] == first["frechet_distance"]["value"]
    assert other["frechet_distance"]["interval"] != first["frechet_distance"]["interval"]


def test_intervals_are_wider_where_films_share_patients():
    synthetic = images(200, 1)
    alone = compare(images(200, 0), synthetic, subsampling=Subsampling(30))["frechet_distance"]
    copies = images(50, 0).take(np.repeat(np.arange(50), 4))  # four times the same film of each patient
    shared = compare(copies, synthetic, subsampling=Subsampling(30))["frechet_distance"]

    def width(number):
        return number["interval"][1] - number["interval"][0]

    assert width(shared) > width(alone)


def test_unknown_patients_count_one_by_one():
    real = images(30, 0)
    real.patient_id[:] = ""
    assert len(np.unique(units(real))) == 30
    assert len(np.unique(units(images(60, 0, films_per_patient=2)))) == 30


def test_too_few_images_and_images_of_other_shapes_are_refused():
    with pytest.raises(UserError, match="5 synthetic images"):
        compare(images(40, 0), images(5, 1))
    with pytest.raises(UserError, match="real images are 16x16x1 and the synthetic ones 32x32x1"):
        compare(images(40, 0), images(40, 1, size=32))


def test_the_table_shows_each_warning_once():
    numbers = evaluate_images(images(40, 0), images(40, 1), [projection(trained_on_reference=True)], subsampling=QUICK)
    assert table(numbers).count("warning:") == 1


def test_the_two_sample_area_is_half_for_images_of_the_same_kind_and_near_one_for_noise():
    real, same = images(150, 0), images(150, 1)
    noise = dataclasses.replace(
        same, pixels=np.random.default_rng(0).integers(0, 256, same.pixels.shape).astype(np.uint8)
    )
    near, far = compare(real, same)["c2st_auc"], compare(real, noise)["c2st_auc"]
    assert near["interval"][0] < 0.5 < near["interval"][1]
    assert near["floor"] == pytest.approx(0.5, abs=0.1)
    assert far["interval"][0] > 0.8


def test_a_generator_that_repeats_itself_shows_in_the_pairs_and_one_that_does_not_is_like_the_real_ones():
    real = images(120, 0)
    repeated = images(120, 1).take(np.repeat(np.arange(4), 30))
    repeated.patient_id[:] = [f"s{row}" for row in range(120)]
    same, alike = compare(real, images(120, 1))[ALIKE], compare(real, repeated)[ALIKE]
    assert same["value"] == pytest.approx(same["floor"], abs=0.05)
    assert alike["interval"][0] > alike["floor"] + 0.05


def bias_of(real, synthetic, **options):
    (entry,) = evaluate_images(real, synthetic, [projection()], subsampling=QUICK, **options)["bias"]
    return entry


def test_the_bias_is_shown_at_several_counts_and_its_limit_has_an_interval_and_a_floor():
    entry = bias_of(images(200, 0), images(160, 1), held_out=images(120, 2))
    assert [point["num_images"] for point in entry["points"]] == [160, 80, 40]
    values = [point["value"] for point in entry["points"]]
    assert values == sorted(values)
    assert entry["infinity"]["value"] < values[0]
    for limit in (entry["infinity"], entry["floor_infinity"]):
        low, high = limit["interval"]
        assert low < 0.02 < high  # both are distances of one population from itself
    assert entry["why_not"] is None


def test_too_few_images_for_a_limit_are_told_and_not_extrapolated():
    wide = [projection(dim=40)]
    entry = evaluate_images(images(60, 0), images(60, 1), wide, subsampling=QUICK)["bias"][0]
    assert (entry["points"], entry["infinity"], entry["floor_infinity"]) == ([], None, None)
    assert entry["why_not"].startswith("60 images are too few")


def test_the_sets_say_what_was_compared():
    sets = evaluate_images(images(60, 0, films_per_patient=2), images(40, 1), [projection()], subsampling=QUICK)["sets"]
    assert (sets["real"]["num_images"], sets["real"]["num_patients"], sets["real"]["classes"]) == (
        60,
        30,
        {"0": 30, "1": 30},
    )
    assert sets["held_out"] is None
