"""The privacy audit: arrays in, verdicts and their reasons out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vaegan.metrics.neighbours import nearest
from vaegan.metrics.privacy import checks
from vaegan.metrics.privacy.alignment import detail
from vaegan.metrics.privacy.copies import (
    ALIKE,
    CANDIDATES,
    SAME,
    STANDS_OUT,
    Fingerprints,
    Matches,
    find_matches,
    layouts,
)
from vaegan.metrics.privacy.gate import DEFAULT, Check, Scope, Tolerances, Verdict, judge, overall
from vaegan.metrics.privacy.membership import Population, distance_scores, most_exposed

PAIRS = 10
WORST_OFF = 10
LAYOUT = "layout"
"""Features that need no network: what an attacker would compare first, and what blurry copies keep."""
ALIGNED = "aligned detail"
"""Nearest by `alignment`: sees copies too blurred or turned to be called so one by one."""

SetName = Literal["synthetic", "members", "held_out"]
PixelsOf = Callable[[SetName, np.ndarray], np.ndarray]
"""A set and row numbers (n,) to the images there, uint8 (n, H, W, C)."""


@dataclass(frozen=True)
class FeatureSets:
    """What one extractor says of the three sets."""

    synthetic: np.ndarray
    """(M, D)."""
    members: np.ndarray
    """(N, D)."""
    held_out: np.ndarray
    """(H, D)."""
    synthetic_mirrored: np.ndarray | None = None
    """(M, D): of the synthetic images with left and right exchanged; finds mirrored copies the other searches miss."""

    @property
    def real(self) -> np.ndarray:
        """(N + H, D): members, then held-out."""
        return np.concatenate([self.members, self.held_out])


@dataclass(frozen=True)
class RealSet:
    """Who is in a set of real images."""

    patients: np.ndarray
    """(N,) ids of any kind."""
    labels: np.ndarray
    """(N, K) multi-hot, K may be 0."""
    fingerprints: Fingerprints


def audit(
    *,
    synthetic: Fingerprints,
    members: RealSet,
    held_out: RealSet,
    features: Mapping[str, FeatureSets],
    pixels_of: PixelsOf,
    classes: Sequence[str] = (),
    model_scores: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    tolerances: Tolerances = DEFAULT,
    seed: int = 0,
) -> dict[str, Any]:
    """Every test of this package and their verdicts, ready for JSON. The same input and seed give the same output.

    Args:
        synthetic: of the generated images.
        members, held_out: real images the generator was and was not trained on; no patient may be in both. held_out may
            be empty: then copies are looked for and nothing else can be said.
        features: extractor's name to features, rows as in the three sets; the first extractor's distances are shown
            with the suspicious pairs. `LAYOUT` is always added.
        pixels_of: called for the images that have to be compared.
        classes: K names.
        model_scores: name of a white-box attack to its scores of members (N,) and held-out images (H,), higher for
            likelier members (`vaegan.attacks`); without them there is no scope "model".

    Raises:
        ValueError: a patient in both real sets, or arrays whose lengths don't fit.
    """
    population = _population(members, held_out)
    features = {**features, LAYOUT: _layout_features(synthetic, members, held_out)}
    _check_lengths(synthetic, members, held_out, features, model_scores or {})
    neighbours = {name: nearest(sets.synthetic, sets.real, CANDIDATES).rows for name, sets in features.items()}
    matches = _matches(synthetic, members, held_out, population, features, neighbours, pixels_of)
    found = [checks.check_copies(matches, population, tolerances, seed)]
    attacks: dict[str, np.ndarray] = {}

    too_few = checks.enough(population, len(synthetic))
    assumptions = {} if too_few else _assumptions(features, population, tolerances, seed)
    broken = [name for name, value in assumptions.items() if not value["holds"]]
    if not too_few:
        found.append(checks.check_share(matches.rows, population, ALIGNED, tolerances, seed))
        for name, sets in features.items():
            found.append(checks.check_share(neighbours[name][:, 0], population, name, tolerances, seed))
            found.append(checks.check_ratio(sets.synthetic, sets.real, population, name, tolerances, seed))
            for attack, scores in distance_scores(sets.real, population.patients, sets.synthetic).items():
                attacks[f"{attack}, {name}"] = scores
                found += checks.check_attack(f"{attack}, {name}", scores, population, classes, "images", tolerances)
        for name, (of_members, of_held_out) in (model_scores or {}).items():
            attacks[name] = np.concatenate([of_members, of_held_out]).astype(np.float64)
            found += checks.check_attack(name, attacks[name], population, classes, "model", tolerances)
    else:
        found += _cannot_say(too_few, tolerances, model_scores or {})
    if broken:
        reason = (
            "training and held-out images can be told apart without the generator "
            f"({', '.join(broken)}), so this says nothing about it"
        )
        found = [check if check.name == "copies" else checks.unknown(check, reason) for check in found]

    scopes = {
        scope: {"verdict": str(overall(part)), "checks": [check.name for check in part]}
        for scope in ("images", "model")
        if (part := [check for check in found if check.scope == scope])
    }
    return {
        "verdict": str(overall(found)),
        "scopes": scopes,
        "checks": [check.as_dict() for check in found],
        "suspicious_pairs": _suspicious_pairs(matches, population, len(members.patients), features),
        "worst_off": _worst_off(attacks, population, members, classes),
        "assumptions": {"too_few": too_few, "told_apart_without_generator": assumptions},
        "settings": {
            "tolerances": asdict(tolerances),
            "copies": {"same": SAME, "stands_out": STANDS_OUT, "alike": ALIKE, "candidates": CANDIDATES},
            "seed": seed,
            "num_synthetic": len(synthetic),
            "num_members": len(members.patients),
            "num_held_out": len(held_out.patients),
            "num_member_patients": population.num_patients[0],
            "num_held_out_patients": population.num_patients[1],
            "extractors": list(features),
        },
    }


def _population(members: RealSet, held_out: RealSet) -> Population:
    ids = np.concatenate([members.patients.astype(str), held_out.patients.astype(str)])
    _, numbers = np.unique(ids, return_inverse=True)
    is_member = np.arange(len(ids)) < len(members.patients)
    both = np.intersect1d(numbers[is_member], numbers[~is_member])
    if len(both):
        raise ValueError(
            f"{len(both)} patients are both among the members and held out: membership tests compare patients, so "
            "split the images by patient"
        )
    return Population(is_member, numbers.astype(np.int64), np.concatenate([members.labels, held_out.labels]))


def _layout_features(synthetic: Fingerprints, members: RealSet, held_out: RealSet) -> FeatureSets:
    of_synthetic, of_members, of_held_out = (
        layouts(each.thumbnails) for each in (synthetic, members.fingerprints, held_out.fingerprints)
    )
    return FeatureSets(of_synthetic, of_members, of_held_out)


def _check_lengths(
    synthetic: Fingerprints,
    members: RealSet,
    held_out: RealSet,
    features: Mapping[str, FeatureSets],
    model_scores: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    if not len(synthetic) or not len(members.patients):
        raise ValueError(f"{len(synthetic)} synthetic images and {len(members.patients)} members: expected one or more")
    expected = len(synthetic), len(members.patients), len(held_out.patients)
    for name, sets in features.items():
        if (len(sets.synthetic), len(sets.members), len(sets.held_out)) != expected:
            raise ValueError(f"features of {name}: expected {expected} rows of synthetic, member and held-out images")
    for real in (members, held_out):
        if not len(real.patients) == len(real.labels) == len(real.fingerprints):
            raise ValueError("patients, labels and fingerprints of a real set differ in length")
    for name, scores in model_scores.items():
        if (len(scores[0]), len(scores[1])) != expected[1:]:
            raise ValueError(
                f"scores of {name}: expected {expected[1]} of members and {expected[2]} of held-out images"
            )


def _matches(
    synthetic: Fingerprints,
    members: RealSet,
    held_out: RealSet,
    population: Population,
    features: Mapping[str, FeatureSets],
    neighbours: Mapping[str, np.ndarray],
    pixels_of: PixelsOf,
) -> Matches:
    """Args: neighbours: by extractor, rows (M, CANDIDATES) of the real images nearest to each synthetic one."""
    num_members = len(members.patients)

    def details_of_real(rows: np.ndarray) -> np.ndarray:
        """`rows` ascend, so members come first."""
        parts = [("members", rows[rows < num_members]), ("held_out", rows[rows >= num_members] - num_members)]
        return np.concatenate([detail(pixels_of(name, part)) for name, part in parts if len(part)])  # type: ignore[arg-type]

    candidates = {name: rows for name, rows in neighbours.items() if name != LAYOUT}  # that search looks at parts too
    for name, sets in features.items():
        if sets.synthetic_mirrored is not None:
            mirrored = nearest(sets.synthetic_mirrored, sets.real, CANDIDATES).rows
            candidates[name] = np.concatenate([candidates[name], mirrored], axis=1)
    return find_matches(
        synthetic,
        Fingerprints.concatenate([members.fingerprints, held_out.fingerprints]),
        population.patients,
        lambda rows: detail(pixels_of("synthetic", rows)),
        details_of_real,
        candidates,
    )


def _assumptions(
    features: Mapping[str, FeatureSets], population: Population, tolerances: Tolerances, seed: int
) -> dict[str, dict[str, Any]]:
    """By extractor, whether members and held-out images look like one population."""
    result = {}
    for name, sets in features.items():
        found = checks.distinguishable(sets.real, population, seed)
        verdict = judge(found.interval, tolerances.auc)
        result[name] = {
            "auc": found.value,
            "interval": list(found.interval),
            "tolerance": tolerances.auc,
            "holds": verdict != Verdict.FAIL,
        }
    return result


def _cannot_say(reason: str, tolerances: Tolerances, model_scores: Mapping[str, object]) -> list[Check]:
    """One check a scope that says why it says nothing."""
    scopes: tuple[tuple[Scope, bool], ...] = (("images", True), ("model", bool(model_scores)))
    return [
        Check(
            name=f"members against held-out patients, {scope}",
            scope=scope,
            value=None,
            interval=None,
            tolerance=tolerances.auc,
            verdict=Verdict.UNKNOWN,
            sentence=f"Members can't be compared with other patients: {reason}.",
        )
        for scope, present in scopes
        if present
    ]


def _suspicious_pairs(
    matches: Matches, population: Population, num_members: int, features: Mapping[str, FeatureSets]
) -> list[dict[str, Any]]:
    """The pairs most like copies, each real image once, worst first."""
    correlation = matches.alignment.correlation.astype(np.float64)
    likeness = np.arctanh(np.clip(correlation, -0.9999, 0.9999)) / np.arctanh(SAME)
    standing_out = np.where(correlation >= ALIKE, matches.gap / STANDS_OUT, 0)
    suspicion = np.where(matches.same_pixels, np.inf, np.maximum(likeness, standing_out))
    order = np.argsort(-suspicion, kind="stable")
    _, first = np.unique(matches.rows[order], return_index=True)
    worst = order[np.sort(first)][:PAIRS]
    quantiles = _distance_quantiles(next(iter(features.values())), population, matches.rows[worst], worst)
    return [
        {
            "synthetic_row": int(i),
            "set": "members" if population.is_member[row] else "held_out",
            "real_row": int(row if population.is_member[row] else row - num_members),
            "copy": bool(matches.copied[i]),
            "why": _why(matches, i),
            "correlation": float(correlation[i]),
            "next_patient_correlation": float(matches.rival[i]),
            "mirrored": bool(matches.alignment.mirrored[i]),
            "zoom": float(matches.alignment.zoom[i]),
            "hash_distance": int(matches.hash_distance[i]),
            "feature_distance_quantile": quantile,
        }
        for i, row, quantile in zip(worst, matches.rows[worst], quantiles, strict=True)
    ]


def _why(matches: Matches, i: int) -> str:
    if matches.same_pixels[i]:
        return "the same pixels"
    correlation, rival = float(matches.alignment.correlation[i]), float(matches.rival[i])
    how = (" mirrored" if matches.alignment.mirrored[i] else "") + (
        f" at {matches.alignment.zoom[i]:.2f} times the size" if abs(matches.alignment.zoom[i] - 1) > 0.01 else ""
    )
    words = f"the detail correlates at {correlation:.2f}{',' + how if how else ''}"
    if rival > -1:
        words += f"; that of the next most similar patient at {rival:.2f}"
    return words


def _distance_quantiles(
    sets: FeatureSets, population: Population, real_rows: np.ndarray, synthetic_rows: np.ndarray
) -> list[float]:
    """Share of real images whose nearest image of another patient is nearer than each pair is to each other."""
    real = sets.real
    typical = nearest(real, real, groups_x=population.patients, groups_y=population.patients).distances[:, 0]
    pairs = np.linalg.norm(real[real_rows].astype(np.float64) - sets.synthetic[synthetic_rows], axis=1)
    return [float((typical < distance).mean()) for distance in pairs]


def _worst_off(
    attacks: Mapping[str, np.ndarray], population: Population, members: RealSet, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The member patients that stand out most under any attack, worst first, each with the attack that shows it."""
    worst: dict[int, dict[str, Any]] = {}
    for name, scores in attacks.items():
        for found in most_exposed(scores, population, WORST_OFF):
            if found.patient not in worst or worst[found.patient]["excess"] < found.excess:
                labels = members.labels[found.row]
                worst[found.patient] = {
                    "patient": str(members.patients[found.row]),
                    "member_row": found.row,
                    "classes": [name for name, on in zip(classes, labels, strict=False) if on],
                    "attack": name,
                    "score": found.score,
                    "excess": found.excess,
                    "held_out_patients_as_high": found.passed_by,
                }
    return sorted(worst.values(), key=lambda entry: -entry["excess"])[:WORST_OFF]
