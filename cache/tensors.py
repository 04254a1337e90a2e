"""PyTorch's tensors in files (.pt), written and read without running anything that a file says.

The only file of `cache` that needs torch, and only when such a file is read or written.
"""

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidRequest, MissingDependency
from .narrowing import is_list, is_object, is_tuple
from .untrusted import check_regular, check_size


def torch_module() -> Any:
    """The package torch. Raises MissingDependency where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency(
            ".pt files are PyTorch's: pip install torch (its CPU build is enough), or take files that need "
            "none of it (.h5, .npy, .safetensors)"
        ) from error
    return torch


def write_pt(path: Path, array: np.ndarray) -> None:
    """Write an array as one tensor, which `torch.load` gives back."""
    torch = torch_module()
    torch.save(torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))), path)


def read_pt(path: Path) -> Any:
    """What a .pt file holds: NumPy arrays in place of tensors, in lists, tuples and dictionaries.

    Raises InvalidRequest where it holds anything else than tensors, numbers and texts (a pickle of objects
    could run code), or claims more than it has; what torch raises at a damaged file passes.
    """
    torch = torch_module()
    check_regular(path)
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(info.file_size for info in archive.infolist()), size)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InvalidRequest(
                f"{path} holds objects beside tensors (a pickle), which could run code; it is not read"
            ) from error
        raise
    return _arrays(content, path, size, torch)


def _arrays(content: Any, path: Path, size: int, torch: Any) -> Any:
    if is_object(content):
        return {key: _arrays(value, path, size, torch) for key, value in content.items()}
    if is_list(content) or is_tuple(content):
        return [_arrays(value, path, size, torch) for value in content]
    if not isinstance(content, torch.Tensor):
        return content
    if content.layout != torch.strided or content.is_quantized:
        raise InvalidRequest(f"{path} holds a sparse or quantised tensor; embeddings are dense")
    check_size(path, prod(content.shape) * content.element_size(), size)  # one number may stand for many
    wide = content.detach().float() if content.dtype == torch.bfloat16 else content.detach()
    return wide.contiguous().numpy()
