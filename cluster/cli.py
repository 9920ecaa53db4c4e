"""The frame of every command line: a dataclass becomes flags, a user's mistake becomes one sentence."""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

import jsonargparse

from cluster.errors import UserError

Config = TypeVar("Config")

TRUTHS = ("true", "false", "yes", "no", "on", "off")
"""What a switch may be followed by; any other word is not its own."""

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def run_command(
    config_type: type[Config],
    command: Callable[[Config], int | None],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    positional: str | None = None,
) -> int:
    """Parse a command line into `config_type`, call `command` with it and return the exit status.

    Each field is a flag (`run_dir` is `--run-dir`, a nested `loss.gamma` is `--loss.gamma`); `--config FILE.yaml`
    gives values for fields, which later flags override; unknown flags and keys fail.

    Args:
        positional: the field that a word of its own is for, first or between the flags; its flag may be typed as well.

    Returns:
        What `command` returned (None counts as 0); 2 after a `UserError` or an `OSError`, told in one sentence on
        stderr (`--debug` adds the traceback); 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        config = parse(config_type, [word for word in arguments if word != "--debug"], prog=prog, positional=positional)
        return command(config) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` closed our output: nothing to tell, nobody to tell it to
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        if debug:
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2


def parse(config_type: type[Config], arguments: Sequence[str], *, prog: str, positional: str | None = None) -> Config:
    """The dataclass that a command line describes. Exits with status 2, as argparse does, on an unknown flag."""
    usage = None if positional is None else f"%(prog)s {positional.upper()} [flags]"
    parser = _Parser(prog=prog, usage=usage, description=_summary(config_type), exit_on_error=True)
    parser.add_argument("--config", action="config", help="YAML file with values for any of these; flags override it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a user's mistake")
    parser.add_class_arguments(config_type, None)
    namespace = parser.parse_args(_as_people_type(arguments, _types(config_type), positional))
    del namespace["config"], namespace["debug"]
    try:
        return config_type(**vars(parser.instantiate(namespace)))
    except ValueError as error:  # a dataclass's __post_init__ refused its values
        raise UserError(str(error)) from None


def describe(error: Exception) -> str:
    """One sentence for an error: a `UserError`'s own, or what an `OSError` says of which file."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; check the path, its permissions and the free space, then run it again"
    return " ".join(str(error).split())


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON-ready values: paths become strings, tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=_plain))


class _Parser(jsonargparse.ArgumentParser):
    """Shows flags with hyphens, as people type them, and tells a mistake in one line instead of a page of usage."""

    def format_help(self, *arguments: Any) -> str:
        words = super().format_help(*arguments).split(" ")
        return " ".join(word.replace("_", "-") if word.lstrip("[(\n").startswith("--") else word for word in words)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message, required, names = " ".join(message.split()).partition("are required: ")
        flags = ", ".join("--" + name.replace("_", "-") for name in names.split(", ")) if required else ""
        raise UserError(f"{message}{required}{flags}; see {self.prog} --help")


def _as_people_type(words: Sequence[str], types: dict[str, Any], positional: str | None = None) -> list[str]:
    """Spell flags as the parser wants them: `--fractions 0.1 0.5` as one list, a bare `--strict` as true, the first
    word that belongs to no flag as the value of `positional`'s."""
    spelled: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if positional and not word.startswith("-"):
            spelled.append(f"--{positional}={word}")
            positional = None
            continue
        if not word.startswith("--"):
            spelled.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = "--" + flag[2:].replace("-", "_")
        kind = types.get(flag[2:])
        values = []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if equals or not (kind is bool or get_origin(kind) is tuple):
            own = 0 if equals else 1
            spelled += [flag + equals + value, *values[:own]]
            rest = values[own:] + rest
        elif kind is bool:
            own = 1 if values and values[0].lower() in TRUTHS else 0
            spelled += [flag, *(values[:own] or ["true"])]
            rest = values[own:] + rest
        elif len(values) == 1 and values[0].startswith("["):
            spelled += [flag, *values]
        else:
            quote = json.dumps if get_args(kind)[0] in (str, Path) else str
            spelled += [flag, "[" + ",".join(map(quote, values)) + "]"]
    return spelled


def _types(config_type: type, prefix: str = "") -> dict[str, Any]:
    """The type of each field, nested ones under their dotted names."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(config_type).items():
        found[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            found |= _types(cast(type, kind), f"{prefix}{name}.")
    return found


def _summary(config_type: type) -> str:
    return (config_type.__doc__ or "").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} has no place in a config")
