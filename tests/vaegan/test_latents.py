import numpy as np
import pytest
from scipy import stats

from cluster.errors import UserError
from vaegan.latents import MAX_SEED, Mixture, interpolate, prior, uniforms


def test_a_latent_depends_on_its_address_alone():
    whole = prior(5, np.arange(100), 7)
    assert np.array_equal(prior(5, np.array([42]), 7)[0], whole[42])
    scattered = np.array([3, 99, 4, 5, 0])
    assert np.array_equal(prior(5, scattered, 7), whole[scattered])


def test_rows_may_have_seeds_of_their_own():
    mixed = prior(np.array([1, 1, 2, 1]), np.array([0, 1, 2, 2]), 5)
    expected = np.stack([prior(1, [0], 5)[0], prior(1, [1], 5)[0], prior(2, [2], 5)[0], prior(1, [2], 5)[0]])
    assert np.array_equal(mixed, expected)


def test_a_far_index_and_the_largest_seed_are_reached_without_drawing_what_lies_before():
    assert np.isfinite(prior(MAX_SEED, np.array([2**40]), 4)).all()


def test_latents_are_standard_normal_and_uncorrelated():
    z = prior(0, np.arange(20_000), 6)
    assert stats.kstest(z.ravel()[:20_000], "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(z.T) - np.eye(6)).max() < 0.03
    neighbours = np.corrcoef(z[:-1, 0], z[1:, 0])[0, 1]
    seeds = np.corrcoef(z[:, 0], prior(1, np.arange(20_000), 6)[:, 0])[0, 1]
    assert abs(neighbours) < 0.03
    assert abs(seeds) < 0.03


def test_uniforms_are_inside_the_open_interval():
    u = uniforms(3, np.arange(1000), 9)
    assert u.min() > 0
    assert u.max() < 1


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_addresses_are_refused(seed, index):
    with pytest.raises(UserError, match="expected both from 0"):
        prior(seed, np.array([index]), 3)


def test_a_mixture_recovers_the_moments_of_what_it_was_fitted_to():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(3, 0.5, (500, 4)), rng.normal(-3, 0.5, (500, 4))]).astype(np.float32)
    drawn = Mixture.fit(z, seed=0).sample(0, np.arange(5000), truncation=1.0)
    assert drawn.mean(axis=0) == pytest.approx(z.mean(axis=0), abs=0.2)
    assert drawn.std(axis=0) == pytest.approx(z.std(axis=0), rel=0.05)
    assert (np.abs(drawn).mean() > 2).all()  # two modes, not one wide one


def test_truncation_to_zero_draws_only_the_components_means():
    mixture = Mixture.fit(np.random.default_rng(0).normal(size=(150, 3)), seed=0)
    drawn = mixture.sample(0, np.arange(50), truncation=0.0)
    assert len(np.unique(drawn, axis=0)) <= len(mixture.weights)


@pytest.mark.parametrize("spherical", [True, False])
def test_the_ends_of_the_way_are_the_very_latents(spherical):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 64)).astype(np.float32)
    found = interpolate(np.concatenate([a, a]), np.concatenate([b, b]), np.repeat([0.0, 1.0], 50), spherical=spherical)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate([a, b]))


def test_an_arc_turns_evenly_and_keeps_the_norm_where_the_straight_way_cuts_through():
    a, b = np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]])
    at = np.linspace(0, 1, 7)
    arc = interpolate(np.tile(a, (7, 1)), np.tile(b, (7, 1)), at, spherical=True)
    np.testing.assert_allclose(arc, 2 * np.stack([np.cos(at * np.pi / 2), np.sin(at * np.pi / 2)], axis=1), atol=1e-6)
    straight = interpolate(a, b, np.array([0.5]), spherical=False)
    np.testing.assert_array_equal(straight, [[1.0, 1.0]])


def test_points_on_arcs_between_prior_samples_have_the_norms_of_prior_samples():
    a, b = prior(0, np.arange(5000), 64), prior(1, np.arange(5000), 64)
    arc, straight = (np.linalg.norm(interpolate(a, b, np.full(5000, 0.5), spherical=s), axis=1) for s in (True, False))
    norms = np.linalg.norm(a, axis=1)
    assert stats.ks_2samp(arc, norms).statistic < 0.15  # a mean of two norms is a little narrower than one
    assert arc.mean() == pytest.approx(norms.mean(), rel=0.01)
    assert straight.mean() == pytest.approx(norms.mean() / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [1.0, 2.0]),  # equal
        ([1.0, 2.0], [3.0, 6.0]),  # parallel
        ([1.0, 2.0], [1.0, 2.0000001]),
        ([1.0, 2.0], [-1.0, -2.0]),  # opposite: no arc rather than another
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1e-30, 0.0], [0.0, 1e-30]),
        ([1e30, 0.0], [0.0, 1e30]),
    ],
)
def test_rows_without_an_arc_of_their_own_are_joined_by_finite_points_between_them(a, b):
    a, b = (np.tile(np.array(row, dtype=np.float32), (5, 1)) for row in (a, b))
    found = interpolate(a, b, np.linspace(0, 1, 5), spherical=True)
    assert np.isfinite(found).all()
    assert (found >= np.minimum(a, b) - 1e-6).all()
    assert (found <= np.maximum(a, b) + 1e-6).all()


def test_a_point_depends_on_its_own_row_alone():
    a, b, at = prior(0, np.arange(200), 33), prior(1, np.arange(200), 33), np.random.default_rng(0).random(200)
    together = interpolate(a, b, at, spherical=True)
    alone = [interpolate(a[i : i + 1], b[i : i + 1], at[i : i + 1], spherical=True) for i in range(200)]
    assert np.array_equal(np.concatenate(alone), together)
