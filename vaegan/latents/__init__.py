"""Where z comes from: a counter for addresses, the prior, and densities fitted to posteriors of training images."""

from vaegan.latents.counter import MAX_SEED, normals, prior, uniforms
from vaegan.latents.fit import (
    SOURCES,
    LatentsConfig,
    LatentSource,
    SourceName,
    fit_latents,
    from_tensors,
    of_sources,
    tensors,
)
from vaegan.latents.flow import Flow
from vaegan.latents.gaussian import Gaussians
from vaegan.latents.interpolation import interpolate
from vaegan.latents.mixture import Mixture
from vaegan.latents.perclass import PerClass
from vaegan.latents.posterior import FIT_SEED, Posterior

__all__ = [
    "FIT_SEED", "MAX_SEED", "SOURCES", "Flow", "Gaussians", "LatentSource", "LatentsConfig", "Mixture", "PerClass",
    "Posterior", "SourceName", "fit_latents", "from_tensors", "interpolate", "normals", "of_sources", "prior",
    "tensors", "uniforms",
]  # fmt: skip
