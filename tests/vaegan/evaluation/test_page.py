"""metrics.html: it stands alone, holds every number with its stamp, and says in words what is missing."""

import copy
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaegan.evaluation import words
from vaegan.evaluation.gallery import FeatureSets, build_gallery
from vaegan.evaluation.page import render_html
from vaegan.webpage.words import magnitude

MADE = runpy.run_path(str(Path(__file__).with_name("made.py")))
SEED, document, features, number, privacy, rows = (
    MADE[name] for name in ("SEED", "document", "features", "number", "privacy", "rows")
)


Page = runpy.run_path(str(Path(__file__).parents[1] / "parsed.py"))["Page"]
REAL, SYNTHETIC, HELD_OUT = rows(60), rows(51, 1, name="s"), rows(29, 2, name="h")


@pytest.fixture(scope="module")
def gallery():
    sets = [
        FeatureSets(name, features(60, k), features(51, k + 1, shift=1), features(29, k + 2))
        for k, name in enumerate(("domain CNN", "SqueezeNet"))
    ]
    similarities = np.linspace(0.2, 0.7, 30), np.linspace(0.3, 0.8, 25)
    pairs = privacy()["suspicious_pairs"]
    return build_gallery(REAL, SYNTHETIC, sets, held_out=HELD_OUT, suspicious_pairs=pairs, similarities=similarities,
                         seed=SEED)  # fmt: skip


@pytest.fixture(scope="module")
def html(gallery):
    return render_html(document(REAL, SYNTHETIC, HELD_OUT), gallery)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_stands_alone(html, page):
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "poster")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in references)
    assert not re.search(r"https?:|url\(|@import", html)
    targets = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for value in references if value.startswith("#")} <= targets


def test_every_number_is_on_the_page_with_interval_floor_and_stamp(page):
    result = document(REAL, SYNTHETIC, HELD_OUT)
    for entry in result["numbers"]:
        values = [entry["value"], entry["floor"], entry["value_at_floor_n"], *entry["interval"]]
        assert all(magnitude(value) in page.text for value in values), entry["label"]
        stamp = entry["extractor"]
        assert stamp["layer"] in page.text
        assert stamp["resize"] in page.text
        assert stamp["weights_sha256"] in page.text
        assert entry["settings"] in page.text
        assert entry["interval_method"] in page.text
        assert (entry["warning"] or "") in page.text
    for point in result["bias"][0]["points"]:
        assert magnitude(point["value"]) in page.text
    assert all(text in page.text for text in ("2.03", "1.72 to 2.34", "58.6", "too few images"))
    assert "held-out real images, 60 against 29, 5 draws" in page.text
    (check,) = result["privacy"]["checks"]
    assert all(magnitude(value) in page.text for value in (check["value"], check["tolerance"], *check["interval"]))
    assert all(
        text in page.text for text in (check["sentence"], "0.987", "s like as only copies are", "0.765", "0.531")
    )
    assert all(about["sha256"] in page.text for about in result["sets"].values())
    assert all(text in page.text for text in ("5678abcd", "12" * 32, "2 January 2026", "evaluate.py --real data"))


def test_an_image_without_a_patient_writes_no_nul_into_the_page(html, page):
    assert "\0" not in html
    assert "real 9" in page.text


def test_all_pictures_are_described_and_patients_are_named_as_such(page, gallery):
    described = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(described) == page.tags.count("img")
    assert all(described)
    assert "This page shows real patients’ images" in page.text
    assert page.text.count("patient data") == len(gallery.suspicious) == 2
    assert "patient data, held out" in page.text
    for grid in gallery.grids:
        assert all(f"real image, {grid.name}, {each.image_id}" in described for each in grid.real)


def test_every_table_says_what_its_headers_head(page):
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == page.tags.count("th")


def test_names_cannot_write_html(gallery):
    evil = "<script>alert(1)</script>", '"><img src=x onerror=y>'
    real, synthetic = (
        replace(each, classes=evil, image_id=np.array([f"<b>{i}</b>$" for i in range(len(each))], dtype=object))
        for each in (REAL, SYNTHETIC)
    )
    made = build_gallery(real, synthetic, [FeatureSets(evil[0], features(60), features(51, 1))], seed=SEED)
    hostile = document(real, synthetic)
    hostile["privacy"]["checks"][0]["sentence"] = evil[0]
    hostile["numbers"][0]["warning"] = evil[1]
    page = Page(render_html(hostile, made))
    assert not {"script", "b"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert evil[0] in page.text
    assert evil[1] in page.text
    assert re.search(r"<b>\d+</b>\$", page.text)  # ids of the farthest images


def test_same_input_same_bytes_and_the_input_is_left_alone(gallery, html):
    result = document(REAL, SYNTHETIC, HELD_OUT)
    before = copy.deepcopy(result)
    assert render_html(result, gallery) == html
    assert result == before


def test_what_is_absent_is_said_in_words(gallery):
    real, synthetic = rows(40, classes=()), rows(40, 1, classes=(), name="s")
    bare = build_gallery(real, synthetic, [], seed=SEED)
    page = Page(render_html(document(real, synthetic, numbers=[], bias=[], privacy=None), bare))
    for sentence in (
        "Privacy was not tested",
        "No real images were held out",
        "carry no classes",
        "No extractor was used",
        "How alike pairs of images are was not measured",
        "It was not measured here",
    ):
        assert sentence in page.text


def test_a_number_without_interval_or_floor_is_shown_as_far_as_it_goes(gallery):
    result = document(REAL, SYNTHETIC)
    for entry in result["numbers"]:
        entry |= {"interval": None, "floor": None, "floor_detail": None, "value_at_floor_n": None}
    text = Page(render_html(result, gallery)).text
    assert "no interval" in text
    assert "without a floor to compare it with" in text


@pytest.mark.parametrize(
    ("verdict", "headline", "kind"),
    [
        ("pass", "passed", "pass"),
        ("fail", "failed", "fail"),
        ("too little data to say", "too little data to say", "unsure"),
    ],
)
def test_each_verdict_has_its_headline_and_its_colour(verdict, headline, kind):
    assert headline in words.verdict_headline(privacy(verdict))
    assert words.verdict_kind(privacy(verdict)) == kind
    assert words.verdict_kind(None) == "untested"


def test_the_verdict_stands_in_the_box_and_a_pass_is_no_proof(gallery):
    page = Page(render_html(document(REAL, SYNTHETIC, HELD_OUT, privacy=privacy("pass")), gallery))
    assert words.verdict_headline(privacy("pass")) in page.text
    assert ("section", "class", "verdict pass") in page.attributes
    assert "can’t prove that there is none" in page.text
    assert "The model itself was not tested" in page.text
    assert "Two images are copies." in page.text


def test_only_pairs_that_the_check_calls_copies_are_counted_as_copies(page):
    assert "1 of them counts as a copy by the rule" in page.text
    assert page.text.count("Counts as a copy.") == 1
    assert "None of them" in words.copies_sentence([{"real_row": 3}, {"copy": False}])


def by_metric(*entries):
    return {entry["metric"]: entry for entry in entries}


def test_a_distance_is_told_in_multiples_of_its_floor_at_equal_counts():
    entry = number("frechet_distance", 2.0, 1.0, value_at_floor_n=3.1)
    assert "3.1 times the floor" in words.closeness(by_metric(entry))
    near = number("frechet_distance", 2.0, 1.0, value_at_floor_n=0.98)
    assert "as close as real images are to each other" in words.closeness(by_metric(near))


def test_a_share_that_is_not_none_is_not_rounded_to_none_nor_to_all():
    shares = (0, 0.001, 0.137, 0.57, 0.999, 1)
    assert [words.whole_percent(share) for share in shares] == [
        "0 %", "under 1 %", "14 %", "57 %", "over 99 %", "100 %",
    ]  # fmt: skip


def test_a_floor_of_zero_or_below_is_no_unit():
    assert words.times_floor(number("frechet_distance", 2.0, 0.0)) is None
    assert words.times_floor(number("kernel_distance", 2.0, -0.1)) is None


def test_extractors_that_see_different_things_are_said_to_disagree():
    def groups(*ratios):
        return [
            by_metric(number("frechet_distance", ratio, 1.0, {"name": f"net {k}"}, value_at_floor_n=ratio))
            for k, ratio in enumerate(ratios)
        ]

    told = words.disagreement(groups(1.5, 9.0, 4.0))
    assert "9.0 times the floor for net 1" in told
    assert "1.5 times for net 0" in told
    assert words.disagreement(groups(1.5, 4.0)) is None
    assert words.disagreement(groups(9.0)) is None


@pytest.mark.parametrize(("value", "word"), [(0.6, "more alike"), (0.2, "less alike"), (0.4, "as alike")])
def test_diversity_is_judged_by_the_interval_against_the_real_pairs(value, word):
    entry = number("ms_ssim", value, 0.39, interval=[value - 0.02, value + 0.02])
    assert word in words.diversity_sentence(entry)


def test_the_page_stays_small_enough_to_send(html):
    assert len(html) < 3_000_000
