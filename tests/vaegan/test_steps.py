import copy
import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.steps import (
    Batch,
    DecoderAverage,
    OptimizerConfig,
    Optimizers,
    average_over_workers,
    forward_terms,
    route_gradients,
    train_step,
)

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


# What each network's update is made of, as DESIGN's table has it: {network: {term: weight}}.
BETA, GAMMA = 0.7, 0.3
ROUTES = {
    "encoder": {"prior": BETA, "like": 1.0, "fool": 0.0, "catch": 0.0},
    "decoder": {"prior": 0.0, "like": GAMMA, "fool": 1.0, "catch": 0.0},
    "discriminator": {"prior": 0.0, "like": 0.0, "fool": 0.0, "catch": 1.0},
}


@pytest.mark.parametrize("network", list(ROUTES))
@pytest.mark.parametrize("term", ["prior", "like", "adversarial"])
def test_each_loss_reaches_exactly_the_networks_it_is_meant_for(network, term):
    """The nine cells: scaling one term changes one network's gradient by that term's own gradient, or not at all."""
    networks = build()
    config = LossConfig(gamma=GAMMA)
    wanted = parameters(networks)[network]
    names = ("fool", "catch") if term == "adversarial" else (term,)

    terms, _ = forward_terms(networks, batch(), config)
    before = route_gradients(networks, parameters(networks), dict(terms), config, BETA)[network]
    terms, _ = forward_terms(networks, batch(), config)
    scaled = {name: value * (3.0 if name in names else 1.0) for name, value in terms.items()}
    after = route_gradients(networks, parameters(networks), scaled, config, BETA)[network]

    terms, _ = forward_terms(networks, batch(), config)
    own = sum(ROUTES[network][name] * terms[name] for name in names)
    if torch.is_tensor(own) and any(ROUTES[network][name] for name in names):
        expected = torch.autograd.grad(own, wanted, materialize_grads=True)
        assert any(gradient.abs().max() > 1e-9 for gradient in expected)
    else:
        expected = [torch.zeros_like(parameter) for parameter in wanted]
    for low, high, gradient in zip(before, after, expected, strict=True):
        assert torch.allclose(high - low, 2 * gradient, atol=1e-9)


def test_the_decoder_is_moved_to_fool_and_the_discriminator_to_catch():
    networks = build()
    config = LossConfig(gamma=0.0)
    optimizer = Optimizers(networks, OptimizerConfig(learning_rate=1e-4))
    before, _ = forward_terms(networks, batch(), config)
    gradients = route_gradients(networks, optimizer.parameters, before, config, 1.0)
    for name, term in (("decoder", "fool"), ("discriminator", "catch")):
        moved = copy.deepcopy(networks)
        with torch.no_grad():
            for parameter, gradient in zip(getattr(moved, name).parameters(), gradients[name], strict=True):
                parameter -= 1e-4 * gradient
        after, _ = forward_terms(moved, batch(), config)
        assert after[term] < before[term]


def test_each_network_is_called_once_in_a_step():
    networks = build()
    calls = dict.fromkeys(networks.present(), 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name, network in networks.present().items():
        network.register_forward_hook(count(name))
    train_step(networks, Optimizers(networks, OptimizerConfig()), batch(), LossConfig(), beta=1.0, augment=1.0)
    assert calls == {"encoder": 1, "decoder": 1, "discriminator": 1}


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


def worker(rank: int, size: int, port: int, norm: str, queue) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    try:
        queue.put((rank, trained(norm, 8 // size, rank, size)))
        dist.barrier()
    except Exception as error:
        queue.put((rank, repr(error)))  # the test shall say so at once, not wait for a result that never comes
    dist.destroy_process_group()


def trained(norm: str, count: int, rank: int, size: int) -> dict[str, list]:
    networks = build(norm=norm)
    optimizers = Optimizers(networks, OptimizerConfig(name="rmsprop", learning_rate=1e-3))
    for step in range(3):
        train_step(networks, optimizers, batch(count, step, rank, size), LossConfig(), beta=1.0, augment=0.5)
    return {name: value.tolist() for name, value in networks.state_dict().items()}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_two_workers_update_as_one_with_the_whole_batch(norm):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("fork")  # a spawned child can't import this file by its name
    queue = context.Queue()
    processes = [context.Process(target=worker, args=(rank, 2, port, norm, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    alone = trained(norm, 8, 0, 1)
    for name, value in alone.items():
        for rank in range(2):
            assert torch.allclose(torch.tensor(found[rank][name]), torch.tensor(value), atol=1e-8), name


def test_one_worker_averages_nothing():
    gradient = torch.ones(2)
    average_over_workers([gradient])
    assert gradient.tolist() == [1, 1]
