"""MedMNIST's .npz files of 2D images (Yang et al. 2023, Scientific Data 10:41), streamed: some outgrow memory."""

import contextlib
import importlib
import math
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy

from cluster.errors import UserError
from vaegan.images import QUIET
from vaegan.importers.base import Format, ImportConfig, Record, Source, fingerprint
from vaegan.shards import SPLITS

CHUNK_BYTES = 1 << 20  # read at a time
MAX_SIDE = 2048
"""Pixels; MedMNIST's largest are 224. A damaged header can say anything."""
MAX_LABEL_BYTES = 1 << 28
CUT_SHORT = "the file is cut short or damaged at this row"
SIZES = (28, 64, 128, 224)

_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip
CLASSES: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte", "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}  # fmt: skip
"""Names of the classes of the 2D sets, in the order of their labels, as the package `medmnist` 3.0 has them."""


def open_medmnist(config: ImportConfig) -> Source:
    """All images of a MedMNIST file, of the only one in a folder, or of a set that is downloaded by name.

    Class names are known for the 12 sets of 2D images, by the file's name; elsewhere classes are called by their
    integers. There are no patients.

    Raises:
        UserError: no such file or set, no MedMNIST layout, 3D images, or a file that is damaged beyond its rows.
    """
    path = _file(config.images)
    with _readable(path), zipfile.ZipFile(path) as archive:
        arrays = {split: _images(archive, split, path) for split in SPLITS}
        labels = {split: _labels(archive, split, arrays[split], path) for split in SPLITS}
    if len({array.shape[1:] for array in arrays.values()}) > 1 or len({each.shape[1] for each in labels.values()}) > 1:
        raise UserError(f"{path} has images or labels of other shapes in one split than in another: expected one shape")
    task, names, note = _classes(path, list(labels.values()))
    positions = {split: _positions(each, names) for split, each in labels.items()}
    classes = tuple(names.values())

    def records() -> Iterator[Record]:
        for split in SPLITS:
            for i, pixels in enumerate(_rows(path, split, arrays[split])):
                image_id = f"{split}-{i:05d}"
                yield Record(
                    name=f"{path.name}:{image_id}",
                    image=b"" if pixels is None else pixels,
                    image_id=image_id,
                    labels=tuple(classes[k] for k in np.flatnonzero(positions[split][i])),
                    split=split,
                    problem=CUT_SHORT if pixels is None else None,
                )

    return Source(
        kind="medmnist",
        task=task,
        classes=classes,
        num_records=sum(array.shape[0] for array in arrays.values()),
        records=records,
        fingerprint=fingerprint([path]),
        files=(path,),
        notes=[
            "MedMNIST doesn't say who the patients are, so each image counts as one: patients may cross the splits.",
            *note,
        ],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Which file


def _file(images: Path | None) -> Path:
    if images is None:
        raise UserError("no --images: expected a MedMNIST file (.npz), or a set's name such as pneumoniamnist_64")
    if images.is_dir():
        found = _files_in(images)
        if len(found) != 1:
            raise UserError(f"{images} holds {len(found)} MedMNIST files: expected one; name the file with --images")
        return found[0]
    return images if images.exists() else _downloaded(images)


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and _is_medmnist(path))
    except OSError:
        return []


def _is_medmnist(path: Path) -> bool:
    if path.suffix.lower() != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "train_images.npy" in archive.namelist()
    except Exception:  # whatever a damaged archive leads zipfile to
        return False


def _recognises(path: Path) -> bool:
    return len(_files_in(path)) == 1 if path.is_dir() else _is_medmnist(path)


def _downloaded(name: Path) -> Path:
    """The file of a set, from the cache or fetched by the package `medmnist`, which checks its MD5 in both cases."""
    match = re.fullmatch(rf"({'|'.join(CLASSES)})(?:_({'|'.join(map(str, SIZES))}))?", str(name).lower())
    if not match:
        raise UserError(
            f"no file {name}: expected a MedMNIST file (.npz), or the name of a 2D set ({', '.join(CLASSES)}) with or "
            f"without a size ({', '.join(f'_{size}' for size in SIZES)})"
        )
    flag, size = match.groups()
    suffix = f"_{size}" if size and size != "28" else ""
    file = _cache() / f"{flag}{suffix}.npz"
    try:
        medmnist = importlib.import_module("medmnist")  # and with it PyTorch, which nothing else here needs
    except ImportError:
        raise UserError(
            f"no file {name}, and the package that downloads it is missing: pip install 'augray[medmnist]', or pass "
            f"the path of {file.name}"
        ) from None
    info = medmnist.INFO[flag]
    # its __init__ would go on to load a whole split, of gigabytes
    loader = object.__new__(getattr(medmnist, info["python_class"]))
    loader.root, loader.info, loader.size_flag = str(file.parent), info, suffix
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loader.download()
    except Exception:  # RuntimeError, after which the package speaks for ten lines
        raise UserError(
            f"{name} couldn't be downloaded: download {file.name} where there is a network, and pass its path with "
            "--images"
        ) from None
    return file


def _cache() -> Path:
    folder = Path(os.environ.get("AUGRAY_CACHE") or Path("~/.cache/augray").expanduser()) / "medmnist"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache {folder} can't be made ({error.strerror}): set AUGRAY_CACHE to a folder that can be written"
        ) from None
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# What is in it


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What zipfile, zlib and NumPy raise over a damaged file, as one sentence."""
    try:
        with QUIET:
            yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} can't be read as a MedMNIST file ({reason}): replace it") from None


@dataclass(frozen=True)
class _Array:
    """What the header of a member says: shape with the number of rows first, type, and bytes of one row."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def _header(member: IO[bytes], key: str, path: Path) -> _Array:
    """Reads up to where the rows begin."""
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{key} of {path} is in version {version[0]} of NumPy's format: expected 1 or 2")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise UserError(
            f"{key} of {path} holds Python objects, which may run code when they are read: expected numbers"
        )
    if fortran and len(shape) > 1:
        raise UserError(f"{key} of {path} is stored column by column: save it anew with numpy.ascontiguousarray")
    return _Array(tuple(map(int, shape)), dtype)


@contextmanager
def _member(archive: zipfile.ZipFile, key: str, path: Path) -> Iterator[IO[bytes]]:
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(name.removesuffix(".npy")[:40] for name in archive.namelist()[:8])
        raise UserError(
            f"{path} has no {key} (it has {found or 'nothing'}): expected train, val and test _images and _labels"
        )
    with archive.open(f"{key}.npy") as member:
        yield member


def _images(archive: zipfile.ZipFile, split: str, path: Path) -> _Array:
    key = f"{split}_images"
    with _member(archive, key, path) as member:
        array = _header(member, key, path)
        begin = member.tell()
    said = f"{key} of {path} holds {array.dtype} of shape {array.shape}"
    if re.match(r"[a-z]+3d", path.stem.lower()) or (len(array.shape) in (4, 5) and array.shape[3] > 4):
        raise UserError(f"{said}, which are 3D images: expected a 2D set")
    if len(array.shape) not in (3, 4) or array.dtype != np.uint8 or (array.shape[3:] or (1,))[0] not in (1, 3):
        raise UserError(f"{said}: expected uint8 of shape (N, H, W) or (N, H, W, 3)")
    if not 1 <= min(array.shape[1:3]) <= max(array.shape[1:3]) <= MAX_SIDE:
        raise UserError(f"{said}: expected images of 1 to {MAX_SIDE} pixels a side")
    if archive.getinfo(f"{key}.npy").file_size > begin + array.shape[0] * array.row_bytes:
        raise UserError(f"{said}, and more than that: the file is damaged; replace it")
    return array


def _labels(archive: zipfile.ZipFile, split: str, images: _Array, path: Path) -> np.ndarray:
    """(N, K) integers, K = 1 for a class each."""
    key = f"{split}_labels"
    with _member(archive, key, path) as member:
        array = _header(member, key, path)
        size = math.prod(array.shape) * array.dtype.itemsize
        if len(array.shape) not in (1, 2) or array.dtype.kind not in "iub" or 0 in array.shape[1:]:
            raise UserError(f"{key} of {path} holds {array.dtype} of shape {array.shape}: expected integers (N, K)")
        if array.shape[0] != images.shape[0]:
            raise UserError(
                f"{path} has {images.shape[0]} {split} images and {array.shape[0]} labels: expected as many"
            )
        if size > MAX_LABEL_BYTES:
            raise UserError(f"{key} of {path} says it has {size} bytes: expected at most {MAX_LABEL_BYTES}")
        data = member.read(size)
        if len(data) < size or member.read(1):  # the second sees to it that the checksum is compared
            raise UserError(f"{key} of {path} holds more or less than its header says: the file is damaged; replace it")
    values = np.frombuffer(data, array.dtype).reshape(array.shape)
    return values.reshape(len(values), -1) if values.size else values.reshape(0, (*array.shape[1:], 1)[0])


def _classes(
    path: Path, labels: Sequence[np.ndarray]
) -> tuple[Literal["multiclass", "multilabel"], dict[int, str], list[str]]:
    """Task, name of each label or column of labels, and a note where the names aren't known."""
    values = np.unique(np.concatenate([np.unique(each) for each in labels]).astype(np.int64)).tolist()
    columns = labels[0].shape[1]
    if not values:
        raise UserError(f"{path} has no images: expected some")
    if columns > 1 and not set(values) <= {0, 1}:
        raise UserError(f"{path} has {columns} labels an image, of {values[0]} to {values[-1]}: expected 0 and 1")
    found = list(range(columns)) if columns > 1 else values
    task: Literal["multiclass", "multilabel"] = "multilabel" if columns > 1 else "multiclass"
    match = re.match(rf"({'|'.join(CLASSES)})(?![a-z0-9])", path.stem.lower())
    known = CLASSES[match.group(1)] if match else ()
    if columns > 1:
        fits = len(known) == columns
    else:
        fits = 0 <= values[0] <= values[-1] < len(known) and known != CLASSES["chestmnist"]
    if fits:
        return task, dict(enumerate(known)), []
    why = f"its labels aren't those of {match.group(1)}" if match else "the file isn't named like a known set"
    return task, {value: str(value) for value in found}, [f"The classes are called by their numbers, since {why}."]


def _positions(labels: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """Which classes each image has, bool (N, K)."""
    if labels.shape[1] > 1:
        return labels != 0
    return labels == np.array(list(names))


def _rows(path: Path, split: str, array: _Array) -> Iterator[np.ndarray | None]:
    """Each row's pixels, (H, W) or (H, W, C); None from where the file can't be read on. As many as the header says.

    A checksum that doesn't fit is seen at the end: then only the last chunk's rows are None.
    """
    given = 0
    for pixels in _chunks(path, f"{split}_images", array):
        for each in pixels:
            given += 1
            yield each.copy()  # not a view, which would keep the whole chunk
    yield from (None for _ in range(array.shape[0] - given))


def _chunks(path: Path, key: str, array: _Array) -> Iterator[np.ndarray]:
    """Runs of rows, as far as they can be read."""
    step, left = max(1, CHUNK_BYTES // array.row_bytes), array.shape[0]
    # whatever a damaged file, or one that was changed meanwhile, leads zipfile and zlib to raise
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        with QUIET:
            _header(member, key, path)
        while left > 0:
            data = member.read(
                min(step, left) * array.row_bytes + (left <= step)
            )  # past the end: the checksum is looked at
            whole = len(data) // array.row_bytes
            if not whole:
                break
            yield np.frombuffer(data, np.uint8, whole * array.row_bytes).reshape(whole, *array.shape[1:])
            left -= whole


FORMAT = Format(
    "medmnist", "a MedMNIST file (.npz), or with --source medmnist a set's name such as pathmnist_64", _recognises,
    open_medmnist,
)  # fmt: skip
