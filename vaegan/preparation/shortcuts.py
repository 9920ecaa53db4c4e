"""Whether the class can be told from what has nothing to do with disease: the film's corners, border, exposure, size.

A classifier that finds such a shortcut scores well on this dataset and fails on the next hospital's. What is asked here
is narrow: how well does a small, linear, regularised model tell a class from *that part alone*, on patients that it
has not seen? It can't know whether the part goes with the class by accident or because of the disease (an effusion
lies at the base, an ill child is filmed lying down), so every sentence says "may".
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from vaegan.duplicates import THUMBNAIL
from vaegan.metrics.auc import area

Array = NDArray[Any]

CORNER = 5  # px of the thumbnail's 32
"""With 6 the lower corners reach the costophrenic angle: the phantom's effusions could be told from there, at 2.5
standard errors (.544, 2,022 films); with 5 at none (.50)."""
RING = 2  # px
"""The film's rim without its corners. On 415 phantom films effusions are told from it with .59 ± .04, and with .61 from
a rim of 3, which comes nearer to the costophrenic angle; on 2,022 films with .53 from either."""
MIN_CONTRAST = 2.0  # grey levels
"""Least standard deviation to divide by: a part that is all black shows noise of the last bit, and nothing else."""
FOLDS = 5
FILMS = 2000
"""At most, for each class: half with it and half without. AUROC doesn't ask how common the class is, and on 2,000 films
its standard error is .01."""
FILMS_OF_A_PATIENT = 5  # who has hundreds is still one witness
FILMS_OF_ALL_CLASSES = 8000  # so that 14 findings cost no more than four classes
MIN_FILMS = 400  # of one class, however many classes there are
MIN_PATIENTS = 25
"""With the class, and without it. Fewer say nothing: on 25 against 25 an AUROC of .5 has a standard error of .08."""
MAX_CLASSES = 20
"""The most frequent ones; each takes a fifth of a second."""
ALPHA = 0.01
"""Chance of one sentence or more where no part exceeds its threshold: all classes and parts together (Bonferroni)."""
NAMED = 3  # classes in one sentence
CORNERS = {
    f"{above} {side}": (rows, columns)
    for above, rows in (("upper", slice(CORNER)), ("lower", slice(-CORNER, None)))
    for side, columns in (("left", slice(CORNER)), ("right", slice(-CORNER, None)))
}
"""Names and places, as one looks at the image."""


@dataclass(frozen=True)
class Part:
    """Something of a film that should not tell its class.

    least: AUROC that even the lower end of the interval must exceed, or nothing is said.
    what, why, remedy: the sentence's pieces.
    """

    name: str
    least: float
    what: str
    why: str
    remedy: str
    model: Callable[[], Pipeline | DecisionTreeClassifier]


def _linear(strength: float) -> Callable[[], Pipeline]:
    return lambda: make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
    )


def _tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=20, class_weight="balanced", random_state=0)


PARTS = (
    Part(
        "corners", 0.65, "The four corners alone tell",
        "markers, collimation or the scanner's style may go with the class, and a classifier may learn them instead of "
        "the disease",
        "look at the corners, crop or mask them, and test on another hospital's films",
        _linear(0.03),
    ),
    Part(
        "border", 0.70, "The border without its corners alone tells",
        "how patients were placed, the field of view or the scanner's style may go with the class (a disease at the "
        "lungs' edge shows there too)",
        "crop to the lungs, and test on another hospital's films",
        _linear(0.03),
    ),
    Part(
        "exposure", 0.85, "The mean, contrast and percentiles of grey alone tell",
        "exposure or processing may go with the class (a disease that whitens the lungs moves them too)",
        "compare how the classes were taken, vary brightness and contrast in training, and test on another hospital's "
        "films",
        _linear(0.3),
    ),
    Part(
        "size", 0.65, "Height and width of the original images alone tell",
        "the classes may come from different scanners or archives, whose style a classifier may learn instead of the "
        "disease",
        "find out where each class comes from, and test on films of one source that has them all",
        _tree,
    ),
)  # fmt: skip
"""Measured, AUROC on patients that the model has not seen:

                                     corners   border    exposure  size
    random labels, 1 or 14 findings  .33-.61   .36-.67   .34-.61   .42-.56   74 questions; no lower end above .55
    phantom, 415 films               .48-.58   .50-.58   .46-.81   constant  no shortcut in it: what disease alone does
    phantom, 2,022 films             .45-.52   .50-.54   .54-.79   constant
    NIH, 1,000 films                 .69       .79       .79       constant
    Kermany, 5,856 films             .84       .88       .90       constant
    PneumoniaMNIST                   .87       .91       .93       constant
    a marker on 30 % of a class      .62       as before as before as before
    a marker on 50 % of a class      .73
    a marker on 70 % of a class      .84
    10 grey levels brighter          as before as before .68-1.0
    25 grey levels brighter          as before as before .90-1.0
    size differs, overlapping                                      .78-.86

Corners need little, since no lesion lies there. A lesion whitens the film, so exposure needs the most: consolidations
of the phantom reach .81. With few films the lower end stays below for longer: 500 films and a marker on half a class
said nothing in one of three draws. Why the border tells so much of NIH's pneumonia is not known here: there is no
column of views to look at.
"""


@dataclass(frozen=True)
class Finding:
    """How well one part tells one class.

    low: lower end of the one-sided interval at ALPHA for all questions asked.
    corner: which of them tells it best, and its AUROC; None for other parts, and where the four say too little.
    """

    label: str
    auroc: float
    low: float
    films: int
    corner: tuple[str, float] | None = None


def shortcut_warnings(
    thumbnails: Array,
    labels: NDArray[np.uint8],
    patients: NDArray[np.int64],
    heights: Array,
    widths: Array,
    classes: Sequence[str],
    *,
    seed: int,
) -> tuple[list[str], dict[str, Any]]:
    """Sentences on the parts that tell a class too well, and all numbers for the manifest.

    The AUROC is that of scores from cross-validation by patient; its standard error takes the films of a patient as one
    cluster (Obuchowski 1997). Nothing is said unless the lower end of the interval exceeds the part's threshold, the
    interval being as wide as the number of classes and parts asks for.

    Args:
        thumbnails: grey (N, 32, 32) uint8; only a sample is read, by row numbers in ascending order.
        labels: multi-hot (N, K).
        patients: a patient's films share a number (N,).
        heights, widths: of the original images in pixels (N,).
        classes: K names.
        seed: draws the sample and the folds.
    """
    exclusive = bool((labels.sum(axis=1) == 1).all())
    asked, skipped = _askable(labels, patients, exclusive)
    films = int(np.clip(FILMS_OF_ALL_CLASSES // max(len(asked), 1), MIN_FILMS, FILMS))
    z = norm.ppf(1 - ALPHA / (max(len(asked), 1) * len(PARTS)))
    found: dict[str, list[Finding]] = {part.name: [] for part in PARTS}
    for k in asked:
        rng = np.random.default_rng([seed, k])
        rows = _sample(labels[:, k] > 0, patients, films, rng)
        truth, group, fold_seed = labels[rows, k] > 0, patients[rows], int(rng.integers(2**31))
        pixels = np.asarray(thumbnails[rows])
        for part, values in _values(pixels, heights[rows], widths[rows]):
            auroc, error = _auroc(part, values, truth, group, fold_seed)
            low = auroc - z * error
            telling = part.name == "corners" and low > part.least
            corner = _best_corner(part, pixels, truth, group, fold_seed) if telling else None
            found[part.name].append(Finding(classes[k], auroc, low, len(rows), corner))
    sentences = [_sentence(part, found[part.name], classes, exclusive) for part in PARTS]
    return [sentence for sentence in sentences if sentence], _numbers(found, [classes[k] for k in skipped])


def _askable(labels: NDArray[np.uint8], patients: NDArray[np.int64], exclusive: bool) -> tuple[list[int], list[int]]:
    """Columns to ask about, and those with too few patients on either side. Of two exclusive classes one is enough."""
    columns = [1] if exclusive and labels.shape[1] == 2 else list(range(labels.shape[1]))
    enough = [
        k for k in columns if all(len(np.unique(patients[labels[:, k] == side])) >= MIN_PATIENTS for side in (0, 1))
    ]
    asked = sorted(sorted(enough, key=lambda k: -int(labels[:, k].sum()))[:MAX_CLASSES])
    return asked, [k for k in columns if k not in asked]


def _sample(
    positive: NDArray[np.bool_], patients: NDArray[np.int64], films: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Up to films / 2 rows of each side, ascending: a patient's second film only after the first of all others, and no
    more than `FILMS_OF_A_PATIENT`."""
    chosen = []
    for side in (False, True):
        rows = rng.permutation(np.flatnonzero(positive == side))
        order = np.argsort(patients[rows], kind="stable")
        starts = np.flatnonzero(np.append(True, np.diff(patients[rows][order]) != 0))
        nth = np.empty(len(rows), dtype=np.int64)  # of its patient's films
        nth[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
        some = nth < FILMS_OF_A_PATIENT
        chosen.append(rows[some][np.argsort(nth[some], kind="stable")][: films // 2])
    return np.sort(np.concatenate(chosen))


def _values(thumbnails: NDArray[np.uint8], heights: Array, widths: Array) -> list[tuple[Part, Array]]:
    """Each part with its numbers (N, D), but those that are the same on all films."""
    corners = np.zeros((THUMBNAIL, THUMBNAIL), dtype=bool)
    for place in CORNERS.values():
        corners[place] = True
    border = ~corners
    border[RING:-RING, RING:-RING] = False
    grey = thumbnails[:, ~corners].astype(np.float64)  # a marker is no exposure
    percentiles = np.percentile(grey, (1, 5, 25, 50, 75, 95, 99), axis=1).T
    values = (
        _normalised(thumbnails[:, corners]),
        _normalised(thumbnails[:, border]),
        np.column_stack([grey.mean(axis=1), grey.std(axis=1), percentiles]),
        np.column_stack([heights, widths, heights / np.maximum(widths, 1)]).astype(np.float64),
    )
    return [(part, x) for part, x in zip(PARTS, values, strict=True) if (x != x[0]).any()]


def _best_corner(
    part: Part, thumbnails: NDArray[np.uint8], truth: NDArray[np.bool_], group: Array, seed: int
) -> tuple[str, float]:
    """The corner that tells most when it is seen alone, with its AUROC."""
    areas = {}
    for name, place in CORNERS.items():
        values = _normalised(thumbnails[:, *place].reshape(len(thumbnails), -1))
        areas[name] = _auroc(part, values, truth, group, seed)[0]
    return max(areas.items(), key=lambda item: item[1])


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Each film's pixels (N, D) with mean 0 and standard deviation 1, so that its exposure can't be seen in them."""
    centred = pixels - pixels.mean(axis=1, keepdims=True)
    return centred / np.maximum(centred.std(axis=1, keepdims=True), MIN_CONTRAST)


def _auroc(part: Part, values: Array, truth: NDArray[np.bool_], group: Array, seed: int) -> tuple[float, float]:
    """AUROC and its standard error, of scores that each film gets from a model that has not seen its patient."""
    scores = np.empty(len(truth))
    # not stratified, which would take longer than all else: a sample has both sides in like numbers
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few more steps would not move an AUROC
        for train, held_out in folds.split(values, truth, group):
            model = part.model().fit(values[train], truth[train])
            scores[held_out] = model.predict_proba(values[held_out])[:, 1]
    found = area(scores[truth], scores[~truth], group[truth], group[~truth])
    return found.auc, found.standard_error


def _sentence(part: Part, found: Sequence[Finding], classes: Sequence[str], exclusive: bool) -> str | None:
    telling = sorted((f for f in found if f.low > part.least), key=lambda f: -f.auroc)
    if not telling:
        return None
    if exclusive and len(classes) == 2:
        whom = f"{classes[0]} from {classes[1]} with AUROC {_number(telling[0].auroc)}"
    else:
        named = ", ".join(f"{f.label} (AUROC {_number(f.auroc)})" for f in telling[:NAMED])
        more = f" and {len(telling) - NAMED} more classes" if len(telling) > NAMED else ""
        whom = f"{named}{more} from {'the other classes' if exclusive else 'films without it'}"
    corner = telling[0].corner
    best = f", the {corner[0]} one by itself {_number(corner[1])}" if corner else ""
    return f"{part.what} {whom} (chance .50{best}): {part.why}; {part.remedy}."


def _number(auroc: float) -> str:
    return f"{auroc:.2f}".removeprefix("0")


def _numbers(found: dict[str, list[Finding]], skipped: list[str]) -> dict[str, Any]:
    least = {part.name: part.least for part in PARTS}
    return {
        name: {
            "threshold": least[name],
            "classes": {f.label: _as_json(f) for f in findings},
        }
        for name, findings in found.items()
        if findings
    } | ({"not_asked": skipped} if skipped else {})


def _as_json(f: Finding) -> dict[str, Any]:
    numbers: dict[str, Any] = {"auroc": round(float(f.auroc), 4), "low": round(float(f.low), 4), "films": f.films}
    return numbers | (
        {"best_corner": f.corner[0], "best_corner_auroc": round(float(f.corner[1]), 4)} if f.corner else {}
    )
