"""What all pages share: data can't become markup, figures are the same bytes, numbers read as people write."""

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from vaegan.webpage.figures import to_png
from vaegan.webpage.html import SHARED, breakable, environment, stylesheet
from vaegan.webpage.words import joined, magnitude, moment


def test_a_template_escapes_what_it_is_given_and_knows_the_shared_macros(tmp_path):
    (tmp_path / "a.j2").write_text(
        '{% from "macros.html.j2" import table %}'
        '{% call table("x") %}{{ name | loud }}{% endcall %}{{ path | breakable }}'
    )
    page = environment(tmp_path, {"loud": str.upper}).get_template("a.j2")
    text = page.render(name="<b>", path="a/<i>")
    assert "&lt;B&gt;" in text
    assert "a/<wbr>&lt;i&gt;" in text
    with pytest.raises(UndefinedError):
        page.render(name="<b>")


def test_a_page_has_the_shared_style_and_then_its_own(tmp_path):
    own = tmp_path / "own.css"
    own.write_text(".verdict.helps { --accent: #0072B2; }\n")
    css = stylesheet(own)
    assert css == (SHARED / "page.css").read_text() + own.read_text()
    assert "url(" not in css
    assert "@import" not in css


def test_a_path_may_wrap_after_each_slash_and_nowhere_else():
    assert breakable("chest/1/<x>") == "chest/<wbr>1/<wbr>&lt;x&gt;"


def test_the_same_figure_has_the_same_bytes():
    def draw():
        figure = Figure(figsize=(1, 1))
        figure.add_subplot().plot([0, 1], [1, 3])
        return to_png(figure)

    assert draw() == draw()
    assert b"Software" not in draw()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0.00"),
        (0.00123, "0.00123"),
        (41.7, "41.7"),
        (5310.4, "5,310"),
        (-0.887, "−0.887"),
        (134, "134"),
    ],
)
def test_a_number_of_unknown_scale_has_three_digits(value, text):
    assert magnitude(value) == text


def test_lists_and_times_read_as_people_write_them():
    assert [joined(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert moment("2026-01-02T12:00:00+00:00") == "2 January 2026, 12:00 UTC"
    assert moment(None) == "not recorded"
