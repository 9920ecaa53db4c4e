from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from cluster.cli import parse
from cluster.errors import UserError
from cluster.storage import read_json, write_json
from vaegan.checkpoint import ModelInfo, export_model, read_info, read_model
from vaegan.networks import SIZES, DownConv2d, NetworkConfig, Networks, ResidualBlock, UpConv2d
from vaegan.recipe import Recipe

BLOCKS = ("plain", "residual")


def small(kind="vaegan", size=32, num_classes=2, channels=1, **settings) -> Networks:
    config = NetworkConfig(kind=kind, **dict(width=4, latent_dim=6, hidden=16) | settings)
    return Networks(config, size=size, channels=channels, num_classes=num_classes)


def moved(networks: Networks) -> Networks:
    """The same networks, their modulation no longer at the identity."""
    nn.init.normal_(networks.decoder.modulation.out.weight, std=0.3)
    return networks


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_every_size_goes_in_and_comes_out(size, channels, blocks):
    networks = small(size=size, channels=channels, blocks=blocks, modulation=True, feature_layers=(3, 2))
    x, labels = torch.rand(2, channels, size, size) * 2 - 1, torch.eye(2)
    mu, log_var = networks.encoder(x, labels)
    generated = networks.decoder(mu, labels)
    logits, features = networks.discriminator(generated, labels)
    assert mu.shape == log_var.shape == (2, 6)
    assert generated.shape == x.shape
    assert generated.abs().max() <= 1
    assert logits.shape == (2,)
    assert [maps.shape for maps in features] == [(2, 16, size // 4, size // 4), (2, 8, size // 2, size // 2)]


def test_the_paper_configuration_has_the_papers_layers():
    networks = Networks(NetworkConfig(norm="batch"), size=64, channels=1, num_classes=0)
    shape_of = {
        name: [
            tuple(m.weight.shape)
            for m in network.modules()
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        ]
        for name, network in networks.present().items()
    }
    assert shape_of["encoder"] == [
        (64, 1, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (2048, 8 * 8 * 256), (128, 2048), (128, 2048),
    ]  # fmt: skip
    assert shape_of["decoder"] == [
        (8 * 8 * 256, 128), (256, 256, 5, 5), (256, 128, 5, 5), (128, 64, 5, 5), (64, 1, 5, 5),
    ]  # fmt: skip
    assert shape_of["discriminator"] == [
        (64, 1, 5, 5), (128, 64, 5, 5), (256, 128, 5, 5), (256, 256, 5, 5), (1, 8 * 8 * 256),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "names"), [("vae", {"encoder", "decoder"}), ("gan", {"decoder", "discriminator"})])
def test_the_halves_lack_what_the_fusion_adds(kind, names):
    assert set(small(kind).present()) == names


def test_an_unconditional_model_ignores_labels():
    networks = small(conditional=False)
    labels = networks.condition(torch.eye(2))
    assert labels.shape == (2, 0)
    assert networks.discriminator.embedding is None


@pytest.mark.parametrize("name", ["decoder", "encoder", "discriminator"])
def test_labels_reach_every_network_of_a_conditional_model(name):
    networks = small().eval()
    network = getattr(networks, name)
    x = torch.rand(1, 6) if name == "decoder" else torch.rand(1, 1, 32, 32)
    first, second = (network(x, labels[None]) for labels in torch.eye(2))
    first, second = (out[0] if isinstance(out, tuple) else out for out in (first, second))
    assert not torch.allclose(first, second)


def test_group_norm_networks_treat_images_separately():
    networks = small(spectral_norm=True).eval()
    x, labels = torch.rand(4, 1, 32, 32), torch.eye(2)[[0, 1, 0, 1]]
    together = networks.discriminator(x, labels)[0]
    alone = torch.cat([networks.discriminator(x[i : i + 1], labels[i : i + 1])[0] for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_other_sizes_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="images of 48 pixels: the networks take 32, 64, 128, 256"):
        small(size=48)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((2, 9), r"feature_layers has 9.*1 to 3"),
        ((), "feature_layers is empty"),
        ((2, 3, 2), "feature_layers has 2 more than once"),
        ((0,), "feature_layers has 0: expected whole numbers, 1 or more"),
        (("third",), "feature_layers has third"),
    ],
)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_feature_layers_that_there_are_not_are_refused(layers, message, blocks):
    with pytest.raises(ValueError, match=message):
        small(feature_layers=layers, blocks=blocks)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_each_feature_layer_gives_the_maps_that_it_gives_alone(blocks):
    networks = [small(blocks=blocks, feature_layers=layers) for layers in ((3, 1), (1,), (3,))]
    x, labels = torch.rand(2, 1, 32, 32), torch.eye(2)
    both, first, third = (
        network.discriminator(x, labels)[1] for network in networks if network.load_state_dict(networks[0].state_dict())
    )
    assert torch.equal(both[0], third[0])
    assert torch.equal(both[1], first[0])


def test_configs_of_before_there_could_be_several_feature_layers_still_load(tmp_path):
    assert NetworkConfig(feature_layer=2) == NetworkConfig(feature_layers=(2,))
    path = tmp_path / "old.yaml"
    path.write_text("model:\n  feature_layer: 2\n  width: 8\n")
    read = lambda *words: parse(Recipe, ["--config", str(path), *words], prog="x").model  # noqa: E731
    assert read() == NetworkConfig(width=8, feature_layers=(2,))
    path.write_text("model:\n  feature_layers: [2, 3]\n")
    assert read().feature_layers == (2, 3)
    assert read("--model.feature-layers", "1", "3").feature_layers == (1, 3)
    assert read("--model.feature-layers", "1").feature_layers == (1,)
    with pytest.raises(UserError, match="feature_layers has 2 more than once"):
        read("--model.feature-layers", "2", "2")


def stored(networks: Networks) -> ModelInfo:
    return ModelInfo(
        name="model", version="1", networks=networks.config, size=networks.size, channels=1, task="multiclass",
        classes=("a", "b"), class_counts=(1, 1), latents=("prior",), images_seen=0, num_training_images=2,
        data_sha256="0" * 64,
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{}, dict(blocks="residual", modulation=True, feature_layers=(2, 3))])
def test_a_stored_model_comes_back_as_it_went(settings, tmp_path):
    networks = small(spectral_norm=True, **settings).eval()
    export_model(tmp_path / "model", networks, {}, stored(networks), card="")
    again = read_model(tmp_path / "model")[0]
    assert again.config == networks.config
    z, labels = torch.randn(3, 6), torch.eye(2)[[0, 1, 0]]
    assert torch.equal(again.decoder(z, labels), networks.decoder(z, labels))


def test_a_model_that_was_stored_before_these_keys_is_plain_and_has_its_one_feature_layer(tmp_path):
    networks = small(feature_layers=(2,))
    export_model(tmp_path / "model", networks, {}, stored(networks), card="")
    path = tmp_path / "model" / "model.json"
    content = read_json(path)
    for key in ("blocks", "modulation", "feature_layers"):
        del content["networks"][key]
    write_json(path, content | {"networks": content["networks"] | {"feature_layer": 2}})
    assert read_info(tmp_path / "model").networks == networks.config
    assert "feature_layer" not in asdict(networks.config)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_convolutions_are_those_after_upsampling_and_before_pooling(kernel, bias):
    up = UpConv2d(3, 5, kernel, padding=kernel // 2, bias=bias).double()
    down = DownConv2d(3, 5, kernel, padding=kernel // 2, bias=bias).double()
    x = torch.rand(2, 3, 6, 8, dtype=torch.float64)
    slow_up = nn.Conv2d.forward(up, interpolate(x, scale_factor=2, mode="nearest"))
    assert torch.allclose(up(x), slow_up, atol=1e-12)
    assert torch.allclose(down(x), avg_pool2d(nn.Conv2d.forward(down, x), 2), atol=1e-12)


def test_unnormalised_residual_blocks_neither_blow_maps_up_nor_let_them_fade():
    torch.manual_seed(0)
    maps = torch.randn(4, 64, 16, 16)
    for _ in range(8):  # each sum of two branches would double the variance: 256 times
        maps = ResidualBlock(64, 64, "none", norm="none", activation=nn.ReLU())(maps.relu())
    assert 0.5 < maps.std() < 2


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_gradients_reach_every_parameter(blocks, norm):
    torch.manual_seed(0)
    settings = dict(blocks=blocks, norm=norm, discriminator_norm=norm, modulation=norm != "none", spectral_norm=True)
    networks = small(width=16, feature_layers=(1, 2), **settings)
    if norm != "none":
        moved(networks)
    x, labels = torch.rand(4, 1, 32, 32) * 2 - 1, torch.eye(2).repeat(2, 1)
    mu, log_var = networks.encoder(x, labels)
    logits, _ = networks.discriminator(networks.decoder(mu + log_var, labels), labels)
    logits.square().sum().backward()
    for name, parameter in networks.named_parameters():
        assert parameter.grad.abs().max() > 1e-12, name


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_an_image_is_the_same_bytes_whatever_it_is_decoded_with(blocks, norm):
    torch.manual_seed(0)
    networks = moved(small(width=16, blocks=blocks, norm=norm, modulation=True, conditional=True)).eval()
    networks.to(memory_format=torch.channels_last)
    z, labels = torch.randn(40, 6), torch.eye(2).repeat(20, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several share a convolution out by the batch's size, and round by it
    try:
        with torch.inference_mode():
            together = networks.decoder(z, labels)
            for count in (1, 2, 3, 7, 9, 16, 33):
                assert torch.equal(networks.decoder(z[:count], labels[:count]), together[:count]), count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("training", [False, True])
def test_modulation_starts_at_the_identity_and_then_acts(blocks, norm, training):
    without = small(blocks=blocks, norm=norm).train(training)
    networks = small(blocks=blocks, norm=norm, modulation=True).train(training)
    added = networks.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert set(added) == {f"decoder.modulation.{name}" for name in ("hidden.weight", "hidden.bias", "out.weight")}
    z, labels = torch.randn(4, 6), torch.eye(2).repeat(2, 1)
    expected = without.decoder(z, labels)
    assert torch.equal(networks.decoder(z, labels), expected)
    assert not torch.allclose(moved(networks).decoder(z, labels), expected, atol=1e-3)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_labels_and_latents_modulate_every_normalisation(blocks):
    """What enters through the dense layer is cut off: all that is left to tell images apart is the modulation."""
    decoder = moved(small(blocks=blocks, modulation=True)).decoder
    nn.init.zeros_(decoder.dense.weight)
    z, labels = torch.randn(2, 6), torch.eye(2)
    by_label, by_latent = decoder(z[[0, 0]], labels), decoder(z, labels[[0, 0]])
    assert not torch.allclose(by_label[0], by_label[1], atol=1e-3)
    assert not torch.allclose(by_latent[0], by_latent[1], atol=1e-3)
    decoder(z, labels).square().sum().backward()
    normalisations = decoder.modulation.channels
    assert len(normalisations) == 3  # the dense layer's and those of the two stages
    shifts = decoder.modulation.out.weight.grad[sum(normalisations) :]
    assert all(part.abs().max() > 0 for part in shifts.split(normalisations))


def test_modulating_what_is_not_normalised_is_refused():
    with pytest.raises(ValueError, match="choose norm group or batch"):
        NetworkConfig(norm="none", modulation=True)


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize("width", [16, 64])
def test_both_kinds_of_blocks_have_about_as_many_parameters(size, width):
    config = NetworkConfig(width=width, latent_dim=64, hidden=256)
    with torch.device("meta"):
        kinds = [Networks(replace(config, blocks=blocks), size=size, channels=1, num_classes=2) for blocks in BLOCKS]
    plain, residual = ([sum(p.numel() for p in n.parameters()) for n in kind.present().values()] for kind in kinds)
    assert 0.6 * sum(plain) < sum(residual) < sum(plain)
    assert all(0.5 * few < many < few for few, many in zip(plain, residual, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="gan"), "model.kind gan has none"),
        (dict(conditional=False), "enter no network with model.conditional false"),
    ],
)
def test_a_label_head_is_refused_where_it_would_be_for_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(label_head=True, **settings)


def test_a_label_head_needs_classes():
    with pytest.raises(ValueError, match="infers classes, and the dataset has none"):
        Networks(NetworkConfig(width=4, label_head=True), size=32, channels=1, num_classes=0)


def test_a_label_head_decides_for_one_class_or_for_all_above_a_half_and_only_where_a_label_is_missing():
    for task in ("multiclass", "multilabel"):
        networks = Networks(NetworkConfig(width=4, label_head=True), size=32, channels=1, num_classes=3, task=task)
        with torch.no_grad():
            networks.encoder.label_head.weight.zero_()
            networks.encoder.label_head.bias.copy_(torch.tensor([1.0, 2.0, -1.0]))
        decided = [0.0, 1.0, 0.0] if task == "multiclass" else [1.0, 1.0, 0.0]
        labels = torch.tensor([[0.0, 0.0, 1.0], [torch.nan] * 3])
        assert networks.complete(torch.zeros(2, 1, 32, 32), labels).tolist() == [[0.0, 0.0, 1.0], decided]
