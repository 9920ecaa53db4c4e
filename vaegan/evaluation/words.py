"""Names and sentences of metrics.html: numbers in, words out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vaegan.evaluation.gallery import Misses
from vaegan.webpage.words import counted, joined, magnitude, percent

Number = Mapping[str, Any]
"""One entry of `numbers` of metrics.json."""

METRICS: dict[str, tuple[str, str]] = {
    "frechet_distance": (
        "Fréchet distance",
        "How far apart the two clouds of features lie, by their means and covariances. It sees what is common, not a "
        "single odd image, and grows as images get fewer.",
    ),
    "kernel_distance": (
        "Kernel distance",
        "The same question asked without assuming a shape of the clouds, and without bias from few images: around 0 "
        "where the sets are alike, so it may come out below 0.",
    ),
    "classifier_score": (
        "Classifier score",
        "Whether the network puts each synthetic image clearly into a class, and all classes occur. It never looks at "
        "the real images: a high score alone proves little.",
    ),
    "precision": (
        "Precision",
        "Share of synthetic images that lie among the real ones: does each look real?",
    ),
    "recall": (
        "Recall",
        "Share of real images that lie among the synthetic ones: does the variety of the patients occur?",
    ),
    "density": (
        "Density",
        "Precision that counts how many real images a synthetic one lies near, so that a single odd film can't raise "
        "it. It may exceed 1.",
    ),
    "coverage": (
        "Coverage",
        "Share of real images that have a synthetic one in their neighbourhood: recall that odd synthetic images can't "
        "raise.",
    ),
    "c2st_auc": (
        "Real-or-synthetic AUC",
        "How well a linear classifier tells real from synthetic on these features: 0.5 is guessing, 1 is never wrong.",
    ),
    "ms_ssim": (
        "MS-SSIM of pairs",
        "How alike two random images of one class are, pixel by pixel at several scales. Well above the real images’ "
        "own: the generator repeats itself. Well below: noise.",
    ),
}
"""Name and explanation of each metric, in the order of the tables."""

BETTER = {"lower": "lower is better", "higher": "higher is better", "as real": "best as the real images"}

VERDICTS = {
    "pass": ("passed", "Privacy checks passed: these checks found no copy and no leak"),
    "fail": ("failed", "Privacy checks failed: don’t share these images as anonymous"),
    "too little data to say": ("too little data to say", "Privacy checks: too little data to say"),
}
"""In a table, and as a headline."""

NOT_TESTED = "Privacy was not tested"
FAILED_MODEL = "Privacy checks failed for the model: don’t share it, nor an encoder that runs on it"

SCOPES = {
    "images": "The images",
    "model": "The model",
}
SCOPE_MEANINGS = {
    "images": "what somebody who has only the synthetic images could learn",
    "model": "what somebody who has the model itself could learn",
}

DISAGREE = 3.0
"""Extractors whose multiples of the floor differ by this factor see different things; the page says so."""

SETS = {"real": "Real", "synthetic": "Synthetic", "held_out": "Real, held out"}


def metric_name(metric: str) -> str:
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ").capitalize()


def short_label(number: Number) -> str:
    """A label without its extractor, for places that say it already."""
    return str(number["label"]).removesuffix(f", {number['extractor']['name']}")


def cell_label(number: Number) -> str:
    """What a number's label says beyond the row's name and the column's extractor: "FID", "Ledoit-Wolf covariance"."""
    label = short_label(number)
    name = metric_name(number["metric"])
    if label.lower() == name.lower():
        return ""
    return label.removeprefix(name).strip().removeprefix("(").removesuffix(")")


def span(ends: Sequence[float] | None) -> str:
    """An interval: "1.82 to 3.88"."""
    return "no interval" if ends is None else f"{magnitude(ends[0])} to {magnitude(ends[1])}"


def times_floor(number: Number) -> float | None:
    """A distance in multiples of its floor, both at the same number of images; None where the floor is no unit."""
    value, floor = number["value_at_floor_n"], number["floor"]
    return None if value is None or floor is None or floor <= 0 else value / floor


def closeness(numbers: Mapping[str, Number]) -> str:
    """One extractor's finding in a few sentences, by metric; each number at the floor's number of images."""
    said = [_distance(numbers), _kernel(numbers)]
    shares = [numbers[name] for name in ("precision", "coverage") if name in numbers]
    said += [_share(number) for number in shares]
    if "c2st_auc" in numbers:
        said.append(
            f"A simple classifier tells real from synthetic with an AUC of {numbers['c2st_auc']['value']:.2f} "
            "(0.50 would be guessing)."
        )
    return " ".join(sentence for sentence in said if sentence)


def _distance(numbers: Mapping[str, Number]) -> str:
    number = numbers.get("frechet_distance")
    if number is None:
        return ""
    name = f"{metric_name('frechet_distance')}{' (FID)' if number['label'] == 'FID' else ''}"
    value, ratio = number["value_at_floor_n"], times_floor(number)
    if ratio is None:
        return f"{name} {magnitude(number['value'])}, without a floor to compare it with."
    between = f"{name} {magnitude(value)}, where other real images reach {magnitude(number['floor'])}"
    if ratio <= 1:
        return f"{between}: as close as real images are to each other."
    return f"{between}: {_times(ratio)} the floor."


def _kernel(numbers: Mapping[str, Number]) -> str:
    """The kernel distance where the Fréchet distance comes with a warning."""
    number = numbers.get("kernel_distance")
    if number is None or number["floor"] is None or not numbers.get("frechet_distance", {}).get("warning"):
        return ""
    value = magnitude(number["value_at_floor_n"])
    return f"Kernel distance, which few images don’t bias: {value} (other real images: {magnitude(number['floor'])})."


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _share(number: Number) -> str:
    value = number["value"] if number["value_at_floor_n"] is None else number["value_at_floor_n"]
    floor = "" if number["floor"] is None else f" (other real images: {whole_percent(number['floor'])})"
    if number["metric"] == "precision":
        return f"{whole_percent(value).capitalize()} of the synthetic images lie among the real ones{floor}."
    return f"{whole_percent(value).capitalize()} of the real images have a synthetic neighbour{floor}."


def whole_percent(share: float) -> str:
    """0.137 -> "14 %"; "under 1 %" where rounding would say none, "over 99 %" where it would say all."""
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else percent(round(share, 2))


def disagreement(groups: Sequence[Mapping[str, Number]]) -> str | None:
    """A sentence where extractors see very different distances, in multiples of the floor."""
    ratios = {}
    for numbers in groups:
        number = numbers.get("frechet_distance")
        if number is not None and (ratio := times_floor(number)) is not None:
            ratios[number["extractor"]["name"]] = max(ratio, 1.0)
    if len(ratios) < 2 or max(ratios.values()) < DISAGREE * min(ratios.values()):
        return None
    (near, low), *_, (far, high) = sorted(ratios.items(), key=lambda item: item[1])
    return (
        f"The extractors disagree: {_times(high)} the floor for {far}, {_times(low)} for {near}. Each sees what it was "
        "trained to see; take the larger one as the finding until you know what it saw."
    )


def diversity_sentence(number: Number | None) -> str:
    """Whether pairs of synthetic images are as alike as pairs of real ones."""
    if number is None or number["floor"] is None:
        return "How alike pairs of images are was not measured."
    value, floor = magnitude(number["value"]), magnitude(number["floor"])
    low, high = number["interval"] or (number["value"], number["value"])
    if low > number["floor"]:
        return f"Pairs of synthetic images are more alike ({value}) than pairs of real ones ({floor}): less variety."
    if high < number["floor"]:
        return (
            f"Pairs of synthetic images are less alike ({value}) than pairs of real ones ({floor}): more variety, or "
            "noise; the pictures tell which."
        )
    return f"Pairs of synthetic images are as alike ({value}) as pairs of real ones ({floor}), within the interval."


def verdict_headline(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return NOT_TESTED
    if privacy["verdict"] == "fail" and privacy["scopes"].get("images", {}).get("verdict") != "fail":
        return FAILED_MODEL
    return VERDICTS[privacy["verdict"]][1] if privacy["verdict"] in VERDICTS else f"Privacy: {privacy['verdict']}"


def verdict_word(verdict: str) -> str:
    return VERDICTS[verdict][0] if verdict in VERDICTS else verdict


def verdict_kind(privacy: Mapping[str, Any] | None) -> str:
    """The box's class: "pass", "fail", "unsure" or "untested"."""
    if privacy is None:
        return "untested"
    return privacy["verdict"] if privacy["verdict"] in ("pass", "fail") else "unsure"


def copies_sentence(pairs: Sequence[Mapping[str, Any]]) -> str:
    """How many of the pairs shown the check counts as copies."""
    count = sum(bool(pair.get("copy")) for pair in pairs)
    which = f"{count} of them count as copies" if count > 1 else f"{count or 'None'} of them counts as a copy"
    return f"{which} by the rule of the check; look at all."


def overlap_alt(extractor: str, numbers: Mapping[str, Number], pair: Sequence[str]) -> str:
    """What a figure of two shares shows, for those who can't see it."""
    told = [
        f"{metric_name(name)} {magnitude(numbers[name]['value'])} ({span(numbers[name]['interval'])}), real images in "
        f"their place {magnitude(numbers[name]['floor'])}"
        for name in pair
    ]
    return f"{extractor}: {'; '.join(told)}."


def map_alt(extractor: str, sets: Mapping[str, int], kind: str) -> str:
    told = joined([f"{count:,} {name}" for name, count in sets.items()])
    how = "along the two main directions of the real ones" if kind == "pca" else "arranged by t-SNE"
    return f"{extractor}: {told} images as points, {how}."


def bias_alt(entry: Mapping[str, Any]) -> str:
    points = "; ".join(f"{p['num_images']:,} images: {magnitude(p['value'])}" for p in entry["points"])
    return f"{entry['label']} against the number of images. {points}; on the line without end: " \
           f"{magnitude(entry['infinity']['value'])}."  # fmt: skip


def similarity_alt(number: Number | None, counts: tuple[int, int]) -> str:
    means = "" if number is None else (
        f" Means: {magnitude(number['floor'])} real, {magnitude(number['value'])} synthetic."
    )  # fmt: skip
    return f"Histograms of MS-SSIM of {counts[0]:,} real and {counts[1]:,} synthetic pairs.{means}"


def stretch_words(stretch: float) -> str:
    """How far a miss is: "2.3 times too far"."""
    return "beside exact copies" if stretch == float("inf") else f"{magnitude(stretch)} × the reach"


def misses_words(misses: Misses) -> tuple[str, str]:
    """How many images are missed, of either kind."""
    return (
        f"{misses.num_outside:,} of {misses.num_synthetic:,} synthetic images lie outside",
        f"{misses.num_uncovered:,} of {misses.num_real:,} real images are not covered",
    )


def floor_words(detail: Mapping[str, Any] | None) -> str:
    """What a floor was computed from."""
    if detail is None:
        return "none"
    counts = f"{detail['num_reference']:,} against {detail['num_other']:,}"
    return f"{detail['against']}, {counts}, {counted(detail['repeats'], 'draw')}"


def plain(value: Any) -> str:
    """Any value of metrics.json in a line: lists with commas, dictionaries as "key: value"."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return magnitude(value)
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return str(value).lstrip("\0")  # behind a NUL an image without a patient is numbered
