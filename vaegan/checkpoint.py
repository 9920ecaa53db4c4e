"""Checkpoints of a run and exported models. Alone knows their file names; no pickle anywhere.

checkpoint_000012800/   state.safetensors   networks, decoder average, optimisers
                        state.json          images seen, the config it belongs to
model/                  model.safetensors   encoder, decoder (averaged), discriminator, mixtures
                        model.json          what is needed to use it, and the tensors' sha256
                        card.md             what a person should know before using it
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.errors import UserError
from cluster.storage import atomic_directory, file_sha256, read_json, write_json
from vaegan.latents import Mixture
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import DecoderAverage, Optimizers

STATE, STATE_JSON = "state.safetensors", "state.json"
MODEL, MODEL_JSON, CARD = "model.safetensors", "model.json", "card.md"
FORMAT_VERSION = 1


def checkpoint_name(images_seen: int) -> str:
    """Name of the checkpoint folder after so many images."""
    return f"checkpoint_{images_seen:09d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoint folders of a run, oldest first."""
    found = [path for path in run_dir.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d{9}", path.name)]
    return sorted(filter(is_checkpoint, found))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint's files; says nothing of what is in them."""
    return (folder / STATE_JSON).is_file() and (folder / STATE).is_file()


def write_state(
    folder: Path,
    networks: Networks,
    average: DecoderAverage,
    optimizers: Optimizers,
    *,
    images_seen: int,
    config: dict[str, Any],
) -> None:
    """Write all of a run's state into an existing folder; the JSON last."""
    tensors = {f"networks.{name}": value for name, value in networks.state_dict().items()}
    if average.half_life_images:
        tensors |= {f"average.{name}": value for name, value in average.decoder.state_dict().items()}
    tensors |= {f"optimizers.{name}": value for name, value in optimizers.tensors().items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / STATE)
    write_json(folder / STATE_JSON, {"format": FORMAT_VERSION, "images_seen": images_seen, "config": config})


def read_state(folder: Path, networks: Networks, average: DecoderAverage, optimizers: Optimizers) -> int:
    """Restore what `write_state` wrote, in place; returns the images seen.

    Raises:
        UserError: the folder isn't a checkpoint, is damaged, or belongs to networks of other shapes.
    """
    about = read_json(folder / STATE_JSON)
    tensors = _load(folder / STATE, "checkpoint")
    try:
        networks.load_state_dict(_below(tensors, "networks."))
        if average.half_life_images:
            average.decoder.load_state_dict(_below(tensors, "average."))
        optimizers.load(_below(tensors, "optimizers."))
        return int(about["images_seen"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder} doesn't fit this run's networks ({' '.join(str(error).split())[:160]}): "
            "resume with the config it was written with, or choose another --run-dir"
        ) from None


@dataclass(frozen=True)
class ModelInfo:
    """What model.json says of a model."""

    name: str
    version: str
    networks: NetworkConfig
    size: int
    channels: int
    task: str
    classes: tuple[str, ...]
    """The dataset's classes if the model is conditional, else none."""
    class_counts: tuple[int, ...]
    """Training images per class."""
    latents: tuple[str, ...]
    """Sources of z: "prior", and "mixture" where an encoder made one."""
    images_seen: int
    num_training_images: int
    data_sha256: str
    """Of the training images' hashes, sorted."""
    tensors_sha256: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.networks.kind

    @property
    def address_prefix(self) -> str:
        """First part of every address: NAME/VERSION."""
        return f"{self.name}/{self.version}"


def export_model(folder: Path, networks: Networks, mixtures: dict[int, Mixture], info: ModelInfo, card: str) -> None:
    """Write a model folder, whole or not at all.

    Args:
        networks: with the decoder that samples come from (the average, if there is one).
        mixtures: per class index; -1 is all images together.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in networks.state_dict().items()}
    for number, mixture in mixtures.items():
        for part in ("weights", "means", "stds"):
            tensors[f"mixture.{number}.{part}"] = torch.from_numpy(np.ascontiguousarray(getattr(mixture, part)))
    with atomic_directory(folder) as temporary:
        save_file(tensors, temporary / MODEL)
        content = asdict(info) | {"tensors_sha256": file_sha256(temporary / MODEL)}
        write_json(temporary / MODEL_JSON, {"format": FORMAT_VERSION} | content)
        (temporary / CARD).write_text(card, encoding="utf-8")


def is_model(folder: Path) -> bool:
    """Whether a folder has a model's files; says nothing of what is in them."""
    return (folder / MODEL_JSON).is_file() and (folder / MODEL).is_file()


def read_info(folder: Path) -> ModelInfo:
    """What model.json says.

    Raises:
        UserError: the folder isn't a model's.
    """
    if not is_model(folder):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "no such folder"
        raise UserError(
            f"{folder} isn't a model: expected {MODEL_JSON} and {MODEL}, found {found or 'an empty folder'}; "
            "give a run's model folder, such as runs/NAME/model"
        )
    content = read_json(folder / MODEL_JSON)
    try:
        if content.pop("format") != FORMAT_VERSION:
            raise UserError(
                f"{folder / MODEL_JSON} has another format version: expected {FORMAT_VERSION}; export it again"
            )
        networks = NetworkConfig(**content.pop("networks"))
        sequences = {name: tuple(content[name]) for name in ("classes", "class_counts", "latents")}
        return ModelInfo(networks=networks, **(content | sequences))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MODEL_JSON} isn't a model's description ({error}): export the model again"
        ) from None


def read_model(folder: Path) -> tuple[Networks, dict[int, Mixture], ModelInfo]:
    """A model's networks (in evaluation mode), its mixtures per class index and its description.

    Raises:
        UserError: the folder isn't a model's, or its tensors are damaged or not those that model.json names.
    """
    info = read_info(folder)
    if file_sha256(folder / MODEL) != info.tensors_sha256:
        raise UserError(
            f"{folder / MODEL} isn't the file that {MODEL_JSON} describes (its sha256 differs): "
            "it was changed or cut short; copy or export the model again"
        )
    tensors = _load(folder / MODEL, "model")
    networks = Networks(info.networks, size=info.size, channels=info.channels, num_classes=len(info.classes))
    parts = _below(tensors, "mixture.")
    numbers = sorted({int(name.split(".")[0]) for name in parts})
    mixtures = {n: Mixture(*(parts[f"{n}.{part}"].numpy() for part in ("weights", "means", "stds"))) for n in numbers}
    try:
        networks.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("mixture.")})
    except RuntimeError as error:
        raise UserError(f"{folder / MODEL} doesn't fit {MODEL_JSON} ({' '.join(str(error).split())[:160]})") from None
    return networks.eval().requires_grad_(False), mixtures, info


def read_card(folder: Path) -> str:
    """The model card, Markdown."""
    return (folder / CARD).read_text(encoding="utf-8")


def remove_checkpoints(run_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run."""
    for path in checkpoints(run_dir)[: -keep or None]:
        shutil.rmtree(path)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load(path: Path, what: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} isn't a {what}: expected {path.name} in it") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"{path} can't be read as safetensors ({error}): it is damaged or not a {what}") from None
