"""Stain normalisation of a patch as a view: stain:macenko and stain:reinhard, by the package torchstain.

The targets are constants, so that a view means one thing for ever:

    macenko    the reference stain matrix and maximum concentrations of its authors' implementation (Macenko
               et al., ISBI 2009), which torchstain has as its default
    reinhard   mean and standard deviation in CIELAB (Reinhard et al., 2001), means over 600 training patches
               of AMi-Br (breast, three scanners and three centres)
"""

from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ImageError, MissingDependency

METHODS = ("macenko", "reinhard")
LAB_MEAN, LAB_STD = (57.21, 32.31, -16.15), (16.56, 9.22, 8.01)
_LIGHT, _LEAST = 240, 0.15  # torchstain's: intensity of the light, optical density of what is stained
_PLANE = 1e-6  # variance of optical densities across the main direction, less than 8 bits resolve
_STAINED = 0.005  # share of a patch that has to be stained, in all channels


def normalise_stain(pixels: np.ndarray, method: str) -> np.ndarray:
    """A patch in the target's colours.

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
