"""Leases: who is embedding what right now, so that two machines do not embed the same patches.

A lease is a small file, parts/leases/UNIT.N.json, made with an exclusive create and renewed (its time) by
its holder. One that was not renewed for its time to live, or whose process on this very machine is gone,
is stale: whoever creates UNIT.(N+1).json holds it next. A wrong guess costs a second embedding of the same
patches and nothing else: what counts is what the log says.
"""

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from ..errors import InvalidRequest
from .files import Files, explained
from .index import as_keys

if TYPE_CHECKING:
    from .store import Store, StoreWriter

FOLDER = "parts/leases"
TTL = 600.0  # seconds


def machine() -> str:
    """Names the process table that a pid belongs to: host, boot and pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux: then only the time to live tells
        return ""
    return f"{socket.gethostname()}/{boot}/{space}"


def process_is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class Lease:
    """A lease that this process holds. It is renewed from a thread until `release`."""

    def __init__(self, files: Files, unit: str, number: int, ttl: float) -> None:
        self._files = files
        self._name = _name(unit, number)
        self._ttl = ttl
        self._stop = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease {unit}", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, files: Files, unit: str, *, ttl: float = TTL, owner: str = "") -> Self | None:
        """The lease of a unit of work, or None while somebody else holds it.

        ttl: seconds without a sign of life after which others may take it over.
        """
        with explained("write a lease to", files):
            files.make_folder(FOLDER)
            held = _numbers(files, unit)
            number = 0
            if held:
                if not _stale(files, _name(unit, held[-1])):
                    return None
                number = held[-1] + 1
            about = {
                "owner": owner,
                "machine": machine(),
                "pid": os.getpid(),
                "ttl": ttl,
                "time": time.time(),
            }
            about["nonce"] = secrets.token_hex(8)
            if not files.create(_name(unit, number), json.dumps(about).encode()):
                return None
            now = _numbers(files, unit)
            if now and now[-1] > number:  # taken over between our look and our file
                files.remove(_name(unit, number))
                return None
            for old in now[:-1]:
                files.remove(_name(unit, old))
        return cls(files, unit, number, ttl)

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl / 4):
            try:
                self._files.touch(self._name)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:  # a hiccup of the file system: the next beat may be in time
                continue

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        with explained("remove a lease from", self._files):
            self._files.remove(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _name(unit: str, number: int) -> str:
    return f"{FOLDER}/{unit}.{number}.json"


def _numbers(files: Files, unit: str) -> list[int]:
    names = [name for name in files.names(FOLDER) if name.startswith(f"{unit}.") and name.endswith(".json")]
    return sorted(int(name.split(".")[-2]) for name in names)


def _stale(files: Files, name: str) -> bool:
    try:
        about = json.loads(files.read(name))
        age = files.clock() - files.modified(name)
    except FileNotFoundError:  # released this moment; the next try gets it
        return False
    except ValueError:  # cut short by a full disk or a crash: nobody renews it
        return files.clock() - files.modified(name) > TTL
    if about["machine"] and about["machine"] == machine() and process_is_gone(about["pid"]):
        return True
    return age > about["ttl"]


def stale_leases(files: Files) -> list[str]:
    """The files of leases that nobody holds any more."""
    names = [f"{FOLDER}/{name}" for name in files.names(FOLDER) if name.endswith(".json")]
    return [name for name in names if _stale(files, name)]


class Claims:
    """Hands out what is still missing, unit by unit, each under a lease. See `Store.claim`."""

    def __init__(
        self,
        store: "Store",
        keys: np.ndarray,
        writer: "StoreWriter",
        *,
        rows: int,
        ttl: float,
        wait: bool,
        poll: float,
    ) -> None:
        if rows < 1:
            raise InvalidRequest(f"rows is {rows}; a unit of work has at least one row")
        self._store = store
        self._keys = as_keys(keys)
        self._writer = writer
        self._ttl, self._wait, self._poll = ttl, wait, poll
        self._rows = rows
        self._lease: Lease | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def _finish(self) -> None:
        """Publishes what was appended for the unit, then gives its lease back."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            try:
                self._writer.flush()
            finally:
                lease.release()

    def _missing(self, unit: int) -> np.ndarray:
        """Positions of the unit's keys without a row, each key once: int64."""
        part = self._keys[unit * self._rows : (unit + 1) * self._rows]
        here = np.flatnonzero(~self._store.contains(part))
        _, first = np.unique(part[here].view("V16").ravel(), return_index=True)
        return here[np.sort(first)] + unit * self._rows

    def __iter__(self) -> Iterator[np.ndarray]:
        left = list(range(-(-len(self._keys) // self._rows)))
        while left:
            self._store.refresh()
            busy = []
            for unit in left:
                if not len(self._missing(unit)):
                    continue
                part = self._keys[unit * self._rows : (unit + 1) * self._rows]
                name = hashlib.blake2b(part.tobytes(), digest_size=12).hexdigest()
                self._lease = Lease.acquire(
                    self._store.files, name, ttl=self._ttl, owner=str(self._writer.name)
                )
                if self._lease is None:
                    busy.append(unit)
                    continue
                self._store.refresh()  # what its last holder published before giving it back
                missing = self._missing(unit)
                if len(missing):
                    yield missing
                self._finish()
            if busy and not self._wait:
                return
            if len(busy) == len(left):
                time.sleep(self._poll)
            left = busy
