"""The privacy gate: which models may answer, by what their last audit found, or by an operator's written word.

`images` is what a client can learn from synthetic images, `model` what from the answers of its networks about images of
the client's own (encode, reconstruct, anomaly). An audit judges both (`vaegan.evaluate`).
"""

import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from serve.problems import Problem

IMAGES, MODEL = "images", "model"
PASS, FAIL, NOT_AUDITED = "pass", "fail", "not audited"
MIN_REASON = 20
MEANING = {
    IMAGES: "its images give patients of its training data away",
    MODEL: "what its networks say of an image tells whether that image was in its training data",
}
FIELDS = {"model": str, "scope": str, "reason": str, "by": str, "date": datetime.date}


@dataclass(frozen=True)
class Override:
    """An operator answers for serving a model in spite of its audit."""

    reason: str
    by: str
    date: datetime.date

    def __str__(self) -> str:
        return f"{self.reason} ({self.by}, {self.date})"


@dataclass(frozen=True)
class Verdict:
    """What stands between a model and a client."""

    verdict: str
    """pass, fail, "too little data to say", or not audited."""
    override: Override | None
    refused: str
    """Why it is refused, as a sentence; empty where it isn't."""

    def __str__(self) -> str:
        return self.verdict + ("; overridden" if self.override else "")


@dataclass(frozen=True)
class Gate:
    """The rule of one service.

    overrides: by model (NAME/VERSION) and scope. require_audit: whether only what passed an audit is served.
    """

    overrides: Mapping[tuple[str, str], Override] = field(default_factory=dict)
    require_audit: bool = False

    def judge(self, model_id: str, privacy: Mapping[str, Any], scope: str) -> Verdict:
        """What the rule says of a model whose model.json holds `privacy`."""
        found = privacy.get("scopes", {}).get(scope, {}).get("verdict", NOT_AUDITED)
        override = self.overrides.get((model_id, scope))
        refused = ""
        if override is None and (found == FAIL or (self.require_audit and found != PASS)):
            reason = f"failed its privacy audit: {MEANING[scope]}" if found == FAIL else f"passed no audit ({found})"
            refused = f"model {model_id} {reason}; its operator can answer for it in writing (gate_overrides)"
        return Verdict(found, override, refused)

    def check(self, model_id: str, privacy: Mapping[str, Any], scope: str) -> Verdict:
        """As `judge`.

        Raises:
            Problem: 403 where the model is refused.
        """
        found = self.judge(model_id, privacy, scope)
        if found.refused:
            raise Problem(403, found.refused, reason="gate")
        return found


def read_overrides(path: Path) -> dict[tuple[str, str], Override]:
    """The overrides in a TOML file of [[override]] tables: model, scope, reason, by, date.

    Raises:
        UserError: no such file, not TOML, or an override that doesn't say what, why, who and when.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"gate_overrides={path}: {error.strerror}; expected a TOML file of [[override]]") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"gate_overrides={path} isn't TOML ({error}); see docs/service.md for an example") from None
    tables = content.get("override")
    if set(content) != {"override"} or not isinstance(tables, list):
        raise UserError(f"{path} holds {', '.join(content) or 'nothing'}, expected [[override]] tables only")
    found: dict[tuple[str, str], Override] = {}
    for number, table in enumerate(tables, start=1):
        where = f"override {number} of {path}"
        if set(table) != set(FIELDS):
            raise UserError(f"{where} has {', '.join(table) or 'nothing'}, expected {', '.join(FIELDS)}")
        for name, kind in FIELDS.items():
            if not isinstance(table[name], kind):
                raise UserError(f"{where}: {name} is {table[name]!r}, expected {_expected(name)}")
        if table["scope"] not in MEANING:
            raise UserError(f"{where}: scope is {table['scope']!r}, expected {IMAGES} or {MODEL}")
        if len(table["reason"].strip()) < MIN_REASON or not table["by"].strip():
            raise UserError(f"{where}: expected a reason of {MIN_REASON} characters or more, and who answers for it")
        found[table["model"], table["scope"]] = Override(table["reason"].strip(), table["by"].strip(), table["date"])
    return found


def _expected(name: str) -> str:
    return "a date such as 2026-11-23" if name == "date" else "text in quotes"
