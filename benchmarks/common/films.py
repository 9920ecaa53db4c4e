"""Two folders of PNG films to measure, made by the phantom."""

from pathlib import Path

from vaegan.images import encode_png
from vaegan.phantom import PhantomConfig, phantom


def film_folders(folder: Path, count: int, size: int = 64) -> tuple[Path, Path]:
    """`count` films and as many others with less contrast, so that no distance is near zero; grey, `size` pixels."""
    films = phantom(PhantomConfig(patients=2 * count), size=size, seed=0).pixels[: 2 * count]
    real, synthetic = folder / "real", folder / "synthetic"
    for path, pixels in ((real, films[:count]), (synthetic, films[count:] // 8 * 7 + 10)):
        path.mkdir()
        for number, image in enumerate(pixels):
            (path / f"{number:06d}.png").write_bytes(encode_png(image))
    return real, synthetic
