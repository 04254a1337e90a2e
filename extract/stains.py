"""Stains of a patch as a view: brought to fixed colours (by torchstain), or made stronger and weaker.

Targets and factors are constants, so that a view never changes its meaning:

    macenko    the reference stain matrix and maximum concentrations of its authors' implementation (Macenko
               et al., ISBI 2009), which torchstain has as its default
    reinhard   mean and standard deviation in CIELAB (Reinhard et al., 2001), means over 600 training patches
               of AMi-Br (breast, three scanners and three centres)
    jitterK    K = 1..4: haematoxylin and eosin times (.8, .8), (.8, 1.25), (1.25, .8), (1.25, 1.25), as other
               laboratories would stain; unmixed by Ruifrok and Johnston's vectors
"""

from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ImageError, MissingDependency

JITTERS = {"jitter1": (0.8, 0.8), "jitter2": (0.8, 1.25), "jitter3": (1.25, 0.8), "jitter4": (1.25, 1.25)}
METHODS = ("macenko", "reinhard", *JITTERS)
# Optical densities of haematoxylin, eosin and DAB in red, green, blue: Ruifrok and Johnston 2001
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)
LAB_MEAN, LAB_STD = (57.21, 32.31, -16.15), (16.56, 9.22, 8.01)
_LIGHT, _LEAST = 240, 0.15  # torchstain's: intensity of the light, optical density of what is stained
_PLANE = 1e-6  # variance of optical densities across the main direction, less than 8 bits resolve
_STAINED = 0.005  # share of a patch that has to be stained, in all channels


def scale_stains(pixels: np.ndarray, factors: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Amounts of haematoxylin, eosin and DAB times `factors` (3,) plus `shifts` (3,), in optical density.

    Tellez et al. 2018, IEEE TMI 37, "Whole-slide mitosis detection". pixels : uint8 (h, w, 3), as the result
    """
    density = -np.log((pixels.astype(np.float32) + 1) / 256)
    mixed = (_UNMIX * factors) @ _STAINS
    density = density @ mixed.astype(np.float32) + (shifts @ _STAINS).astype(np.float32)
    return np.clip(np.rint(np.exp(-density) * 256 - 1), 0, 255).astype(np.uint8)


def with_stain(pixels: np.ndarray, method: str) -> np.ndarray:
    """A patch in the target's colours, or with its stains made stronger and weaker.

    Parameters
    ----------
    pixels
        uint8, (h, w, 3), RGB.
    method
        one of METHODS.

    Returns
    -------
    np.ndarray
        uint8, (h, w, 3).

    Raises
    ------
    ImageError
        too little of it is stained to find its stains, or it has one colour only.
    MissingDependency
        torchstain is not installed.
    """
    if method in JITTERS:
        return scale_stains(pixels, np.array([*JITTERS[method], 1.0]), np.zeros(3))
    try:
        normalizers: Any = import_module("torchstain.numpy.normalizers")
    except ImportError as error:
        raise MissingDependency("torchstain is not installed: pip install 'patchbank[stain]'") from error
    made: Any
    if method == "macenko":
        density = -np.log((pixels.astype(np.float64) + 1) / _LIGHT)
        stained = (density >= _LEAST).all(axis=2)
        if stained.mean() < _STAINED:
            raise ImageError(
                f"stain:macenko: {stained.mean():.1%} of the patch is stained, and {_STAINED:.1%} is needed"
            )
        if np.linalg.eigvalsh(np.cov(density[stained].T))[1] < _PLANE:
            raise ImageError("stain:macenko finds no two stains in the patch: it has one colour")
        made = normalizers.NumpyMacenkoNormalizer()
        try:
            with np.errstate(all="raise", under="ignore"):
                return made.normalize(pixels, stains=False)[0]
        except (np.linalg.LinAlgError, FloatingPointError) as error:
            raise ImageError(f"stain:macenko finds no two stains in the patch ({error})") from error
    if (pixels.reshape(-1, 3).std(axis=0) == 0).any():
        raise ImageError("stain:reinhard: the patch has one value only in a channel")
    made = normalizers.NumpyReinhardNormalizer()
    made.target_means, made.target_stds = np.array(LAB_MEAN), np.array(LAB_STD)
    return made.normalize(pixels)
