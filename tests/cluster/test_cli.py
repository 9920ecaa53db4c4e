import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from cluster.cli import as_dict, parse, run_command
from cluster.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested settings."""

    weight: float = 1.0
    """How much."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"inner.weight is {self.weight}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Do a thing."""

    out_dir: Path
    """Where to."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    shares: tuple[float, ...] = (0.5,)
    """Parts."""
    names: tuple[str, ...] = ()
    """Names."""
    strict: bool = False
    """Stop early."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""


def read(*words: str) -> Config:
    return parse(Config, words, prog="x")


def test_flags_take_hyphens_underscores_lists_and_bare_switches():
    config = read("--out-dir", "a b", "--shares", "0.1", "0.2", "--strict", "--names", "7", "null", "--inner.weight=3")
    assert config == Config(
        out_dir=Path("a b"), shares=(0.1, 0.2), names=("7", "null"), strict=True, inner=Inner(weight=3.0)
    )
    assert read("--out_dir", "x", "--shares", "[0.3]", "--names", "[]").shares == (0.3,)


@pytest.mark.parametrize(
    "words",
    [
        ["a b", "--strict", "--kind", "b"],
        ["--kind", "b", "a b", "--strict"],
        ["--strict", "a b", "--kind=b"],
        ["--strict", "yes", "a b", "--kind", "b"],
        ["--kind=b", "--strict", "--out-dir", "a b"],
    ],
)
def test_one_field_may_be_a_word_of_its_own_anywhere_between_flags(words):
    config = parse(Config, words, prog="x", positional="out_dir")
    assert (config.out_dir, config.kind, config.strict) == (Path("a b"), "b", True)


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--strict", "false", "--kind", "b"]])
def test_such_a_word_must_be_there_once(words, capsys):
    assert run_command(Config, lambda config: 0, prog="x", argv=words, positional="out_dir") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_says_where_such_a_word_stands(capsys):
    with pytest.raises(SystemExit):
        run_command(Config, lambda config: 0, prog="x", argv=["-h"], positional="out_dir")
    assert "x OUT_DIR [flags]" in capsys.readouterr().out


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("kind: b\ninner:\n  weight: 2\n")
    config = read("--config", str(path), "--out-dir", "x", "--inner.weight", "5")
    assert (config.kind, config.inner.weight, config.shares) == ("b", 5.0, (0.5,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out-dir", "x", "--colour", "red"], "colour"),
        (["--out-dir", "x", "--kind", "c"], "kind"),
        ([], "--out-dir"),
        (["--out-dir", "x", "--inner.weight", "-1"], "expected 0 or more"),
        (["--out-dir", "x", "--config", "/nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_status_2(words, message, capsys):
    assert run_command(Config, lambda config: 0, prog="x", argv=words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_an_unknown_key_in_a_file_fails(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("innner:\n  weight: 2\n")
    assert run_command(Config, lambda config: 0, prog="x", argv=["--config", str(path), "--out-dir", "x"]) == 2
    assert "innner" in capsys.readouterr().err


def test_a_users_mistake_shows_its_traceback_only_with_debug(capsys):
    def fail(config: Config) -> None:
        raise UserError("no such\n  thing; make it")

    assert run_command(Config, fail, prog="x", argv=["--out-dir", "x"]) == 2
    assert capsys.readouterr().err == "error: no such thing; make it\n"
    assert run_command(Config, fail, prog="x", argv=["--out-dir", "x", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file(capsys):
    def fail(config: Config) -> None:
        raise OSError(28, "No space left on device", "/data/x.parquet")

    assert run_command(Config, fail, prog="x", argv=["--out-dir", "x"]) == 2
    assert "/data/x.parquet: No space left on device" in capsys.readouterr().err


def test_our_own_mistakes_are_not_disguised_as_the_users():
    def fail(config: Config) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        run_command(Config, fail, prog="x", argv=["--out-dir", "x"])


def test_help_shows_flags_as_people_type_them(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(Config, lambda config: 0, prog="x", argv=["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--out-dir" in text
    assert "--out_dir" not in text
    assert "Where to." in text


def test_a_config_survives_json():
    config = read("--out-dir", "x", "--shares", "0.1", "0.2")
    assert as_dict(config) == json.loads(json.dumps(as_dict(config)))
    assert as_dict(config)["out_dir"] == "x"
