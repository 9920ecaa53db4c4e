"""inspect.html: it stands alone, shows what was found, and no name in a dataset can write HTML."""

import re
import runpy
from pathlib import Path

import pytest

from vaegan.inspect import InspectConfig, inspect
from vaegan.inspection.page import render_html
from vaegan.inspection.table import summary

Page = runpy.run_path(str(Path(__file__).parents[1] / "parsed.py"))["Page"]

REPORT = {
    "source": "nih",
    "notes": ["Read as it was."],
    "rejects": {"empty": 2},
    "left_out": {"a lateral view": 41},
    "split": {"origin": "source", "notes": ["The source's own split was kept."]},
    "patients": {"number": 3, "images_per_patient": 1.5, "with_several_labels": 0},
    "duplicates": {"groups": 4, "exact_copies": 3, "near_copies": 1, "groups_with_conflicting_labels": 2},
    "leaks": {"action": "remove", "images": 9, "by_patient": 5, "by_copy": 4},
    "warnings": ["Column view tells mass."],
    "films": {"height": {"min": 90, "median": 1024.5, "max": 2000}, "width": {"min": 91, "median": 8, "max": 9}},
}


@pytest.fixture(scope="module")
def splits(tools):
    return {"train": tools.rows(43, 0), "val": tools.rows(12, 1), "test": tools.rows(21, 2)}


@pytest.fixture(scope="module")
def found(tools, splits, tmp_path_factory):
    splits["test"].pixels[3] = splits["train"].pixels[9]
    splits["test"].patient_id[4] = "0-p7"
    splits["val"].pixels[1] = 90
    findings = [tools.finding("exact"), tools.finding("patient", removed=False, correlation=None, thumbnail=None)]
    rejects = [("x.png", "empty"), ("y.png", "empty")]
    data = tools.write(tmp_path_factory.mktemp("page") / "data", REPORT, findings, rejects, **splits)
    return inspect(InspectConfig(dataset=data, per_class=3))


@pytest.fixture(scope="module")
def html(found):
    return render_html(found)


def test_the_page_stands_alone(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "poster")]
    assert all(value.startswith("data:image/png;base64,") for value in references)
    assert not re.search(r"https?:|url\(|@import", html)
    described = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(described) == page.tags.count("img")
    assert all(described)
    assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope")]) == page.tags.count("th")


def test_what_was_found_and_what_was_recorded_is_on_the_page(html):
    text = Page(html).text
    for words in (
        "1 patient and 1 exact copy are in two splits", "0-p7 (train and test)",
        "This page shows patients’ images", "Every file has the sha256", "Near constant images",
        "exact copies, in two splits", "the left one was taken out", "no picture kept",
        "9 images crossed splits (5 by patient and 4 as copies): taken out of the earlier split",
        "a lateral view", "Column view tells mass.", "Read as it was.", "x.png, y.png", "height 90 to 2000 px",
        "3 exact repeats", "Labels that occur together", "not recorded",
    ):  # fmt: skip
        assert words.lower() in text.lower(), words
    for name in ("mass", "fluid", "scar", "no finding"):
        assert name in text


def test_every_count_of_class_and_split_is_on_the_page(html, splits):
    text = Page(html).text
    for k, name in enumerate(("mass", "fluid", "scar")):
        counts = [int(rows.labels[:, k].sum()) for rows in splits.values()]
        shares = [f"{100 * rows.labels[:, k].mean():.1f} %" for rows in splits.values()]
        cells = "".join(f"{count}{share}" for count, share in zip(counts, shares, strict=True))
        assert f"{name}{cells}" in text.replace(" " + name, name)


def test_same_findings_same_page(found, html):
    assert render_html(found) == html


def test_names_cannot_write_html(tools, tmp_path):
    splits = {"train": tools.rows(25, 0), "test": tools.rows(9, 2)}
    evil = '<script>alert(1)</script>"><img src=x onerror=y>'
    splits["train"].image_id[9] = splits["test"].patient_id[4] = splits["train"].patient_id[2] = evil
    splits["test"].pixels[3] = splits["train"].pixels[9]
    findings = [tools.finding(evil, image_id=evil, labels=evil, split=evil)]
    report = {"source": evil, "notes": [evil], "warnings": [evil], "left_out": {evil: 1},
              "leaks": {"images": 1, "action": evil}, "split": {"origin": evil, "notes": [evil]}}  # fmt: skip
    classes = (evil, "a", "b")
    data = tools.write(tmp_path / "data", report, findings, [(evil, evil)], classes=classes, **splits)
    tools.edit_manifest(data, lambda m: m["provenance"].update(
        command=evil, seed=evil, finished=evil, wall_s=evil, inputs={evil: evil}, config={evil: evil},
        git_revision=evil, packages=evil,
    ))  # fmt: skip
    page = Page(render_html(inspect(InspectConfig(dataset=data))))
    assert not {"script", "b/"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count(evil) > 15


def test_a_dataset_without_classes_or_with_one_split_has_a_page(tools, tmp_path):
    rows = tools.rows(20, 0)
    rows.labels = rows.labels[:, :0]
    found = inspect(InspectConfig(dataset=tools.write(tmp_path / "data", classes=(), train=rows)))
    page = Page(render_html(found))
    assert "No classes" in page.text
    assert "one split only" in page.text


def test_the_summary_fits_a_terminal_and_says_the_headline(found):
    text = summary("data", found.manifest, found.contents, found.checked, found.recorded, found.tells, verified=True)
    assert max(map(len, text.splitlines())) <= 120
    assert "recheck: 1 patient and 1 exact copy are in two splits." in text
    assert re.search(r"train +43 +22", text)
