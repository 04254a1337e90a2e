"""The few file operations that a store needs, on a local disk and on an object store.

Local: a file appears whole or not at all (temporary name, fsync, rename, fsync of the folder).
Remote (any fsspec URL): a put is atomic, there is no rename and no append.
Files are read, never mapped: a mapped file that is cut short or goes away kills the process (SIGBUS).

A store may have been made by somebody else, so no name in it is trusted: names are relative, below the root,
and nothing below a local root is a symbolic link, a device or a pipe. The root itself may be a link.
"""

import errno
import importlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidRequest, MissingDependency, StoreError
from ..files import FULL, READ_ONLY, TEMPORARY, make_folder, sync_folder
from ..texts import public_url

Buffer = bytes | bytearray | memoryview | np.ndarray
# EXDEV: within one folder only (BeeGFS, AFS, quotas of projects)
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
TRIES = 8  # for a temporary file that a `gc` without grace swept away under its writer
AHEAD = 64 << 20  # bytes that are asked of an object store at a time


@contextmanager
def explained(action: str, where: object) -> Generator[None]:
    """Turns an OSError of the block into one StoreError that says what to do about it."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno == errno.EFBIG:
            advice = (
                "the file size is limited here (see `ulimit -f` and the file system's limit); raise "
                "the limit and run this again; published rows are kept"
            )
        elif error.errno in FULL:
            advice = "the disk is full; free some space and run this again, what was published is kept"
        elif error.errno in READ_ONLY and (action.startswith("read") or _is_unreadable(error.filename)):
            advice = "no permission to read it; have its permissions changed"
        elif error.errno in READ_ONLY:
            advice = "it cannot be written; choose another place or have its permissions changed"
        else:
            advice = error.strerror or " ".join(str(error).split()) or type(error).__name__
        file = f" ({error.filename})" if error.filename and str(error.filename) != str(where) else ""
        raise StoreError(f"cannot {action} {where}: {advice}{file}") from error


def _is_unreadable(name: object) -> bool:
    return isinstance(name, str) and Path(name).exists() and not os.access(name, os.R_OK)


def as_bytes(piece: Buffer) -> memoryview:
    """The bytes of a buffer, not a copy; an array has to be in C order."""
    if isinstance(piece, np.ndarray):
        assert piece.flags.c_contiguous, "a copy here would be lost by those who read into it"
        return piece.reshape(-1).view(np.uint8).data
    return memoryview(piece).cast("B")


def parts_of(name: str) -> list[str]:
    """The parts of a name relative to a root; of "", the root itself, none.

    Raises StoreError for a name that might lead out of the root, on this or on another operating system.
    """
    parts = name.split("/") if name else []
    if any(part in {"", ".", ".."} or any(c in part for c in "\\:\0") for part in parts):
        raise StoreError(
            f"{name!r} is not the name of a file of a store (it is absolute, or has '..', ':' or a backslash "
            "in it): the store was damaged or tampered with"
        )
    return parts


class LocalFiles:
    """A folder on a file system with atomic rename. Names are relative to it, with `/`, and stay below it."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where a file is. Raises StoreError for what `parts_of` refuses, links, devices and pipes."""
        path = os.fspath(self.root)
        parts = parts_of(name)
        for part in parts:
            path = f"{path}/{part}"
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                break
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "a device, pipe or socket"
                raise StoreError(
                    f"{path} is {what}; a store holds plain files and folders only. Fix: replace it with the "
                    "file itself (`cp -rL` copies a store so), or remove it"
                )
        return self.root.joinpath(*parts)

    def at(self, name: str) -> "LocalFiles":
        return LocalFiles(self.root.joinpath(*parts_of(name)))

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def names(self, folder: str) -> list[str]:
        """The names directly in a folder, sorted; empty if the folder does not exist."""
        try:
            return sorted(item.name for item in self.path(folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self) -> list[str]:
        """Every file below, sorted. Raises StoreError where one is a link, a device or a pipe."""
        walked: list[str] = []
        for folder, folders, files in os.walk(self.root):
            below = Path(folder).relative_to(self.root)
            names = [(below / name).as_posix() for name in files]
            for name in (*names, *((below / name).as_posix() for name in folders)):
                self.path(name)
            walked += names
        return sorted(walked)

    def size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def modified(self, name: str) -> float:
        """Seconds since the epoch, by the clock of the file system."""
        return self.path(name).stat().st_mtime

    def clock(self) -> float:
        """Now, by the clock of the file system (machines that share it may disagree about the time)."""
        probe = self.path(f"{TEMPORARY}clock-{secrets.token_hex(6)}")
        with probe.open("xb") as file:
            probe.unlink(missing_ok=True)
            return os.fstat(file.fileno()).st_mtime

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes from `start`; fewer than `length` where the file ends."""
        with self.path(name).open("rb") as file:
            file.seek(start)
            if length is not None:  # Python makes room for what is asked for, whether it is there or not
                length = min(max(length, 0), max(0, os.fstat(file.fileno()).st_size - start))
            return file.read() if length is None else file.read(length)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        """Fills `out` from `start`; returns the bytes read, fewer where the file ends."""
        done = 0
        with self.path(name).open("rb", buffering=0) as file:
            file.seek(start)
            while done < len(out):
                step = file.readinto(out[done:])
                if not step:
                    break
                done += step
        return done

    def reader(self, name: str) -> "LocalReader":
        return LocalReader(self.path(name))

    def make_folder(self, name: str) -> None:
        make_folder(self.path(name))

    def put(self, files: Mapping[str, Sequence[Buffer]]) -> None:
        """Writes files, each the concatenation of its pieces, so that each appears whole and durable."""
        for attempt in range(TRIES):
            try:
                self._put(files)
                return
            except FileNotFoundError as error:
                if attempt == TRIES - 1 or TEMPORARY not in str(error.filename):
                    raise

    def _put(self, files: Mapping[str, Sequence[Buffer]]) -> None:
        temporary: list[tuple[Path, Path]] = []
        try:
            for name, pieces in files.items():
                target = self.path(name)
                temporary.append((self._interim(target), target))
                self._write(temporary[-1][0], pieces)
            for interim, target in temporary:
                interim.replace(target)
        except BaseException:
            for interim, _ in temporary:
                interim.unlink(missing_ok=True)
            raise
        for folder in {target.parent for _, target in temporary}:
            sync_folder(folder)

    @staticmethod
    def _interim(target: Path) -> Path:
        return target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"

    @staticmethod
    def _write(path: Path, pieces: Sequence[Buffer]) -> None:
        with path.open("xb", buffering=0) as file:
            for piece in pieces:
                write_all(file.fileno(), piece)
            os.fsync(file.fileno())

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file, whole and durable, unless one of that name exists; returns whether it did."""
        target = self.path(name)
        for _ in range(TRIES):
            interim = self._interim(target)
            try:
                self._write(interim, [content])
                try:
                    os.link(interim, target)
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    target.open("xb").close()  # no hard links here: the name is taken, its content follows
                    interim.replace(target)
            except FileExistsError:
                if not _are_same(interim, target):  # NFS says so too where the answer to the link was lost
                    return False
            except FileNotFoundError:
                if not target.parent.is_dir():
                    raise
                continue
            finally:
                interim.unlink(missing_ok=True)
            sync_folder(target.parent)
            return True
        raise FileNotFoundError(2, "temporary files are swept away while they are written", str(target))

    def mark(self, name: str) -> None:
        """Makes an empty file; it need not survive a power failure."""
        self.path(name).touch()

    def rewrite(self, name: str, start: bytes, change: Callable[[bytes], bytes]) -> bool:
        """Changes a small file in place, by `change`, if it is there and begins with `start`.

        The file is the same from the look to the change: whoever took its name meanwhile has another.
        """
        try:
            with self.path(name).open("r+b", buffering=0) as file:
                content = file.read()
                if not content.startswith(start):
                    return False
                file.seek(0)
                write_all(file.fileno(), change(content))
                os.fsync(file.fileno())
        except FileNotFoundError:
            return False
        return True

    def move(self, source: str, target: str) -> None:
        """Renames over whatever is there; the folders are not synced (see `sync`)."""
        self.path(source).replace(self.path(target))

    def duplicate(self, source: str, target: str) -> None:
        """A second name for a file, replacing what had it; a copy where hard links are unavailable."""
        interim = self._interim(self.path(target))
        try:
            try:
                os.link(self.path(source), interim)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with self.path(source).open("rb") as read, interim.open("xb") as write:
                    shutil.copyfileobj(read, write)
                    write.flush()
                    os.fsync(write.fileno())
            interim.replace(self.path(target))
        finally:
            interim.unlink(missing_ok=True)  # a rename to another name of the same file leaves both

    def same(self, one: str, other: str) -> bool:
        """Whether both are there and one file under two names."""
        return _are_same(self.path(one), self.path(other))

    def sync(self, *folders: str) -> None:
        for folder in folders:
            sync_folder(self.path(folder))

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def prune(self, name: str) -> None:
        """Removes a folder's empty folders, and itself if nothing is left."""
        for folder, _, _ in os.walk(self.path(name), topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()

    def remove_tree(self) -> None:
        """Removes the folder: first out of sight by one rename, then file by file; links are not followed.

        Raises StoreError where the folder itself is a link: what it leads to may be somebody else's.
        """
        if self.root.is_symlink():
            raise StoreError(
                f"{self.root} is a symbolic link to {self.root.resolve()}; remove the link, or its target, "
                "by hand"
            )
        gone = self.root.with_name(f"{TEMPORARY}removed-{secrets.token_hex(6)}")
        self.root.rename(gone)
        shutil.rmtree(gone)


def _are_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


class RemoteFiles:
    """A prefix of an fsspec file system. Listings are never cached: other machines write there too."""

    remote = True

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return public_url(self.url)

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls a method of the file system. Raises OSError, or StoreError for what its client raises else.

        Such clients have errors of their own for missing credentials, unknown hosts and wrong names.
        """
        try:
            return getattr(self.fs, method)(*args, **options)
        except OSError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(
                f"{self} cannot be reached: {reason}. Fix: check the URL, the network, and that you are "
                "logged in there (S3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            ) from error

    def path(self, name: str) -> str:
        return "/".join([self.root, *parts_of(name)])

    def at(self, name: str) -> "RemoteFiles":
        return RemoteFiles(self.fs, self.path(name), f"{self.url}/{name}")

    def exists(self, name: str) -> bool:
        self.fs.invalidate_cache()
        return self._ask("exists", self.path(name))

    def names(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            found = self._ask("ls", self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(item).rstrip("/").rsplit("/", 1)[-1] for item in found})

    def walk(self) -> list[str]:
        self.fs.invalidate_cache()
        root = self.fs._strip_protocol(self.root).rstrip("/")
        return sorted(str(p)[len(root) + 1 :] for p in self._ask("find", self.root))

    def size(self, name: str) -> int:
        return int(self._ask("size", self.path(name)))

    def modified(self, name: str) -> float:
        return self._ask("modified", self.path(name)).timestamp()

    def clock(self) -> float:
        probe = f"{TEMPORARY}clock-{secrets.token_hex(6)}"
        self._ask("pipe_file", self.path(probe), b"")
        try:
            return self.modified(probe)
        finally:
            self.remove(probe)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        end = None if length is None else start + length
        return self._ask("cat_file", self.path(name), start=start or None, end=end)

    def read_into(self, name: str, start: int, out: memoryview) -> int:
        content = self.read(name, start, len(out))
        out[: len(content)] = content
        return len(content)

    def reader(self, name: str) -> "RemoteReader":
        return RemoteReader(self._ask, self.path(name))

    def make_folder(self, name: str) -> None:
        """Object stores have no folders."""

    def put(self, files: Mapping[str, Sequence[Buffer]]) -> None:
        for name, pieces in files.items():
            self._ask("pipe_file", self.path(name), b"".join(as_bytes(piece) for piece in pieces))

    def create(self, name: str, content: bytes) -> bool:
        """Atomic where the file system knows conditional puts (s3fs, memory), else check and put."""
        try:
            self._ask("pipe_file", self.path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def mark(self, name: str) -> None:
        self._ask("pipe_file", self.path(name), b"")

    def rewrite(self, name: str, start: bytes, change: Callable[[bytes], bytes]) -> bool:
        try:
            content = self.read(name)
        except FileNotFoundError:
            return False
        if not content.startswith(start):
            return False
        self._ask("pipe_file", self.path(name), change(content))
        return True

    def move(self, source: str, target: str) -> None:
        """Copy, then remove: a reader finds the file under one name or the other, or under both."""
        self.duplicate(source, target)
        self.remove(source)

    def duplicate(self, source: str, target: str) -> None:
        self._ask("cp_file", self.path(source), self.path(target))

    def same(self, one: str, other: str) -> bool:
        """An object has one name."""
        return False

    def sync(self, *folders: str) -> None:
        """A finished put is durable."""

    def remove(self, name: str) -> None:
        try:
            self._ask("rm_file", self.path(name))
        except FileNotFoundError:
            return
        self.fs.invalidate_cache()

    def prune(self, name: str) -> None:
        """Object stores have no folders."""

    def remove_tree(self) -> None:
        self._ask("rm", self.root, recursive=True)
        self.fs.invalidate_cache()


class LocalReader:
    """A file that stays open for reading: the very file, whatever becomes of its name. For any thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def stamp(self) -> object:
        """Changes whenever the file is written; differs between files."""
        about = os.fstat(self._file.fileno())
        return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns

    def pieces(
        self, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()
    ) -> Iterator[memoryview]:
        """The bytes of each (start, length); fewer where the file ends. Each is good until the next.

        into: buffers of these lengths that the bytes are read to; None: to a buffer of this function.
        """
        into = into or [None] * len(ranges)
        lengths = [length for (_, length), buffer in zip(ranges, into, strict=True) if buffer is None]
        scratch = np.empty(max(lengths, default=0), np.uint8).data
        for (start, length), buffer in zip(ranges, into, strict=True):
            piece, done = scratch[:length] if buffer is None else buffer, 0
            while done < length:
                step = self._read_into(piece[done:], start + done)
                if not step:
                    break
                done += step
            yield piece[:done]

    def joined(self, starts: Sequence[int], length: int) -> bytes:
        """Many short pieces of one length, one after the other; fewer bytes where the file ends."""
        if not hasattr(os, "preadv"):  # Windows
            return b"".join(map(bytes, self.pieces([(start, length) for start in starts])))
        read, descriptor = os.pread, self._file.fileno()
        if length > AHEAD:  # pread makes room for what is asked for, whether it is there or not
            length = min(length, os.fstat(descriptor).st_size)
        return b"".join([read(descriptor, length, start) for start in starts])

    def _read_into(self, out: memoryview, start: int) -> int:
        """Reads at a place without moving there, if possible: threads and forks share where a file is."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [out], start)
        with self._lock:
            self._file.seek(start)
            return self._file.readinto(out) or 0


class RemoteReader:
    """The same for an object; several pieces are asked for at the same time where the file system can."""

    def __init__(self, ask: Callable[..., Any], path: str) -> None:
        self._ask, self._path = ask, path

    def stamp(self) -> object:
        """Nothing tells whether an object was replaced."""
        return None

    def pieces(
        self, ranges: Sequence[tuple[int, int]], into: Sequence[memoryview | None] = ()
    ) -> Iterator[memoryview]:
        """The bytes of each (start, length), in memory of their own: `into` has to be empty or all None."""
        start = 0
        while start < len(ranges):
            end, size = start + 1, ranges[start][1]
            while end < len(ranges) and size + ranges[end][1] <= AHEAD:
                size += ranges[end][1]
                end += 1
            part = ranges[start:end]
            names, begins = [self._path] * len(part), [begin for begin, _ in part]
            ends = [begin + length for begin, length in part]
            yield from map(memoryview, self._ask("cat_ranges", names, begins, ends, on_error="raise"))
            start = end

    def joined(self, starts: Sequence[int], length: int) -> bytes:
        return b"".join(self.pieces([(start, length) for start in starts]))


Files = LocalFiles | RemoteFiles


def open_files(place: str | os.PathLike[str]) -> Files:
    """The files under a path or an fsspec URL (`s3://...`, `memory://...`; `file://` is a path)."""
    text = os.fspath(place)
    if "://" not in text:
        return LocalFiles(Path(text).expanduser().absolute())
    if text.startswith("file://"):
        return LocalFiles(Path(text.removeprefix("file://")).absolute())
    try:
        fsspec: Any = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise MissingDependency(f"{text} needs fsspec: pip install 'patchbank[remote]'") from error
    try:
        fs, root = fsspec.url_to_fs(text)
    except ImportError as error:
        raise MissingDependency(f"{text}: {error}; try: pip install 'patchbank[remote]'") from error
    except ValueError as error:
        raise InvalidRequest(f"{public_url(text)} is not a location that fsspec supports: {error}") from error
    return RemoteFiles(fs, root, text)


def write_all(descriptor: int, piece: Buffer) -> None:
    """os.write until everything is written (one call writes 2 GiB at most)."""
    view = as_bytes(piece)
    while view:
        view = view[os.write(descriptor, view) :]
