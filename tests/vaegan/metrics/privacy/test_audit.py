import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vaegan.metrics.privacy.audit import FeatureSets, RealSet, audit
from vaegan.metrics.privacy.copies import Fingerprints

MEMBERS, HELD_OUT = 160, 130


def textures(count, seed):
    """Images with detail of all sizes, each its own: uint8 (count, 32, 32, 1)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, 32, 32))
    layers = [gaussian_filter(noise, (0, sigma, sigma)) for sigma in (0.8, 1.5, 4)]
    mixed = sum(layer / layer.std() for layer in layers)
    return np.clip(128 + 30 * mixed, 0, 255).astype(np.uint8)[..., None]


def features(pixels):
    """A projection to 20 numbers, another extractor's place."""
    return pixels.reshape(len(pixels), 1024) @ np.random.default_rng(7).normal(size=(1024, 20)) / 1000


def real_set(pixels, name):
    """Two films a patient, two classes."""
    return RealSet(
        np.array([f"{name}{row // 2}" for row in range(len(pixels))]),
        np.eye(2, dtype=np.uint8)[np.arange(len(pixels)) // 2 % 2],
        Fingerprints.of(pixels),
    )


MEMBER_PIXELS, HELD_OUT_PIXELS = textures(MEMBERS, 0), textures(HELD_OUT, 1)
MEMBER_SET, HELD_OUT_SET = real_set(MEMBER_PIXELS, "m"), real_set(HELD_OUT_PIXELS, "h")
FRESH = textures(320, 2)


def run(synthetic, **changed):
    pixels = dict(synthetic=synthetic, members=MEMBER_PIXELS, held_out=HELD_OUT_PIXELS)
    sets = FeatureSets(features(synthetic), features(MEMBER_PIXELS), features(HELD_OUT_PIXELS))
    arguments = dict(
        synthetic=Fingerprints.of(synthetic),
        members=MEMBER_SET,
        held_out=HELD_OUT_SET,
        features={"projection": sets},
        pixels_of=lambda name, rows: pixels[name][rows],
        classes=["calm", "rough"],
    )
    return audit(**(arguments | changed))


def verdict_of(result, name):
    (found,) = [check for check in result["checks"] if check["name"] == name]
    return found["verdict"]


@pytest.fixture(scope="module")
def honest():
    return run(FRESH)


def noisy(images, sigma=10):
    noise = np.random.default_rng(3).normal(0, sigma, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def test_images_that_owe_nothing_to_members_do_not_fail_and_have_no_copies(honest):
    assert honest["verdict"] != "fail"
    assert verdict_of(honest, "copies") == "pass"
    assert verdict_of(honest, "membership by distance, layout") == "pass"
    assert list(honest["scopes"]) == ["images"]
    assert not any(pair["copy"] for pair in honest["suspicious_pairs"])


@pytest.mark.parametrize("change", [noisy, lambda x: x[:, :, ::-1]])
def test_training_images_with_noise_or_mirrored_fail(change):
    result = run(change(MEMBER_PIXELS[:80]))
    assert result["verdict"] == "fail"
    assert verdict_of(result, "copies") == "fail"
    assert all(pair["set"] == "members" and pair["copy"] for pair in result["suspicious_pairs"])
    assert [pair["real_row"] == pair["synthetic_row"] for pair in result["suspicious_pairs"]] == [True] * 10


def test_one_copy_among_hundreds_fails_and_is_the_first_pair():
    mixed = FRESH[:120].copy()
    mixed[77] = noisy(MEMBER_PIXELS[31:32])[0]
    result = run(mixed)
    assert verdict_of(result, "copies") == "fail"
    first = result["suspicious_pairs"][0]
    assert (first["synthetic_row"], first["set"], first["real_row"]) == (77, "members", 31)
    assert first["feature_distance_quantile"] < 0.05
    assert "1 of 120 synthetic images" in result["checks"][0]["sentence"]


def test_copies_of_members_and_of_held_out_images_alike_are_no_sign_of_memory():
    both = np.concatenate([noisy(MEMBER_PIXELS[:MEMBERS:4]), noisy(HELD_OUT_PIXELS[:HELD_OUT:4]), FRESH[:60]])
    found = run(both)["checks"][0]
    assert found["detail"]["copies_of_members"] == 40
    assert found["detail"]["copies_of_held_out"] == 33
    assert found["detail"]["p_value"] > 0.05
    assert found["verdict"] != "fail"


def test_white_box_scores_have_a_scope_of_their_own_and_name_the_worst_off():
    rng = np.random.default_rng(0)
    of_members, of_held_out = rng.normal(size=MEMBERS), rng.normal(size=HELD_OUT)
    of_members[[10, 60]] += 30
    result = run(FRESH[:60], model_scores={"elbo": (of_members, of_held_out)})
    assert result["scopes"]["model"]["verdict"] != "fail"
    assert [entry["member_row"] for entry in result["worst_off"][:2]] in ([10, 60], [60, 10])
    assert result["worst_off"][0]["attack"] == "elbo"
    assert result["worst_off"][0]["held_out_patients_as_high"] == 0
    leaking = run(FRESH[:60], model_scores={"elbo": (of_members + 2, of_held_out)})
    assert (leaking["scopes"]["model"]["verdict"], leaking["verdict"]) == ("fail", "fail")
    assert leaking["scopes"]["images"]["verdict"] != "fail"


def test_populations_that_differ_without_any_generator_say_nothing_about_it():
    brighter = np.clip(HELD_OUT_PIXELS.astype(int) + 40, 0, 255).astype(np.uint8)
    sets = FeatureSets(features(FRESH[:60]), features(MEMBER_PIXELS), features(brighter))
    result = run(FRESH[:60], features={"projection": sets})
    assert not result["assumptions"]["told_apart_without_generator"]["projection"]["holds"]
    assert verdict_of(result, "membership by distance, projection") == "too little data to say"
    assert result["verdict"] == "too little data to say"
    copied = run(MEMBER_PIXELS[:60], features={"projection": replace(sets, synthetic=features(MEMBER_PIXELS[:60]))})
    assert copied["verdict"] == "fail"  # a copy is a copy


@pytest.mark.parametrize("count", [0, 20])
def test_with_few_held_out_patients_copies_are_still_found_and_nothing_passes(count):
    few = RealSet(
        HELD_OUT_SET.patients[:count], HELD_OUT_SET.labels[:count], HELD_OUT_SET.fingerprints.take(range(count))
    )
    fresh = run(FRESH[:60], held_out=few, features={})
    assert fresh["verdict"] == "too little data to say"
    assert f"{count // 2} held-out patients" in fresh["checks"][-1]["sentence"]
    assert run(MEMBER_PIXELS[:40], held_out=few, features={})["verdict"] == "fail"


def test_few_synthetic_images_are_too_few_to_pass():
    assert verdict_of(run(FRESH[:50]), "copies") == "too little data to say"
    assert run(FRESH[:5])["verdict"] == "too little data to say"


def test_the_result_is_json_and_the_same_again():
    first = run(FRESH[:40])
    assert json.dumps(run(FRESH[:40])) == json.dumps(first)
    assert json.loads(json.dumps(first)) == first


def test_the_order_of_images_changes_no_number():
    order = np.random.default_rng(5).permutation(MEMBERS)
    members = RealSet(MEMBER_SET.patients[order], MEMBER_SET.labels[order], MEMBER_SET.fingerprints.take(order))
    pixels = dict(synthetic=FRESH[:60], members=MEMBER_PIXELS[order], held_out=HELD_OUT_PIXELS)
    sets = FeatureSets(features(FRESH[:60]), features(MEMBER_PIXELS[order]), features(HELD_OUT_PIXELS))
    moved = run(
        FRESH[:60], members=members, pixels_of=lambda name, rows: pixels[name][rows], features={"projection": sets}
    )
    for before, after in zip(run(FRESH[:60])["checks"], moved["checks"], strict=True):
        assert after["value"] == pytest.approx(before["value"], abs=1e-9)


def test_a_patient_on_both_sides_and_arrays_that_do_not_fit_are_refused():
    both = replace(HELD_OUT_SET, patients=MEMBER_SET.patients[:HELD_OUT])
    with pytest.raises(ValueError, match="65 patients are both"):
        run(FRESH[:5], held_out=both)
    with pytest.raises(ValueError, match="scores of elbo"):
        run(FRESH[:5], model_scores={"elbo": (np.zeros(3), np.zeros(HELD_OUT))})
    with pytest.raises(ValueError, match="features of projection"):
        run(
            FRESH[:5],
            features={"projection": FeatureSets(np.zeros((4, 2)), np.zeros((MEMBERS, 2)), np.zeros((HELD_OUT, 2)))},
        )
