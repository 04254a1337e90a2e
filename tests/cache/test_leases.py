"""Leases by a clock that the tests turn: whose a unit of work is, and from when on it is another's."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from patchbank.cache import leases
from patchbank.cache.filesystem import Files, LocalFiles, open_files
from patchbank.cache.leases import FOLDER, LONGEST, TTL, Found, Lease, Watch, hold, holder, sweepable
from patchbank.errors import StoreError


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "local":
        return LocalFiles(tmp_path)
    pytest.importorskip("fsspec")
    return open_files(f"memory://patchbank-leases-{tmp_path.name}")


def lease_of_another(files: Files, unit: str = "unit", **changes: Any) -> str:
    """A lease's file, made on a machine whose processes are not seen from here."""
    about = {
        "nonce": "0123456789abcdef", "owner": "extract", "machine": "node7/boot/pid", "pid": 4711,
        "started": "99", "ttl": 60.0, "beat": f"{0:012d}",
    }  # fmt: skip
    name = f"{FOLDER}/{unit}.0.json"
    files.make_folder(FOLDER)
    files.put({name: [json.dumps(about | changes).encode()]})
    return name


def test_nobody_holds_a_unit_at_first(files: Files) -> None:
    assert holder(files, "unit") is None
    with Lease.acquire(files, "unit", owner="extract") or pytest.fail("no lease") as lease:
        held = holder(files, "unit")
        assert held is not None
        assert (held.owner, held.pid, held.is_gone) == ("extract", os.getpid(), False)
        assert lease.is_held()
        assert Lease.acquire(files, "unit") is None
        assert holder(files, "unit.0") is None  # of units whose names begin alike each is its own
        with Lease.acquire(files, "unit.0") or pytest.fail("no lease"):
            assert Lease.acquire(files, "unit") is None
    assert holder(files, "unit") is None


def test_a_silent_holder_elsewhere_loses_it_after_its_own_time(files: Files) -> None:
    clock = Clock()
    watch = Watch(clock)
    name = lease_of_another(files, ttl=60.0)
    for at in (0.0, 30.0, 59.9):
        clock.now = at
        assert Lease.acquire(files, "unit", watch=watch) is None
    files.put({name: [files.read(name).replace(b"000000000000", b"000000000001")]})  # a sign of life
    clock.now = 60.0
    assert Lease.acquire(files, "unit", watch=watch) is None
    clock.now = 119.9
    assert Lease.acquire(files, "unit", watch=watch) is None
    clock.now = 120.1
    lease = Lease.acquire(files, "unit", watch=watch)
    assert lease is not None
    assert files.names(FOLDER) == ["unit.1.json"]
    lease.release()


def test_each_observer_counts_from_its_own_first_look(files: Files) -> None:
    early, late = Clock(), Clock()
    name = lease_of_another(files)
    first, second = Watch(early), Watch(late)
    for clock in (early, late):
        clock.now = 1e6  # what their clocks show means nothing
    state = files.read(name)
    assert first.unchanged(files, name, state) == 0.0
    early.now += 50
    assert first.unchanged(files, name, state) == 50.0
    assert second.unchanged(files, name, state) == 0.0
    first.forget(files, name)
    assert first.unchanged(files, name, state) == 0.0


@pytest.mark.parametrize(
    ("about", "wanted"),
    [
        ({}, ("extract", 4711, 60.0)),
        ({"ttl": LONGEST}, ("extract", 4711, LONGEST)),
        ({"ttl": LONGEST + 1}, ("extract", 4711, TTL)),  # nobody may ask for more
        ({"ttl": 0}, ("extract", 4711, TTL)),
        ({"ttl": "60"}, ("extract", 4711, TTL)),
        ({"pid": -1}, ("extract", 0, 60.0)),
        ({"pid": True}, ("extract", 0, 60.0)),
        ({"pid": 1 << 40}, ("extract", 0, 60.0)),
        ({"owner": None}, ("?", 4711, 60.0)),
        ({"owner": "x" * 999}, ("x" * 100, 4711, 60.0)),
    ],
)
def test_what_a_file_may_say(tmp_path: Path, about: dict[str, Any], wanted: tuple[str, int, float]) -> None:
    files = LocalFiles(tmp_path)
    found = Found(files, lease_of_another(files, **about))
    assert (found.owner, found.pid, found.ttl) == wanted
    assert not found.is_local
    assert not found.is_gone  # of other machines' processes nothing is known
    assert str(found) == f"{wanted[0]} (process {wanted[1]} on node7)"


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(files: Files) -> None:
    if not leases.machine():
        pytest.skip("no table of processes here")
    name = lease_of_another(files, machine=leases.machine(), pid=os.getpid(), started="1")
    assert Found(files, name).is_gone  # another process has had our number
    assert sweepable(files, grace=0.0) == [name]
    lease = Lease.acquire(files, "unit")
    assert lease is not None
    assert sweepable(files, grace=0.0) == []
    lease.release()


def test_who_waits_says_for_whom_and_gives_up_at_a_sign_of_life(files: Files) -> None:
    clock, said = Clock(), list[str]()
    lease_of_another(files, ttl=8.0)
    with hold(
        files, "unit", ttl=60.0, owner="me", watch=Watch(clock), sleep=clock.sleep, say=said.append
    ) as lease:
        assert lease.is_held()
    assert said == ["waiting for extract (process 4711 on node7), up to 8 s without a sign of life"]
    assert 8.0 <= clock.now < 10.0
    name = lease_of_another(files, ttl=8.0)

    def beat(seconds: float) -> None:
        clock.sleep(seconds)
        files.put({name: [leases._next_beat(files.read(name))]})

    with pytest.raises(StoreError, match=r"by another process, extract \(process 4711 on node7\); try again"):
        hold(files, "unit", ttl=60.0, owner="me", watch=Watch(clock), sleep=beat)


def test_a_process_that_slept_too_long_asks_before_it_goes_on(files: Files) -> None:
    clock = Clock()
    lease = Lease.acquire(files, "unit", ttl=60.0, watch=Watch(clock))
    assert lease is not None
    lease.check()
    clock.now = 61.0  # the lid of a notebook was shut
    with pytest.raises(StoreError, match="was silent for too long, another one took its work over"):
        lease.check()
    lease.release()  # takes nothing away that may be another's by now
    assert files.names(FOLDER) == ["unit.0.json"]


def test_a_beat_is_written_in_place() -> None:
    content = b'{"nonce": "a", "beat": "000000000009", "x": "000000000009"}'
    assert leases._next_beat(content) == b'{"nonce": "a", "beat": "000000000010", "x": "000000000009"}'
    assert leases._next_beat(b"{}") == b"{}"
