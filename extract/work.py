"""What a run has to do: the patches, and for each encoder and crop the stores that they are to fill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..cache.bank import Bank
from ..cache.filesystem import Files
from ..cache.identity import Identity
from ..cache.store import Store
from ..errors import ImageError, StoreNotFound
from .cards import Transform
from .tokens import Policy
from .views import View


@dataclass(eq=False)
class Target:
    """One store, and the view and policy that fill it.

    Attributes
    ----------
    opened
        the store, None where there is none yet: it comes into being with its first row, so that a
        run that fails before leaves nothing.
    bank, backend, provenance
        what it is made in, and with.
    """

    identity: Identity
    view: View
    policy: Policy
    number: int = 0
    opened: Store | None = None
    bank: Bank | None = None
    backend: str = "zarr"
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> Files:
        """Where the store lies, or will."""
        if self.opened is not None:
            return self.opened.files
        assert self.bank is not None
        return self.bank.files_of(self.identity)

    def look(self) -> Store | None:
        """The store with what was published by anybody so far; None while nobody made it."""
        if self.opened is None and self.bank is not None:
            try:
                self.opened = self.bank.open_store(self.identity, provenance=self.provenance)
            except StoreNotFound:
                return None
        if self.opened is not None:
            self.opened.refresh()
        return self.opened

    def lacks(self, keys: np.ndarray) -> np.ndarray:
        """bool (n,): which of these keys (uint8 (n, 16)) have no row, as of the last `look`."""
        return np.ones(len(keys), bool) if self.opened is None else ~self.opened.contains(keys)

    def make(self) -> Store:
        """The store, made now if there is none."""
        if self.opened is None:
            assert self.bank is not None
            self.opened = self.bank.open_store(
                self.identity, create=True, provenance=self.provenance, backend=self.backend
            )
        return self.opened

    def clean(self) -> None:
        """Leave nothing of a store that did not come into being."""
        if self.opened is None and self.bank is not None:
            self.bank.remove_empty(self.identity.name)


@dataclass(eq=False)
class Lane:
    """One encoder at one view but for its orientation. `waiting` holds decoded patches by their shape."""

    encoder: int
    view: View
    transform: Transform
    targets: list[Target]
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = field(default_factory=dict)

    @property
    def orientations(self) -> list[int]:
        """The forward passes of one patch, by orientation."""
        return sorted({k for target in self.targets for k in target.view.orientations})


@dataclass(eq=False)
class Work:
    """The patches that a run has to look at.

    Attributes
    ----------
    read
        read(i) gives the pixels of patch i, uint8 (h, w, 3); called from several threads.
    name
        name(i) gives its patch id.
    keys
        uint8 (n, 16), zeros where not known; a run fills in those that it decodes.
    known
        bool (n,).
    todo
        bool (n, targets): which stores lack the patch; all of them where the key is not known.
    unit
        int (n,), ascending: the unit that the patch belongs to.
    unit_name
        the same for the same patches in every run, by the number of the unit.
    decoded
        bool (n,): read in this run, and of the hash that `keys` says.
    contradicted
        patches that were read and are of another hash than `keys` says, with that hash.
    """

    read: Callable[[int], np.ndarray]
    name: Callable[[int], str]
    keys: np.ndarray
    known: np.ndarray
    todo: np.ndarray
    unit: np.ndarray
    unit_name: Callable[[int], str]
    decoded: np.ndarray = field(init=False)
    contradicted: dict[int, bytes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.decoded = np.zeros(len(self.keys), bool)

    def __len__(self) -> int:
        return len(self.keys)

    def passes(self, lanes: Sequence[Lane]) -> np.ndarray:
        """The forward passes that each patch takes, by what its stores lack: int16 (n,)."""
        count = np.zeros(len(self), np.int16)
        for lane in lanes:
            for orientation in lane.orientations:
                wanted = [t.number for t in lane.targets if orientation in t.view.orientations]
                count += self.todo[:, wanted].any(axis=1)
        return count

    def contradict(self, i: int, key: bytes) -> ImageError:
        """Take down that the pixels of patch i are not those of its hash; the error that says so."""
        self.contradicted[i] = key
        return ImageError(
            f"{self.name(i)}: the file has changed since its hash was taken; "
            "build the manifest again (`patchbank datasets build`)"
        )
