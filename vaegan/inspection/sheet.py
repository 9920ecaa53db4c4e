"""The contact sheet: images of every class and split in labelled rows, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vaegan.images import encode_png
from vaegan.inspection.pictures import Strip
from vaegan.webpage.words import counted

CELL = 128
"""Largest side of an image on the sheet; small ones are enlarged by whole factors, so that no pixel is made up."""
PAD, MARGIN, HEADING = 4, 16, 34
TEXT, SMALL = 17, 14
INK, MUTED = (29, 35, 41), (91, 102, 112)


def contact_sheet(strips: Sequence[Strip], title: str, footnote: str = "") -> bytes:
    """Strips under their classes, each with its split and count beside it, as PNG bytes.

    Args:
        title, footnote: a line above and below.
    """
    text, small, bold = _font(TEXT), _font(SMALL), _font(TEXT, "DejaVuSans-Bold.ttf")
    cells = [np.stack([enlarged(image) for image in strip.pixels]) for strip in strips]
    words = [(_split_words(strip), counted(strip.total, "image")) for strip in strips]
    beside = MARGIN + max(
        [_width(line, text if k == 0 else small) for pair in words for k, line in enumerate(pair)] + [0]
    )
    right = max([each.shape[0] * (each.shape[2] + PAD) for each in cells] + [0])
    headings = [k for k, strip in enumerate(strips) if k == 0 or strip.label != strips[k - 1].label]
    width = max([beside + MARGIN + right, *(_width(line, bold) for line in (title, *(s.label for s in strips)))])
    width = max(width, _width(footnote, small)) + 2 * MARGIN
    rows = [max(each.shape[1], TEXT + SMALL + 10) + PAD for each in cells]
    height = 2 * MARGIN + TEXT + 8 + HEADING * len(headings) + sum(rows) + (SMALL + MARGIN if footnote else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, bold)
    top = MARGIN + TEXT + 8
    for k, strip in enumerate(strips):
        if k in headings:
            draw.text((MARGIN, top + HEADING - TEXT - 8), strip.label, INK, bold)
            top += HEADING
        draw.text((MARGIN, top), words[k][0], INK, text)
        draw.text((MARGIN, top + TEXT + 6), words[k][1], MUTED, small)
        _paste(sheet, cells[k], beside + MARGIN, top)
        top += rows[k]
    if footnote:
        draw.text((MARGIN, top + 6), footnote, MUTED, small)
    return encode_png(np.asarray(sheet), level=6)


def enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One image (H, W, C) by the largest whole factor with no side above `CELL`, each pixel a square."""
    factor = max(1, CELL // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _paste(sheet: Image.Image, images: NDArray[np.uint8], left: int, top: int) -> None:
    for k, image in enumerate(images):
        cell = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        sheet.paste(cell.convert("RGB"), (left + k * (image.shape[1] + PAD), top))


def _split_words(strip: Strip) -> str:
    return f"{strip.split}, synthetic" if strip.synthetic else strip.split


def _font(size: int, name: str = "DejaVuSans.ttf") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _width(line: str, font: ImageFont.FreeTypeFont) -> int:
    return int(font.getlength(line)) + 1
