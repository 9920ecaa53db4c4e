"""Trees of as many made-up films as asked for, shaped like NIH ChestX-ray14 or like a folder per class.

The real one is 112,120 images of 45 GB. These are PNG files of 64 px and 4 kB each, written at thousands a second, and
otherwise such as it: its columns, findings as common as there, 1 to 180 films a patient, both lists of the official
split. What a dataset made from them must get right is planted, and known.
"""

import csv
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaegan.phantom import PhantomConfig, phantom

FILMS, PATIENTS, TEST_FILMS = 112_120, 30_805, 25_596
"""Of the real one, whose proportions smaller trees have."""
POSITIVES = {
    "Infiltration": 19_894,
    "Effusion": 13_317,
    "Atelectasis": 11_559,
    "Nodule": 6_331,
    "Mass": 5_782,
    "Pneumothorax": 5_302,
    "Consolidation": 4_667,
    "Pleural_Thickening": 3_385,
    "Cardiomegaly": 2_776,
    "Emphysema": 2_516,
    "Edema": 2_303,
    "Fibrosis": 1_686,
    "Pneumonia": 1_431,
    "Hernia": 227,
}
"""Films with each finding, of the real one's."""
NO_FINDING = 60_361 / FILMS
HEADER = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
    "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]",
)  # fmt: skip
"""Two of the names have a comma in them, so that they are four."""
TABLE, TRAIN_LIST, TEST_LIST = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"
FOLDERS = 12
CLASSES = ("NORMAL", "PNEUMONIA")
MAX_FILMS = 180  # of a patient
SIZE = 64  # px
BLOCK = 1000
"""Films made at a time. Each block has random numbers of its own, so that none depends on how many follow."""
WAVES = 8
STRUCTURE, GRAIN = 32.0, 9.0
"""Standard deviations, in grey levels, of what is smooth and differs from film to film, and of what is fine. With these
4 pairs of films in 10,000 have hashes within 8 bits (5 of 1,000 real ones of NIH), and none is a near copy."""


@dataclass(frozen=True)
class Tree:
    """Where a tree is, and what a dataset made from it must say.

    exact, near: images that have a copy on the other side of the split, in pairs (train, test): names without suffix.
    broken: names of files that can't be decoded.
    """

    folder: Path
    num_images: int
    num_patients: int
    exact: tuple[tuple[str, str], ...]
    near: tuple[tuple[str, str], ...]
    broken: tuple[str, ...]


def write_nih_tree(folder: Path, num_images: int, seed: int = 0) -> Tree:
    """images_001/images/ to images_012/images/, the table and both lists, in a new folder."""
    rng = np.random.default_rng([seed, num_images])
    patients, follow_up = _patients(num_images, rng)
    names = np.char.add(np.char.mod("%08d_", patients + 1), np.char.mod("%03d", follow_up))
    in_test = _test_patients(patients, rng)[patients]
    plan = _Plan.make(in_test, rng)
    for i in range(FOLDERS):
        (folder / f"images_{i + 1:03d}" / "images").mkdir(parents=True)
    per_folder = -(-num_images // FOLDERS)
    for i, data in enumerate(_files(num_images, plan, seed)):
        (folder / f"images_{i // per_folder + 1:03d}" / "images" / f"{names[i]}.png").write_bytes(data)
    _write_table(folder / TABLE, names, patients, follow_up, rng)
    for name, chosen in ((TRAIN_LIST, ~in_test), (TEST_LIST, in_test)):
        (folder / name).write_text("".join(f"{each}.png\n" for each in names[chosen]))
    return plan.tree(folder, names, int(patients.max()) + 1)


def write_class_folders(folder: Path, num_images: int, seed: int = 0) -> Tree:
    """train/NORMAL/ and so on, one film a patient, a quarter of them abnormal, in a new folder."""
    rng = np.random.default_rng([seed, num_images])
    in_test, label = rng.random(num_images) < TEST_FILMS / FILMS, (rng.random(num_images) < 0.25).astype(int)
    plan = _Plan.make(in_test, rng)
    names = np.char.mod("film_%06d", np.arange(num_images))
    for split in ("train", "test"):
        for each in CLASSES:
            (folder / split / each).mkdir(parents=True)
    for i, data in enumerate(_files(num_images, plan, seed)):
        (folder / ("test" if in_test[i] else "train") / CLASSES[label[i]] / f"{names[i]}.png").write_bytes(data)
    return plan.tree(folder, names, num_images)


# ---------------------------------------------------------------------------------------------------------------------
# Who and what


def _patients(num_images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patient and number of the film among that patient's, of each film (N,): most have one film, a few a hundred."""
    number = max(2, round(num_images * PATIENTS / FILMS))
    often = rng.lognormal(sigma=1.6, size=number)
    often = np.minimum(often, 60 * often.mean())
    films = np.minimum(1 + rng.multinomial(num_images - number, often / often.sum()), MAX_FILMS)
    while (missing := num_images - films.sum()) > 0:  # those above MAX_FILMS go to others
        films[rng.choice(np.flatnonzero(films < MAX_FILMS), min(missing, number // 2), replace=False)] += 1
    patients = np.repeat(np.arange(number), films)
    return patients, np.arange(num_images) - np.repeat(np.cumsum(films) - films, films)


def _test_patients(patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whether each patient is in the test list: as many as bring its share of the films, and at least one."""
    films = np.bincount(patients)
    order = rng.permutation(len(films))
    chosen = np.cumsum(films[order]) <= films.sum() * TEST_FILMS / FILMS
    chosen[0] = True
    return np.isin(np.arange(len(films)), order[chosen])


def _findings(num_images: int, rng: np.random.Generator) -> np.ndarray:
    """Multi-hot (N, 14): none on 54 % of the films, and each finding about as often as in the real tree."""
    share = np.array(list(POSITIVES.values())) / FILMS / (1 - NO_FINDING)
    found = rng.random((num_images, len(share))) < 0.55 * share  # and one more on each film that isn't normal
    found[np.arange(num_images), rng.choice(len(share), num_images, p=share / share.sum())] = True
    return found & (rng.random(num_images) >= NO_FINDING)[:, None]


def _write_table(
    path: Path, names: np.ndarray, patients: np.ndarray, follow_up: np.ndarray, rng: np.random.Generator
) -> None:
    findings = _findings(len(names), rng)
    number = int(patients.max()) + 1
    age, gender = rng.integers(1, 95, number), rng.choice(["M", "F"], number, p=[0.565, 0.435])
    view = rng.choice(["PA", "AP"], len(names), p=[0.6, 0.4])
    with path.open("w", newline="") as file:
        file.write(",".join(HEADER) + "\n")
        writer = csv.writer(file, lineterminator="\n")
        for i, (name, patient) in enumerate(zip(names, patients, strict=True)):
            said = "|".join(each for each, on in zip(POSITIVES, findings[i], strict=True) if on) or "No Finding"
            about = (age[patient], gender[patient], view[i], 2500, 2048, 0.168, 0.168)
            writer.writerow((f"{name}.png", said, follow_up[i], patient + 1, *about))


@dataclass(frozen=True)
class _Plan:
    """Rows that are copies, to the rows they copy, and rows whose files are cut short or empty."""

    exact: dict[int, int]
    near: dict[int, int]
    short: frozenset[int]
    empty: frozenset[int]

    @staticmethod
    def make(in_test: np.ndarray, rng: np.random.Generator) -> "_Plan":
        """Two of each kind in a block. A copy is in test, what it copies is in train and in the same block."""
        exact: dict[int, int] = {}
        near: dict[int, int] = {}
        short: list[int] = []
        empty: list[int] = []
        for start in range(0, len(in_test), BLOCK):
            here = rng.permutation(np.arange(start, min(start + BLOCK, len(in_test))))
            test, train = here[in_test[here]].tolist(), here[~in_test[here]].tolist()
            exact |= dict(zip(test[:2], train[:2], strict=False))
            near |= dict(zip(test[2:4], train[2:4], strict=False))
            short += train[4:6]
            empty += train[6:8]
        return _Plan(exact, near, frozenset(short), frozenset(empty))

    def tree(self, folder: Path, names: np.ndarray, num_patients: int) -> Tree:
        """What to expect of it."""
        named = [tuple((str(names[a]), str(names[b])) for b, a in each.items()) for each in (self.exact, self.near)]
        broken = tuple(str(names[i]) for i in sorted(self.short | self.empty))
        return Tree(folder, len(names), num_patients, named[0], named[1], broken)


# ---------------------------------------------------------------------------------------------------------------------
# What they look like


def _files(num_images: int, plan: _Plan, seed: int) -> Iterator[bytes]:
    """The files' bytes, one after the other."""
    films = _Films(seed)
    for start in range(0, num_images, BLOCK):
        block = films.block(start // BLOCK)
        for i in range(start, min(start + BLOCK, num_images)):
            film = block[plan.exact.get(i, i) - start]
            if i in plan.near:
                film = np.round(block[plan.near[i] - start] * 0.85 + 12).astype(np.uint8)
            data = png(film)
            yield b"" if i in plan.empty else data[: len(data) // 2] if i in plan.short else data


class _Films:
    """Grey films (64, 64) that are as alike as real ones: a phantom's, with smooth structure and grain of their own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.base = phantom(PhantomConfig(patients=40), size=SIZE, seed=seed).pixels[:, :, :, 0].astype(np.float32)
        at = (np.arange(SIZE) + 0.5) / SIZE
        waves = np.cos(np.pi * np.arange(WAVES)[:, None] * at)  # (8, 64)
        amplitude = 1 / (1 + np.add.outer(np.arange(WAVES), np.arange(WAVES)))
        amplitude[0, 0] = 0
        basis = np.einsum("ij,iy,jx->ijyx", amplitude, waves, waves).reshape(WAVES**2, SIZE**2)
        self.basis = (STRUCTURE * basis / np.sqrt((basis**2).sum(axis=0).mean())).astype(np.float32)

    def block(self, number: int) -> np.ndarray:
        """The `number`th thousand, uint8 (1000, 64, 64)."""
        rng = np.random.default_rng([self.seed, number])
        base = self.base[rng.integers(len(self.base), size=BLOCK)]
        structure = (rng.standard_normal((BLOCK, WAVES**2), dtype=np.float32) @ self.basis).reshape(base.shape)
        grain = GRAIN * rng.standard_normal((BLOCK, SIZE // 2, SIZE // 2), dtype=np.float32)
        return np.clip(base + structure + grain.repeat(2, axis=1).repeat(2, axis=2), 0, 255).astype(np.uint8)


def png(film: np.ndarray) -> bytes:
    """A grey film uint8 (H, W) as a PNG file, stored: grain doesn't compress, and writing is what must be fast."""
    rows = np.zeros((len(film), film.shape[1] + 1), dtype=np.uint8)  # before each row the number of its filter, 0
    rows[:, 1:] = film
    header = struct.pack(">IIBBBBB", film.shape[1], len(film), 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
