"""What a file of many patches has to do, whatever its format."""

import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from functools import cached_property
from threading import Lock

import numpy as np
import pyarrow as pa

from ..errors import ImageError

# what damaged files make their libraries raise
DAMAGE = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, ArithmeticError, struct.error, zlib.error,
    lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, pa.ArrowException,
)  # fmt: skip


class Container(ABC):
    """One open file with patches in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = Lock()

    def read(self, member: str) -> np.ndarray:
        """The pixels of one patch, uint8 (h, w, 3) RGB. Raises ImageError; others can still be read."""
        name = f"{self.path}::{member}"
        try:
            return self._read(member, name)
        except ImageError:
            raise
        except DAMAGE as error:
            self._reopen()
            raise ImageError(f"{name}: cannot be read: {' '.join(str(error).split()) or error!r}.") from error

    @abstractmethod
    def _read(self, member: str, name: str) -> np.ndarray:
        """The pixels; `name` is what an ImageError calls the patch. Anything of DAMAGE may be raised too."""

    def _reopen(self) -> None:
        """Forget the open file, so that the next read opens it: damage may have spoilt the reader."""
        with self._lock:
            for key, value in vars(type(self)).items():
                if isinstance(value, cached_property):
                    _close(vars(self).pop(key, None))

    def __del__(self) -> None:
        for value in vars(self).values():
            _close(value)


def _close(value: object) -> None:
    """Python's own files are closed, which are read under the lock; other readers close by themselves."""
    if isinstance(value, io.IOBase):
        value.close()
