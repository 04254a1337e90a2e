"""What a value is that was read from a file, with a type for those who use it."""

from typing import Any, TypeGuard

import numpy as np


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether this is an object of JSON: its members have names."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether this is a list."""
    return isinstance(value, list)


def is_array(value: object) -> TypeGuard[np.ndarray]:
    """Whether this is an array of NumPy."""
    return isinstance(value, np.ndarray)


def is_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    """Whether this is a tuple."""
    return isinstance(value, tuple)
