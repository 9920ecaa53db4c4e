import math
from dataclasses import replace

import pytest
import torch

from cluster.errors import UserError
from vaegan.checkpoint import Progress, state_tensors, write_state
from vaegan.estimate import FlopCounter, estimate
from vaegan.export import build
from vaegan.optimizers import DecoderAverage, OptimizerConfig, Optimizers
from vaegan.shards import read_manifest
from vaegan.steps import Batch, train_step

CPU = torch.device("cpu")
FLOAT = 4  # bytes


def estimated(config, **changes):
    return estimate(replace(config, **changes), read_manifest(config.data), 48, CPU)


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["vaegan", "vae", "gan"])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_parameter_of_every_network_of_the_kind_is_in_the_table_once(config, kind, spectral_norm):
    config = replace(config, model=replace(config.model, kind=kind, spectral_norm=spectral_norm))
    networks = build(config, read_manifest(config.data)).present()
    found = estimated(config)
    assert found.num_parameters == {name: num_parameters(network) for name, network in networks.items()}
    for name, layers in found.layers.items():
        assert sum(layer.num_parameters for layer in layers) == found.num_parameters[name]
        assert None not in [layer.shape for layer in layers]
    headings = [block.split()[0] for block in found.text().split("\n\n")[: len(networks)]]
    assert headings == list(networks)


def test_residual_blocks_and_a_modulation_are_in_the_table_too(config):
    shape = replace(config.model, blocks="residual", modulation=True, spectral_norm=True)
    networks = build(replace(config, model=shape), read_manifest(config.data))
    found = estimated(config, model=shape)
    for name, layers in found.layers.items():
        assert sum(layer.num_parameters for layer in layers) == num_parameters(getattr(networks, name))
        assert None not in [layer.shape for layer in layers]
    kinds = {layer.name: (layer.kind, layer.shape) for layer in found.layers["decoder"]}
    assert kinds["deconvolutions.2.second"] == ("UpConv2d 3x3 stride 1", (8, 16, 16))
    assert kinds["modulation.out"] == ("Linear", (2 * (8 + 8 + 4),))


def test_a_layer_has_the_output_shape_that_its_step_had(config):
    layers = {layer.name: layer for layer in estimated(config).layers["encoder"]}
    assert layers["convolutions.0"].shape == (4, 16, 16)
    assert layers["convolutions.0"].kind == "Conv2d 5x5 stride 2"
    assert layers["mu"].shape == (6,)


@pytest.mark.parametrize(("optimizer", "moments"), [("adam", 2), ("rmsprop", 1)])
def test_weights_optimiser_and_average_take_the_bytes_of_their_closed_forms(config, optimizer, moments):
    networks = build(config, read_manifest(config.data))
    memory = estimated(config, optimizer=OptimizerConfig(name=optimizer)).memory
    assert memory.weights == FLOAT * num_parameters(networks)
    num_tensors = len(list(networks.parameters()))  # each has a step count beside its moments
    assert memory.optimizers == FLOAT * (moments * num_parameters(networks) + num_tensors)
    assert memory.decoder_average == FLOAT * num_parameters(networks.decoder)
    assert memory.gradients in (memory.weights, 2 * memory.weights)  # with the last step's, if a step leaves them
    assert memory.total == sum(
        (memory.weights, memory.gradients, memory.optimizers, memory.decoder_average, memory.activations)
    )
    assert memory.peak is None
    assert estimated(config, average_half_life_images=0).memory.decoder_average == 0


@pytest.mark.parametrize("kind", ["vaegan", "vae", "gan"])
def test_activations_grow_with_the_batch_and_with_nothing_else_of_the_run(config, kind):
    config = replace(config, model=replace(config.model, kind=kind))
    small, double, long = (
        estimated(config, **changes).memory.activations
        for changes in (dict(batch_size=8), dict(batch_size=16), dict(batch_size=8, total_images=9600))
    )
    assert double == pytest.approx(2 * small, rel=0.01)
    assert long == small


def test_a_vaes_activations_hold_at_least_every_convolutions_output(config):
    config = replace(config, model=replace(config.model, kind="vae"))
    found = estimated(config)
    layers = [layer for network in found.layers.values() for layer in network]
    outputs = [math.prod(layer.shape) for layer in layers if "Conv" in layer.kind]
    assert found.memory.activations >= FLOAT * config.batch_size * sum(outputs)


def test_a_worker_of_two_has_half_of_the_activations_and_of_the_operations(config):
    alone, of_two = estimated(config, num_workers=0), estimated(config, num_workers=2)
    assert of_two.memory.activations == pytest.approx(alone.memory.activations / 2, rel=0.01)
    assert of_two.flops == pytest.approx(alone.flops / 2, rel=0.01)
    assert "(2 in all, 8 images a step each)" in of_two.text()


def test_operations_are_two_per_multiplication_forward_and_twice_that_backward():
    x = torch.randn(3, 5, requires_grad=True)
    linear, convolution = torch.nn.Linear(5, 7), torch.nn.Conv2d(2, 4, 3)
    with FlopCounter() as forward:
        y = linear(x)
    assert forward.total == 2 * 3 * 5 * 7
    with FlopCounter() as backward:
        torch.autograd.grad(y.sum(), [x, linear.weight])
    assert backward.total == 2 * forward.total
    with FlopCounter() as flops:
        convolution(torch.randn(3, 2, 10, 10))
    assert flops.total == 2 * 3 * 4 * 8 * 8 * 2 * 3 * 3


def test_a_checkpoint_has_the_size_that_was_foretold(config, tmp_path):
    networks = build(config, read_manifest(config.data))
    optimizers = Optimizers(networks, config.optimizer)
    average = DecoderAverage(networks.decoder, config.average_half_life_images)
    batch = Batch.draw(torch.zeros(4, 1, 32, 32), torch.zeros(4, 2), config.model.latent_dim, seed=0, step=0)
    train_step(networks, optimizers, batch, config.loss, beta=1.0)
    write_state(tmp_path, state_tensors(networks, average, optimizers), Progress(images_seen=4), {})
    size = (tmp_path / "state.safetensors").stat().st_size
    header = 40_000  # names and shapes of all tensors
    assert size - header < estimated(config).checkpoint_bytes <= size


def test_the_runs_numbers_follow_from_its_settings(config):
    found = estimated(config)  # 96 images of 48, by 16; a checkpoint at 32, 64 and 96
    assert (found.num_steps, found.num_epochs, found.num_checkpoints) == (6, 2.0, 3)
    assert estimated(config, total_images=112).num_checkpoints == 4  # one at 112, the end
    slow = replace(found, step_s=1234.0)
    assert slow.total_s == 6 * 1234
    assert "time, an estimate: 2 h 03 min for 6 steps" in slow.text()
    assert "time, an estimate: 6 min" in replace(found, step_s=60.0).text()
    assert "left out" in found.text()
    assert "3 of" in found.text()
    assert "2 kept" in found.text()


def test_nothing_is_written_and_the_global_generator_stays_where_it_was(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    state = torch.random.get_rng_state()
    estimated(config)
    assert sorted(tmp_path.rglob("*")) == before
    assert not config.run_dir.exists()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fewer_images_than_a_batch_are_refused_as_the_run_would_refuse_them(config):
    with pytest.raises(UserError, match=r"48 training images .* fewer than batch_size 64"):
        estimated(config, batch_size=64, total_images=64)
