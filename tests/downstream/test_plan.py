from pathlib import Path

import pytest

from cluster.errors import UserError
from downstream.arms import ARMS, EXTRA_ARMS, SYNTHETIC_ARMS
from downstream.plan import AblateConfig, Folder, Primary, check_same, plan_cells, plan_generators

BASE = {"data": Path("data"), "out": Path("out"), "recipe": Path("demo.yaml")}


def test_every_cell_has_a_file_of_its_own_and_a_key_of_its_own():
    config = AblateConfig(**BASE, fractions=(0.02, 0.1), ratios=(0.5, 1.0), classifiers=("small_cnn", "logistic"))
    cells = plan_cells(config)
    assert len({Folder(Path("out")).cell(cell) for cell in cells}) == len(cells)
    assert len({tuple(cell.key.values()) for cell in cells}) == len(cells)


def test_the_grid_is_the_product_of_the_axes_that_an_arm_has():
    config = AblateConfig(**BASE, ratios=(0.5, 1.0), generator_seeds=2, pool_seeds=3, classifier_seeds=5)
    counts = {arm: sum(cell.arm == arm for cell in plan_cells(config)) for arm in ARMS}
    for arm in ARMS:
        expected = 5 * (2 if arm in EXTRA_ARMS else 1) * (2 * 3 if arm in SYNTHETIC_ARMS else 1)
        assert counts[arm] == expected


def test_more_seeds_and_fractions_keep_the_cells_there_were():
    small = AblateConfig(**BASE, fractions=(0.1,), generator_seeds=1)
    large = AblateConfig(**BASE, fractions=(0.02, 0.1), generator_seeds=3, classifier_seeds=4)
    assert {cell.id for cell in plan_cells(small)} < {cell.id for cell in plan_cells(large)}


def test_generators_are_planned_only_where_an_arm_needs_them():
    assert len(plan_generators(AblateConfig(**BASE, fractions=(0.02, 0.1), generator_seeds=2))) == 4
    assert plan_generators(AblateConfig(**BASE, arms=("real", "classical"))) == []
    ready = AblateConfig(data=Path("data"), out=Path("out"), synthetic=Path("ready"))
    assert plan_generators(ready) == []
    assert {cell.key["generator_seed"] for cell in plan_cells(ready)} == {None}


def test_the_primary_comparison_leaves_nothing_open():
    config = AblateConfig(**BASE, fractions=(0.1, 0.02), ratios=(2.0, 1.0))
    primary = config.resolved_primary()
    assert primary is not None
    assert (primary["fraction"], primary["ratio"], primary["classifier"]) == (0.02, 2.0, "small_cnn")
    assert AblateConfig(**BASE, arms=("real", "classical")).resolved_primary() is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fractions": (0.0,)}, "above 0"),
        ({"fractions": (0.1, 0.1)}, "each once"),
        ({"ratios": ()}, "at least one"),
        ({"steps": 0}, "steps is 0"),
        ({"arms": ("real", "synthetic")}, "lack duplicate_real"),
        ({"recipe": None}, "neither"),
        ({"synthetic": Path("ready")}, "both"),
        ({"primary": Primary(fraction=0.5)}, "must be among"),
        ({"primary": Primary(classifier="logistic")}, "expected one of"),
    ],
)
def test_settings_that_make_no_study_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        AblateConfig(**(BASE | wrong))


def test_a_folder_of_another_study_is_refused_with_the_settings_that_differ():
    check_same({"steps": 1}, {"steps": 1}, Path("out"))
    with pytest.raises(UserError, match=r"differs in latent, steps \(latent was 'prior' and is 'mixture'\)"):
        check_same({"steps": 1, "latent": "prior"}, {"steps": 2, "latent": "mixture"}, Path("out"))
