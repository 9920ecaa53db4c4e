import pyarrow as pa
import pytest

from cluster.errors import UserError
from vaegan.importers.labels import LINE_BREAK, Findings, LabelSurvey


def survey(values, names=None, separator="|"):
    """Labels for a column of these values."""
    seen = LabelSurvey()
    seen.add(pa.chunked_array([values]), None if names is None else pa.chunked_array([names]))
    return seen.labels(column="label", separator=separator, where="x.csv")


def test_integers_in_strings_are_ordered_by_value_and_anything_else_by_name():
    assert survey(["10", "9", "2"]).classes == ("2", "9", "10")
    assert survey(["10", "9", "b"]).classes == ("10", "9", "b")


def test_whole_floats_are_integers_that_met_a_missing_value():
    labels = survey(["1.0", "0.0", ""])
    assert labels.classes == ("0", "1")
    assert labels.read("1.0") == (("1",), None)


@pytest.mark.parametrize("value", ["", "  ", None])
def test_no_label_is_a_problem_where_each_row_has_one(value):
    assert survey(["a", "b"]).read(value) == (None, "no label")


def test_a_separator_anywhere_makes_the_table_multilabel_in_which_no_finding_is_no_class():
    labels = survey(["Mass|Edema", "No Finding", "Edema", ""])
    assert (labels.task, labels.classes) == ("multilabel", ("Edema", "Mass"))
    assert labels.read("Mass|Edema|Mass") == (("Mass", "Edema"), None)
    assert labels.read("No Finding") == labels.read("") == labels.read("no_finding") == ((), None)
    assert labels.read(None) == (None, "no label")
    assert labels.read("No Finding|Mass")[1] == "no finding beside a finding"
    assert labels.read("Hernia")[1] == "unknown label 'Hernia'"


def test_no_finding_is_a_class_where_each_row_has_exactly_one():
    assert survey(["No Finding", "Pneumonia"]).classes == ("No Finding", "Pneumonia")


def test_another_separator_counts_only_when_asked_for_but_is_hinted_at():
    seen = LabelSurvey()
    seen.add(pa.chunked_array([["a;b", "a", "b"]]))
    assert seen.labels(column="label", separator="|", where="x").task == "multiclass"
    assert ["--columns.separator ';'" in hint for hint in seen.hints("|")] == [True]
    assert seen.labels(column="label", separator=";", where="x").classes == ("a", "b")
    assert seen.hints(";") == []


def test_names_with_commas_that_are_no_lists_give_no_hint():
    seen = LabelSurvey()
    seen.add(pa.chunked_array([["zoster, left", "normal"]]))
    assert seen.hints("|") == []


def test_names_spell_labels_out_in_the_labels_order():
    labels = survey(["1", "0"], ["zoster", "normal"])
    assert labels.classes == ("normal", "zoster")
    assert labels.read("1") == (("zoster",), None)


@pytest.mark.parametrize(("values", "names"), [(["0", "0"], ["a", "b"]), (["0", "1"], ["a", "a"])])
def test_names_that_contradict_each_other_are_refused(values, names):
    with pytest.raises(UserError, match="do not match one to one"):
        survey(values, names)


def test_a_list_of_0_and_1_of_equal_length_is_a_vector_and_other_lists_name_classes():
    assert survey([["1", "0"], ["0", "0"]]).read(("1", "0")) == (("0",), None)
    assert survey([["1", "0"], ["0"]]).read(("1", "0")) == (("1", "0"), None)
    assert survey([["1", "0"], ["0", "1"]]).read(("1", "2"))[1] == "no list of 2 times 0 or 1"
    assert survey([["b"], ["a", "b"]]).read(("b", None))[1] == "unknown label None"


def test_lists_and_names_are_gathered_over_parts():
    seen = LabelSurvey()
    for part in (["b"], ["a", None], ["c"]):
        seen.add(pa.chunked_array([part]))
    assert seen.labels(column="label", separator="|", where="x").classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("value", "labels"),
    [("1", ("a",)), ("1.0", ("a",)), ("True", ("a",)), ("0", ()), ("", ()), (None, ()), ("False", ()), ("nan", ())],
)
def test_what_a_column_of_findings_may_say(value, labels):
    assert Findings(("a",)).read((value,)) == (labels, None)


@pytest.mark.parametrize("value", ["2", "yes", "-1", "0.5"])
def test_what_it_may_not_say(value):
    assert Findings(("a",)).read((value,)) == (None, f"a is {value!r}, expected 0 or 1")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("zeros", (("b",), None)),
        ("ones", (("a", "b"), None)),
        ("reject", (None, "a label that is marked as uncertain")),
    ],
)
def test_uncertain_labels_follow_the_policy(policy, expected):
    assert Findings(("a", "b", "c"), policy).read(("-1.0", "1", "")) == expected


def test_an_unclosed_quotation_mark_names_no_class():
    labels = survey(["a", "b\nx.png,a\ny.png,b"])
    assert labels.classes == ("a",)
    assert labels.read("b\nx.png,a\ny.png,b") == (None, LINE_BREAK)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["", ""], "is empty"),
        (["0.5", "1"], r"float numbers \(0.5\)"),
        ([f"img{i}" for i in range(1001)], "1001 different labels"),
        (["|", "||"], "names no class"),
    ],
)
def test_what_holds_no_classes_is_refused(values, says):
    with pytest.raises(UserError, match=says):
        survey(values)
