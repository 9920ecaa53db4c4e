import json

import pytest

from vaegan.card import PRIVACY, record_audit
from vaegan.checkpoint import read_card, read_info, read_model
from vaegan.loop import train_loop
from vaegan.recipe import TrainConfig
from vaegan.registry import Registry, publish
from vaegan.runs import SoloRun
from vaegan.shards import read_split


def audit(verdict="fail"):
    """What `vaegan.evaluation.audit.for_card` makes of an audit."""
    check = {
        "name": "copies", "scope": "images", "value": 0.25, "interval": [0.2, 0.3], "tolerance": 0.01,
        "verdict": verdict, "sentence": "10 of 40 images are copies.", "needed_to_pass": True,
    }  # fmt: skip
    unsaid = check | {"name": "share", "value": None, "interval": None}
    return {
        "verdict": verdict,
        "scopes": {"images": {"verdict": verdict, "checks": ["copies", "share"], "sentence": check["sentence"]}},
        "assumptions": {"too_few": None},
        "settings": {
            "num_synthetic": 40, "num_members": 48, "num_member_patients": 24, "num_held_out": 8,
            "num_held_out_patients": 4,
        },
        "checks": [check, unsaid],
        "synthetic": "40 samples of model/1, prior, seed 0",
        "finished": "2026-11-23",
    }  # fmt: skip


@pytest.fixture
def model(config: TrainConfig):
    return train_loop(config, read_split(config.data, "train"), run=SoloRun(config.run_dir, 2, "cpu"))


def test_a_new_model_says_that_it_was_not_audited_and_an_audit_says_what_was_found(model):
    assert "**Not audited.**" in read_card(model)
    assert read_info(model).privacy == {}
    record_audit(model, audit())
    card = read_card(model)
    assert "Not audited" not in card
    assert "**Verdict: fail.**" in card
    assert "| copies | synthetic images | 0.25 | 0.2 to 0.3 | 0.01 | fail |" in card
    assert "| share | synthetic images | – | – |" in card
    assert "The model, its weights and whatever encodes with it: not tested" in card
    assert read_info(model).privacy["verdict"] == "fail"
    read_model(model)  # it still loads


def test_a_second_audit_replaces_the_first_and_leaves_what_people_wrote(model):
    written = read_card(model).replace(
        "## Not to be used for", "## Ethics\n\nApproved by the board.\n\n## Not to be used for"
    )
    (model / "card.md").write_text(written + "\n## Contact\n\nWard 7.\n")
    record_audit(model, audit("fail"))
    record_audit(model, audit("pass"))
    card = read_card(model)
    assert card.count(PRIVACY) == 1
    assert "Approved by the board." in card
    assert card.rstrip().endswith("Ward 7.")
    assert "Verdict: pass" in card
    assert "Verdict: fail" not in card


def test_a_published_model_still_fits_its_sums_after_an_audit(model, tmp_path):
    entry = publish(model, tmp_path / "registry", "chest/1")
    record_audit(entry.path, audit())
    registry = Registry(tmp_path / "registry")
    registry.verify(registry.resolve("chest"))
    assert json.loads((entry.path / "model.json").read_text())["privacy"]["verdict"] == "fail"
