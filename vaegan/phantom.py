"""Made-up chest films: a stand-in for real data that anyone may share, of any size, with a truth that is known.

A film is a projection of densities (body, lungs, heart, spine, ribs, clavicles, diaphragm, vessels, and a lesion if
there is one) that then goes through a film's accidents: exposure, gamma, blur, scatter, noise. Patients differ in
anatomy; the one to three films of a patient share anatomy and lesion but differ in positioning, inspiration and
technique. Nothing here is measured from people: the phantom tests the pipeline, it says nothing about pneumonia.

Coordinates: x to the viewer's right, y down, both in [-1, 1] over the film. Densities are relative: 0 is air, about 1
the spine. Everything works on whole batches, arrays (N, H, W); parameters are (N, 1, 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import UserError
from vaegan.shards import Images

Array = NDArray[np.floating[Any]]  # float32 throughout
Parameters = dict[str, Array]

CLASSES = ("normal", "consolidation", "effusion")
VERSION = 1  # raise it with any change that moves a pixel
MAX_FILMS = 3
BLOCK = 64  # patients drawn together; part of what a seed means, so changing it changes every phantom
NUM_WAVES = 14

# Uniform ranges. A patient's are drawn once, a film's anew for each film.
PATIENT_RANGES = {
    "body_width": (0.907, 0.993),
    "shoulder": (0.248, 0.392),  # how far the shoulders fall from neck to edge
    "neck": (0.161, 0.219),
    "fat": (0.033, 0.106),
    "breast": (-0.072, 0.072),  # below zero: none to see
    "breast_y": (0.213, 0.387),
    "lung_width": (0.703, 0.767),
    "lung_top": (-0.769, -0.711),
    "lung_roundness": (2.311, 2.889),
    "mediastinum": (0.13, 0.18),
    "dome_height": (0.114, 0.187),
    "dome_asymmetry": (0.031, 0.089),  # the viewer's left dome is higher, because of the liver
    "heart_x": (0.11, 0.161),
    "heart_width": (0.317, 0.403),
    "heart_height": (0.209, 0.261),
    "heart_tilt": (0.406, 0.695),
    "aorta": (0.061, 0.119),
    "hilum": (0.054, 0.127),
    "rib_spacing": (0.161, 0.189),
    "rib_phase": (0.0, 1.0),
    "rib_slope": (0.185, 0.365),
    "rib_density": (0.036, 0.064),
    "clavicle_y": (-0.647, -0.574),
    "clavicle_slope": (-0.232, -0.088),
    "vessels": (0.061, 0.119),
    "haze": (0.014, 0.036),  # uneven lung density that is no lesion
    "lesion_side": (0.0, 1.0),
    "lesion_x": (0.0, 1.0),
    "lesion_y": (0.0, 1.0),
    "lesion_size": (0.0, 1.0),
    "lesion_density": (0.0, 1.0),
    "lesion_aspect": (-0.45, 0.45),
}
FILM_RANGES = {
    "rotation": (-0.031, 0.031),  # radians
    "shift_x": (-0.021, 0.021),
    "shift_y": (-0.021, 0.021),
    "scale": (0.974, 1.026),
    "turn": (-0.015, 0.015),  # the patient turned about the long axis: mediastinum moves, lungs become unequal
    "diaphragm": (0.461, 0.529),  # depth of inspiration
    "exposure": (0.958, 1.082),
    "gamma": (0.963, 1.098),
    "base": (0.01, 0.03),
    "scatter": (0.049, 0.111),
    "tilt_x": (-0.037, 0.037),  # the heel effect: exposure falls off to one side
    "tilt_y": (-0.031, 0.031),
    "blur": (0.006, 0.01),  # standard deviation, in units of half the film
    "noise": (0.012, 0.022),
    "progress": (0.75, 1.25),  # the lesion's size on this film
}


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What the phantom draws; image size and seed belong to whoever asks for it."""

    patients: int = 216
    """Phantom patients, with one to three films each: about 1.85 films per patient, so 216 make about 400."""
    prevalence: tuple[float, float, float] = (0.4, 0.3, 0.3)
    """Share of patients who are normal, have a consolidation, have an effusion."""
    conspicuity: float = 1.0
    """Density of the lesions relative to the calibrated phantom: less is harder, 0 makes the classes equal."""

    def __post_init__(self) -> None:
        if self.patients < 1:
            raise UserError(f"phantom.patients is {self.patients}: expected 1 or more")
        if len(self.prevalence) != len(CLASSES) or min(self.prevalence) < 0 or abs(sum(self.prevalence) - 1) > 1e-6:
            raise UserError(
                f"phantom.prevalence is {self.prevalence}: expected shares of {', '.join(CLASSES)} that sum to 1"
            )
        if self.conspicuity < 0:
            raise UserError(f"phantom.conspicuity is {self.conspicuity}: expected 0 or more")


def phantom_blocks(config: PhantomConfig, *, size: int, seed: int) -> Iterator[Images]:
    """Films of all patients, at most 64 patients at a time.

    The first n patients are the same however many are asked for, and anatomy does not depend on the size.

    Args:
        size: height and width in pixels, 32 to 256.
    """
    if not 32 <= size <= 256:
        raise UserError(f"the phantom cannot be drawn at {size} px: expected a size from 32 to 256")
    for block in range(-(-config.patients // BLOCK)):
        yield _block(config, size, seed, block, patients=min(BLOCK, config.patients - block * BLOCK))


def phantom(config: PhantomConfig, *, size: int, seed: int) -> Images:
    """All films at once: (N, size, size, 1) uint8, labels one-hot in the order of CLASSES."""
    return Images.concatenate(list(phantom_blocks(config, size=size, seed=seed)))


def _block(config: PhantomConfig, size: int, seed: int, block: int, patients: int) -> Images:
    # Parameters are always drawn for a whole block, and noise in the order of the films from a stream of its own: what
    # comes later can't change what comes first.
    rng, noise_rng = (np.random.default_rng([seed, block, stream]) for stream in (0, 1))
    quantile = (rng.permutation(BLOCK) + 0.5) / BLOCK  # evenly spread: every block has the prevalence asked for
    classes = np.searchsorted(np.cumsum(config.prevalence[:-1]), quantile, side="right")
    num_films = 1 + np.searchsorted([0.4, 0.75], rng.uniform(size=BLOCK), side="right")
    patient, film = np.nonzero(np.arange(MAX_FILMS) < num_films[:patients, None])

    p = {key: value[patient] for key, value in _draw(rng, PATIENT_RANGES, (BLOCK,)).items()}
    p |= {key: value[patient, film] for key, value in _draw(rng, FILM_RANGES, (BLOCK, MAX_FILMS)).items()}
    waves = rng.normal(size=(BLOCK, NUM_WAVES, 2))[patient], rng.uniform(0, 2 * np.pi, (BLOCK, NUM_WAVES))[patient]
    pixels = np.concatenate([
        _films({k: v[i : i + 32] for k, v in p.items()}, (waves[0][i : i + 32], waves[1][i : i + 32]),
               classes[patient[i : i + 32]], config.conspicuity, size, noise_rng)
        for i in range(0, len(patient), 32)
    ])  # fmt: skip
    patient_id = [f"phantom-{block * BLOCK + i:05d}" for i in patient]
    return Images(
        pixels=pixels[..., None],
        labels=np.eye(len(CLASSES), dtype=np.uint8)[classes[patient]],
        patient_id=np.array(patient_id, dtype=object),
        image_id=np.array([f"{name}-{j}" for name, j in zip(patient_id, film, strict=True)], dtype=object),
        source=np.full(len(patient), "real", dtype=object),
        model=None,
        seed=None,
        index=None,
    )


def _draw(rng: np.random.Generator, ranges: dict[str, tuple[float, float]], shape: tuple[int, ...]) -> Parameters:
    low, high = np.array(list(ranges.values())).T
    values = rng.uniform(low, high, size=(*shape, len(ranges))).astype(np.float32)
    return {name: values[..., i, None, None] for i, name in enumerate(ranges)}


def _films(
    p: Parameters,
    waves: tuple[NDArray[np.float64], NDArray[np.float64]],
    classes: NDArray[np.intp],
    conspicuity: float,
    size: int,
    noise_rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Films (N, size, size) from parameters (N, 1, 1): density, then what the machine makes of it."""
    x, y = _positioned_grid(p, size)
    rough = _random_field(x, y, *waves, wavelength=0.55)
    fine = _random_field(x, y, *waves, wavelength=0.20)
    lungs = _lungs(p, x, y)
    density = _soft_tissue(p, x, y) - 0.54 * lungs
    density += _bones(p, x, y) + _vessels(p, x, y, lungs, fine) + p["haze"] * lungs * rough
    lesion = np.where((classes == 1)[:, None, None], _consolidation(p, x, y, lungs, rough, fine), 0)
    lesion += np.where((classes == 2)[:, None, None], _effusion(p, x, y, lungs), 0)
    density += conspicuity * lesion
    heart = _heart(p, x, y)
    density += heart * np.maximum(0.82 + 0.10 * (0.3 - np.square(x)) - density, 0)  # it displaces lung
    return _expose(p, density * _body(p, x, y), noise_rng)


def _inside(distance: Array, softness: float = 0.012) -> Array:
    """1 where distance is well above zero, 0 well below, with an edge `softness` wide."""
    return 1 / (1 + np.exp(-np.clip(distance / softness, -30, 30)))


def _bump(distance: Array) -> Array:
    return np.exp(-0.5 * np.square(distance))


def _positioned_grid(p: Parameters, size: int) -> tuple[Array, Array]:
    """Where each pixel looks in the patient, given shift, rotation and magnification."""
    centres = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = (centres[None, None, :] - p["shift_x"]) / p["scale"], (centres[None, :, None] - p["shift_y"]) / p["scale"]
    cos, sin = np.cos(p["rotation"]), np.sin(p["rotation"])
    return cos * x + sin * y, cos * y - sin * x


def _random_field(
    x: Array, y: Array, directions: NDArray[np.float64], phases: NDArray[np.float64], wavelength: float
) -> Array:
    """A smooth random field with mean 0 and variance 1: a sum of plane waves, so it moves with the patient."""
    field = np.zeros_like(x)
    k = (directions * (2 * np.pi / wavelength / np.sqrt(2))).astype(np.float32)[..., None, None]
    for wave in range(k.shape[1]):
        field += np.cos(k[:, wave, 0] * x + k[:, wave, 1] * y + phases[:, wave, None, None].astype(np.float32))
    return field * np.float32(np.sqrt(2 / k.shape[1]))


def _body(p: Parameters, x: Array, y: Array) -> Array:
    shoulders = -0.86 + p["shoulder"] * np.square(np.maximum(np.abs(x) - p["neck"], 0)) * 1.6
    neck = _inside(p["neck"] - np.abs(x), 0.03) * _inside(y + 1.6)
    sides = _inside(p["body_width"] + 0.05 * np.square(y - 0.4) - np.abs(x), 0.02)
    return np.maximum(_inside(y - shoulders, 0.025), neck) * sides


def _soft_tissue(p: Parameters, x: Array, y: Array) -> Array:
    chest = 0.60 + p["fat"] + 0.10 * (1 - np.square(x)) + 0.06 * y
    breasts = _bump((np.abs(x) - 0.42) / 0.24) * _bump((y - p["breast_y"]) / 0.20)
    mediastinum = 0.14 * _bump((x - p["turn"]) / (p["mediastinum"] * 1.1))
    trachea = -0.13 * _inside(0.045 - np.abs(x - p["turn"]), 0.012) * _inside(-0.22 - y, 0.06)
    return chest + np.maximum(p["breast"], 0) * breasts + mediastinum + trachea


def _half(p: Parameters, x: Array, side: int) -> tuple[Array, Array, Array]:
    """One half of the chest (side -1 is the viewer's left): distance outward, outer half-width, inner border."""
    outward = side * (x - 0.5 * p["turn"])
    return outward, p["lung_width"] * (1 - 0.6 * side * p["turn"]), p["mediastinum"] + side * 0.6 * p["turn"]


def _outer_border(p: Parameters, width: Array, y: Array) -> Array:
    """Half-width of the rib cage at height y: a superellipse that closes at the apex."""
    down = np.clip((y - p["lung_top"]) / (0.35 - p["lung_top"]), 0, 1)
    return width * np.power(np.maximum(1 - np.power(1 - down, p["lung_roundness"]), 1e-6), 0.55)


def _dome(p: Parameters, outward: Array, side: int) -> Array:
    """Height of the diaphragm: highest in the middle of a lung, falling to the costophrenic angle."""
    low = 0.5 * p["dome_asymmetry"] * side
    return p["diaphragm"] + low + p["dome_height"] * (np.square((outward - 0.36) / 0.34) - 0.5)


def _lungs(p: Parameters, x: Array, y: Array) -> Array:
    """Mask of both lungs in [0, 1]."""
    lungs = np.zeros_like(x)
    for side in (-1, 1):
        outward, width, inner = _half(p, x, side)
        lung = _inside(_outer_border(p, width, y) - outward, 0.018) * _inside(_dome(p, outward, side) - y, 0.012)
        lungs += lung * _inside(outward - inner * (1 + 0.25 * y), 0.018)
    return lungs


def _heart(p: Parameters, x: Array, y: Array) -> Array:
    """Heart and aortic knob as a mask in [0, 1]."""
    cos, sin = np.cos(p["heart_tilt"]), np.sin(p["heart_tilt"])
    dx, dy = x - p["heart_x"] - p["turn"], y - p["diaphragm"] + 0.16
    long, short = cos * dx + sin * dy, cos * dy - sin * dx
    radius = np.power(np.abs(long / p["heart_width"]), 2.3) + np.power(np.abs(short / p["heart_height"]), 2.3)
    knob = np.square((x - 0.10 - p["turn"]) / 0.09) + np.square((y + 0.30) / (1.2 * p["aorta"]))
    return np.maximum(_inside(1 - radius, 0.13), 0.9 * _inside(1 - knob, 0.20))


def _bones(p: Parameters, x: Array, y: Array) -> Array:
    spine = _bump((x - 0.2 * p["turn"]) / 0.075) * (0.15 + 0.03 * np.cos(2 * np.pi * y / (0.72 * p["rib_spacing"])))
    lateral = np.abs(x - 0.5 * p["turn"])
    cage = _inside(_outer_border(p, p["lung_width"] + 0.02, y) - lateral, 0.02) * _inside(lateral - 0.07, 0.02)
    cage = cage * _inside(p["diaphragm"] + 0.12 - y, 0.08)  # below, the abdomen drowns them
    arch = p["rib_slope"] * (np.square(lateral) * 1.5 - 0.35 * lateral)
    back = _rib_profile((y - arch) / p["rib_spacing"] + p["rib_phase"])
    front = _rib_profile((y + 0.9 * lateral - 0.8 * np.square(lateral)) / (1.15 * p["rib_spacing"]) + p["rib_phase"])
    front = front * _inside(lateral - 0.28, 0.06) * _inside(y + 0.45, 0.08)
    ribs = p["rib_density"] * cage * (back + 0.45 * front)
    line = p["clavicle_y"] + p["clavicle_slope"] * lateral + 0.05 * np.sin(6 * lateral)
    ends = _inside(lateral - 0.07, 0.02) * _inside(0.74 - lateral, 0.02)
    clavicles = 0.17 * _inside(0.032 - np.abs(y - line), 0.010) * ends
    blades = 0.09 * _inside(lateral - 0.58 - 0.25 * (y + 0.5), 0.03) * _inside(0.16 - np.abs(y + 0.42), 0.08)
    return spine + ribs + clavicles + blades


def _rib_profile(phase: Array) -> Array:
    """Bands with period 1, denser at the rim, where the beam meets more cortical bone."""
    from_middle = np.abs(np.mod(phase, 1) - 0.5)
    return _inside(0.21 - from_middle, 0.03) + 0.5 * _bump((from_middle - 0.19) / 0.035)


def _vessels(p: Parameters, x: Array, y: Array, lungs: Array, fine: Array) -> Array:
    """Hila, and branches as level lines of a random field that thin out with the distance from them."""
    lateral = np.abs(x - p["turn"])
    radius = np.sqrt(np.square(lateral - p["mediastinum"]) + np.square(y + 0.02))
    hila = p["hilum"] * _bump((lateral - p["mediastinum"] - 0.04) / 0.07) * _bump((y + 0.03) / 0.12)
    return lungs * (p["vessels"] * _bump(fine / 0.35) * np.exp(-radius / 0.40) + hila)


def _lesion_side(p: Parameters) -> NDArray[np.float32]:
    return np.where(p["lesion_side"] < 0.5, -1, 1).astype(np.float32)


def _grown(p: Parameters) -> Array:
    """1 for most patients; for about one in ten the disease is too early to show, or nearly so.

    That bounds what any classifier can reach, and does so evenly: subtle lesions throughout instead would make a small
    training set succeed or fail by luck.
    """
    return _inside(p["lesion_density"] - 0.10, 0.02)


def _consolidation(p: Parameters, x: Array, y: Array, lungs: Array, rough: Array, fine: Array) -> Array:
    """A cloudy patch inside one lung, its border frayed."""
    outward = _lesion_side(p) * x
    centre_x = 0.20 + 0.32 * p["lesion_x"]
    centre_y = -0.42 + (p["diaphragm"] + 0.30) * p["lesion_y"]
    radius = (0.18 + 0.08 * p["lesion_size"]) * p["progress"]
    dx, dy = (outward - centre_x) * np.exp(p["lesion_aspect"]), (y - centre_y) * np.exp(-p["lesion_aspect"])
    distance = np.sqrt(dx * dx + dy * dy) / radius - 0.16 * rough - 0.10 * fine
    return (0.32 + 0.14 * p["lesion_density"]) * _grown(p) * lungs * _inside(1 - distance, 0.22)


def _effusion(p: Parameters, x: Array, y: Array, lungs: Array) -> Array:
    """Fluid at the base of one lung: blunts the costophrenic angle, its level climbs towards the chest wall."""
    outward = _lesion_side(p) * (x - 0.5 * p["turn"])
    depth = (0.05 + 0.11 * p["lesion_size"]) * p["progress"]
    meniscus = 0.30 * p["progress"] * np.power(np.clip(outward / p["lung_width"], 0, 1), 3)
    level = p["diaphragm"] + 0.02 - depth - meniscus
    fluid = _inside(y - level, 0.035) * _inside(outward - 0.02, 0.02)
    return (0.21 + 0.12 * p["lesion_density"]) * _grown(p) * lungs * fluid


def _expose(p: Parameters, density: Array, noise_rng: np.random.Generator) -> NDArray[np.uint8]:
    """Density to grey levels: scatter and blur, exposure, noise that grows where little light arrives, film curve."""
    size = density.shape[-1]
    frequency_y, frequency_x = np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)[None, :]
    radius2 = (frequency_x**2 + frequency_y**2).astype(np.float32)
    sharp = np.exp(-2 * np.square(np.pi * p["blur"] * size / 2) * radius2)
    wide = np.exp(-2 * np.square(np.pi * 0.20 * size / 2) * radius2)
    padded = np.pad(density, ((0, 0), (0, size), (0, size)), mode="symmetric")  # mirrored: no seam at the border
    spectrum = np.fft.rfft2(padded) * (sharp * (1 - p["scatter"]) + wide * p["scatter"])
    density = np.fft.irfft2(spectrum, s=padded.shape[-2:])[:, :size, :size].astype(np.float32)

    centres = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    heel = 1 + p["tilt_x"] * centres[None, None, :] + p["tilt_y"] * centres[None, :, None]
    grey = p["base"] + density * heel * p["exposure"]
    noise = noise_rng.standard_normal(density.shape, dtype=np.float32)
    grey = np.clip(grey, 0, None) + p["noise"] * (0.4 + 0.8 * density) * noise
    curve = np.power(np.clip(grey, 0, None), p["gamma"])
    return np.clip(255 * np.tanh(1.05 * curve), 0, 255).round().astype(np.uint8)
