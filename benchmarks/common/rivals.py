"""What `train_step` is compared with: the plain three-pass Algorithm 1, and pythae's VAEGAN."""

import logging
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from common.setup import Preset
from vaegan import losses
from vaegan.losses import LossConfig
from vaegan.networks import Networks
from vaegan.steps import Batch


def naive_losses(
    networks: Networks, batch: Batch, config: LossConfig, *, detach_fakes: bool = False
) -> dict[str, Tensor]:
    """Each network's own loss in the paper's configuration: a forward pass of all three.

    The decoder gets reconstructions and samples in one call, as batch norm asks for if gradients are to be the same.
    """
    labels = networks.condition(batch.labels)
    mu, log_var = networks.encoder(batch.x, labels)
    z = mu + (0.5 * log_var).exp() * batch.posterior_noise
    recon, sample = networks.decoder(torch.cat([z, batch.prior]), labels.repeat(2, 1)).chunk(2)
    if detach_fakes:
        recon, sample = recon.detach(), sample.detach()
    logits_real, features_real = networks.discriminator(batch.x, labels)
    logits_recon, features_recon = networks.discriminator(recon, labels)
    logits_sample, _ = networks.discriminator(sample, labels)

    prior = losses.kl_divergence(mu, log_var)
    like = losses.feature_reconstruction(features_recon, features_real, batch.x[0].numel())
    fool = losses.generator_loss(logits_recon, logits_sample, kind=config.adversarial)
    catch = losses.discriminator_loss(logits_real, logits_recon, logits_sample)
    return dict(encoder=config.beta * prior + like, decoder=config.gamma * like + fool, discriminator=catch)


class NaiveStep:
    """Algorithm 1 as one would first write it: for each loss a forward pass of everything and a backward pass.

    Args:
        detach_fakes: spare the discriminator's pass the way back through decoder and encoder, as GAN tutorials do.
    """

    def __init__(
        self,
        preset: Preset,
        batch: Batch,
        dtype: torch.dtype,
        *,
        detach_fakes: bool = False,
        channels_last: bool = True,
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.networks = preset.networks().to(memory_format=layout)
        self.batch, self.dtype, self.config, self.detach_fakes = batch, dtype, preset.loss, detach_fakes
        self.optimizers = {
            name: torch.optim.RMSprop(
                network.parameters(), lr=preset.optimizer.learning_rate, eps=preset.optimizer.epsilon
            )
            for name, network in self.networks.present().items()
        }

    def __call__(self) -> dict[str, list[Tensor]]:
        """One update of every network, and the gradients it was made with."""
        gradients = {}
        for name, network in self.networks.present().items():
            self.networks.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                detach = self.detach_fakes and name == "discriminator"
                loss = naive_losses(self.networks, self.batch, self.config, detach_fakes=detach)[name]
            loss.backward()
            gradients[name] = [parameter.grad for parameter in network.parameters()]
        for name, network in self.networks.present().items():
            for parameter, gradient in zip(network.parameters(), gradients[name], strict=True):
                parameter.grad = gradient
            self.optimizers[name].step()
        return gradients


class PythaeStep:
    """One step of pythae's own trainer on pythae's VAEGAN, made of our encoder, decoder and discriminator.

    Float32 and contiguous, as its trainer does it. Its objective has no reconstructions among the fakes; its margins,
    which now and then spare a network its update, are set so wide that every step updates all three.

    Raises:
        ImportError: pythae is not installed.
    """

    def __init__(self, preset: Preset, batch: Batch) -> None:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAEGAN, VAEGANConfig
        from pythae.trainers import CoupledOptimizerAdversarialTrainer, CoupledOptimizerAdversarialTrainerConfig

        networks = preset.networks().to(memory_format=torch.contiguous_format)
        x = batch.x.contiguous()
        config = VAEGANConfig(
            input_dim=tuple(x.shape[1:]),
            latent_dim=preset.model.latent_dim,
            reconstruction_layer=preset.model.feature_layers[0],  # pythae has one
            margin=1e9,
        )
        model = VAEGAN(config, *as_pythae(networks))
        rates = {
            f"{name}_{key}": value
            for name in networks.present()
            for key, value in dict(optimizer_cls="RMSprop", learning_rate=preset.optimizer.learning_rate).items()
        }
        logging.disable(logging.INFO)  # its modules attach console handlers of their own
        self.trainer = CoupledOptimizerAdversarialTrainer(
            model,
            BaseDataset(x, torch.zeros(len(x))),
            training_config=CoupledOptimizerAdversarialTrainerConfig(
                output_dir=tempfile.gettempdir(), per_device_train_batch_size=len(x), no_cuda=True, **rates
            ),
        )
        logging.disable(logging.NOTSET)
        for name in networks.present():
            getattr(self.trainer, f"set_{name}_optimizer")()
        self.inputs = {"data": x}

    def __call__(self) -> None:
        """What its `train_step` does for a batch: the model's forward, then three backwards and three updates."""
        output = self.trainer.model.train()(self.inputs, epoch=1, dataset_size=len(self.inputs["data"]), uses_ddp=False)
        self.trainer._optimizers_step(output)


def as_pythae(networks: Networks) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Encoder, decoder and discriminator behind pythae's interfaces, unconditional."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder

    class PythaeEncoder(BaseEncoder):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Any:
            mu, log_var = self.network(x, x.new_zeros(len(x), 0))
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class PythaeDecoder(BaseDecoder):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z, z.new_zeros(len(z), 0)))

    class PythaeDiscriminator(BaseDiscriminator):
        """Stops at the layer asked for, as pythae's own discriminators do."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.depth = network, len(network.convolutions)

        def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> Any:
            if output_layer_levels is None:
                logits, _ = self.network(x, x.new_zeros(len(x), 0))
                return ModelOutput(embedding=logits.sigmoid())
            (level,) = output_layer_levels
            return ModelOutput(**{f"embedding_layer_{level}": nn.Sequential(*self.network.convolutions[:level])(x)})

    return (
        PythaeEncoder(networks.encoder),
        PythaeDecoder(networks.decoder),
        PythaeDiscriminator(networks.discriminator),
    )
