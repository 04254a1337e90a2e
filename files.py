"""Files that appear whole or not at all, and are still there after a power cut.

Temporary name beside the target, fsync of the file, rename, fsync of the folder.
"""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TextIO, TypeVar

from .errors import OutputError

TEMPORARY = ".tmp-"  # how the name of a file begins that is being written
LOCK = ".lock"  # in a folder of results; it stays there, what counts is who has it locked
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}  # some network file systems: no way to ask
MANY_FILES = 1000  # from here on all of the disk is synced instead of one after the other
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
CONTAINER_MEMORY = {  # controller in /proc/self/cgroup -> folder, and files of limit, taken, of files
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}
P = ParamSpec("P")
T = TypeVar("T")


def write_atomically(file: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `file`, then rename it: no reader sees half a file.

    Makes the folder. A symbolic link is followed; a device or a pipe (/dev/stdout) is written to as it is.
    Returns the path. Raises OutputError where it cannot be written; an old file is then as it was.
    """
    named = Path(file)
    with _explained(named):
        target = Path(os.path.realpath(named))
        if target.exists() and not target.is_file() and not target.is_dir():
            write(named)
            return named
        make_folder(target.parent)
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask leaves
            write(temporary)
            temporary.chmod(mode)  # a writer may have replaced the file
            with temporary.open("r+b") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
    return named


def write_text(file: str | os.PathLike[str], text: str) -> Path:
    """Write a text as UTF-8, whole or not at all; see `write_atomically`."""
    return write_atomically(file, lambda to: to.write_text(text, "utf-8", newline="\n"))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably. Raises OSError."""
    missing = _missing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def check_writable(file: str | os.PathLike[str]) -> None:
    """Refuse a place that cannot be written before the work, not after it; leaves nothing behind.

    Raises OutputError: no permission, read-only or full disk, a folder of that name, a file in the way.
    """
    target = Path(os.path.realpath(file))
    if target.is_dir():
        raise OutputError(f"{file} cannot be written: it is a folder, name a file in it.")
    if not target.exists() or target.is_file():
        _check_folder(target.parent, file)


def check_folder_writable(folder: str | os.PathLike[str]) -> None:
    """As `check_writable`, for a folder that files are to be put in."""
    _check_folder(Path(os.path.realpath(folder)), folder)


def _check_folder(folder: Path, named: str | os.PathLike[str]) -> None:
    with _explained(named):
        missing = _missing(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
            try:
                probe.write_bytes(b"?")
            finally:
                probe.unlink(missing_ok=True)
        finally:
            _remove_empty(missing)


def _missing(folder: Path) -> list[Path]:
    """The folders that would have to be made, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def locked(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Make a folder and hold it alone, between processes and between threads; a killed holder lets go.

    wait : wait for the other one, else OutputError says who it is
    The lock is the operating system's (flock). A file system without locks is used without one. A folder that
    was made here and has nothing in it at the end goes again.
    Raises OutputError where the folder cannot be written or another run holds it.
    """
    root = Path(folder)
    with _explained(root):
        missing = _missing(root)
        make_folder(root)
        stream = _take(root, wait=wait)
    with stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()}")
        stream.flush()
        try:
            yield
        finally:
            if missing and os.name != "nt" and [p.name for p in root.iterdir()] == [LOCK]:
                (root / LOCK).unlink()
                _remove_empty(missing)


def holding_out(run: Callable[P, T]) -> Callable[P, T]:
    """A function with the keyword `out`, a folder or None, holds that folder while it runs, see `locked`."""

    @wraps(run)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        out: Any = kwargs.get("out")
        with locked(out) if out is not None else nullcontext():
            return run(*args, **kwargs)

    return held


def _take(folder: Path, *, wait: bool) -> TextIO:
    """The lock's open file."""
    while True:
        stream = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            if not _lock(stream.fileno(), wait=wait):
                stream.seek(0)
                holder = stream.read().strip()
                raise OutputError(
                    f"{folder} is in use by another run{f' ({holder})' if holder else ''}: wait for its end, "
                    "or choose another folder."
                )
            if (folder / LOCK).exists() and (folder / LOCK).stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
            make_folder(folder)  # whoever had it before removed it
        except BaseException:
            stream.close()
            raise
        stream.close()


def _lock(descriptor: int, *, wait: bool) -> bool:
    """False: another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # type: ignore[attr-defined]
        try:
            msvcrt.locking(descriptor, mode, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


@contextmanager
def _explained(file: object) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}.") from error


def reason(error: OSError) -> str:
    """Why a file cannot be written, and what to do about it."""
    text = error.strerror or str(error) or type(error).__name__
    if error.errno in FULL:
        return f"{text}; free some space and run this again"
    if error.errno in READ_ONLY:
        return f"{text}; choose another place or change its permissions"
    return text


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":  # knows no such thing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def publish(made: Path, target: Path) -> None:
    """Make a finished file or folder durable, then give it its name, durably too. Raises OSError.

    target : does not exist, or is replaced (a file by a file)
    """
    sync_tree(made)
    made.replace(target)
    sync_folder(target.parent)


def sync_tree(path: Path) -> None:
    """Make a file, or all files and names below a folder, durable."""
    if not path.is_dir():
        with path.open("r+b") as stream:
            os.fsync(stream.fileno())
        return
    folders = [(Path(folder), names) for folder, _, names in os.walk(path, topdown=False)]
    if hasattr(os, "sync") and sum(len(names) for _, names in folders) > MANY_FILES:
        os.sync()
        return
    for folder, names in folders:
        for name in names:
            sync_tree(folder / name)
        sync_folder(folder)


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that may still be allocated without swapping: what is free, or what the container's limit leaves.

    Half of all memory where the system does not say.
    """
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2] if hasattr(os, "sysconf") else []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = [int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024]
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
        for _, controller, own in (line.split(":", 2) for line in lines):
            if controller in CONTAINER_MEMORY:
                free += _left_by_groups(own, *CONTAINER_MEMORY[controller])
    return max(0, min(free, default=4 * 2**30))


def _left_by_groups(own: str, root: Path, most: str, used: str, cached: str) -> Iterator[int]:
    """What the limits of a control group and of those above it leave; nothing where there is none ("max")."""
    group = Path(own.lstrip("/"))
    for folder in dict.fromkeys(root / part for part in (group, *group.parents)):
        with suppress(OSError, ValueError, KeyError):
            limit, taken = (int((folder / name).read_text("ascii")) for name in (most, used))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            yield limit - taken + int(counts[cached])
