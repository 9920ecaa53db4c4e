import copy
import multiprocessing
import runpy
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from vaegan.collectives import average_over_workers
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import DecoderAverage, OptimizerConfig, Optimizers
from vaegan.steps import Batch, forward, route_gradients, train_step

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
        feature_layer=2,
        **settings,
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
        train_step(networks, optimizers, drawn, LossConfig(), beta=1.0, augment=0.5)
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


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "network",
    [dict(norm="group"), dict(norm="batch"), dict(norm="none", spectral_norm=True), dict(kind="gan")],
    ids=["group", "batch", "none and spectral", "gan"],
)
def test_after_fifty_steps_n_workers_are_where_one_is_with_the_whole_batch_and_equal_each_other(network, precision):
    dtype, optimizer, tolerance, typical = PRECISIONS[precision]
    settings = dict(dtype=dtype, optimizer=optimizer, network=network)
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


def test_one_worker_averages_nothing():
    gradient = torch.ones(2)
    average_over_workers([gradient])
    assert gradient.tolist() == [1, 1]


if __name__ == "a worker":  # a child can't import this file by a name, as pytest does not
    worker(**globals()["JOB"])
