import pytest
import torch
from torch import nn

from vaegan.networks import SIZES, NetworkConfig, Networks


def small(kind="vaegan", size=32, num_classes=2, channels=1, **settings) -> Networks:
    config = NetworkConfig(kind=kind, width=4, latent_dim=6, hidden=16, **settings)
    return Networks(config, size=size, channels=channels, num_classes=num_classes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_goes_in_and_comes_out(size, channels):
    networks = small(size=size, channels=channels)
    x, labels = torch.rand(2, channels, size, size) * 2 - 1, torch.eye(2)
    mu, log_var = networks.encoder(x, labels)
    generated = networks.decoder(mu, labels)
    logits, features = networks.discriminator(generated, labels)
    assert mu.shape == log_var.shape == (2, 6)
    assert generated.shape == x.shape
    assert generated.abs().max() <= 1
    assert logits.shape == (2,)
    assert features.shape[0] == 2


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


def test_a_feature_layer_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match=r"feature_layer is 9.*1 to 3"):
        small(feature_layer=9)
