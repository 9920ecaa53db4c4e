"""Checkpoints of a run and exported models. Alone knows their file names; no pickle anywhere.

checkpoint_000012800/   state.safetensors   networks, decoder average, optimisers
                        state.json          how far the run had come, the config it belongs to
best_000012800/         the same, of the checkpoint that was best on the validation split
model/                  model.safetensors   encoder, decoder (averaged), discriminator, latent sources
                        model.json          what is needed to use it, and the tensors' sha256
                        card.md             what a person should know before using it
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.errors import UserError
from cluster.storage import atomic_directory, atomic_file, file_sha256, read_json, write_json
from vaegan import latents
from vaegan.latents import LatentSource
from vaegan.networks import NetworkConfig, Networks
from vaegan.optimizers import DecoderAverage, Optimizers

STATE, STATE_JSON = "state.safetensors", "state.json"
MODEL, MODEL_JSON, CARD = "model.safetensors", "model.json", "card.md"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    images_seen: int = 0
    rollbacks: int = 0
    """How often the watchdog has taken it back."""
    best_images: int = 0
    """Images seen at the best checkpoint; 0 before there is one."""
    best_value: float | None = None
    """The validation metric there."""
    stale: int = 0
    """Checkpoints since the best one."""
    begun_with: str = ""
    """The model that it began with, in a line; empty for random weights."""
    augment_probability: float = 0.0
    """Of an image to be augmented, where that is steered."""
    watchdog: dict[str, Any] = field(default_factory=dict)
    """What it remembers."""


def checkpoint_name(images_seen: int) -> str:
    """Name of the checkpoint folder after so many images."""
    return f"checkpoint_{images_seen:09d}"


def best_name(images_seen: int) -> str:
    """Name of the folder of the best checkpoint, seen after so many images."""
    return f"best_{images_seen:09d}"


def images_at(folder: Path) -> int:
    """Images seen at the checkpoint that a folder named by one of these two holds."""
    return int(folder.name.rpartition("_")[2])


def checkpoints(run_dir: Path, pattern: str = r"checkpoint_\d{9}") -> list[Path]:
    """Complete checkpoint folders of a run, oldest first."""
    found = [path for path in run_dir.glob("*") if re.fullmatch(pattern, path.name)]
    return sorted(filter(is_checkpoint, found))


def bests(run_dir: Path) -> list[Path]:
    """Folders of the best checkpoints that a run had, oldest first; the newest is the best."""
    return checkpoints(run_dir, r"best_\d{9}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint's files; says nothing of what is in them."""
    return (folder / STATE_JSON).is_file() and (folder / STATE).is_file()


def state_tensors(networks: Networks, average: DecoderAverage, optimizers: Optimizers) -> dict[str, Tensor]:
    """All that training changes, by name; not copied."""
    tensors = {f"networks.{name}": value for name, value in networks.state_dict().items()}
    if average.half_life_images:
        tensors |= {f"average.{name}": value for name, value in average.decoder.state_dict().items()}
    tensors |= {f"optimizers.{name}": value for name, value in optimizers.tensors().items()}
    return tensors


def load_state(tensors: dict[str, Tensor], networks: Networks, average: DecoderAverage, optimizers: Optimizers) -> None:
    """Take over what `state_tensors` returned, copied.

    Raises:
        RuntimeError, KeyError, ValueError, TypeError: it is of other networks or of other optimisers.
    """
    networks.load_state_dict(_below(tensors, "networks."))
    if average.half_life_images:
        average.decoder.load_state_dict(_below(tensors, "average."))
    optimizers.load(_below(tensors, "optimizers."))


def write_state(folder: Path, tensors: dict[str, Tensor], progress: Progress, config: dict[str, Any]) -> None:
    """Write a checkpoint into an existing folder; the JSON last."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / STATE)
    write_json(folder / STATE_JSON, {"format": FORMAT_VERSION, "config": config} | asdict(progress))


def read_state(folder: Path, networks: Networks, average: DecoderAverage, optimizers: Optimizers) -> Progress:
    """Restore what `write_state` wrote, in place.

    Raises:
        UserError: the folder isn't a checkpoint, is damaged, or belongs to networks of other shapes.
    """
    about = read_json(folder / STATE_JSON)
    tensors = _load(folder / STATE, "checkpoint")
    try:
        load_state(tensors, networks, average, optimizers)
        return Progress(**{name: about[name] for name in Progress.__dataclass_fields__ if name in about})
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
    """Training images per class, of those that have a label."""
    latents: tuple[str, ...]
    """Sources of z: "prior", and those that were fitted to what the encoder makes of training images."""
    images_seen: int
    num_training_images: int
    data_sha256: str
    """Of the training images' hashes, sorted."""
    chosen: str = ""
    """Which of the run's checkpoints this is, and by what."""
    num_unlabelled: int = 0
    """Training images whose labels a conditional model was not told, but inferred."""
    begun_with: str = ""
    """The model whose weights were the run's first ones, and what that had seen; empty for random weights."""
    tensors_sha256: str = ""
    privacy: dict[str, Any] = field(default_factory=dict)
    """What the last privacy audit found; empty before the first."""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.networks.kind

    @property
    def address_prefix(self) -> str:
        """First part of every address: NAME/VERSION."""
        return f"{self.name}/{self.version}"


def export_model(
    folder: Path, networks: Networks, sources: Mapping[str, LatentSource], info: ModelInfo, card: str
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        networks: with the decoder that samples come from (the average, if there is one).
        sources: of latents, by name; those beside the prior.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in networks.state_dict().items()}
    tensors |= {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in latents.tensors(sources).items()}
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


def read_model(folder: Path) -> tuple[Networks, dict[str, LatentSource], ModelInfo]:
    """A model's networks (in evaluation mode), its sources of latents beside the prior, and its description.

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
    networks = Networks(
        info.networks, size=info.size, channels=info.channels, num_classes=len(info.classes), task=info.task
    )
    of_sources = {name: tensors.pop(name).numpy() for name in latents.of_sources(tensors)}
    try:
        networks.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{folder / MODEL} doesn't fit {MODEL_JSON} ({' '.join(str(error).split())[:160]})") from None
    return networks.eval().requires_grad_(False), latents.from_tensors(of_sources), info


def read_card(folder: Path) -> str:
    """The model card, Markdown."""
    return (folder / CARD).read_text(encoding="utf-8")


def write_privacy(folder: Path, privacy: dict[str, Any], card: str) -> None:
    """Put an audit's findings into a model's description, and a card that tells them beside it."""
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    write_json(folder / MODEL_JSON, read_json(folder / MODEL_JSON) | {"privacy": privacy})


def remove_all_but(folders: list[Path], keep: int) -> None:
    """Remove all but the last `keep` of these checkpoint folders."""
    for path in folders[: -keep or None]:
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
