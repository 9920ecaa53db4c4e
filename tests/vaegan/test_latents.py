import numpy as np
import pytest
from scipy import stats

from cluster.errors import UserError
from vaegan.latents import (
    MAX_SEED,
    SOURCES,
    Flow,
    Gaussians,
    LatentsConfig,
    Mixture,
    PerClass,
    Posterior,
    fit_latents,
    from_tensors,
    interpolate,
    of_sources,
    prior,
    tensors,
    uniforms,
)
from vaegan.latents.gaussian import MIN_IMAGES, pooled


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


def posterior(mu, labels=None, std=0.3) -> Posterior:
    """Posteriors around means (N, D), all of one size."""
    mu = np.asarray(mu, dtype=np.float32)
    labels = np.zeros((len(mu), 0), np.uint8) if labels is None else labels
    return Posterior.of(mu, np.full_like(mu, 2 * np.log(std)), labels)


def two_classes(count: int, dim: int = 5, seed: int = 0) -> Posterior:
    """Classes at -2 and 2, of correlated latents."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    mu = rng.normal(size=(count, dim)) @ (np.eye(dim) + np.tri(dim)) / 2 + 4 * label[:, None] - 2
    return posterior(mu, np.eye(2, dtype=np.uint8)[label])


def curve(count: int, seed: int) -> Posterior:
    """A parabola with a little noise: no Gaussian's density."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return posterior(np.stack([x, x**2 + 0.1 * rng.normal(size=count)], axis=1), std=0.1)


def single(images: Posterior) -> PerClass[Gaussians]:
    """The Gaussian of all of them."""
    return PerClass({-1: Gaussians.fit(images, pooled(images))})


@pytest.fixture(scope="module")
def sources():
    return fit_latents(two_classes(300), LatentsConfig(sources=SOURCES))


@pytest.mark.parametrize("name", SOURCES)
def test_every_sources_latents_are_the_same_bytes_alone_in_a_batch_and_in_any_order(sources, name):
    labels, index = np.eye(2, dtype=np.uint8)[np.arange(130) % 2], np.arange(130) * 3
    seeds = np.where(np.arange(130) % 3, 7, 8)

    def draw(rows):
        return sources[name].sample(labels[rows], seeds[rows], index[rows], 0.9)

    whole = draw(np.arange(130))
    assert (whole.dtype, whole.shape) == (np.float32, (130, 5))
    assert np.array_equal(draw(np.arange(130)[::-1])[::-1], whole)
    for size in (1, 13, 64):
        parts = [draw(np.arange(at, min(at + size, 130))) for at in range(0, 130, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    other = sources[name].sample(labels, seeds, index, 0.9, stream=2)
    assert not (other == whole).any(axis=1).any()
    assert draw(np.arange(0)).shape == (0, 5)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_draws_a_class_like_its_images_and_no_class_like_all(sources, name):
    images = two_classes(300)
    index = np.arange(2000)
    for labels, rows in (([1, 0], slice(0, None, 2)), ([0, 1], slice(1, None, 2)), ([0, 0], slice(None))):
        drawn = sources[name].sample(np.tile(np.array(labels, np.uint8), (2000, 1)), 0, index, 1.0)
        z = images.sample()[rows]
        assert drawn.mean(axis=0) == pytest.approx(z.mean(axis=0), abs=0.35)
        assert np.cov(drawn.T) == pytest.approx(np.cov(z.T), rel=0.25, abs=0.6)


@pytest.mark.parametrize("name", SOURCES)
def test_truncation_draws_nearer_to_the_centre(sources, name):
    labels = np.tile(np.array([1, 0], np.uint8), (500, 1))
    spread = [sources[name].sample(labels, 0, np.arange(500), t).std(axis=0).mean() for t in (0.0, 0.5, 1.0)]
    assert spread[0] < spread[1] < spread[2]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_comes_back_from_its_tensors_as_it_was_and_is_fitted_the_same_again(sources, name):
    stored = tensors(sources) | {"decoder.dense.weight": np.zeros(3)}
    assert "decoder.dense.weight" not in of_sources(stored)
    again = from_tensors(dict(reversed(stored.items())))
    assert list(again) == list(SOURCES)
    labels = np.tile(np.array([0, 1], np.uint8), (20, 1))
    expected = sources[name].sample(labels, 3, np.arange(20), 1.0)
    assert np.array_equal(again[name].sample(labels, 3, np.arange(20), 1.0), expected)
    refitted = fit_latents(two_classes(300), LatentsConfig(sources=(name,)))[name].tensors()
    assert all(np.array_equal(value, sources[name].tensors()[part]) for part, value in refitted.items())


def test_one_gaussian_has_the_mean_and_covariance_of_the_posteriors():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 4))
    images = posterior(rng.normal(size=(5000, 4)) @ mix.T + 1, std=0.5)
    found = single(images).parts[-1]
    assert found.means[0] == pytest.approx(images.mu.mean(axis=0), abs=1e-5)
    covariance = found.factors[0] @ found.factors[0].T
    assert covariance == pytest.approx(np.cov(images.mu.T) + 0.25 * np.eye(4), rel=0.02, abs=0.02)
    drawn = found.sample(0, np.arange(20_000), 1.0)
    assert np.cov(drawn.T) == pytest.approx(covariance, rel=0.05, abs=0.1)


def test_densities_are_those_of_scipy():
    images = two_classes(200)
    gaussian, mixture = single(images).parts[-1], Mixture.fit(images.sample())
    z = images.sample()[:50]
    covariance = gaussian.factors[0].astype(float) @ gaussian.factors[0].T
    assert gaussian.log_density(z) == pytest.approx(stats.multivariate_normal(gaussian.means[0], covariance).logpdf(z))
    parts = [
        np.log(w) + stats.multivariate_normal(m, np.diag(s.astype(float) ** 2)).logpdf(z)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.stds, strict=True)
    ]
    assert mixture.log_density(z) == pytest.approx(np.logaddexp.reduce(parts), abs=1e-3)


def test_few_images_of_a_class_borrow_the_covariance_that_the_others_show():
    rng = np.random.default_rng(0)
    mix = np.eye(30) + np.tri(30)
    label = (np.arange(1000) < 20).astype(int)
    mu = rng.normal(size=(1000, 30)) @ mix.T + label[:, None]
    images = posterior(mu, np.eye(2, dtype=np.uint8)[label])
    rare = images.take(np.flatnonzero(label))
    unseen = posterior(rng.normal(size=(500, 30)) @ mix.T + 1).sample()
    alone = Gaussians.fit(rare, np.eye(30)).log_density(unseen).mean()
    helped = Gaussians.fit(rare, pooled(images)).log_density(unseen).mean()
    assert helped > alone + 3


def test_full_covariances_tell_more_of_clusters_than_one_gaussian_or_a_diagonal_mixture():
    def clusters(seed):
        rng = np.random.default_rng(seed)
        way = np.sign(rng.normal(size=600))[:, None]
        x = rng.normal(size=(600, 1))
        return posterior(np.concatenate([3 * x + way, 3 * x - way], axis=1) + 0.1 * rng.normal(size=(600, 2)), std=0.1)

    fitted, unseen = clusters(0), clusters(1).sample()
    full = Gaussians.fit_mixture(fitted, pooled(fitted)).log_density(unseen).mean()
    assert full > single(fitted).parts[-1].log_density(unseen).mean() + 0.2
    assert full > Mixture.fit(fitted.sample()).log_density(unseen).mean() + 0.2


def test_no_component_with_a_full_covariance_stands_for_few_images():
    mu = np.random.default_rng(0).normal(size=(200, 4))
    mu[:3] += 50  # three films of one odd patient
    images = posterior(mu)
    diagonal = Mixture.fit(images.sample())
    assert (diagonal.weights * 200).min() < MIN_IMAGES
    found = Gaussians.fit_mixture(images, pooled(images))
    assert (found.weights * 200).min() >= MIN_IMAGES - 1e-3
    assert found.weights.sum() == pytest.approx(1)
    assert np.abs(found.means).max() < 25


@pytest.fixture(scope="module")
def bent():
    fitted = curve(1000, 0)
    return Flow.fit(fitted, single(fitted))


def test_a_flow_makes_a_curve_likelier_than_a_gaussian_does_and_its_samples_lie_on_it(bent):
    unseen, labels = curve(500, 1).sample(), np.zeros((500, 0), np.uint8)
    assert bent.log_density(unseen, labels).mean() > bent.base.log_density(unseen, labels).mean() + 0.5
    x, y = bent.sample(labels, 0, np.arange(500), 1.0).T
    assert np.median(np.abs(y - x**2)) < 0.3
    x, y = bent.base.sample(labels, 0, np.arange(500), 1.0).T
    assert np.median(np.abs(y - x**2)) > 0.7


def test_a_flows_density_integrates_to_one(bent):
    x, y = np.linspace(-4.5, 4.5, 150), np.linspace(-2, 14, 240)
    z = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    total = np.exp(bent.log_density(z, np.zeros((len(z), 0), np.uint8))).sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert total == pytest.approx(1, abs=0.03)


def test_a_flow_that_would_only_learn_chance_stays_a_gaussian():
    rng = np.random.default_rng(0)
    images, unseen = posterior(rng.normal(size=(60, 16))), posterior(rng.normal(size=(500, 16))).sample()
    base, labels = single(images), np.zeros((500, 0), np.uint8)
    flow = Flow.fit(images, base)
    assert flow.networks
    assert flow.log_density(unseen, labels).mean() > base.log_density(unseen, labels).mean() - 0.5


@pytest.mark.parametrize(
    ("count", "dim", "label"),
    [
        (0, 3, []),
        (1, 3, [[1, 0]]),
        (2, 3, [[1, 0], [0, 1]]),
        (5, 8, [[1, 0]]),  # fewer images than dimensions, a class without any
        (30, 40, [[0, 1]] + [[1, 0]] * 29),  # a class of one
        (24, 1, [[1, 0], [0, 1]]),  # one dimension
        (30, 4, [[1, 1, 0], [0, 1, 0], [0, 0, 0]]),  # several findings, one, none, and one that nobody has
    ],
)
def test_few_images_and_odd_labels_give_sources_that_draw_finite_latents_or_none(count, dim, label):
    labels = np.resize(np.array(label or [[0, 0]], np.uint8), (count, len((label or [[0, 0]])[0])))
    images = posterior(np.random.default_rng(0).normal(size=(count, dim)), labels)
    found = fit_latents(images, LatentsConfig(sources=SOURCES))
    assert list(found) == (list(SOURCES) if count > 1 else [])
    for source in found.values():
        asked = np.concatenate([np.eye(labels.shape[1], dtype=np.uint8), np.zeros((1, labels.shape[1]), np.uint8)])
        z = source.sample(asked, 0, np.arange(len(asked)), 1.0)
        assert z.shape == (len(asked), dim)
        assert np.isfinite(z).all()


def test_a_class_of_few_images_has_no_gaussian_of_its_own_and_nothing_is_narrower_than_the_posteriors():
    label = (np.arange(60) < MIN_IMAGES - 1).astype(int)
    images = posterior(np.zeros((60, 4)), np.eye(2, dtype=np.uint8)[label], std=0.2)  # all patients alike
    found = fit_latents(images, LatentsConfig(sources=("gaussian", "full_mixture")))
    for source in found.values():
        assert set(source.parts) == {-1, 0}
        variances = [np.linalg.eigvalsh(f @ f.T).min() for part in source.parts.values() for f in part.factors]
        assert min(variances) >= 0.04


@pytest.mark.parametrize("sources", [("prior",), ("flow", "flow")])
def test_sources_that_are_none_are_refused(sources):
    with pytest.raises(ValueError, match="expected some of mixture, gaussian"):
        LatentsConfig(sources=sources)


def test_streams_of_an_address_have_nothing_to_do_with_one_another_and_the_first_is_the_address_itself():
    index = np.arange(3000)
    streams = np.stack([uniforms(5, index, 1, stream=stream)[:, 0] for stream in (0, 1, 2, 2**63)])
    assert np.array_equal(streams[0], uniforms(5, index, 1)[:, 0])
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.06
    assert len(np.unique(streams)) == streams.size
