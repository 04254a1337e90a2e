"""What makes two embeddings of the same pixels the same: the identity of a store.

Everything that changes the numbers is part of it (weights, architecture arguments, preprocessing, view,
token policy, compute precision, storage type, width). What does not (licence, library versions, device,
date) is provenance and is kept beside it in the store's description.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..errors import InvalidRequest

DTYPES = ("float16", "float32")
PRECISIONS = ("fp32", "bf16", "fp16")
MAX_DIM = 1 << 24


def canonical(document: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII, no NaN. What digests are taken of."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of a store; two identities are equal when their digests are.

    encoder     everything that defines the function: "id" (readable, used by `Bank.find`), weights, arguments
    preprocess  resize, crop, interpolation, mean, std, and the library that resizes
    view        which part of the patch: "full", "center:0.5", ...
    tokens      which output: "cls", "mean", "cls+mean", "pooled", ...
    precision   of the computation: "fp32", "bf16" or "fp16"
    dtype       of the stored vectors: "float16" or "float32"
    dim         length of a vector
    """

    encoder: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    view: str
    tokens: str
    precision: str
    dtype: str
    dim: int

    def __post_init__(self) -> None:
        for name in ("encoder", "preprocess"):
            if not isinstance(getattr(self, name), Mapping):
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}; it has to be a table of values")
        if not isinstance(self.encoder.get("id"), str) or not self.encoder["id"]:
            raise InvalidRequest('an identity needs encoder["id"], the name that people use for the encoder')
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"dtype is {self.dtype!r}; a store holds {' or '.join(DTYPES)}")
        if self.precision not in PRECISIONS:
            raise InvalidRequest(f"precision is {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if type(self.dim) is not int or not 1 <= self.dim <= MAX_DIM:
            raise InvalidRequest(f"dim is {self.dim!r}; it has to be a whole number from 1 to {MAX_DIM}")
        for name in ("view", "tokens"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}; it has to be a word")
        try:  # through JSON once, so that a tuple and a list, read back or not, are the same identity
            for name in ("encoder", "preprocess"):
                object.__setattr__(self, name, json.loads(canonical(dict(getattr(self, name)))))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"an identity holds plain JSON values only: {error}") from error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        names = {field.name for field in fields(cls)}
        if set(document) != names:
            wrong = ", ".join(sorted(set(document) ^ names))
            raise InvalidRequest(f"an identity has the parts {', '.join(sorted(names))}; wrong here: {wrong}")
        return cls(**document)

    @property
    def digest(self) -> str:
        """32 hex digits: blake2b-128 of the canonical JSON."""
        body = canonical({"format": "patchbank-identity", "version": 1, **self.to_json()})
        return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()

    @property
    def name(self) -> str:
        """The store's folder: readable, safe on every file system, unique by the digest in it."""
        words = (self.encoder["id"], self.view, self.tokens)
        return ".".join([*(safe_name(word) for word in words), self.digest[:12]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def safe_name(word: str, *, longest: int = 80) -> str:
    """A word with everything but letters, digits, `_`, `+` and `-` made into `-`."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", word).strip("-")[:longest] or "x"
