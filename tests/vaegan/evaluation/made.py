"""Small sets of images and a metrics.json written by hand, for the tests of the gallery and of the page."""

from dataclasses import dataclass

import numpy as np

SEED = 7


@dataclass(frozen=True)
class Rows:
    """Images in memory, as the gallery asks for them."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    patient_id: np.ndarray
    image_id: np.ndarray

    def __len__(self):
        return len(self.images)

    def pixels(self, rows):
        return self.images[rows]


def rows(count, seed=0, *, classes=("normal", "effusion"), name="r", side=16, channels=1):
    """Noise in classes that take turns; each image is of a patient of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    labels = np.zeros((count, len(classes)), np.uint8)
    if classes:
        labels[np.arange(count), np.arange(count) % len(classes)] = 1
    ids = np.array([f"{name}{i}" for i in range(count)], dtype=object)
    return Rows(pixels, labels, tuple(classes), np.array([f"p{i}" for i in ids], dtype=object), ids)


def features(count, seed=0, dim=4, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (count, dim)).astype(np.float32)


STAMP = {"name": "domain CNN", "layer": "pooled features", "weights_sha256": "ab" * 32, "resize": "none", "dim": 4}
SQUEEZE = {"name": "SqueezeNet", "layer": "pool", "weights_sha256": "cd" * 32, "resize": "224 px", "dim": 4}
PIXELS = {"name": "pixels", "layer": "none", "weights_sha256": "none", "resize": "none as stored", "dim": 256}


def number(metric, value, floor, extractor=STAMP, **changes):
    """An entry of `numbers`; no digit of it occurs by chance elsewhere."""
    entry = {
        "metric": metric, "label": f"{metric.replace('_', ' ')}, {extractor['name']}", "value": value,
        "interval": [0.9 * value, 1.1 * value], "interval_method": "standard errors of 40 subsets", "better": "lower",
        "floor": floor, "value_at_floor_n": 1.07 * value,
        "floor_detail": {"against": "held-out real images", "num_reference": 60, "num_other": 29, "repeats": 5},
        "extractor": extractor, "settings": f"settings of {metric}", "num_real": 60, "num_synthetic": 51,
        "warning": None,
    }  # fmt: skip
    return entry | changes


def about(images, name, digest):
    counts = dict(zip(images.classes, images.labels.sum(axis=0).tolist(), strict=True))
    return {"name": name, "num_images": len(images), "num_patients": len(images), "classes": counts,
            "shape": list(images.images.shape[1:]), "sha256": digest * 32}  # fmt: skip


def document(real, synthetic, held_out=None, **changes):
    """A whole metrics.json: two extractors, a curve, a failed privacy test."""
    numbers = []
    for extractor, scale in ((STAMP, 1.0), (SQUEEZE, 6.0)):
        numbers += [
            number("frechet_distance", 3.17 * scale, 1.41, extractor, warning="few images" if scale > 1 else None),
            number("kernel_distance", 0.0123 * scale, -0.0045, extractor),
            number("precision", 0.613 / scale, 0.81, extractor, better="higher"),
            number("recall", 0.523 / scale, 0.72, extractor, better="higher"),
            number("density", 0.431 / scale, 1.09, extractor, better="higher"),
            number("coverage", 0.342 / scale, 0.93, extractor, better="higher"),
            number("c2st_auc", 0.871, 0.503, extractor),
        ]
    numbers.append(number("ms_ssim", 0.481, 0.377, PIXELS, better="as real", value_at_floor_n=0.481))
    bias = {
        "extractor": STAMP, "label": "Fréchet distance, domain CNN", "why_not": None,
        "points": [{"num_images": n, "value": 2 + 60 / n, "std": 0.016} for n in (48, 24, 16)],
        "infinity": {"value": 2.03, "interval": [1.72, 2.34], "slope": 58.6}, "floor_infinity": None,
    }  # fmt: skip
    none = {"extractor": SQUEEZE, "label": "Fréchet distance, SqueezeNet", "why_not": "too few images", "points": [],
            "infinity": None, "floor_infinity": None}  # fmt: skip
    provenance = {
        "command": "evaluate.py --real data", "git_revision": "5678abcd", "packages": {"torch": "2.0"},
        "hardware": {"cpu": "some cpu", "cores": 2}, "seed": SEED, "inputs": {"real": "12" * 32},
        "finished": "2026-01-02T12:00:00+00:00", "wall_s": 61.0,
    }  # fmt: skip
    result = {
        "sets": {"real": about(real, "data/real (train)", "01"), "synthetic": about(synthetic, "data/synthetic", "02"),
                 "held_out": about(held_out, "data/real (val)", "03") if held_out else None},
        "numbers": numbers, "bias": [bias, none], "privacy": privacy(), "provenance": provenance,
    }  # fmt: skip
    return result | changes


def privacy(verdict="fail"):
    pair = {"synthetic_row": 4, "set": "members", "real_row": 9, "copy": True, "correlation": 0.9871,
            "why": "as like as only copies are", "zoom": 1.0}  # fmt: skip
    return {
        "verdict": verdict,
        "scopes": {"images": {"verdict": verdict, "checks": ["copies"], "sentence": "Two images are copies."}},
        "checks": [{"name": "copies", "scope": "images", "value": 0.0392, "interval": [0.0211, 0.0719],
                    "tolerance": 0.0113, "verdict": verdict, "sentence": "Copies of members were found.",
                    "needed_to_pass": True, "detail": {}}],
        "suspicious_pairs": [pair, pair | {"synthetic_row": 5, "real_row": 3, "set": "held_out", "copy": False}],
        "worst_off": [{"patient": "\0real 9", "member_row": 9, "classes": ["normal"], "score": 0.7654}],
        "assumptions": {
            "too_few": None,
            "told_apart_without_generator": {
                "layout": {"auc": 0.5312, "interval": [0.4877, 0.5746], "tolerance": 0.6, "holds": True},
            },
        },
        "settings": {"tolerances": {"copies": 0.0113}},
    }  # fmt: skip
