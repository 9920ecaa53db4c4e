"""The pictures of metrics.html: drawn by seed alone, as many as the page can carry, and those the numbers count."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaegan.evaluation import gallery
from vaegan.evaluation.embedding import embed, principal_components
from vaegan.evaluation.gallery import FeatureSets, build_gallery, class_grids, find_misses
from vaegan.evaluation.lookalikes import most_alike
from vaegan.evaluation.misses import stretches
from vaegan.images import reduced
from vaegan.metrics.manifold import manifold_metrics

MADE = runpy.run_path(str(Path(__file__).with_name("made.py")))
SEED, features, rows = (MADE[name] for name in ["SEED", "features", "rows"])


def ids(grids):
    return [[picture.image_id for picture in (*grid.real, *grid.synthetic)] for grid in grids]


def test_the_images_shown_depend_on_the_seed_and_not_on_what_they_look_like():
    real, synthetic = rows(80), rows(90, name="s")
    shown = ids(class_grids(real, synthetic, SEED)[0])
    other_pixels = replace(synthetic, images=255 - synthetic.images)
    assert ids(class_grids(real, other_pixels, SEED)[0]) == shown
    assert ids(class_grids(real, synthetic, SEED + 1)[0]) != shown


def test_each_class_has_as_many_synthetic_as_real_images_and_only_its_own():
    real, synthetic = rows(80), rows(22, name="s")
    grids, hidden = class_grids(real, synthetic, SEED)
    assert [grid.name for grid in grids] == ["normal", "effusion"]
    assert hidden == 0
    for grid in grids:
        assert len(grid.real) == len(grid.synthetic) == 11
        assert {picture.label for picture in (*grid.real, *grid.synthetic)} == {grid.name}
        assert len({picture.image_id for picture in grid.real}) == 11


def test_classes_are_matched_by_name_whatever_their_order():
    synthetic = rows(40, classes=("effusion", "normal"), name="s")
    for grid in class_grids(rows(40), synthetic, SEED)[0]:
        assert {picture.label for picture in grid.synthetic} == {grid.name}


def test_an_unconditional_models_images_stand_beside_all_real_ones():
    (grid,), _ = class_grids(rows(40), rows(30, classes=(), name="s"), SEED)
    assert grid.name == "all images"
    assert len(grid.real) == len(grid.synthetic) == gallery.MOST_PER_CLASS


def test_an_image_without_a_class_and_one_with_two_are_both_shown():
    real, synthetic = rows(40), rows(40, name="s")
    real.labels[:10] = 0
    real.labels[10:12] = 1
    grids, _ = class_grids(real, synthetic, SEED)
    assert [grid.name for grid in grids] == ["normal", "effusion", "no class"]
    assert grids[2].synthetic == ()
    assert "normal + effusion" in {picture.label for grid in grids for picture in grid.real}


def test_many_classes_don_t_make_the_page_large():
    names = tuple(f"finding {k}" for k in range(40))
    grids, hidden = class_grids(rows(200, classes=names), rows(200, classes=names, name="s"), SEED)
    assert len(grids) + hidden == 40
    assert sum(len(grid.real) for grid in grids) <= gallery.PICTURES_OF_A_SET


def test_large_images_are_reduced_whole_and_small_ones_left_alone():
    wide = np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    assert reduced(wide, 112).shape == (56, 112, 3)
    small = wide[:64, :64, :1]
    assert reduced(small, 112) is small


@pytest.mark.parametrize("copies", [0, 6])
def test_the_images_called_missing_are_those_that_precision_and_coverage_count(copies):
    real, synthetic = features(70, 0), features(60, 1, shift=0.8)
    real[:copies] = real[0]  # balls of radius 0
    synthetic[:3] = real[0]
    found, shares = stretches(real, synthetic), manifold_metrics(real, synthetic)
    assert len(found.outside()) == pytest.approx((1 - shares.precision) * 60)
    assert len(found.uncovered()) == pytest.approx((1 - shares.coverage) * 70)
    assert (np.diff(found.synthetic[found.outside()]) <= 0).all()


def test_the_farthest_synthetic_image_is_shown_first():
    synthetic = features(50, 1)
    synthetic[17] += 40
    found = find_misses(rows(60), rows(50, name="s"), FeatureSets("x", features(60), synthetic), seed=0)
    assert found.outside[0].picture.image_id == "s17"
    assert found.outside[0].stretch > 10
    assert len(found.outside) <= gallery.MISSES


def test_the_main_directions_are_the_real_images_own():
    real, far = features(200, dim=6) * [1, 5, 1, 1, 2, 1], features(50, 1, dim=6, shift=100)
    points, shares = principal_components(real, np.concatenate([real, far]))
    eigenvalues = np.linalg.eigvalsh(np.cov(real.T))[::-1]
    assert points[:200].var(axis=0, ddof=1) == pytest.approx(eigenvalues[:2], rel=1e-6)
    assert shares == pytest.approx(eigenvalues[:2] / eigenvalues.sum(), rel=1e-6)
    assert points[:200].mean(axis=0) == pytest.approx([0, 0], abs=1e-6)


def test_a_single_feature_and_equal_rows_still_make_a_map():
    for real in (features(30, dim=1), np.ones((30, 3), np.float32)):
        sets = {"real": real, "synthetic": real + 1}
        made = embed("x", sets, {name: np.full(30, "a", dtype=object) for name in sets}, SEED)
        assert made.pca.shape == made.tsne.shape == (60, 2)
        assert np.isfinite(made.pca).all()
        assert np.isfinite(made.tsne).all()


def test_maps_hold_no_more_rows_than_can_be_seen_and_the_same_for_each_extractor(monkeypatch):
    monkeypatch.setattr(gallery, "MAX_POINTS", 20)
    real, synthetic, held_out = rows(60), rows(50, name="s"), rows(12, name="h")
    sets = [FeatureSets(name, features(60), features(50, 1), features(12, 2)) for name in ("a", "b")]
    first, second = gallery.embeddings(real, synthetic, held_out, sets, SEED)
    assert {name: int((first.sets == name).sum()) for name in ("real", "synthetic", "held-out")} == {
        "real": 20, "synthetic": 20, "held-out": 12,
    }  # fmt: skip
    np.testing.assert_array_equal(first.pca, second.pca)
    np.testing.assert_array_equal(first.tsne, second.tsne)


def test_rare_classes_share_a_marker():
    names = tuple(f"finding {k}" for k in range(12))
    real, synthetic = rows(36, classes=names), rows(36, classes=names, name="s")
    (made,) = gallery.embeddings(real, synthetic, None, [FeatureSets("a", features(36), features(36, 1))], SEED)
    assert len(set(made.classes)) == gallery.MARKED_CLASSES
    assert gallery.OTHER_CLASSES in made.classes


def test_planted_repeats_are_the_most_alike_pairs_and_no_image_is_in_two():
    pixels = rows(600).images.copy()
    pixels[500] = pixels[3]
    pixels[41] = pixels[40] // 2 + 60  # darker, the same otherwise
    found = most_alike(pixels, np.full(600, ""), 4)
    assert {(pair.first, pair.second) for pair in found[:2]} == {(3, 500), (40, 41)}
    assert found[0].correlation == pytest.approx(1)
    assert found[0].ms_ssim == pytest.approx(1)
    shown = [row for pair in found for row in (pair.first, pair.second)]
    assert len(set(shown)) == len(shown)


def test_two_films_of_one_patient_are_no_repeat():
    pixels = rows(20).images.copy()
    pixels[1] = pixels[0]
    patients = np.array(["p0", "p0", *(f"q{i}" for i in range(18))])
    assert (0, 1) not in {(pair.first, pair.second) for pair in most_alike(pixels, patients, 20)}


def test_a_generator_that_fell_silent_is_one_that_repeats_itself():
    flat = np.full((5, 16, 16, 1), 80, np.uint8)
    assert [pair.correlation for pair in most_alike(flat, np.full(5, ""), 9)] == [1.0, 1.0]


def test_images_smaller_than_the_window_of_ms_ssim_are_compared_without_it():
    (pair,) = most_alike(rows(10, side=8).images, np.full(10, ""), 1)
    assert pair.ms_ssim is None


def test_a_suspicious_pair_shows_the_rows_it_names():
    real, synthetic, held_out, members = rows(30), rows(30, 1, name="s"), rows(30, 2, name="h"), rows(30, 3, name="m")
    pairs = [{"synthetic_row": 4, "real_row": 9, "set": kind} for kind in ("members", "held_out")]
    shown = gallery.suspicious(synthetic, members, held_out, pairs)
    assert [(left.image_id, right.image_id, right.source) for left, right in shown] == [
        ("s4", "m9", "real"), ("s4", "h9", "held-out"),
    ]  # fmt: skip
    np.testing.assert_array_equal(shown[0][1].pixels, members.images[9])
    assert len(gallery.suspicious(synthetic, real, held_out, pairs * 20)) == gallery.SUSPICIOUS
    with pytest.raises(ValueError, match="no held-out images"):
        gallery.suspicious(synthetic, real, None, pairs)


def test_the_same_images_and_seed_give_the_same_gallery():
    real, synthetic = rows(40), rows(30, 1, name="s")
    sets = [FeatureSets("a", features(40), features(30, 1))]
    first, second = (build_gallery(real, synthetic, sets, seed=SEED) for _ in range(2))
    np.testing.assert_array_equal(first.embeddings[0].tsne, second.embeddings[0].tsne)
    assert ids(first.grids) == ids(second.grids)
    assert first.similarities_real is None
    assert first.suspicious == ()
