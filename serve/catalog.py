"""The models of a registry, loaded: what a replica answers from. Fixed after start."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.storage import read_json
from serve.problems import Problem, listed, shown
from vaegan.checkpoint import MODEL_JSON, ModelInfo, read_card
from vaegan.registry import ModelEntry, Registry
from vaegan.sampler import Sampler

logger = logging.getLogger("ray.serve")  # Ray Serve writes this one to a replica's log

UNCONDITIONAL = "none"


@dataclass(frozen=True)
class LoadedModel:
    """One version of one model, ready to sample."""

    sampler: Sampler
    document: dict[str, Any]
    """The content of its model.json."""
    card: str

    @classmethod
    def load(cls, registry: Registry, entry: ModelEntry, device: str) -> "LoadedModel":
        """Raises UserError or OSError where the model's folder is damaged."""
        registry.verify(entry)
        sampler = Sampler.from_model(entry.path, device)
        found = sampler.info.address_prefix
        if found != f"{entry.name}/{entry.version}":  # its images would carry an address that leads elsewhere
            raise UserError(f"{entry.path} holds {found}, expected the name of its folders; publish it again")
        return cls(sampler, read_json(entry.path / MODEL_JSON), read_card(entry.path))

    @property
    def info(self) -> ModelInfo:
        return self.sampler.info

    @property
    def id(self) -> str:
        """NAME/VERSION."""
        return self.info.address_prefix

    def parse_classes(self, text: str) -> tuple[str, ...]:
        """The classes of an address: names joined by +, or "none". Names of this model that hold a + are understood."""
        if text == UNCONDITIONAL and text not in self.info.classes:
            return ()
        return _match_names(text, self.info.classes) or tuple(text.split("+"))

    def labels(self, names: Sequence[str], status: int) -> np.ndarray:
        """Multi-hot uint8 (K,) of class names.

        Raises:
            Problem: `status`, for a name that isn't a class of this model, or several where one is meant.
        """
        unknown = [name for name in names if name not in self.info.classes]
        if unknown:
            have = f"expected {listed(self.info.classes)}" if self.info.classes else "which has none; name no class"
            raise Problem(status, f"{shown(unknown[0])} is not a class of model {self.id}, {have}")
        try:
            return self.sampler.labels_of(names)[0]
        except UserError as error:
            raise Problem(status, str(error)) from None


def _match_names(text: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """`names` that `text` joins by +, each at most once; None where it doesn't."""
    if text in names:
        return (text,)
    for name in names:
        if text.startswith(f"{name}+"):
            rest = _match_names(text[len(name) + 1 :], [other for other in names if other != name])
            if rest is not None:
                return (name, *rest)
    return None


@dataclass(frozen=True)
class Catalog:
    """Every version in a registry: those that loaded, and NAME, VERSION of those that did not."""

    models: tuple[LoadedModel, ...]
    unavailable: tuple[tuple[str, str], ...] = ()
    latest: dict[str, LoadedModel] = field(default_factory=dict)
    """By name, the version that a request without one gets: the newest that loaded."""

    @classmethod
    def load(cls, root: Path, device: str = "cpu") -> "Catalog":
        """Load all models of a registry; one that can't be loaded is noted and does not stop the others."""
        registry = Registry(root)
        models, unavailable = [], []
        for entry in registry.models():
            try:
                models.append(LoadedModel.load(registry, entry, device))
            except Exception as error:  # whatever is wrong with one folder, the other models still answer
                logger.error("model %s/%s is unavailable: %s", entry.name, entry.version, error)
                unavailable.append((entry.name, entry.version))
        # The registry lists versions oldest first, so the last that loaded stays.
        return cls(tuple(models), tuple(unavailable), {model.info.name: model for model in models})

    def get(self, name: str, version: str | None, status: int = 404) -> LoadedModel:
        """One model; its latest version where `version` is None.

        Raises:
            Problem: `status` where there is no such model or version, 503 where it could not be loaded.
        """
        if version is None and name in self.latest:
            return self.latest[name]
        for model in self.models:
            if (model.info.name, model.info.version) == (name, version):
                return model
        broken = [v for n, v in self.unavailable if n == name and version in (None, v)]
        if broken:
            raise Problem(503, f"model {name}/{broken[-1]} could not be loaded; ask the operator of this service")
        versions = [model.info.version for model in self.models if model.info.name == name]
        if versions:
            raise Problem(status, f"no version {shown(version)} of model {name}, expected {listed(versions)}")
        raise Problem(status, f"no model {shown(name)}, expected {listed(list(self.latest))}")
