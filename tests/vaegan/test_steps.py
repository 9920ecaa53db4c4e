import copy
import multiprocessing
import runpy
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from vaegan.augment import Augmentation
from vaegan.collectives import average_over_workers
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import DecoderAverage, OptimizerConfig, Optimizers
from vaegan.steps import Batch, check_losses, forward, route_gradients, train_step

LATENT = 6


def build(kind="vaegan", norm="group", **settings) -> Networks:
    torch.manual_seed(0)
    config = NetworkConfig(
        kind=kind,
        width=4,
        latent_dim=LATENT,
        hidden=16,
        norm=norm,
        discriminator_norm=norm,
        **dict(feature_layers=(2,)) | settings,
    )
    return Networks(config, size=32, channels=1, num_classes=2).double()


def rows(count: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(7)
    x = torch.rand(16, 1, 32, 32, generator=noise, dtype=torch.float64) * 2 - 1
    labels = torch.eye(2, dtype=torch.float64).repeat(8, 1)
    return x[start : start + count], labels[start : start + count]


def batch(count=4, step=0, worker=0, num_workers=1) -> Batch:
    x, labels = rows(count, worker * count)
    drawn = Batch.draw(x, labels, LATENT, seed=3, step=step, worker=worker, num_workers=num_workers)
    doubles = {name: getattr(drawn, name).double() for name in drawn.__dataclass_fields__}
    return Batch(**doubles)


def parameters(networks: Networks) -> dict[str, list[torch.Tensor]]:
    return Optimizers(networks, OptimizerConfig()).parameters


def test_the_decoder_is_moved_to_fool_and_the_discriminator_to_catch():
    networks = build()
    config = LossConfig(gamma=0.0)
    optimizer = Optimizers(networks, OptimizerConfig(learning_rate=1e-4))
    before = forward(networks, batch(), config)
    gradients = dict(route_gradients(networks, optimizer.parameters, before, config, 1.0))
    for name, term in (("decoder", "fool"), ("discriminator", "catch")):
        moved = copy.deepcopy(networks)
        with torch.no_grad():
            for parameter, gradient in zip(getattr(moved, name).parameters(), gradients[name], strict=True):
                parameter -= 1e-4 * gradient
        assert forward(moved, batch(), config).terms[term] < before.terms[term]


@pytest.mark.parametrize("kind", ["vaegan", "vae", "gan"])
@pytest.mark.parametrize("settings", [{}, {"augment": 1.0}, {"r1": True}])
def test_every_kind_learns_and_moves_every_network(kind, settings):
    networks = build(kind)
    before = copy.deepcopy(networks.state_dict())
    config = LossConfig(r1_weight=1.0 if settings.get("r1") else 0.0)
    optimizers = Optimizers(networks, OptimizerConfig())
    terms = train_step(networks, optimizers, batch(), config, beta=1.0, augment=settings.get("augment", 0.0))
    assert all(value.isfinite().all() for value in terms.values())
    for name, value in networks.state_dict().items():
        if "weight" in name:
            assert not torch.equal(value, before[name]), name


def test_the_figures_say_how_many_real_images_the_discriminator_knows():
    networks = build()
    done = forward(networks, batch(), LossConfig())
    signs = [1.0 if logit > 0 else -1.0 for logit in done.logits["real"].tolist()]
    assert done.stats["real_sign"].item() == sum(signs) / len(signs)
    for bias, expected in ((50.0, 1.0), (-50.0, -1.0)):
        with torch.no_grad():
            networks.discriminator.dense.bias.fill_(bias)
        figures = train_step(networks, Optimizers(networks, OptimizerConfig()), batch(), LossConfig(), beta=1.0)
        assert figures["real_sign"].item() == expected


def test_a_relativistic_games_figures_do_not_change_with_the_level_of_its_logits():
    networks, config = build(), LossConfig(adversarial="relativistic")
    before = forward(networks, batch(), config).stats
    with torch.no_grad():
        networks.discriminator.dense.bias.fill_(50.0)
    after = forward(networks, batch(), config).stats
    assert -1 <= before["real_sign"].item() < 1
    for name in ("d_real", "d_recon", "d_sample", "real_sign"):
        assert after[name].item() == pytest.approx(before[name].item(), rel=1e-9)


def test_lazy_penalties_come_at_every_third_step_three_times_as_strong_and_leave_the_others_as_they_are():
    networks = build()
    always = LossConfig(r1_weight=2.0, r2_weight=1.0)
    lazy = LossConfig(r1_weight=2.0, r2_weight=1.0, penalty_every=3)
    for step in range(7):
        terms, rare = (forward(networks, batch(step=step), config).terms for config in (always, lazy))
        due = step % 3 == 0
        assert ("r1" in rare, "r2" in rare) == (due, due)
        if due:
            assert rare["r1"].item() == pytest.approx(3 * terms["r1"].item())
            assert rare["r2"].item() == pytest.approx(3 * terms["r2"].item())
            continue
        figures, plain = (
            train_step(other, Optimizers(other, OptimizerConfig()), batch(step=step), config, beta=1.0)
            for other, config in ((build(), lazy), (build(), LossConfig()))
        )
        assert (figures.pop("r1").item(), figures.pop("r2").item()) == (0, 0)  # a log's mean is over all steps
        assert {name: value.tolist() for name, value in figures.items()} == {
            name: value.tolist() for name, value in plain.items()
        }


@pytest.mark.parametrize("augment", [0.0, 0.5])
def test_consistency_compares_each_image_with_its_other_version(augment):
    networks, config = build(norm="none"), LossConfig(consistency_weight=1.0)
    assert forward(networks, batch(), config, augment).terms["consistency"] > 0
    blind = copy.deepcopy(networks)
    with torch.no_grad():
        blind.discriminator.dense.weight.zero_()
        blind.discriminator.embedding.weight.zero_()
    assert forward(blind, batch(), config, augment).terms["consistency"].item() == 0


def test_consistency_beside_a_coin_is_between_images_that_it_left_and_the_same_ones_changed():
    networks, config = build(), LossConfig(consistency_weight=1.0)
    never, always = (
        forward(networks, batch(), config, Augmentation(strength=1.0, probability=torch.tensor(p))).terms["consistency"]
        for p in (0.0, 1.0)
    )
    assert never.item() == pytest.approx(forward(networks, batch(), config).terms["consistency"].item())
    assert always.item() == pytest.approx(0, abs=1e-12)


def test_matching_features_pulls_the_decoder_towards_the_real_images_mean_maps():
    apart = {}
    for weight in (1e6, 1e-6):  # almost nothing but matching, and almost nothing of it
        networks, config = build("gan", norm="none"), LossConfig(feature_matching_weight=weight)
        optimizers = Optimizers(networks, OptimizerConfig(learning_rate=3e-3))
        before = copy.deepcopy(networks.discriminator.state_dict())
        apart[weight] = []
        for _ in range(20):
            match = train_step(networks, optimizers, batch(), config, beta=1.0)["match"].item() / weight
            apart[weight].append(match)
            networks.discriminator.load_state_dict(before)  # maps that stay what they are
    first = apart[1e6][0]
    assert apart[1e6][-1] < 0.8 * first < apart[1e-6][-1]


def test_layer_weights_for_other_layers_and_lazy_penalties_in_a_captured_step_are_refused():
    model = build(feature_layers=(1, 2)).config
    check_losses(LossConfig(feature_layer_weights=(1.0, 2.0), r1_weight=1.0, penalty_every=4), model)
    with pytest.raises(ValueError, match=r"loss\.feature_layer_weights has 1 and model\.feature_layers 2"):
        check_losses(LossConfig(feature_layer_weights=(1.0,)), model)
    with pytest.raises(ValueError, match=r"loss\.penalty_every is 4: expected 1"):
        check_losses(LossConfig(r1_weight=1.0, penalty_every=4), model, captured=True)
    check_losses(LossConfig(penalty_every=4), model, captured=True)  # nothing to apply


def test_a_vae_overfits_four_images():
    networks = build("vae").float()
    optimizers = Optimizers(networks, OptimizerConfig(learning_rate=3e-3))
    x, labels = rows(4)
    x = torch.nn.functional.interpolate(
        x[:, :, ::8, ::8], 32, mode="bilinear"
    ).float()  # smooth: noise has no structure
    errors = []
    for step in range(60):
        drawn = Batch.draw(x, labels.float(), LATENT, seed=0, step=step)
        errors.append(train_step(networks, optimizers, drawn, LossConfig(), beta=0.01)["pixel_error"].item())
    assert errors[-1] < 0.5 * errors[0]


def test_noise_is_a_function_of_seed_and_step_and_row():
    whole, first, second = batch(8), batch(4, worker=0, num_workers=2), batch(4, worker=1, num_workers=2)
    for name in ("posterior_noise", "prior", "recon_draws", "sample_draws"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(second, name)]))
    assert not torch.equal(batch(4, step=0).prior, batch(4, step=1).prior)


def test_the_average_forgets_half_in_a_half_life():
    decoder = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(decoder.weight)
    average = DecoderAverage(decoder, half_life_images=100)
    torch.nn.init.ones_(decoder.weight)
    for _ in range(10):
        average.update(decoder, images_seen=10_000, batch_size=10)
    assert average.decoder.weight.item() == pytest.approx(0.5)


STEPS, ALL_ROWS = 50, 12


def worker(rank: int, size: int, port: int, settings: dict, results) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    try:
        results.put((rank, trained(settings, rank, size)))
        dist.barrier()
    except Exception as error:
        results.put((rank, repr(error)))  # the test shall say so at once, not wait for a result that never comes
    dist.destroy_process_group()


def trained(settings: dict, rank: int, size: int) -> dict[str, np.ndarray]:
    """Everything a run of 50 steps leaves: weights, running moments, decoder average."""
    dtype, optimizer, network = settings["dtype"], settings["optimizer"], settings["network"]
    networks = build(**network).to(dtype)
    optimizers = Optimizers(networks, optimizer)
    average = DecoderAverage(networks.decoder, 100)
    share = ALL_ROWS // size
    for step in range(STEPS):
        drawn = batch(share, step, rank, size)
        drawn = Batch(**{name: getattr(drawn, name).to(dtype) for name in drawn.__dataclass_fields__})
        if network.get("label_head"):  # every fourth row has a label: not equally many of each worker's
            drawn.labels[(rank * share + torch.arange(share)) % 4 != 0] = torch.nan
        train_step(networks, optimizers, drawn, settings["loss"], beta=1.0, augment=0.5)
        average.update(networks.decoder, (step + 1) * ALL_ROWS, ALL_ROWS)
    found = networks.state_dict() | {f"average.{n}": v for n, v in average.decoder.state_dict().items()}
    return {name: value.numpy() for name, value in found.items()}


def trained_by(size: int, settings: dict) -> list[dict[str, np.ndarray]]:
    """The same by `size` processes, one result each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # Not forked from here: this process has threads by now, and a lock that one of them held would never open again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "vaegan.steps", "pytest"])
    results = context.Queue()
    jobs = [dict(rank=rank, size=size, port=port, settings=settings, results=results) for rank in range(size)]
    processes = [context.Process(target=runpy.run_path, args=(__file__, {"JOB": job}, "a worker")) for job in jobs]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    for result in found.values():
        assert isinstance(result, dict), result
    return [found[rank] for rank in range(size)]


# Rounding alone parts two float32 runs for good: now and then an activation lies within 1e-7 of its kink, falls on the
# other side of it, and an optimiser that divides by the gradient's size makes a whole step of the difference. A large
# epsilon makes Adam's update linear in the gradient, so that float32 shows what data parallelism does and no more;
# float64, where such a fall is a billion times rarer, compares the optimisers as people use them.
PRECISIONS = {
    "float32": (torch.float32, OptimizerConfig(learning_rate=1e-3, epsilon=10.0), 1e-4, 1e-6),
    "float64": (torch.float64, OptimizerConfig(name="rmsprop", learning_rate=1e-4), 1e-9, 1e-12),
}


EVERY_SWITCH = LossConfig(
    gamma=1.0, adaptive_weight=True, free_bits=0.01, ms_ssim_weight=0.5, feature_normalised=True,
    feature_matching_weight=0.4, adversarial="relativistic", r1_weight=1.0, r2_weight=1.0, penalty_every=4,
    consistency_weight=1.0,
)  # fmt: skip
NETWORKS = {
    "group": dict(norm="group"),
    "batch": dict(norm="batch"),
    "none and spectral": dict(norm="none", spectral_norm=True),
    "gan": dict(kind="gan"),
}
CASES = [(NETWORKS[name], LossConfig(), precision) for name in NETWORKS for precision in PRECISIONS]
NAMES = [f"{name}-{precision}" for name in NETWORKS for precision in PRECISIONS]


@pytest.mark.parametrize(
    ("network", "loss", "precision"),
    [
        *CASES,
        (dict(feature_layers=(1, 2)), EVERY_SWITCH, "float64"),
        (dict(norm="batch", blocks="residual", modulation=True), LossConfig(), "float64"),
        (dict(label_head=True), LossConfig(label_weight=3.0), "float64"),
    ],
    ids=[*NAMES, "every switch-float64", "residual, batch and modulated-float64", "labels of some rows-float64"],
)
def test_after_fifty_steps_n_workers_are_where_one_is_with_the_whole_batch_and_equal_each_other(
    network, loss, precision
):
    dtype, optimizer, tolerance, typical = PRECISIONS[precision]
    settings = dict(dtype=dtype, optimizer=optimizer, network=network, loss=loss)
    alone = trained(settings, 0, 1)
    start = {name: value.numpy() for name, value in build(**network).state_dict().items()}
    moved = [np.abs(alone[name] - start[name]).max() for name in start if name.endswith("weight")]
    for size in (2, 3):
        first, *others = trained_by(size, settings)
        for other in others:
            assert all(np.array_equal(first[name], other[name]) for name in alone), size
        apart = {name: np.abs(first[name] - value).max() for name, value in alone.items()}
        assert max(apart.values()) < tolerance, (size, max(apart, key=apart.__getitem__))
        assert np.median(list(apart.values())) < typical, size
        assert max(moved) > 100 * typical  # else what was compared had hardly left its start


def unlabelled(which: list[int], **options) -> Batch:
    """A batch in which these rows have no label."""
    found = batch(**options)
    found.labels[which] = torch.nan
    return found


def test_where_a_label_is_missing_the_heads_probabilities_stand_for_it_in_every_network():
    networks, config = build(label_head=True), LossConfig()
    missing = unlabelled([1, 3])
    _, _, logits, labels = networks.encoder(missing.x, missing.labels, infer=True)
    assert torch.equal(labels[[0, 2]], missing.labels[[0, 2]])
    assert torch.equal(labels[[1, 3]], logits.softmax(dim=1)[[1, 3]])
    told = forward(networks, Batch(**vars(missing) | {"labels": labels.detach()}), config)
    found = forward(networks, missing, config)
    for name in ("prior", "like", "fool", "catch"):
        assert found.terms[name].item() == pytest.approx(told.terms[name].item(), rel=1e-12)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_batch_of_which_no_row_has_a_label_moves_all_but_the_head(task):
    networks = build(label_head=True)
    networks.encoder.task = task
    before = copy.deepcopy(networks.state_dict())
    figures = train_step(
        networks, Optimizers(networks, OptimizerConfig()), unlabelled([0, 1, 2, 3]), LossConfig(), beta=1.0
    )
    assert figures["label"] == 0
    assert all(value.isfinite().all() for value in figures.values())
    for name, value in networks.state_dict().items():
        if "weight" in name:
            assert torch.equal(value, before[name]) == ("label_head" in name), name


def test_a_label_head_changes_nothing_for_the_encoder_but_by_its_loss():
    plain, headed = build(), build(label_head=True)
    headed.load_state_dict(plain.state_dict(), strict=False)
    other = LossConfig(label_weight=0.0)
    first, second = (forward(networks, batch(), other) for networks in (plain, headed))
    a = dict(route_gradients(plain, parameters(plain), first, other, 1.0))["encoder"]
    b = dict(route_gradients(headed, parameters(headed), second, other, 1.0))["encoder"]
    assert all(torch.allclose(x, y, rtol=1e-12, atol=0) for x, y in zip(a, b[: len(a)], strict=True))
    assert not any(gradient.any() for gradient in b[len(a) :])
    third = forward(headed, batch(), LossConfig(label_weight=2.0))
    c = dict(route_gradients(headed, parameters(headed), third, LossConfig(label_weight=2.0), 1.0))["encoder"]
    assert all(gradient.any() for gradient in c[len(a) :])
    assert not torch.equal(a[0], c[0])


def test_one_worker_averages_nothing():
    gradient = torch.ones(2)
    average_over_workers([gradient])
    assert gradient.tolist() == [1, 1]


if __name__ == "a worker":  # a child can't import this file by a name, as pytest does not
    worker(**globals()["JOB"])
