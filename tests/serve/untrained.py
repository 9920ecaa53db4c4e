"""Models whose weights were only initialised: they sample at once and by address, as trained ones do."""

from pathlib import Path

import numpy as np
import torch

from vaegan.checkpoint import ModelInfo, export_model
from vaegan.latents import Mixture, PerClass
from vaegan.networks import NetworkConfig, Networks
from vaegan.registry import publish


def publish_untrained(
    registry: Path, address: str, classes: tuple[str, ...], task: str = "multiclass", seed: int = 0
) -> None:
    """Publish a model of 32-pixel images whose weights were only initialised."""
    torch.manual_seed(seed)
    config = NetworkConfig(width=4, latent_dim=8, hidden=16, conditional=bool(classes))
    networks = Networks(config, size=32, channels=1, num_classes=len(classes))
    rng = np.random.default_rng(seed)
    mixture = Mixture.fit(rng.normal(size=(60, 8)), seed=0)
    name, version = address.split("/")
    info = ModelInfo(
        name=name, version=version, networks=config, size=32, channels=1, task=task, classes=classes,
        class_counts=(10,) * len(classes), latents=("prior", "mixture"), images_seen=0, num_training_images=60,
        data_sha256="0" * 64, provenance={"command": "train --data /home/somebody/films", "seed": seed},
    )  # fmt: skip
    folder = registry.parent / f"exported-{name}-{version}"
    export_model(
        folder, networks, {"mixture": PerClass({-1: mixture})}, info, card=f"# {address}\n\nSynthetic images only.\n"
    )
    publish(folder, registry, address)
