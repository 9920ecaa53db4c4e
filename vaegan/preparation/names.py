"""What file names say of patients: that several images share one, or that one id stands for several people.

Patients decide what may stand on either side of a split. Where nobody said who they are each file counts as a patient,
and where a regular expression said it, numbers that restart make two people one.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Strings: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray
Codes = NDArray[np.int64]

MIN_MATCHING = 0.9  # of the names, for a pattern to be theirs
MIN_PATIENTS = 10
MIN_SHARING = 0.1
"""Of the images, that share their patient with another: 48 % of NIH's 1,000 and 42 % of Kermany's do."""
MAX_PER_PATIENT = 50  # images on average: more is a folder of a thousand, or a batch
MAX_OF_ONE = 0.2  # of all images, with the commonest beginning: "img" in img_0001 has them all
MIN_DIGITS = 0.9  # of the beginnings hold a digit: "COVID" in COVID-12 is no patient
MAX_WORDS = 12  # different ones at the end, where it is one: frontal and lateral, not a word for each image
MIN_RESTARTING = 0.5
"""Of a split's patients that are in another one too. Sound splits have none, and where numbers restart in each split
nearly all are."""
MIN_IN_PART = 20  # patients of a split or folder, for it to be compared
MIN_MIXED = 10  # patients of whom two words are said, of at least
MIN_MIXED_SHARE = 0.1  # of those who have several images

DATE = r"^(?:[A-Za-z]+[_-]?)?(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])$"
VIEWS = {
    "frontal", "lateral", "oblique", "pa", "ap", "ll", "l", "r", "rl", "lr", "left", "right", "cc", "mlo",
    "front", "back", "side", "view", "scan", "image", "img", "film", "frame", "slice", "series", "study",
    "visit", "exam", "day", "week", "month", "year", "pre", "post", "before", "after", "baseline", "followup",
    "follow", "fu", "copy", "crop", "aug", "axial", "coronal", "sagittal", "supine", "erect", "upright",
    "portable", "od", "os", "xray", "cxr", "dx", "cr", "v", "s", "t", "n",
}  # fmt: skip
"""Words that tell one patient's images apart."""


@dataclass(frozen=True)
class Pattern:
    """A way to find the patient in a path. what: where in the name it stands."""

    regex: str
    what: str


NUMBERED = Pattern(r"([^/]+)[_-]\d+(?:\.[^./]+)?$", "what stands before the last number")
NUMBERED_IN_FOLDERS = Pattern(
    r"([^/]+)/([^/]+)[_-]\d+(?:\.[^./]+)?$", "the folder and what stands before the last number"
)
WORDED = Pattern(r"([^/]+)[_-][A-Za-z]+(?:\.[^./]+)?$", "what stands before the last word")
LAST_WORD = r"[_-](?P<word>[A-Za-z]+)(?:\.[^./]+)?$"
FOLDERS = (
    Pattern(r"([^/]+)/[^/]+$", "the folder"),
    Pattern(r"([^/]+)/[^/]+/[^/]+$", "the folder above the last"),
)


def name_warnings(
    names: Strings, patient_ids: Strings, patients_known: bool, source_split: NDArray[np.integer]
) -> list[str]:
    """Sentences on names that look as if patients had several images, or on ids that may merge different people.

    Args:
        names: paths as --patient-regex sees them, or file names (N,).
        patient_ids: (N,); looked at where `patients_known`.
        patients_known: whether a source or a pattern said who the patients are; else each image is one.
        source_split: index of the source's own split, (N,); -1 where it says none.
    """
    if len(names) == 0:
        return []
    paths = _strings(names)
    sentence = _merged(paths, _strings(patient_ids), source_split) if patients_known else _hint(paths)
    return [sentence] if sentence else []


def _strings(values: Strings) -> pa.Array:
    """One Arrow array without nulls."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        # A file's name may hold bytes that are no UTF-8, which Python keeps as surrogates and Arrow refuses.
        clean = ((value or "").encode("utf-8", "replace").decode() for value in values)
        values = pa.array(clean, type=pa.string())
    return pc.fill_null(values.cast(pa.string()), "")


def _codes(values: pa.Array) -> tuple[Codes, pa.Array]:
    """A number for each value (N,), and the values that they stand for."""
    encoded = values.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


# --------------------------------------------------------------------------------------------- patients nobody spoke of


def _hint(paths: pa.Array) -> str | None:
    pattern = NUMBERED_IN_FOLDERS if _names_repeat(paths) else NUMBERED
    for candidate in (pattern, WORDED, *FOLDERS):
        found = _beginnings(paths, candidate)
        if found is not None:
            return _hint_sentence(paths, candidate, *found)
    return None


def _names_repeat(paths: pa.Array) -> bool:
    """Whether file names repeat in other folders, so that numbers restart there."""
    base = pc.replace_substring_regex(paths, pattern=r"^.*/", replacement="")
    return pc.count_distinct(base).as_py() < 0.99 * pc.count_distinct(paths).as_py()


def _beginnings(paths: pa.Array, pattern: Pattern) -> tuple[Codes, Codes] | None:
    """Rows that match and the patient of each, where they look like patients."""
    groups = re.compile(pattern.regex).groups
    marked = pattern.regex
    for i in range(groups):
        marked = re.sub(r"\((?!\?)", f"(?P<g{i}>", marked, count=1)
    matches = pc.extract_regex(paths, marked)
    rows = np.flatnonzero(pc.is_valid(matches).to_numpy(zero_copy_only=False))
    if len(rows) < MIN_MATCHING * len(paths):
        return None
    parts = [matches.field(i).take(pa.array(rows)) for i in range(groups)]
    if pattern is WORDED:
        words = pc.utf8_lower(pc.extract_regex(paths, LAST_WORD).field("word"))
        if pc.count_distinct(words).as_py() > MAX_WORDS:
            return None
    if pattern in FOLDERS and not _names_one_folder(paths, pattern, parts[0]):
        return None
    codes, values = _codes(pc.binary_join_element_wise(*parts, "_"))
    return (rows, codes) if _like_patients(codes, values, len(paths)) else None


def _names_one_folder(paths: pa.Array, pattern: Pattern, folders: pa.Array) -> bool:
    """Whether a folder's name is found in one place: "study1" is in each patient's folder, and no patient."""
    cut = pattern.regex.removeprefix("([^/]+)")
    whole = pc.replace_substring_regex(paths, pattern=cut, replacement="")
    return pc.count_distinct(folders).as_py() >= 0.5 * pc.count_distinct(whole).as_py()


def _like_patients(codes: Codes, values: pa.Array, num_images: int) -> bool:
    """Many, of few images each, some of several, with a number in their names that is no date."""
    sizes = np.bincount(codes)
    holds = lambda regex: pc.mean(pc.match_substring_regex(values, regex).cast(pa.int8())).as_py()  # noqa: E731
    return bool(
        len(sizes) >= MIN_PATIENTS
        and sizes[sizes > 1].sum() >= MIN_SHARING * num_images
        and sizes.mean() <= MAX_PER_PATIENT
        and sizes.max() <= MAX_OF_ONE * num_images
        and holds(r"\d") >= MIN_DIGITS
        and holds(DATE) < MIN_DIGITS
    )


def _hint_sentence(paths: pa.Array, pattern: Pattern, rows: Codes, codes: Codes) -> str:
    sizes = np.bincount(codes)
    first, second = rows[codes == np.flatnonzero(sizes > 1)[0]][:2]
    missed = len(paths) - len(rows)
    return (
        f"Each image counts as a patient of its own, but the names look as if {len(rows)} images came from "
        f"{len(sizes)} patients ({paths[first]} and {paths[second]}; at most {sizes.max()} of one): if {pattern.what} "
        f"names the patient, prepare again with --patient-regex '{pattern.regex}', or one patient may be in two splits"
        + (f" ({missed} names do not fit it)." if missed else ".")
    )


# ------------------------------------------------------------------------------------------ one id, perhaps two people


def _merged(paths: pa.Array, patient_ids: pa.Array, source_split: NDArray[np.integer]) -> str | None:
    patients, ids = _codes(patient_ids)
    split = np.asarray(source_split, dtype=np.int64)
    mixed = _mixed_sentence(paths, patient_ids, patients, split)
    if mixed:
        return mixed
    folders, folder_names = _codes(pc.replace_substring_regex(paths, pattern=r"[^/]*$", replacement=""))
    splits = [f"the source's {name} split" for name in ("training", "validation", "test")]
    return _restart_sentence(patients, split, ids, pa.array(splits), "split by image") or _restart_sentence(
        patients, folders, ids, folder_names, "sorted into folders image by image"
    )


def _mixed_sentence(paths: pa.Array, patient_ids: pa.Array, patients: Codes, split: Codes) -> str | None:
    """On ids that stand before different words: person1_bacteria_1 and person1_virus_6."""
    word_of = np.full(len(patients), -1)
    words: dict[str, int] = {}
    for row, word in _words_after(paths, patient_ids):
        word_of[row] = words.setdefault(word, len(words))
    rows = np.flatnonzero(word_of >= 0)
    if len(words) < 2 or len(words) > MAX_WORDS:
        return None
    pairs = np.unique(np.column_stack([patients[rows], word_of[rows]]), axis=0)
    mixed = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    if len(mixed) < max(MIN_MIXED, MIN_MIXED_SHARE * (np.bincount(patients) > 1).sum()):
        return None
    first, second = (
        int(rows[(patients[rows] == mixed[0]) & (word_of[rows] == word)][0])
        for word in pairs[pairs[:, 0] == mixed[0], 1][:2]
    )
    before, after = _crossing(patients, split), _crossing(patients * (len(words) + 1) + word_of, split)
    evidence = f"; {before} patients are in two of the source's splits, {after} would be if the word counted"
    likely = re.sub(r"\d+", r"\\d+", str(patient_ids[first]))
    named = " or ".join(sorted(words)) if len(words) == 2 else f"{', '.join(sorted(words)[:3])} or other words"
    return (
        f"One patient, {patient_ids[first]}, has {_base(paths[first])} and {_base(paths[second])}, and so {len(mixed)} "
        f"patients mix names with {named}{evidence if before > after else ''}: if numbers restart with the word, these "
        f"are different people; put the word into --patient-regex, as a group of its own, such as '({likely})[_-]"
        "([A-Za-z]+)' for these two."
    )


def _base(path: object) -> str:
    return str(path).rpartition("/")[2]


def _words_after(paths: pa.Array, patient_ids: pa.Array) -> Iterator[tuple[int, str]]:
    """Rows in whose file name a word follows the id, and the word; none of VIEWS."""
    following = re.compile(r"[_\-. ]+([A-Za-z]+)(?=[_\-. \d]|$)")
    for row, (path, patient_id) in enumerate(zip(paths.to_pylist(), patient_ids.to_pylist(), strict=True)):
        name = _base(path)
        stem = name.rpartition(".")[0] or name
        at = stem.find(patient_id) if patient_id else -1
        match = following.match(stem, at + len(patient_id)) if at >= 0 else None
        if match and match[1].lower() not in VIEWS:
            yield row, match[1].lower()


def _crossing(patients: Codes, split: Codes) -> int:
    """Patients in more than one split."""
    pairs = np.unique(np.column_stack([patients, split])[split >= 0], axis=0)
    return int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())


def _restart_sentence(patients: Codes, part: Codes, ids: pa.Array, parts: pa.Array, how: str) -> str | None:
    """On a part (split or folder) most of whose patients are in another one, too. Rows of part -1 are in none."""
    members: dict[int, set[int]] = defaultdict(set)
    for patient, where in np.unique(np.column_stack([patients, part])[part >= 0], axis=0).tolist():
        members[where].add(patient)
    large = {where: found for where, found in members.items() if len(found) >= MIN_IN_PART}
    smallest = min(large, key=lambda where: len(large[where]), default=-1)
    others = set().union(*(found for where, found in large.items() if where != smallest))
    shared = large.get(smallest, set()) & others
    if not shared or len(shared) < MIN_RESTARTING * len(large[smallest]):
        return None
    return (
        f"{len(shared)} of the {len(large[smallest])} patients in {parts[smallest]} are found elsewhere too (such as "
        f"{ids[min(shared)]}): either the source was {how}, or numbers restart there and one id stands for different "
        "people; if they do, put the split or folder into --patient-regex, as a group of its own."
    )
