"""The privacy audit of an evaluation: its sets, features and model to what `vaegan.metrics.privacy` judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.errors import UserError
from vaegan.attacks import attack_scores
from vaegan.checkpoint import ModelInfo
from vaegan.evaluation.measure import Sets
from vaegan.export import hashes_sha256
from vaegan.metrics.cache import FeatureCache
from vaegan.metrics.extraction import map_blocks, progress_bar
from vaegan.metrics.extractor import Extractor, Features
from vaegan.metrics.intervals import draw_rows
from vaegan.metrics.privacy.audit import FeatureSets, RealSet, audit
from vaegan.metrics.privacy.copies import Fingerprints
from vaegan.metrics.sources import ImageSource
from vaegan.sampler import Sampler
from vaegan.shards import Images

FINGERPRINTS = "fingerprints 1"
"""What they are cached under: the number rises when they change."""

MAX_SYNTHETIC = 20_000
"""Images looked at: laying one onto its candidates takes 14 ms, and so many without a copy leave less than .015 %."""

Scores = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name of an attack on the model to its scores of members and of held-out images."""


@dataclass(frozen=True)
class Audit:
    """What an audit needs besides features; made first, so that what forbids it is told before the work."""

    sets: Sets
    """`real` are the images the generator was trained on."""
    prints: Mapping[str, Fingerprints]
    """By set."""
    patients: Mapping[str, np.ndarray]
    """By set, str (N,); an image without a patient is one of its own."""
    rows: np.ndarray
    """Of the synthetic images that are looked at: all, or as many as are enough, drawn."""
    sampler: Sampler | None
    """Of the model whose images they are: it is attacked too. Without it there is no scope "model"."""

    @classmethod
    def prepare(cls, sets: Sets, sampler: Sampler | None = None, cache: FeatureCache | None = None) -> Audit:
        """Fingerprints of all images, and a look at what could make the audit meaningless.

        Raises:
            UserError: the real images are not those the model was trained on, or share a patient with the held-out.
        """
        patients = {name: _patients(name, source) for name, source in sets.all.items()}
        shared = np.intersect1d(patients["real"], patients.get("held_out", np.empty(0, str)))
        if len(shared):
            raise UserError(
                f"{len(shared)} patients are in {sets.real.name} and held out too: the privacy gate compares patients "
                "the generator has seen with others; split by patient (vaegan.prepare does), or --skip-privacy"
            )
        prints = {name: fingerprints(source, cache) for name, source in sets.all.items()}
        if sampler is not None:
            _check_members(sampler.info, prints["real"], sets.real)
        rows = draw_rows(len(sets.synthetic), MAX_SYNTHETIC, np.random.default_rng(0))
        return cls(sets, prints, patients, rows, sampler)

    def run(self, features: Sequence[tuple[Extractor, Mapping[str, Features]]], seed: int = 0) -> dict[str, Any]:
        """The content of metrics.json's `privacy`, with image ids beside row numbers.

        Args:
            features: of extractors; one that was trained on the real images is left out, since it can tell them from
                others by itself.
        """
        sets = self.sets
        pictures = {"synthetic": sets.synthetic, "members": sets.real, "held_out": sets.held_out or sets.real}
        result = audit(
            synthetic=self.prints["synthetic"].take(self.rows),
            members=RealSet(self.patients["real"], sets.real.labels, self.prints["real"]),
            held_out=self._held_out(),
            features={e.name: self._features(found) for e, found in features if not e.trained_on_reference},
            pixels_of=lambda name, rows: pictures[name].pixels(self.rows[rows] if name == "synthetic" else rows),
            classes=sets.real.classes,
            model_scores=None if self.sampler is None else model_scores(self.sampler, sets),
            seed=seed,
        )
        for pair in result["suspicious_pairs"]:
            pair["synthetic_row"] = int(self.rows[pair["synthetic_row"]])
            pair["synthetic_id"] = str(sets.synthetic.image_id[pair["synthetic_row"]])
            pair["real_id"] = str(pictures[pair["set"]].image_id[pair["real_row"]])
        for patient in result["worst_off"]:
            patient["image_id"] = str(sets.real.image_id[patient["member_row"]])
        for name, scope in result["scopes"].items():
            scope["sentence"] = _scope_sentence([check for check in result["checks"] if check["scope"] == name], scope)
        return result

    def _features(self, found: Mapping[str, Features]) -> FeatureSets:
        members = found["real"].features
        held_out = found["held_out"].features if "held_out" in found else members[:0]
        return FeatureSets(synthetic=found["synthetic"].features[self.rows], members=members, held_out=held_out)

    def _held_out(self) -> RealSet:
        held_out = self.sets.held_out
        if held_out is None:
            return RealSet(np.empty(0, str), self.sets.real.labels[:0], self.prints["real"].take(np.empty(0, int)))
        labels = _labels_over(self.sets.real.classes, held_out)
        return RealSet(self.patients["held_out"], labels, self.prints["held_out"])


def model_scores(sampler: Sampler, sets: Sets) -> Scores | None:
    """What the model's own networks say of members and held-out images; None without held-out ones."""
    if sets.held_out is None:
        return None
    members, held_out = (attack_scores(sampler, _of_model(source, sampler)) for source in (sets.real, sets.held_out))
    return {name: (members[name], held_out[name]) for name in members}


def for_card(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's description keeps of metrics.json: verdicts, checks and settings, nobody's image."""
    audit = result["privacy"]
    kept = {name: audit[name] for name in ("verdict", "scopes", "assumptions", "settings")}
    checks = [{name: value for name, value in check.items() if name != "detail"} for check in audit["checks"]]
    about = {"synthetic": result["sets"]["synthetic"]["name"], "finished": result["provenance"]["finished"][:10]}
    return kept | {"checks": checks} | about


def fingerprints(source: ImageSource, cache: FeatureCache | None = None) -> Fingerprints:
    """What finds copies of a source's images."""
    with progress_bar(f"fingerprints, {source.name}") as bar:
        arrays = map_blocks(
            source, FINGERPRINTS, lambda pixels: Fingerprints.of(pixels).arrays(), cache=cache, progress=bar
        )
    return Fingerprints(**arrays)


def _scope_sentence(checks: Sequence[Mapping[str, Any]], scope: Mapping[str, Any]) -> str:
    """The first reason for a verdict, and how many more there are."""
    if scope["verdict"] == "pass":
        unsaid = sum(check["verdict"] != "pass" for check in checks)
        others = f"; {unsaid} can't tell, and are not needed for it" if unsaid else ""
        return f"{len(checks) - unsaid} of {len(checks)} checks find no more than is tolerated{others}."
    reasons = [f"{check['name'][:1].upper()}{check['name'][1:]}: {check['sentence']}" for check in checks
               if check["verdict"] == scope["verdict"]]  # fmt: skip
    more = len(reasons) - 1
    return reasons[0] + (f" {more} more {'check says' if more == 1 else 'checks say'} so." if more else "")


def _check_members(model: ModelInfo, prints: Fingerprints, real: ImageSource) -> None:
    """Refuse images that the model was not trained on: as "members" they would make any model look safe."""
    found = hashes_sha256(bytes(digits).decode() for digits in prints.pixel_hashes)
    if found != model.data_sha256:
        raise UserError(
            f"model {model.address_prefix} was trained on other images than {real.name} (on "
            f"{model.num_training_images}, data {model.data_sha256[:12]}; these are {len(real)}, {found[:12]}): the "
            "privacy gate needs those it has seen; give its training dataset as --real, or --skip-privacy"
        )


def _patients(name: str, source: ImageSource) -> np.ndarray:
    """Ids, str (N,); an image without a patient is one of its own."""
    return np.array([str(patient) or f"\0{name} {row}" for row, patient in enumerate(source.patient_id)], dtype=str)


def _of_model(source: ImageSource, sampler: Sampler) -> Images:
    """A source's images with labels over the model's classes; where they have none, what its label head says.

    Raises:
        UserError: it has no label head, which a conditional model then needs.
    """
    images = replace(source.images(np.arange(len(source))), labels=_labels_over(sampler.info.classes, source))
    missing = np.flatnonzero(~images.has_label)
    if len(missing) and sampler.info.classes:
        if not sampler.info.networks.label_head:
            raise UserError(
                f"{len(missing)} images of {source.name} have no label, and model {sampler.info.address_prefix} needs "
                "one for each to say how well it knows them: give labelled images, or --skip-privacy"
            )
        images.labels[missing] = sampler.predicted_labels(images.pixels[missing])
    return images


def _labels_over(classes: Sequence[str], source: ImageSource) -> np.ndarray:
    """A source's labels (N, K) over given classes, matched by name; a class it doesn't know is off."""
    labels = np.zeros((len(source), len(classes)), np.uint8)
    for column, name in enumerate(classes):
        if name in source.classes:
            labels[:, column] = source.labels[:, source.classes.index(name)]
    return labels
