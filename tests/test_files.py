"""Durable writes: whole or not at all, the old file kept, the reason said; locks between processes."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from patchbank import files
from patchbank.errors import OutputError
from patchbank.files import (
    LOCK,
    check_folder_writable,
    check_writable,
    locked,
    publish,
    sha256,
    write_atomically,
    write_text,
)


def test_what_is_written_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name if sys.platform == "linux" else ""
        done.append(f"fsync {'file' if name.startswith('.tmp-') else name}")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_text(tmp_path / "new" / "a.txt", "first")
    expected = [f"fsync {tmp_path.name}", "fsync file", "rename to a.txt", "fsync new"]
    if sys.platform == "linux":
        assert done == expected, "the new folder's name, the file, its name"
    assert (tmp_path / "new/a.txt").read_text() == "first"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    file = write_text(tmp_path / "a.txt", "old")

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    write = fails if step == "write" else lambda to: to.write_text("new")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fails)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OutputError, match=rf"a\.txt cannot be written: {os.strerror(number)}"):
        write_atomically(file, write)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="modes, links and devices are POSIX")
def test_modes_links_and_devices(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        file = write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640, "the umask's, and it is never changed"
    (tmp_path / "link.txt").symlink_to(file)
    write_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink()
    assert file.read_text() == "through"
    write_text("/dev/null", "nothing")
    assert not Path("/dev/null").is_file(), "a device is written to, not replaced"


def test_the_umask_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a moment: files that other threads make then would be open to all."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("it is the whole process's"))
    write_text(tmp_path / "a.txt", "x")
    root = Path(__file__).parent.parent
    files = [path for path in root.rglob("*.py") if not {"tests", ".venv", "build"} & set(path.parts)]
    assert len(files) > 100
    assert not [path for path in files if "umask(" in path.read_text("utf-8")]


def test_long_names_are_written(tmp_path: Path) -> None:
    file = tmp_path / ("a" * 250 + ".txt")
    assert write_text(file, "x").read_text() == "x"


@pytest.mark.parametrize("check", [check_writable, check_folder_writable])
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, check: object) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        check(tmp_path / "file" / "a" / "b")  # type: ignore[operator]
    check(tmp_path / "new" / "a" / "b")  # type: ignore[operator]
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "nothing is left behind"
    (tmp_path / "there").mkdir()
    check(tmp_path / "there" / "b")  # type: ignore[operator]
    assert not list((tmp_path / "there").iterdir())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path, "x")


HOLD = """
import sys
from patchbank.files import locked

with locked(sys.argv[1]):
    print("held", flush=True)
    input()
"""


def test_a_folder_is_held_by_one_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(OutputError, match=rf"out is in use by another run \(process {other.pid}\)"),
        locked(out),
    ):
        pass
    other.kill()
    other.communicate()
    with locked(out):
        assert (out / LOCK).read_text() == f"process {os.getpid()}"
        with pytest.raises(OutputError, match="in use"), locked(out):
            pass
    with locked(out), locked(out / "part"):
        pass


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    order: list[str] = []
    with locked(tmp_path):
        waiting = threading.Thread(target=lambda: _enter(tmp_path, order))
        waiting.start()
        waiting.join(0.05)
        order.append("first")
    waiting.join(300)
    assert order == ["first", "second"]


def _enter(folder: Path, order: list[str]) -> None:
    with locked(folder, wait=True):
        order.append("second")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_is_published_with_everything_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file, each folder, then the name; or nothing, and the old file is as it was."""
    made = tmp_path / "made"
    (made / "a/b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (made / name).write_text(name)
    there = {path.stat().st_ino for path in (made, *made.rglob("*"))}
    synced: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    publish(made, tmp_path / "out")
    assert {*synced} == {*there, tmp_path.stat().st_ino}
    assert synced[-1] == tmp_path.stat().st_ino
    assert not made.exists()

    monkeypatch.setattr("patchbank.files.MANY_FILES", 2)
    everything: list[None] = []
    monkeypatch.setattr(os, "sync", lambda: everything.append(None))
    publish(tmp_path / "out", tmp_path / "again")
    assert everything == [None]

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    (tmp_path / "file").write_text("new")
    (tmp_path / "old").write_text("old")
    with pytest.raises(OSError, match="Input/output error"):
        publish(tmp_path / "file", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"


def test_what_control_groups_leave_of_the_memory(tmp_path: Path) -> None:
    names = (tmp_path, "memory.max", "memory.current", "inactive_file")
    assert list(files._left_by_groups("/job/step", *names)) == []
    step = tmp_path / "job/step"
    step.mkdir(parents=True)
    for folder, limit in ((step, "max"), (step.parent, "1000"), (tmp_path, "5000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("700")
        (folder / "memory.stat").write_text("anon 100\ninactive_file 50\n")
    assert list(files._left_by_groups("/job/step", *names)) == [350, 4350]
    assert files.available_memory() > 0
