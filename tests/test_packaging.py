"""pyproject.toml says what is needed, constraints.txt what it is tested with: one must contain the other."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if line and not line.startswith("#")]


def test_constraints_are_plain_exact_versions_that_any_index_can_serve():
    for pin in PINS:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert not pin.url
        assert "+" not in version.version  # a local version, such as +cpu, is on no public index


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_pin_that_satisfies_it(requirement):
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
