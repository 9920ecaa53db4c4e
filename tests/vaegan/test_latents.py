import numpy as np
import pytest
from scipy import stats

from cluster.errors import UserError
from vaegan.latents import MAX_SEED, Mixture, prior, uniforms


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
