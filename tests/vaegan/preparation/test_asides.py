import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from vaegan.preparation.asides import MAX_COLUMNS, MAX_VALUES, MIN_V, Asides, reads_normal

TWO = ("NORMAL", "PNEUMONIA")


def counted(*groups):
    """Asides of groups of equal images: how many, their columns, their labels."""
    asides = Asides()
    for count, columns, labels in groups:
        for _ in range(count):
            asides.add(columns, labels)
    return asides


def second_opinions(*groups, classes=TWO):
    return [sentence for sentence in counted(*groups).warnings(classes)[0] if "second opinion" in sentence]


def test_a_reader_who_disagrees_is_quoted_with_both_counts():
    sentences, _ = counted(
        (57, {"rsna_says": "normal"}, ("PNEUMONIA",)),
        (443, {}, ("PNEUMONIA",)),
        (19, {"rsna_says": "normal"}, ("NORMAL",)),
        (481, {}, ("NORMAL",)),
    ).warnings(TWO)
    assert sentences == [
        "Column 'rsna_says' says 'normal' of 57 of 500 images labelled PNEUMONIA (and of 19 of 500 labelled NORMAL): a "
        "second opinion disagrees with the label; look at these images, and correct or leave out what is labelled "
        "wrongly."
    ]


def test_a_column_that_refines_the_label_is_no_second_opinion_and_no_shortcut():
    sentences, _ = counted(
        (100, {"subtype": "normal"}, ("NORMAL",)),
        (80, {"subtype": "bacteria"}, ("PNEUMONIA",)),
        (60, {"subtype": "virus"}, ("PNEUMONIA",)),
    ).warnings(TWO)
    assert sentences == []


def test_a_refinement_with_contradictions_is_a_second_opinion():
    (sentence,) = second_opinions(
        (100, {"read": "normal"}, ("NORMAL",)),
        (80, {"read": "bacteria"}, ("PNEUMONIA",)),
        (7, {"read": "Normal "}, ("PNEUMONIA",)),
    )
    assert "says 'Normal' of 7 of 87 images labelled PNEUMONIA" in sentence


def test_what_can_be_normal_besides_the_film_is_left_alone():
    """Weight is normal as often in the one class as in the other."""
    assert (
        second_opinions(
            (50, {"weight": "normal"}, ("NORMAL",)),
            (50, {"weight": "over"}, ("NORMAL",)),
            (45, {"weight": "normal"}, ("PNEUMONIA",)),
            (55, {"weight": "over"}, ("PNEUMONIA",)),
        )
        == []
    )


@pytest.mark.parametrize(
    ("says", "label", "disagrees"),
    [
        ("pneumonia", "NORMAL", True),
        ("Severe Pneumonia", "NORMAL", True),
        ("No Finding", "PNEUMONIA", True),
        ("no pneumonia", "PNEUMONIA", True),
        ("negative for pneumonia", "PNEUMONIA", True),
        ("healthy", "PNEUMONIA", True),
        ("pneumonia", "PNEUMONIA", False),
        ("no pneumonia", "NORMAL", False),
        ("abnormal", "PNEUMONIA", False),
        ("not normal", "PNEUMONIA", False),
        ("possible pneumonia", "NORMAL", False),
        ("pneumonia?", "NORMAL", False),
        ("pneumoniae carrier", "NORMAL", False),
        ("bronchopneumonia", "NORMAL", False),
    ],
)
def test_values_are_read_as_a_doctor_reads_them(says, label, disagrees):
    other = TWO[label == TWO[0]]
    found = second_opinions((10, {"second": says}, (label,)), (40, {}, (label,)), (50, {}, (other,)))
    assert bool(found) == disagrees


def test_normal_is_a_phrase_not_a_part_of_a_word():
    assert reads_normal("NORMAL")
    assert reads_normal("No_Finding")
    assert reads_normal("negative")
    assert not reads_normal("abnormal")
    assert not reads_normal("not normal")
    assert not reads_normal("finding")


def test_classes_that_are_numbers_are_not_read_into_other_columns():
    groups = [(40, {"grade": str(grade)}, (str(label),)) for grade in (0, 1) for label in (0, 1)]
    assert second_opinions(*groups, classes=("0", "1")) == []


def test_findings_that_may_be_several_are_contradicted_one_by_one():
    groups = [
        (30, {"second": "Effusion"}, ("Effusion", "Mass")),
        (12, {"second": "Effusion"}, ("Mass",)),
        (5, {"second": "Effusion"}, ()),
        (53, {}, ()),
    ]
    (sentence,) = second_opinions(*groups, classes=("Effusion", "Mass"))
    assert "says 'Effusion' of 17 of 70 images not labelled Effusion (and of 30 of 30 labelled Effusion)" in sentence


def test_a_normal_reading_of_several_findings_counts_each_image_once():
    groups = [(9, {"second": "normal"}, ("Effusion", "Mass")), (4, {"second": "normal"}, ()), (50, {}, ("Mass",))]
    (sentence,) = second_opinions(*groups, classes=("Effusion", "Mass"))
    assert "says 'normal' of 9 of 59 images labelled with a finding (and of 4 of 4 without a label)" in sentence


def test_a_view_that_goes_with_the_label_is_a_shortcut():
    sentences, numbers = counted(
        (90, {"view": "AP"}, ("PNEUMONIA",)),
        (10, {"view": "PA"}, ("PNEUMONIA",)),
        (20, {"view": "AP"}, ("NORMAL",)),
        (80, {"view": "PA"}, ("NORMAL",)),
    ).warnings(TWO)
    assert len(sentences) == 1
    assert "Column 'view' goes with the label (Cramér's V 0.70 of 1): 'AP' is said of 90% of the images" in sentences[0]
    assert "images labelled PNEUMONIA and of 20% of those labelled NORMAL" in sentences[0]
    assert numbers["columns"]["view"]["v"] == pytest.approx(0.70, abs=0.01)


def test_a_column_that_settles_the_label_is_called_both_what_it_may_be():
    """A scanner for each class is the worst shortcut, a subtype is none, and counts can't tell them apart."""
    sentences, _ = counted(
        (90, {"device": "A"}, ("PNEUMONIA",)), (40, {"device": "B"}, ("PNEUMONIA",)), (80, {"device": "C"}, ("NORMAL",))
    ).warnings(TWO)
    assert len(sentences) == 1
    assert "(A: PNEUMONIA, B: PNEUMONIA, C: NORMAL)" in sentences[0]
    assert "if it says how or where images were taken" in sentences[0]
    assert "if it refines the label, all is well" in sentences[0]


def test_a_rare_finding_can_go_with_a_view_as_strongly_as_a_common_one():
    """Every class weighs the same: V of the plain table is 0.16."""
    sentences, numbers = counted(
        (90, {"view": "AP"}, ("Hernia",)), (10, {"view": "PA"}, ("Hernia",)),
        (2000, {"view": "AP"}, ()), (5000, {"view": "PA"}, ("Mass",)),
    ).warnings(("Hernia",))  # fmt: skip
    assert "'AP' is said of 90% of the images labelled Hernia and of 29% of those not labelled Hernia" in sentences[0]
    assert numbers["columns"]["view"]["v"] > 0.6


@pytest.mark.parametrize("images", [60, 300, 2000])
def test_columns_drawn_by_lot_go_with_nothing(images):
    for seed in range(20):
        rng, asides = np.random.default_rng(seed), Asides()
        for label, view, site in rng.integers(0, (2, 3, 15), (images, 3)):
            asides.add({"view": "APL"[view], "site": f"site {site}"}, (TWO[label],))
        sentences, numbers = asides.warnings(TWO)
        assert sentences == []
        assert images < 300 or all(column["v"] < MIN_V for column in numbers["columns"].values())


def test_memory_is_bounded_in_values_and_columns():
    asides = Asides()
    for i in range(1000):
        asides.add({"name": f"patient {i}", f"column {i}": "x", "view": "AP"}, ("NORMAL",))
    _, numbers = asides.warnings(TWO)
    assert "name" not in numbers["columns"]
    assert "view" in numbers["columns"]
    assert len(numbers["columns"]) <= MAX_COLUMNS
    asides = Asides()
    for i in range(MAX_VALUES):
        asides.add({"site": str(i)}, ("NORMAL",))
    assert list(asides.warnings(TWO)[1]["columns"]) == ["site"]


def test_the_manifest_names_no_value_of_a_few_images():
    """With twenty images a column of names has few values, too."""
    asides = counted((4, {"name": "Jane Doe"}, ("NORMAL",)), (6, {"name": "none"}, ("NORMAL",)), (3, {"name": "x"}, ()))
    numbers = json.loads(json.dumps(asides.warnings(TWO)[1]))
    assert numbers["columns"]["name"] == {"values": {"none": {"images": 6, "NORMAL": 6}}, "other": 7}


def test_nothing_added_is_nothing_said():
    assert Asides().warnings(TWO) == ([], {"columns": {}})
    assert counted((3, {"a": "", "b": "  "}, ())).warnings(())[0] == []


@pytest.mark.parametrize(
    ("folder", "said"),
    [("kermany_cxr_224", []), ("nih_cxr_1000_256", ["Column 'rsna_says' says 'normal' of 57 of 500"])],
)
def test_columns_of_real_tables(shared, folder, said):
    table = pq.read_table(shared / "data" / folder)
    asides, columns = Asides(), sorted({"subtype", "provenance", "dup_group", "rsna_says"} & set(table.column_names))
    for row in table.select([*columns, "label_name"]).to_pylist():
        asides.add({name: row[name] for name in columns if row[name] is not None}, (row["label_name"],))
    sentences, _ = asides.warnings(TWO)
    assert [sentence[: len(start)] for sentence, start in zip(sentences, said, strict=True)] == said
