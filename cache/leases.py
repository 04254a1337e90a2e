"""Leases: who is embedding what right now, so that two machines do not embed the same patches.

A lease is a small file, parts/leases/UNIT.N.json, made with an exclusive create: a JSON object with the
holder (owner, machine, pid, started), a random `nonce`, a time to live in seconds, `ttl`, and `beat`, a
count that the holder raises in place four times in that time. Whoever creates UNIT.(N+1).json while the one
before it is stale holds it next.

A lease is stale when its process on this very machine is gone, or when *the observer itself* has seen the
same file (the same nonce and the same beat) for a time to live by its own monotonic clock. Time stamps are
never compared: machines that share a file system disagree about the time.

No lease is trusted with data. A wrong guess costs a second embedding of the same patches; two that finalise
or repair at once are kept apart by the generation (finalize.py), and what counts is what the log says.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ..errors import StoreError
from .filesystem import Files, explained
from .narrowing import is_object

FOLDER = "parts/leases"
TTL = 600.0  # seconds
LONGEST = 86_400.0  # what a lease may ask for
_BEAT = re.compile(rb'"beat": "(\d{12})"')


def machine() -> str:
    """Names the process table that a pid belongs to: host, boot and pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux: then only the time to live tells
        return ""
    return f"{socket.gethostname()}/{boot}/{space}"


def process_state(pid: int) -> tuple[str, str] | None:
    """The state of a process of this machine (R, S, D, T: stopped, Z: dead) and its start, or None: gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else (words[0], words[19])


class Watch:
    """What one observer has seen of other people's leases, and since when by its own clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._seen: dict[tuple[str, str], tuple[bytes, float]] = {}

    def unchanged(self, files: Files, name: str, state: bytes) -> float:
        """Seconds since this observer first saw the file in this very state."""
        now = self.clock()
        seen, since = self._seen.get((str(files), name), (b"", now))
        if seen != state:
            since = now
        self._seen[str(files), name] = state, since
        return now - since

    def forget(self, files: Files, name: str) -> None:
        self._seen.pop((str(files), name), None)


WATCH = Watch()  # of this process


class Found:
    """A lease as an observer finds it in its file."""

    def __init__(self, files: Files, name: str) -> None:
        self.files, self.name = files, name
        self.content = files.read(name)
        self.state = self.content + repr(files.modified(name)).encode()  # any change is a sign of life
        try:
            content = json.loads(self.content)
        except ValueError:  # truncated by a full disk or a crash: no process renews it
            content = None
        about = content if is_object(content) else {}
        self.owner = str(about.get("owner") or "?")[:100]
        self.machine = str(about.get("machine") or "")[:300]
        pid, ttl = about.get("pid"), about.get("ttl")
        self.pid = pid if type(pid) is int and 0 < pid < 1 << 31 else 0
        self.started = str(about.get("started") or "")
        self.ttl = float(ttl) if isinstance(ttl, int | float) and 0 < ttl <= LONGEST else TTL

    @property
    def is_local(self) -> bool:
        """Whether the process table that names the holder is ours."""
        return bool(self.pid and self.machine) and self.machine == machine()

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to be gone."""
        state = process_state(self.pid) if self.is_local else ("?", "")
        return state is None or bool(self.started and state[1] and state[1] != self.started)

    @property
    def is_running(self) -> bool:
        """Whether the process is known to be there, and not stopped."""
        state = process_state(self.pid) if self.is_local and not self.is_gone else None
        return state is not None and state[0] not in "Tt"

    def is_stale(self, watch: Watch) -> bool:
        return self.is_gone or watch.unchanged(self.files, self.name, self.state) >= self.ttl

    def has_changed(self) -> bool:
        """Whether there is another lease under the name now, or a sign of life."""
        try:
            return Found(self.files, self.name).state != self.state
        except FileNotFoundError:
            return False

    def __str__(self) -> str:
        where = self.machine.partition("/")[0] or "an unknown machine"
        return f"{self.owner} (process {self.pid} on {'this machine' if self.is_local else where})"


def holder(files: Files, unit: str) -> Found | None:
    """Who holds a unit, stale or not; None if it is free."""
    held = _numbers(files, unit)
    try:
        return Found(files, _name(unit, held[-1])) if held else None
    except FileNotFoundError:  # released this moment
        return None


class Lease:
    """A lease that this process holds. It is renewed from a thread until `release`."""

    def __init__(self, files: Files, unit: str, number: int, ttl: float, start: bytes, watch: Watch) -> None:
        self._files, self._unit, self._number = files, unit, number
        self._name = _name(unit, number)
        self._ttl = ttl
        self._start = start  # of the file, up to the nonce: what makes it ours
        self._watch = watch
        self._renewed = self._looked = watch.clock()
        self._stop = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease {unit}", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls, files: Files, unit: str, *, ttl: float = TTL, owner: str = "", watch: Watch = WATCH
    ) -> Self | None:
        """The lease of a unit of work, or None while somebody else holds it; ask again to take over.

        ttl: seconds without a sign of life after which others may take it over. An observer counts them
        from its own first look, so that `acquire` has to be called (or `holder` watched) for that long.
        """
        with explained("write a lease to", files):
            files.make_folder(FOLDER)
            held = holder(files, unit)
            number = 0
            if held is not None:
                if not held.is_stale(watch):
                    return None
                number = _number(held.name) + 1
                watch.forget(files, held.name)
            about = {
                "nonce": secrets.token_hex(8),
                "owner": owner,
                "machine": machine(),
                "pid": os.getpid(),
                "started": (process_state(os.getpid()) or ("", ""))[1],
                "ttl": ttl,
                "beat": f"{0:012d}",
            }
            content = json.dumps(about).encode()
            start = content[: content.index(b",")]
            if not files.create(_name(unit, number), content):
                return None
            now = _numbers(files, unit)
            if (now and now[-1] > number) or (held is not None and held.has_changed()):
                files.remove(_name(unit, number))  # somebody was there between our look and our file
                return None
            for old in now[:-1]:
                files.remove(_name(unit, old))
        return cls(files, unit, number, ttl, start, watch)

    def _renew(self) -> None:
        while not self._stop.wait(self._ttl / 4):
            try:
                self.lost = self.lost or not self._files.rewrite(self._name, self._start, _next_beat)
                self._renewed = self._watch.clock()
            except OSError:  # a hiccup of the file system: the next beat may be in time
                continue
            if self.lost:
                return

    def is_held(self) -> bool:
        """Whether the file still says so (the same nonce, no successor), and we said so in time.

        A process that was stopped wakes up anywhere: ask right before each step that others would not expect.
        """
        now = self._watch.clock()
        if now - self._renewed > self._ttl:
            self.lost = True
        if self._files.remote and now - self._looked < min(1.0, self._ttl / 8):
            return not self.lost  # two requests per check, and no process takes over that soon
        if not self.lost:
            numbers = _numbers(self._files, self._unit)
            try:
                held = numbers[-1:] == [self._number] and self._files.read(self._name).startswith(self._start)
            except FileNotFoundError:
                held = False
            self.lost, self._looked = not held, now
        return not self.lost

    def check(self) -> None:
        """Raises StoreError unless the lease is still held."""
        with explained("read a lease of", self._files):
            if not self.is_held():
                raise StoreError(
                    f"{self._files}: this process was silent for too long, another one took its work over; "
                    "nothing is lost, run this again"
                )

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        with explained("remove a lease from", self._files):
            if not self.lost and self.is_held():
                self._files.remove(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(
    files: Files,
    unit: str,
    *,
    ttl: float,
    owner: str,
    watch: Watch = WATCH,
    sleep: Callable[[float], object] = time.sleep,
    say: Callable[[str], object] | None = None,
) -> Lease:
    """The lease of a unit, waiting for a silent holder's time to live; for work that one does at a time.

    say: called with who is waited for. Raises StoreError, naming the holder, where it is alive.
    """
    first: bytes | None = None
    while True:
        lease = Lease.acquire(files, unit, ttl=ttl, owner=owner, watch=watch)
        if lease is not None:
            return lease
        with explained("read a lease of", files):
            other = holder(files, unit)
        if other is None:
            continue
        if first is None:
            first = other.state
            if say is not None and not other.is_running:
                say(f"waiting for {other}, up to {other.ttl:.0f} s without a sign of life")
        if other.is_running or other.state != first:
            raise StoreError(
                f"{files} is being finalised or repaired by another process, {other}; "
                "try again when it is done" + ("; if it hangs, end it" if other.is_local else "")
            )
        sleep(min(1.0, other.ttl / 8))


def _next_beat(content: bytes) -> bytes:
    """The same bytes with the beat raised by one: equally long, so that it can be written in place."""
    return _BEAT.sub(lambda found: b'"beat": "%012d"' % (int(found[1]) + 1), content)


def _name(unit: str, number: int) -> str:
    return f"{FOLDER}/{unit}.{number}.json"


def _number(name: str) -> int:
    return int(name.split(".")[-2])


def _numbers(files: Files, unit: str) -> list[int]:
    pattern = re.compile(re.escape(unit) + r"\.\d{1,9}\.json")
    return sorted(_number(name) for name in files.names(FOLDER) if pattern.fullmatch(name))


def sweepable(files: Files, grace: float) -> list[str]:
    """The files of leases without a holder: of processes of this machine that are gone, and those
    that were not renewed for `grace` seconds by the file system's clock (a day at least).
    """
    names: list[str] = []
    now = files.clock()
    for item in files.names(FOLDER):
        name = f"{FOLDER}/{item}"
        try:
            if item.endswith(".json") and (
                Found(files, name).is_gone or now - files.modified(name) > max(grace, LONGEST)
            ):
                names.append(name)
        except FileNotFoundError:  # released this moment
            continue
    return names
