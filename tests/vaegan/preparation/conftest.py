"""Films and folders that several of these tests prepare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaegan.phantom import PhantomConfig, phantom
from vaegan.preparation.config import PrepareConfig
from vaegan.shards import Images, read_manifest, read_split

Save = Callable[..., None]


@pytest.fixture(scope="session")
def films() -> np.ndarray:
    """One film each of 80 patients, (80, 64, 64)."""
    images = phantom(PhantomConfig(patients=80), size=64, seed=0)
    return images.pixels[np.unique(images.patient_id.astype(str), return_index=True)[1]][..., 0]


@pytest.fixture(scope="session")
def save() -> Save:
    """Writes pixels as an image file, with the folders above it."""

    def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)

    return save


@pytest.fixture
def folder(tmp_path: Path, films: np.ndarray, save: Save) -> Path:
    """Two classes of 40 films, four films per patient."""
    for i, film in enumerate(films):
        save(tmp_path / "in" / "AB"[i % 2] / f"p{i // 4}-{i}.png", film)
    return tmp_path / "in"


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, save: Save) -> Path:
    """1,300 tiny images of two classes, which make three parts."""
    root, rng = tmp_path_factory.mktemp("many") / "in", np.random.default_rng(0)
    for i in range(1300):
        save(root / "AB"[i % 2] / f"p{i // 4}-{i}.png", rng.integers(0, 256, (10, 10), dtype=np.uint8))
    (root / "A" / "broken.png").write_text("no image")
    return root


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., PrepareConfig]:
    """Settings for `tmp_path / "out" / "data"`, whose folder holds nothing else."""

    def config(images: Path, **settings: Any) -> PrepareConfig:
        usual = dict(images=images, out=tmp_path / "out" / "data", size=32, patient_regex=r"p(\d+)-")
        return PrepareConfig(**usual | settings)

    return config


@pytest.fixture(scope="session")
def images_of() -> Callable[[Path], dict[str, Images]]:
    """All rows of a dataset by split."""
    return lambda dataset: {split: read_split(dataset, split) for split in read_manifest(dataset).splits}
