from dataclasses import fields, replace

import pytest
import torch

from cluster.errors import UserError
from vaegan.acceleration import compile_networks, make_step
from vaegan.loop import train_loop
from vaegan.losses import LossConfig
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import OptimizerConfig, Optimizers
from vaegan.steps import Batch


def build(device: str = "cpu") -> tuple[Networks, Optimizers]:
    torch.manual_seed(0)
    config = NetworkConfig(width=4, latent_dim=6, hidden=16, feature_layers=(2,))
    networks = Networks(config, size=32, channels=1, num_classes=2)
    networks.to(device)
    if device == "cuda":  # as in training; on a CPU torch 2.14 traces flattened channels_last maps with wrong strides
        networks.to(memory_format=torch.channels_last)
    return networks, Optimizers(networks, OptimizerConfig(name="rmsprop", learning_rate=1e-4, epsilon=1.0))


def batch(step: int, device: str = "cpu") -> Batch:
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return Batch.draw(x.to(device), torch.eye(2).repeat(2, 1).to(device), 6, seed=3, step=step)


def trained(
    device: str, kind: str = "none", compiler: str | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    networks, optimizers = build(device)
    if compiler:
        compile_networks(networks, compiler)
    step = make_step(kind, networks, optimizers, LossConfig(), augment=0.5, dtype=torch.float32)
    likes = [step(batch(i, device), 0.1 * i)["like"].item() for i in range(5)]
    return networks.state_dict(), likes


def assert_alike(plain: tuple[dict[str, torch.Tensor], list[float]], fast: tuple[dict[str, torch.Tensor], list[float]]):
    assert plain[1] == pytest.approx(fast[1], rel=1e-4)
    for name, value in plain[0].items():
        assert torch.allclose(value, fast[0][name], atol=1e-5), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's own looking around
def test_compiled_networks_take_the_same_steps():
    """With the compiler's front alone: what it traces decides; generating code takes minutes on a busy machine."""
    try:
        assert_alike(trained("cpu"), trained("cpu", compiler="aot_eager"))
    finally:
        torch.compiler.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_step_takes_the_same_steps_and_capturing_takes_none():
    assert_alike(trained("cuda"), trained("cuda", kind="graphs"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_a_step_and_its_batch_never_make_the_host_wait_for_the_gpu():
    networks, optimizers = build("cuda")
    step = make_step("none", networks, optimizers, LossConfig(), augment=0.5, dtype=torch.bfloat16)
    step(batch(0, "cuda"), 1.0)
    x, labels = batch(1, "cuda").x, torch.eye(2).repeat(2, 1).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(Batch.draw(x, labels, 6, seed=3, step=1), 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["none", pytest.param("graphs", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need a GPU"))])  # fmt: skip
def test_a_bound_step_augments_with_the_probability_of_each_call(kind):
    """None of the images is as no augmentation, and what is between them as neither."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def catches(augment, *probabilities):
        networks, optimizers = build(device)
        step = make_step(kind, networks, optimizers, LossConfig(), augment=augment, dtype=torch.float32)
        return [step(batch(i, device), 1.0, p)["catch"].item() for i, p in enumerate(probabilities)]

    assert catches(1.0, 0.0, 0.0) == pytest.approx(catches(0.0, None, None), rel=1e-5)
    all_of_them, changing = catches(1.0, None, None), catches(1.0, 0.0, 1.0)
    assert catches(1.0, 1.0, 1.0) == pytest.approx(all_of_them, rel=1e-5)
    assert changing[0] == pytest.approx(catches(0.0, None)[0], rel=1e-5)
    assert changing[1] != pytest.approx(catches(1.0, 0.0, 0.0)[1], rel=1e-4)


def test_graphs_without_a_gpu_are_refused_in_a_sentence(config):
    with pytest.raises(UserError, match="acceleration graphs needs a GPU, and the networks are on the CPU"):
        train_loop(replace(config, acceleration="graphs"))


def test_a_batch_has_no_part_that_a_captured_step_would_forget_to_copy():
    assert all(isinstance(getattr(batch(0), part.name), torch.Tensor) for part in fields(Batch))
