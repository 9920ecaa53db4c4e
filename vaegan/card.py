"""The model card: what a model is, what it saw, what must not be concluded, and what a privacy audit found."""

import re
from pathlib import Path
from typing import Any

from vaegan.checkpoint import ModelInfo, read_card, write_privacy
from vaegan.registry import renew_sums

PRIVACY = "## Privacy"
SCOPES = {"images": "Synthetic images, to give out", "model": "The model, its weights and whatever encodes with it"}
_MIXTURE = "The mixture latent source has components fitted to as few as two images where a class has no more."


def card(info: ModelInfo) -> str:
    """The model card, Markdown: what it is, what it saw, what must not be concluded."""
    labelled = f"{info.num_training_images - info.num_unlabelled} of them labelled, " if info.num_unlabelled else ""
    counts = ", ".join(f"{name} {count}" for name, count in zip(info.classes, info.class_counts, strict=True))
    return f"""# Model card: {info.name}, version {info.version}

| | |
|---|---|
| kind | {info.kind}, {info.networks.latent_dim} latent dimensions, width {info.networks.width} |
| images | {info.size}x{info.size}, {"grey" if info.channels == 1 else "colour"} |
| classes | {counts or "none: unconditional"} |
| trained on | {info.num_training_images} images, {labelled}{info.images_seen} seen in all |
| checkpoint | {info.chosen or "not recorded"} |
| begun with | {info.begun_with or "random weights"} |
| data | sha256 of the images' sorted hashes: `{info.data_sha256}` |
| latent sources | {", ".join(info.latents)} |
| git revision | {info.provenance.get("git_revision")} |

## Intended use

Synthetic images to be added to the training data of a classifier, after an ablation has shown whether that helps on
the data at hand (`python -m downstream.ablate`).
{_inferred(info)}
## Not to be used for

- Diagnosis, teaching of diagnosis, or as evidence of how a disease looks: an image shows what the networks learned of
  few films.
- Test or validation data.

{privacy_section(info.privacy)}"""


def _inferred(info: ModelInfo) -> str:
    """What to know of a model that learned from images without a label; nothing of others."""
    if not info.num_unlabelled:
        return ""
    return f"""
{info.num_unlabelled} training images had no label, or were used as if they had none. What stood for it is what the
model's own label head took them for, while it learned. How often that is right was not measured here: an image of a
class may be the worse for it, and so may latent sources, which were fitted to these labels too.
"""


def privacy_section(privacy: dict[str, Any]) -> str:
    """The card's section on privacy: what the last audit found, in words and numbers, or that there was none."""
    if not privacy:
        return f"""{PRIVACY}

**Not audited.** No test was made of whether this model repeats, wholly or in part, the films of the patients it was
trained on. Until one was made (`python -m vaegan.evaluate --model`), treat the model and its images as you treat the
training data. {_MIXTURE}
"""
    about = privacy["settings"]
    scopes = "\n".join(
        f"- {SCOPES[name]}: **{scope['verdict']}**." for name, scope in privacy["scopes"].items() if name in SCOPES
    )
    rows = "\n".join(
        f"| {check['name']} | {SCOPES[check['scope']].split(',')[0].lower()} | {_number(check['value'])} | "
        f"{_interval(check['interval'])} | {check['tolerance']:g} | {check['verdict']} |"
        for check in privacy["checks"]
    )
    missing = "" if "model" in privacy["scopes"] else f"- {SCOPES['model']}: not tested.\n"
    return f"""{PRIVACY}

Audited on {privacy["finished"]} with {about["num_synthetic"]} synthetic images ({privacy["synthetic"]}), the
{about["num_members"]} training images of {about["num_member_patients"]} patients and {about["num_held_out"]} images of
{about["num_held_out_patients"]} patients it has not seen. **Verdict: {privacy["verdict"]}.**

{scopes}
{missing}
| check | concerns | value | 95 % interval | tolerance | verdict |
|---|---|---|---|---|---|
{rows}

A pass says that these attacks, on these images, found no more than the tolerances allow; it is no proof that no attack
can. Patients differ: the report names those who stand out most. {_MIXTURE}
"""


def record_audit(model: Path, privacy: dict[str, Any]) -> None:
    """Write an audit's findings into a model's description and card, and renew a registry's sums.

    The rest of the card stays as it is, whoever wrote it; only its section on privacy is replaced.
    """
    card = read_card(model)
    before, _, after = card.partition(PRIVACY)
    following = re.search(r"^## ", after, re.MULTILINE)
    rest = after[following.start() :] if following else ""
    write_privacy(model, privacy, f"{before}{privacy_section(privacy)}{rest}")
    renew_sums(model)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _interval(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}"
