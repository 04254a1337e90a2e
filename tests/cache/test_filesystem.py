"""The few file operations of a store: the same on a disk and on an object store."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache import filesystem
from patchbank.cache.filesystem import TEMPORARY, Files, LocalFiles, RemoteFiles, explained, open_files
from patchbank.errors import InvalidRequest, MissingDependency, StoreError


class Contract:
    """What `Files` promise, whichever they are."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Any:
        raise NotImplementedError

    def test_what_was_put_is_read(self, files: Files) -> None:
        numbers = np.arange(5, dtype="<u2")
        files.make_folder("a/b")
        files.put({"a/b/x": [b"one", bytearray(b"two"), memoryview(b"three"), numbers], "a/y": []})
        whole = b"onetwothree" + numbers.tobytes()
        assert files.read("a/b/x") == whole
        assert files.read("a/y") == b""
        assert files.size("a/b/x") == len(whole)
        files.put({"a/b/x": [b"new"]})  # in place of what was there
        assert files.read("a/b/x") == b"new"
        assert files.names("a") == ["b", "y"]
        assert files.names("a/b") == ["x"]
        assert files.walk() == ["a/b/x", "a/y"]

    def test_any_part_of_a_file(self, files: Files) -> None:
        content = bytes(range(50))
        files.put({"x": [content]})
        reader = files.reader("x")
        for start in (0, 1, 17, 49, 50):
            for length in (0, 1, 7, 50, 99):
                wanted = content[start : start + length]
                assert files.read("x", start, length) == wanted
                out = bytearray(length)
                assert files.read_into("x", start, memoryview(out)) == len(wanted)
                assert bytes(out) == wanted.ljust(length, b"\0")
            assert files.read("x", start) == content[start:]
        spans = [(30, 5), (0, 3), (30, 5), (45, 5)]  # in any order, and again
        assert [bytes(piece) for piece in reader.pieces(spans)] == [content[a : a + n] for a, n in spans]
        assert reader.joined([40, 0, 8], 4) == content[40:44] + content[:4] + content[8:12]
        assert list(reader.pieces([])) == []

    def test_what_is_missing(self, files: Files) -> None:
        assert not files.exists("x")
        assert files.names("") == []
        assert files.names("none/at/all") == []
        assert files.walk() == []
        files.remove("x")  # is no error: somebody else was faster
        assert not files.rewrite("x", b"", lambda content: content)
        assert not files.same("x", "y")
        for ask in (files.read, files.size, files.modified):
            with pytest.raises(FileNotFoundError):
                ask("x")

    def test_a_name_is_taken_once(self, files: Files) -> None:
        assert files.create("x", b"first")
        assert not files.create("x", b"second")
        assert files.read("x") == b"first"
        files.remove("x")
        assert files.create("x", b"third")
        assert files.names("") == ["x"]

    def test_marks_are_empty_files(self, files: Files) -> None:
        files.mark("x")
        assert files.read("x") == b""
        assert files.exists("x")

    def test_a_file_is_rewritten_only_by_who_knows_its_beginning(self, files: Files) -> None:
        files.put({"x": [b"mine 0"]})
        assert files.rewrite("x", b"mine", lambda content: content.replace(b"0", b"1"))
        assert files.read("x") == b"mine 1"
        assert not files.rewrite("x", b"other", lambda content: b"other 2")
        assert files.read("x") == b"mine 1"

    def test_moved_and_doubled(self, files: Files) -> None:
        files.put({"x": [b"one"], "y": [b"two"]})
        files.duplicate("x", "z")
        files.duplicate("x", "z")  # again, over itself
        assert files.read("x") == files.read("z") == b"one"
        files.move("y", "x")
        assert files.read("x") == b"two"
        assert files.read("z") == b"one"
        assert files.walk() == ["x", "z"]

    def test_folders_below(self, files: Files) -> None:
        files.make_folder("a/b")
        files.put({"a/b/x": [b"1"]})
        assert files.at("a").at("b").read("x") == b"1"
        assert files.at("a").names("") == ["b"]
        assert str(files.at("a")).endswith("/a")
        files.sync("a", "a/b")
        files.at("a").remove_tree()
        assert not files.exists("a/b/x")
        assert files.names("") == []

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "a/./x", "a\0b"])
    def test_no_name_leads_out(self, files: Files, name: str) -> None:
        for act in (files.exists, files.read, files.remove, files.mark, files.at):
            with pytest.raises((StoreError, InvalidRequest, ValueError)):
                act(name)

    def test_the_clock_is_that_of_the_files(self, files: Files) -> None:
        files.put({"x": [b""]})
        assert abs(files.clock() - files.modified("x")) < 3600
        assert files.names("") == ["x"]  # what the time was read from is gone


class TestLocal(Contract):
    @pytest.fixture
    def files(self, tmp_path: Path) -> Files:
        (tmp_path / "root").mkdir()
        return LocalFiles(tmp_path / "root")

    def test_a_second_name_is_one_file(self, files: LocalFiles) -> None:
        files.put({"x": [b"one"]})
        files.duplicate("x", "y")
        assert files.same("x", "y")
        files.put({"x": [b"one"]})  # another file of the same bytes
        assert not files.same("x", "y")

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV])
    def test_without_hard_links(
        self, files: LocalFiles, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def refuse(*args: Any) -> None:
            raise OSError(number, "no links")

        monkeypatch.setattr(filesystem.os, "link", refuse)
        assert files.create("x", b"one")
        assert not files.create("x", b"two")
        files.duplicate("x", "y")
        assert files.read("y") == b"one"
        assert not files.same("x", "y")
        assert files.walk() == ["x", "y"]

    def test_a_link_whose_answer_was_lost_is_ours(
        self, files: LocalFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """NFS asks again where no answer came, and is told that the name exists, which it made itself."""
        real = os.link

        def ask_twice(source: Path, target: Path) -> None:
            real(source, target)
            real(source, target)

        monkeypatch.setattr(filesystem.os, "link", ask_twice)
        assert files.create("x", b"one")
        assert not files.create("x", b"two")
        assert files.read("x") == b"one"
        assert files.walk() == ["x"]

    def test_links_that_fail_otherwise_are_errors(
        self, files: LocalFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: Any) -> None:
            raise OSError(errno.EIO, "broken")

        files.put({"x": [b"one"]})
        monkeypatch.setattr(filesystem.os, "link", refuse)
        for act in (lambda: files.create("y", b"two"), lambda: files.duplicate("x", "y")):
            with pytest.raises(OSError, match="broken"):
                act()
        assert files.walk() == ["x"]  # nothing half made is left

    def test_a_put_that_fails_changes_nothing(
        self, files: LocalFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.put({"x": [b"old"]})
        real, calls = os.write, []

        def full(descriptor: int, view: memoryview) -> int:
            calls.append(len(view))
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "no space")
            return real(descriptor, view[:2])  # a write may be short

        monkeypatch.setattr(filesystem.os, "write", full)
        with pytest.raises(OSError, match="no space"):
            files.put({"x": [b"newer"], "y": [b"two"]})
        assert calls == [5, 3]
        assert files.read("x") == b"old"
        assert files.walk() == ["x"]

    def test_short_writes_are_continued(self, files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.write
        monkeypatch.setattr(filesystem.os, "write", lambda descriptor, view: real(descriptor, view[:3]))
        files.put({"x": [b"0123456789", b"abc"]})
        assert files.read("x") == b"0123456789abc"

    def test_a_folder_that_vanishes_is_said(self, files: LocalFiles) -> None:
        for act in (lambda: files.put({"none/x": [b""]}), lambda: files.create("none/x", b"")):
            with pytest.raises(FileNotFoundError):
                act()

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    def test_only_files_and_folders(self, files: LocalFiles, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"of others")
        (files.root / "link").symlink_to(tmp_path / "secret")
        (files.root / "folder").symlink_to(tmp_path)
        os.mkfifo(files.root / "pipe")
        for name, what in (("link", "symbolic link"), ("folder/secret", "symbolic link"), ("pipe", "pipe")):
            for act in (files.read, files.size, files.exists, files.mark, files.reader, files.remove):
                with pytest.raises(StoreError, match=what):
                    act(name)
        with pytest.raises(StoreError, match=r"symbolic link|pipe"):
            files.walk()
        assert (tmp_path / "secret").read_bytes() == b"of others"

    def test_a_root_that_is_a_link_is_not_removed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real/x").write_bytes(b"1")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(StoreError, match=r"is a symbolic link to .*real; remove the link"):
            LocalFiles(tmp_path / "link").remove_tree()
        assert (tmp_path / "real/x").exists()

    def test_empty_folders_go_and_others_stay(self, files: LocalFiles) -> None:
        for folder in ("a/b/c", "a/d"):
            files.make_folder(folder)
        files.put({"a/d/x": [b""]})
        files.prune("a")
        assert sorted(path.relative_to(files.root).as_posix() for path in files.root.rglob("*")) == [
            "a", "a/d", "a/d/x",
        ]  # fmt: skip
        files.remove("a/d/x")
        files.prune("a")
        assert files.names("") == []

    def test_an_open_file_is_read_whatever_becomes_of_its_name(self, files: LocalFiles) -> None:
        files.put({"x": [b"0123456789"]})
        reader = files.reader("x")
        before = reader.stamp()
        files.remove("x")
        assert [bytes(piece) for piece in reader.pieces([(2, 3)])] == [b"234"]
        files.put({"x": [b"another"]})
        assert files.reader("x").stamp() != before

    def test_a_length_beyond_the_file_takes_no_room(self, files: LocalFiles) -> None:
        """A damaged log may ask for terabytes: what is given is what there is."""
        files.put({"x": [b"0123456789"]})
        assert files.read("x", 4, 1 << 44) == b"456789"
        assert files.read("x", 99, 1 << 44) == b""
        assert files.reader("x").joined([4], 1 << 44) == b"456789"

    def test_reading_without_preadv(self, files: LocalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on Windows: places are sought under a lock."""
        monkeypatch.delattr(filesystem.os, "preadv", raising=False)
        files.put({"x": [bytes(range(30))]})
        reader = files.reader("x")
        assert [bytes(piece) for piece in reader.pieces([(20, 4), (0, 2), (28, 9)])] == [
            bytes([20, 21, 22, 23]), bytes([0, 1]), bytes([28, 29]),
        ]  # fmt: skip
        assert reader.joined([3, 1], 2) == bytes([3, 4, 1, 2])


class TestMemory(Contract):
    @pytest.fixture
    def files(self, tmp_path: Path) -> Iterator[Files]:
        pytest.importorskip("fsspec")
        root = open_files(f"memory://patchbank-files-{tmp_path.name}")
        assert isinstance(root, RemoteFiles)
        yield root
        if root.walk():
            root.remove_tree()

    def test_many_pieces_are_asked_for_some_at_a_time(
        self, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(filesystem, "AHEAD", 10)
        content = bytes(range(60))
        files.put({"x": [content]})
        asked: list[int] = []
        real = files.fs.cat_ranges
        monkeypatch.setattr(
            type(files.fs),
            "cat_ranges",
            lambda self, paths, *args, **options: asked.append(len(paths)) or real(paths, *args, **options),
        )
        spans = [(0, 4), (10, 4), (20, 4), (30, 20), (50, 1), (55, 5)]
        assert [bytes(p) for p in files.reader("x").pieces(spans)] == [content[a : a + n] for a, n in spans]
        assert asked == [2, 1, 1, 2]  # of 8, 4, 20 and 6 bytes: a piece longer than all goes alone

    def test_what_a_client_raises_is_one_sentence(
        self, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class NoCredentialsError(Exception):
            pass

        def refuse(*args: Any, **options: Any) -> None:
            raise NoCredentialsError("Unable to\n locate credentials")

        monkeypatch.setattr(type(files.fs), "cat_file", refuse)
        with pytest.raises(StoreError, match=r"cannot be reached: Unable to locate credentials\. Fix: "):
            files.read("x")


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("bank", tmp_path / "bank", f"file://{tmp_path}/bank"):
        files = open_files(place)
        assert isinstance(files, LocalFiles)
        assert files.root == tmp_path / "bank"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = open_files("~/bank")
    assert isinstance(home, LocalFiles)
    assert home.root == tmp_path / "home/bank"
    pytest.importorskip("fsspec")
    with pytest.raises(InvalidRequest, match=r"nonsense://x is not a location that fsspec supports"):
        open_files("nonsense://x")


def test_a_place_that_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(filesystem.importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match=r"s3://x/y needs fsspec: pip install 'patchbank\[remote\]'"):
        open_files("s3://x/y")


@pytest.mark.parametrize(
    ("number", "action", "advice"),
    [
        (errno.ENOSPC, "write", "the disk is full; free some space"),
        (errno.EDQUOT, "write", "the disk is full; free some space"),
        (errno.EFBIG, "write", "the file size is limited here"),
        (errno.EROFS, "write", "it cannot be written; choose another place"),
        (errno.EACCES, "write", "it cannot be written; choose another place"),
        (errno.EACCES, "read", "no permission to read it"),
        (errno.EIO, "read", "Input/output error"),
    ],
)
def test_errors_of_a_disk_say_what_to_do(tmp_path: Path, number: int, action: str, advice: str) -> None:
    file = str(tmp_path / "file")
    with (
        pytest.raises(StoreError, match=rf"^cannot {action} the bank: {advice}.*\({file}\)$") as caught,
        explained(action, "the bank"),
    ):
        raise OSError(number, os.strerror(number), file)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StoreError, match="as it was"), explained(action, "the bank"):
        raise StoreError("as it was")


def test_temporary_files_are_private_until_they_are_whole(tmp_path: Path) -> None:
    """What appears has the permissions of any new file, and nothing of the way there is left."""
    files = LocalFiles(tmp_path)
    old = os.umask(0o027)
    try:
        files.put({"x": [b"1"]})
        assert files.create("y", b"2")
    finally:
        os.umask(old)
    for name in "xy":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))
