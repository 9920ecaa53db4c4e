"""Command line: the versions of a model, and which of them a request without a version gets."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cli import run_command
from cluster.errors import UserError
from vaegan.checkpoint import read_info
from vaegan.registry import Registry


@dataclass(frozen=True, kw_only=True)
class VersionsConfig:
    """List a model's versions with their privacy verdicts, or choose which one is current.

    Running services follow within seconds and drop no request. The newest version is current until one is chosen.
    """

    registry: Path
    """Folder of models, NAME/VERSION each."""
    model: str
    """Name of the model."""
    use: str | None = None
    """Version to make current, whatever is published later: the way back from a bad one."""
    newest: bool = False
    """Forget that choice: the newest version is current again."""

    def __post_init__(self) -> None:
        if self.use is not None and self.newest:
            raise ValueError("use and newest are both given, expected one of them; leave one out")


def versions(config: VersionsConfig) -> None:
    """The command: choose if asked to, then print each version, oldest first.

    Raises:
        UserError: no such registry, model or version.
    """
    registry = Registry(config.registry)
    registry.resolve(config.model, config.use)
    if config.use is not None or config.newest:
        registry.choose(config.model, config.use)
    current = registry.resolve(config.model)
    for entry in registry.models():
        if entry.name != config.model:
            continue
        try:
            privacy = read_info(entry.path).privacy
        except UserError as error:
            print(f"{entry.name}/{entry.version}  damaged: {error}")
            continue
        scopes = privacy.get("scopes", {})
        words = ", ".join(f"{scope}: {found['verdict']}" for scope, found in scopes.items()) or "not audited"
        print(f"{entry.name}/{entry.version}  {words}" + ("  (current)" if entry == current else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m serve.versions --registry models --model chest [--use 1 | --newest]`."""
    return run_command(VersionsConfig, versions, prog="python -m serve.versions", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
