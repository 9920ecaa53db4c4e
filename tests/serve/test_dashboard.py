import itertools
import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.telemetry import Telemetry

DASHBOARD = json.loads((Path(__file__).parents[2] / "configs" / "grafana.json").read_text())
PANELS = DASHBOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
QUERIES += [(v["name"], v["query"]["query"]) for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
FUNCTIONS = {"sum", "rate", "increase", "histogram_quantile", "min", "max", "by", "label_values"}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of each sample that the service exports, by its name."""
    telemetry = Telemetry("a")
    telemetry.request_ended("/", "GET", 200, seconds=1)
    telemetry.first_byte_sent("/", seconds=1)
    telemetry.bytes_sent("/", 1)
    telemetry.images_sent(1, format="png", model="chest/1")
    telemetry.refused("quota")
    telemetry.batch_decoded(1, seconds=1, model="chest/1")
    telemetry.encoded("png", seconds=1)
    telemetry.model_load_ended("chest/1", outcome="loaded", seconds=1)
    families = text_string_to_metric_families(telemetry.snapshot().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_names_only_what_the_service_exports(title, query, exported):
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)  # without texts and spans of time
    words = set(re.findall(r"(?<![.\d])\b[a-zA-Z_]\w*", bare))
    metrics = {word for word in words if word.startswith("augray_")}
    assert metrics
    assert metrics <= set(exported)
    labels = words - metrics - FUNCTIONS
    assert labels <= set.intersection(*(exported[metric] for metric in metrics))


def test_every_metric_is_shown_somewhere(exported):
    shown = {name for _, query in QUERIES for name in re.findall(r"augray_\w+", query)}
    metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in exported}
    assert metrics == {re.sub("_(bucket|sum|count)$", "", name) for name in shown}


def test_quantiles_are_of_buckets_that_are_summed_by_their_bounds():
    for _, query in QUERIES:
        if "histogram_quantile" in query:
            assert re.fullmatch(
                r"histogram_quantile\(0\.\d+, sum by \(le\) \(rate\(augray_\w+_bucket[{\[].*\)\)\)", query
            )


def test_brackets_close():
    for _, query in QUERIES:
        depth = list(itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in query))
        assert min(depth) >= 0 == depth[-1]


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    cells = [
        (x, y)
        for p in (panel["gridPos"] for panel in PANELS)
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < 24 for x, _ in cells)  # Grafana's grid


def test_every_panel_asks_the_source_that_the_viewer_chose():
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["DS_PROMETHEUS", "model", "key"]
    sources = [panel["datasource"] for panel in PANELS] + [
        t["datasource"] for panel in PANELS for t in panel["targets"]
    ]
    assert {source["uid"] for source in sources} == {"${DS_PROMETHEUS}"}
