"""The recipes of the study: a YAML table of names, each a few keys changed in another one."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from cluster.errors import UserError
from cluster.storage import text_sha256
from quality_study.cases import ROOT, Case

TABLE = ROOT / "benchmarks" / "quality_recipes.yaml"
BUDGET = 25_600
"""Images seen in training, the same for every recipe that is compared in full."""
TRAINING_VERSION = 1
"""Raised when `vaegan` changes so that a recipe's model is another one: every run is then made again."""
KEYS = {"stage", "words", "reference", "config", "file", "base", "set", "sampling", "trainer"}

Trainer = Literal["vaegan", "pythae"]


@dataclass(frozen=True)
class Recipe:
    """How a generator is trained and asked for images."""

    name: str
    stage: str
    """`baseline`, `start` (what candidates change), `candidate` (alone, in the screen) or `together` (several)."""
    words: str
    """What it changes, for tables."""
    reference: str
    """Where the idea is published."""
    base: str | None
    """The recipe that it is compared with, paired by seed."""
    settings: dict[str, Any]
    """Keys of `vaegan.recipe.Recipe`, nested, as in configs/*.yaml."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """`latent`, and whatever else of the Sampler draws its images."""
    trainer: Trainer = "vaegan"

    @property
    def latent(self) -> str:
        return str(self.sampling.get("latent", "prior"))

    def for_case(self, case: Case, images: int) -> dict[str, Any]:
        """The settings of a run: with the budget of images seen, and labels where the case has them."""
        settings = copy.deepcopy(self.settings)
        settings["total_images"] = images
        settings.setdefault("model", {})["conditional"] = case.conditional
        return settings

    def training_digest(self, case: Case, images: int) -> str:
        """Equal for runs (of one seed) that train the same model, whatever they are called and how it is sampled."""
        content = [TRAINING_VERSION, self.trainer, self.for_case(case, images), case.deciding]
        return text_sha256(json.dumps(content, sort_keys=True))[:16]


def load_recipes(path: Path = TABLE) -> dict[str, Recipe]:
    """Every recipe of the table, in its order.

    Raises:
        UserError: a key that the table doesn't know, or a base that is not above.
    """
    recipes: dict[str, Recipe] = {}
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if unknown := set(entry) - KEYS:
            known = ", ".join(sorted(KEYS))
            raise UserError(f"recipe {name} in {path} has {', '.join(sorted(unknown))}: expected {known}")
        base = entry.get("base")
        if base is not None and base not in recipes:
            raise UserError(f"recipe {name} in {path} has the base {base}: expected one of the recipes above it")
        settings = _start(entry, recipes)
        for key, value in entry.get("set", {}).items():
            _put(settings, key.split("."), value)
        inherited = recipes[base].sampling if base else {}
        recipes[name] = Recipe(
            name, entry["stage"], entry.get("words", ""), entry.get("reference", ""), base,
            settings, inherited | entry.get("sampling", {}), entry.get("trainer", "vaegan"),
        )  # fmt: skip
    return recipes


def _start(entry: dict[str, Any], recipes: dict[str, Recipe]) -> dict[str, Any]:
    if "base" in entry:
        return copy.deepcopy(recipes[entry["base"]].settings)
    if "file" in entry:
        return yaml.safe_load((ROOT / entry["file"]).read_text(encoding="utf-8"))
    return copy.deepcopy(entry.get("config", {}))


def _put(settings: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        settings = settings.setdefault(part, {})
    settings[path[-1]] = value
