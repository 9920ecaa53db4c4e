"""Damaged sources of every format: a dataset in which all rows are accounted for, or a sentence. See fuzz.py."""

import os
import runpy
from pathlib import Path

import pytest

from vaegan.importers import FORMATS

FUZZ = runpy.run_path(str(Path(__file__).with_name("fuzz.py")))
CASES = int(os.environ.get("AUGRAY_FUZZ_CASES", "200"))
SEED = int(os.environ.get("AUGRAY_FUZZ_SEED", "0"))


def test_every_format_is_fuzzed():
    assert set(FUZZ["BUILDERS"]) == {each.name for each in FORMATS} - {"phantom"}


@pytest.mark.parametrize("name", FUZZ["BUILDERS"])
def test_what_is_built_is_sound_before_it_is_damaged(name, tmp_path):
    """Else the damage would be done to what is refused anyway."""
    from vaegan.importers import open_source
    from vaegan.preparation.config import PrepareConfig

    for number in range(4):
        root = tmp_path / str(number) / "source"
        settings = FUZZ["BUILDERS"][name](root, FUZZ["rng_of"](1, number))
        config = PrepareConfig(**{"images": root, "out": tmp_path / "out", "size": 8} | settings)
        source = open_source(config, "auto" if not config.columns.findings else name)
        assert source.kind == name
        problems = [record.problem for record in source.records() if record.problem]
        assert all("uncertain" in problem for problem in problems), problems


@pytest.mark.parametrize("name", FUZZ["BUILDERS"])
def test_damaged_sources_give_a_dataset_or_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AUGRAY_FUZZ_DIR", str(tmp_path))
    cases = -(-CASES // len(FUZZ["BUILDERS"]))
    counts, failures = FUZZ["fuzz"](SEED, 0, cases, [name])
    assert not failures, "\n".join(failures)
    assert counts[name, "dataset"] >= cases // 10  # else nothing was tested but refusals
