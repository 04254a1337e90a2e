"""Where the shipped files are, and reading TOML files as editors write them."""

import codecs
import tomllib
from pathlib import Path
from typing import Any

_MARKS = (  # the 32-bit mark begins as the 16-bit one does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


SHIPPED = Path(__file__).resolve().parent / "manifests"  # what comes with the package, a folder a kind


def encoding_of(head: bytes) -> str:
    """The encoding of a text that begins so: what its byte order mark says, else UTF-8."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file. Raises OSError where it cannot be read, tomllib.TOMLDecodeError where it is not TOML."""
    return tomllib.loads(toml_text(path))


def toml_text(path: str | Path) -> str:
    """The text of a TOML file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark (Windows' editors).

    Raises OSError where it cannot be read, tomllib.TOMLDecodeError where it is no text.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(f"{path} is a pipe or device, not a file")
    data = path.read_bytes()
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise tomllib.TOMLDecodeError(
            f"it is no {encoding.upper()} text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise tomllib.TOMLDecodeError("it holds NUL characters; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
