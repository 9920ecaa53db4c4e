"""Every number of the report in one dictionary, the content of report.json.

Gains, intervals and the verdict come from `downstream.statistics`; this file picks what is compared with what, and
averages scores over runs.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from cluster.provenance import git_revision, package_versions
from downstream import statistics
from downstream.reporting import words
from downstream.reporting.results import Results, finish_command
from downstream.scores import METRICS, judged_classes

Key = tuple[str, str, float, float]  # arm, classifier, fraction, ratio
BASELINES = ("real", "duplicate_real")
FID_SHA256_PREFIX = "6726825d"
"""Weights of the FID network, as in `vaegan.metrics.inception`, which would import the network itself."""
METHODS = {
    "gain": "mean paired difference of a score with and without, same classifier seed and test patients",
    "interval": "hierarchical bootstrap over generator, pool and classifier seeds and test patients",
    "secondary": "not corrected for their number",
    "sd": "standard deviation over runs (all seeds), n - 1 in the denominator",
}


def find(results: Results, *, resamples: int, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The whole report as JSON-ready values; numbers that don't exist are None.

    Args:
        resamples: bootstrap resamples of every interval.
        progress: called with a line before each comparison, which can take seconds.
    """
    primary = primary_comparison(results)
    gains = all_gains(results, primary, resamples=resamples, progress=progress)
    scores = score_table(results)
    found = {
        "format": 1,
        "dataset": dataset(results),
        "primary": primary,
        "verdict": verdict(results, primary, gains),
        "gains": gains,
        "scores": scores,
        "generators": results.manifest.get("generators", []),
        "generator_metrics": generator_metrics(results),
        "failed": failures(results),
        "design": design(results),
        "method": METHODS | {"resamples": resamples, "confidence": 0.95, "bootstrap_seed": 0},
        "repeat": repeat(results),
    }
    return finite(found)


def primary_comparison(results: Results) -> dict[str, Any]:
    """The comparison named in advance, as the ablation's manifest echoes it, and when it was written down.

    An ablation that left out the arm to be compared has none; what it would have been then stands here, and no gain is
    marked primary.
    """
    manifest = results.manifest
    named = {
        "arm": "synthetic",
        "metric": "auroc",
        "fraction": min(manifest["fractions"]),
        "ratio": min(manifest["ratios"], default=0.0),
        "classifier": manifest["classifiers"][0],
    } | (manifest["primary"] or {})
    return {
        **{name: named[name] for name in ("arm", "metric", "fraction", "ratio", "classifier")},
        "metric_name": words.metric_name(named["metric"]),
        "against": list(BASELINES),
        "asked": manifest["primary"] is not None,
        "named": named_in_advance(results),
    }


def named_in_advance(results: Results) -> dict[str, Any]:
    """When the comparison was first written down, and whether it was changed after; else when the last run began."""
    if results.named:
        changed = results.named["primary"] != results.manifest["primary"]
        return {"time": results.named["time"], "first": True, "changed": changed}
    record = results.manifest.get("provenance", {})
    try:
        start = datetime.fromisoformat(record["finished"]) - timedelta(seconds=record["wall_s"])
    except (KeyError, TypeError, ValueError):
        return {"time": None, "first": False, "changed": False}
    return {"time": start.isoformat(timespec="seconds"), "first": False, "changed": False}


def all_gains(
    results: Results, primary: dict[str, Any], *, resamples: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The gain of every arm over both baselines at every fraction, ratio and classifier; the primary one marked."""
    gains = []
    for classifier in ordered(results, "classifier"):
        for against in BASELINES:
            for fraction in ordered(results, "fraction"):
                for arm in ordered(results, "arm"):
                    for ratio in compared_ratios(results, arm, against, classifier, fraction):
                        progress(f"{words.arm_name(arm)} against {words.arm_name(against)}, {words.percent(fraction)}")
                        gains.append(gain(results, primary, (arm, classifier, fraction, ratio), against, resamples))
    return gains


def compared_ratios(results: Results, arm: str, against: str, classifier: str, fraction: float) -> list[float]:
    """At which ratios an arm is compared with a baseline; none if one of the two is absent or they are the same.

    An arm without extra rows has ratio 0; against duplicate-real it is compared at each ratio that one has.
    """
    if arm == against or arm == "real":
        return []
    own, other = (ratios(results, name, classifier, fraction) for name in (arm, against))
    if not own or not other:
        return []
    return own if own != [0.0] else other


def ratios(results: Results, arm: str, classifier: str, fraction: float) -> list[float]:
    return sorted({r["ratio"] for r in results.rows if key(r)[:3] == (arm, classifier, fraction)})


def gain(results: Results, primary: dict[str, Any], cell: Key, against: str, resamples: int) -> dict[str, Any]:
    """One gain; `value` is None, with the reason in `notes`, where no pair of runs is complete."""
    arm, classifier, fraction, ratio = cell
    about = {
        "arm": arm, "against": against, "classifier": classifier, "fraction": fraction, "ratio": ratio,
        "metric": primary["metric"], "metric_name": primary["metric_name"],
        "primary": all(primary[name] == value for name, value in zip(
            ("arm", "classifier", "fraction", "ratio"), cell, strict=True)),
    }  # fmt: skip
    try:
        found = statistics.compare(
            results.rows,
            results.labels,
            results.patients,
            arm=arm,
            against=against,
            fraction=fraction,
            ratio=ratio,
            classifier=classifier,
            classes=judged(results),
            metric=primary["metric"],
            resamples=resamples,
        )
    except ValueError as error:
        empty = dict.fromkeys(("value", "interval", "minimum_detectable_effect", "direction"))
        return about | empty | {"notes": [str(error)]}
    return about | asdict(found) | {"direction": direction(found)}


def direction(gain: statistics.Gain) -> str:
    """On which side of zero the whole interval lies: "better", "worse", or "unclear" if it holds zero."""
    low, high = gain.interval
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def verdict(results: Results, primary: dict[str, Any], gains: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on the primary comparison: the word, sentences, both gains, cautions."""
    chosen = {g["against"]: g for g in gains if g["primary"] and g["value"] is not None}
    if set(chosen) != set(BASELINES):
        empty = {"word": None, "headline": "No verdict", "sentence": None, "pairs": None}
        said_plainly = why_no_verdict(primary, [name for name in BASELINES if name not in chosen])
        return empty | {"plain": said_plainly, "against": chosen, "cautions": cautions(results, primary, chosen)}
    said = statistics.verdict(*(as_gain(chosen[name]) for name in BASELINES), metric=primary["metric_name"])
    return {
        "word": said.word,
        "headline": words.HEADLINES[said.word],
        "plain": words.plain_sentence(
            {name: g["direction"] for name, g in chosen.items()},
            chosen,
            primary["metric_name"],
            words.counted(num_real(results, primary), "real training image"),
        ),
        "sentence": said.sentence,
        "pairs": words.pairs_sentence(chosen["real"]["value"], primary["metric"]),
        "against": chosen,
        "cautions": cautions(results, primary, chosen),
    }


def why_no_verdict(primary: dict[str, Any], missing: Sequence[str]) -> str:
    """One sentence for a reader who looks for the verdict in vain."""
    if not primary["asked"]:
        return f"This experiment left out {words.arm_name(primary['arm'])}: it can't say whether synthetic images help."
    against = words.joined([words.arm_name(name) for name in missing])
    return (
        f"The comparison named in advance could not be made against {against}: no run of both arms finished. "
        f"See the failed runs below."
    )


def as_gain(gain: dict[str, Any]) -> statistics.Gain:
    return statistics.Gain(**{name: gain[name] for name in statistics.Gain.__dataclass_fields__})


def cautions(results: Results, primary: dict[str, Any], chosen: dict[str, dict[str, Any]]) -> list[str]:
    """What limits the verdict, a sentence each, without repeats."""
    said = [note for g in chosen.values() for note in g["notes"]] + single_draws(results, primary)
    positives = results.labels.sum(axis=0)
    classes = results.manifest["dataset"]["classes"]
    for k in judged(results):
        fewest, kind = min((int(positives[k]), "with"), (len(results.labels) - int(positives[k]), "without"))
        if fewest < words.FEW_POSITIVES:
            said.append(f"Only {words.counted(fewest, 'test image')} {kind} {classes[k]}: its scores jump with each.")
    effects = [g["minimum_detectable_effect"] for g in chosen.values()]
    if primary["metric"] in ("auroc", "auprc") and max(effects, default=0) > words.COARSE:
        said.append(
            f"The experiment is coarse: only a true gain of about {words.number(max(effects))} or more would be found "
            f"four times out of five. More seeds or more test patients sharpen it."
        )
    if primary["named"]["changed"]:
        said.append("The comparison was changed after the experiment had begun: it was not named in advance.")
    if results.failed:
        said.append(f"{len(results.failed)} of {words.counted(len(results.rows), 'run')} failed; listed below.")
    return list(dict.fromkeys(said))


def single_draws(results: Results, primary: dict[str, Any]) -> list[str]:
    """A sentence for each kind of seed of the primary arm that was drawn once, in the words of the statistics' notes.

    The statistics see arrays: one generator with one pool looks there like an arm without a generator.
    """
    said = []
    rows = [row for row in results.rows if row["arm"] == primary["arm"]]
    for kind in ("generator", "pool"):
        if len({row[f"{kind}_seed"] for row in rows}) == 1 and rows[0]["ratio"]:
            said.append(f"Only one {kind} seed: how much the gain varies between {kind} seeds is not in the interval.")
    return said


def num_real(results: Results, primary: dict[str, Any]) -> int:
    """How many real training images the primary comparison's classifiers saw."""
    counts = [r["num_real"] for r in results.rows if r["arm"] == "real" and r["fraction"] == primary["fraction"]]
    return max((count for count in counts if count is not None), default=0)


def score_table(results: Results) -> list[dict[str, Any]]:
    """Scores of every arm, classifier, fraction and ratio over its runs, per class too."""
    found = {name: ordered(results, name) for name in ("classifier", "fraction", "arm")}
    keys = sorted(
        {key(row) for row in results.rows},
        key=lambda k: (*(found[n].index(v) for n, v in zip(("classifier", "fraction", "arm"), (k[1], k[2], k[0]),
                                                           strict=True)), k[3]),
    )  # fmt: skip
    return [score_entry(k, [row for row in results.rows if key(row) == k]) for k in keys]


def score_entry(k: Key, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ok = [row for row in rows if row["status"] == "ok"]
    per_class = [row["per_class"] for row in ok if row["per_class"]]
    return {
        "arm": k[0], "classifier": k[1], "fraction": k[2], "ratio": k[3],
        "num_runs": len(ok), "num_failed": len(rows) - len(ok),
        "num_real": first(rows, "num_real"), "num_extra": first(rows, "num_extra"), "steps": first(rows, "steps"),
        "metrics": {metric: summary([row.get(metric) for row in ok], metric) for metric in METRICS},
        "per_class": {
            name: {"num_positive": per_class[0][name].get("num_positive")} | {
                metric: summary([scores[name].get(metric) for scores in per_class], metric) for metric in METRICS}
            for name in (per_class[0] if per_class else ())
        },
    }  # fmt: skip


def first(rows: Sequence[dict[str, Any]], name: str) -> Any:
    """A column's first value that is there; failed rows lack some."""
    return next((row[name] for row in rows if row.get(name) is not None), None)


def summary(values: Sequence[float | None], metric: str) -> dict[str, Any]:
    """Mean, sd, worst and best over runs that have the score; all None where none has."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if not there:
        return {"mean": None, "sd": None, "worst": None, "best": None, "values": []}
    ends = (max(there), min(there)) if metric in words.LOWER_IS_BETTER else (min(there), max(there))
    return {
        "mean": float(np.mean(there)),
        "sd": float(np.std(there, ddof=1)) if len(there) > 1 else None,
        "worst": ends[0],
        "best": ends[1],
        "values": there,
    }


def generator_metrics(results: Results) -> list[dict[str, Any]]:
    """The numbers of metrics/*.json, grouped by extractor; each keeps its file's name and its whole stamp.

    `remarks` are the sentences that several numbers share (warnings, how floor and interval were made), each once.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, content in results.metrics:
        for entry in content["numbers"]:
            extractor = entry.get("extractor") or {}
            group = groups.setdefault(repr(sorted(extractor.items())), {"extractor": extractor, "numbers": []})
            group["numbers"].append(
                {"generator": name.removesuffix(".json"), "label": metric_label(entry)}
                | {k: v for k, v in entry.items() if k not in ("extractor", "label")}
            )
    for group in groups.values():
        group["remarks"] = list(dict.fromkeys(remark for entry in group["numbers"] for remark in remarks(entry)))
    return list(groups.values())


def remarks(entry: dict[str, Any]) -> list[str]:
    """What a number's row has no room for."""
    said = []
    if floor := entry.get("floor_detail"):
        said.append(
            f"Floor: {floor['against']}, {floor['num_reference']} against {floor['num_other']} images, "
            f"{words.counted(floor['repeats'], 'draw')}."
        )
    if method := entry.get("interval_method"):
        said.append(f"Interval: {method}.")
    return said


def metric_label(entry: dict[str, Any]) -> str:
    """The number's name. Only what the FID network's last layer gives may have FID's names, whatever the file says."""
    label = entry.get("label") or entry["metric"].replace("_", " ")
    extractor = entry.get("extractor") or {}
    is_fid_network = str(extractor.get("weights_sha256")).startswith(FID_SHA256_PREFIX) and extractor["layer"] == "2048"
    if is_fid_network or not re.search(r"\b(FID|KID|IS|Inception Score)\b", label):
        return label
    return f"{entry['metric'].replace('_', ' ')}, {extractor.get('name', 'unknown extractor')}"


def failures(results: Results) -> list[dict[str, Any]]:
    names = ("arm", "classifier", "fraction", "ratio", "generator_seed", "pool_seed", "classifier_seed", "error")
    return [{name: row.get(name) for name in names} for row in results.failed]


def dataset(results: Results) -> dict[str, Any]:
    told = dict(results.manifest["dataset"])
    test = {"num_images": len(results.labels), "num_patients": len(set(results.patients))}
    positives = dict(zip(told["classes"], map(int, results.labels.sum(axis=0)), strict=True))
    return {"splits": {}} | told | {"test": test | {"per_class": positives}}


def design(results: Results) -> dict[str, Any]:
    """The grid: what was varied, how many runs, how long."""
    manifest = results.manifest
    steps = sorted({row["steps"] for row in results.ok if row.get("steps") is not None})
    seeds = {name: sorted({r[name] for r in results.rows if r[name] is not None})
             for name in ("generator_seed", "pool_seed", "classifier_seed")}  # fmt: skip
    return {
        "arms": [{"arm": arm, "name": words.arm_name(arm), "definition": words.arm_definition(arm)}
                 for arm in ordered(results, "arm")],
        "fractions": ordered(results, "fraction"),
        "ratios": sorted({row["ratio"] for row in results.rows if row["ratio"]}),
        "classifiers": ordered(results, "classifier"),
        "seeds": seeds,
        "steps": steps,
        "cells": manifest.get("cells", {}),
        "subsets": manifest.get("subsets", []),
        "synthetic_given": not manifest.get("generators") and any(row["pool_seed"] is not None for row in results.rows),
        "num_rows": {"ok": len(results.ok), "failed": len(results.failed)},
        "fitting_seconds": sum(row.get("seconds") or 0 for row in results.rows),
    }  # fmt: skip


def repeat(results: Results) -> dict[str, Any]:
    """Everything needed to repeat the experiment, as recorded, and the files this report was made from."""
    return {
        "config": results.config,
        "provenance": results.manifest.get("provenance", {}),
        "commands": [
            finish_command(results.folder),
            f"python -m downstream.report --results {shlex.quote(str(results.folder))}",
        ],
        "inputs": results.inputs,
        "report_git_revision": git_revision(),
        "report_packages": package_versions(),
    }


def judged(results: Results) -> list[int]:
    told = results.manifest["dataset"]
    return judged_classes(len(told["classes"]), told["task"])


def key(row: dict[str, Any]) -> Key:
    return row["arm"], row["classifier"], row["fraction"], row["ratio"]


def ordered(results: Results, name: str) -> list[Any]:
    """Values of a column in the manifest's order, those it doesn't list after them; numbers ascend."""
    there = {row[name] for row in results.rows}
    listed = [value for value in results.manifest.get(name + "s", []) if value in there]
    order = list(dict.fromkeys(listed)) + sorted(there - set(listed))
    return sorted(order) if name == "fraction" else order


def finite(value: Any) -> Any:
    """JSON-ready: NumPy numbers become Python's, tuples lists, NaN and infinity None."""
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        return finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
