"""timm and torchvision without torch's compiler, which both load when they are imported and hardly ever use.

torch._dynamo brings a thousand modules (sympy, torch.distributed, ...): 2 of 6 CPU seconds of a short
`patchbank extract`. torchvision asks it one question in one operation (roi_align, on some devices); timm
marks functions of one architecture as not to be compiled. Both are put off until they happen.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_UTILS = "torch._dynamo.utils"
_VALUES = {
    "normal_", "trunc_normal_", "kaiming_normal_", "xavier_normal_",
    "uniform_", "kaiming_uniform_", "xavier_uniform_", "erfinv_",
    "add_", "mul_", "div_", "clamp_", "fill_", "zero_", "zeros_", "ones_",
}  # fmt: skip


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import timm inside; does nothing where torch._dynamo is loaded already."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable = torch.compiler.disable
    sys.modules[_UTILS] = _stand_in()
    torch.compiler.disable = _later(disable)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if isinstance(sys.modules.get(_UTILS), _StandIn):
            del sys.modules[_UTILS]


class _StandIn(ModuleType):
    """Whatever else is asked of it comes from the module itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_UTILS) is self:
            del sys.modules[_UTILS]
        return getattr(import_module(_UTILS), name)


def _stand_in() -> ModuleType:
    module: Any = _StandIn(_UTILS)
    module.is_compile_supported = lambda device: import_module(_UTILS).is_compile_supported(device)
    return module


def _later(disable: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.disable` as a decorator that decorates when the function is called."""

    def decorate(function: Any = None, *args: Any, **options: Any) -> Any:
        if function is None:
            return lambda function: decorate(function, *args, **options)

        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            return disable(function, *args, **options)(*given, **named)

        return call

    return decorate


class WithoutValues(TorchFunctionMode):
    """For tensors of the device meta: what only changes their values does nothing.

    Torch has random numbers and `clamp_` for that device in Python, which loads the compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _VALUES:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)
