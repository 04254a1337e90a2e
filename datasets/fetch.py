"""Downloads of public data sets: resumed where they broke off, checked, unpacked without trusting them.

FOLDER/.fetch/NAME.part        what has arrived, and beside it NAME.part.json: from where, and which version
FOLDER/fetched.json            URL -> SHA-256, size and place of what was unpacked
FOLDER/UNPACK/                 the files; appears under this name only when all of them are there
"""

import errno
import hashlib
import http.client
import json
import os
import secrets
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from ..errors import FetchError, InvalidRequest, PatchbankError
from ..files import sha256 as sha256_of
from ..files import write_text
from .facts import UNPINNED, Facts

CHUNK = 1 << 18
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, then doubled
TIMEOUT = 30.0  # seconds without a byte
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # trying again does not help
MAX_FILES = 2_000_000
MAX_BYTES = 200 << 30  # unpacked
MAX_RATIO = 200  # unpacked to packed; images hardly shrink


@dataclass(frozen=True)
class Fetched:
    """What a download gave.

    folder: where the files are. sha256: of the archive; pinned: whether it had to be this one. bytes: of the
    archive. new: False where it was there already. files: name of a known table -> "ok", "missing",
    "differs".
    """

    folder: Path
    sha256: str
    bytes: int
    pinned: bool
    new: bool
    files: dict[str, str] = field(default_factory=dict)


def fetch(
    facts: Facts,
    folder: str | os.PathLike[str],
    *,
    url: str = "",
    sha256: str = "",
    again: bool = False,
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
) -> Fetched:
    """Download a data set's archive into `folder` and unpack it there.

    url, sha256: instead of those of the facts (a mirror, a pinned checksum). again: download although it is
    there. Without a pinned checksum the one that was computed is recorded, and later ones must be the same.

    Raises InvalidRequest where the facts name no source, FetchError: the connection breaks off again and
    again (what has arrived is kept), another checksum, an archive that is not safe.
    """
    url = url or str(facts.fetch.get("url", ""))
    if not url:
        raise InvalidRequest(f"{facts.name!r} has no public source to download from; see {facts.source}.")
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InvalidRequest(f"{url}: only http and https are downloaded.")
    try:
        return _fetch(facts, Path(folder), url, sha256.lower(), again, max_bytes, progress)
    except OSError as error:
        if isinstance(error, PatchbankError):
            raise
        # a full or read-only disk
        raise FetchError(
            f"{error.filename or folder}: {error.strerror or error}; nothing was unpacked."
        ) from error


def _fetch(
    facts: Facts, folder: Path, url: str, sha256: str, again: bool, max_bytes: int, progress: bool
) -> Fetched:
    wanted = sha256 or str(facts.fetch.get("sha256", UNPINNED))
    pinned = wanted != UNPINNED
    place = folder / str(facts.fetch.get("unpack", facts.name))
    record = _Record(folder / "fetched.json")
    earlier = record.of(url)
    if earlier and place.is_dir() and not again and (not pinned or earlier["sha256"] == wanted):
        return Fetched(place, earlier["sha256"], earlier["bytes"], pinned, False, _known_files(facts, place))
    if not pinned and earlier:
        wanted = earlier["sha256"]

    part = folder / ".fetch" / f"{place.name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    digest, size = _download(url, part, progress=progress)
    if wanted not in (UNPINNED, digest):
        _forget(part)
        who = "is pinned" if pinned else f"was downloaded before (recorded in {record.file})"
        raise FetchError(
            f"{url}: the archive's SHA-256 is {digest}, but {wanted} {who}. Nothing was unpacked. "
            "If the new one is right, give it as --sha256."
        )
    unpack(part, place, max_bytes=max_bytes, replace=again, progress=progress)
    entry = {"sha256": digest, "bytes": size, "folder": place.name, "date": time.strftime("%Y-%m-%d")}
    record.add(url, entry)
    _forget(part)
    return Fetched(place, digest, size, pinned, True, _known_files(facts, place))


def _forget(part: Path) -> None:
    part.unlink()
    Path(f"{part}.json").unlink(missing_ok=True)


class _Record:
    """fetched.json: what was downloaded into a folder."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise FetchError(f"{self.file} is damaged ({error}); mend or delete it.") from error

    def of(self, url: str) -> dict[str, Any] | None:
        return self._read().get(url)

    def add(self, url: str, entry: dict[str, Any]) -> None:
        entries = {**self._read(), url: entry}
        write_text(self.file, json.dumps(entries, indent=2) + "\n")


def _known_files(facts: Facts, place: Path) -> dict[str, str]:
    """The tables whose checksums are known, each "ok", "missing" or "differs"."""
    result = dict.fromkeys(facts.files, "missing")
    for folder, _, names in os.walk(place):
        for name in result.keys() & set(names):
            same = sha256_of(Path(folder) / name) == facts.files[name]
            result[name] = "ok" if same else "differs"
    return result


# --- download ---------------------------------------------------------------------------------------


def _download(url: str, part: Path, *, progress: bool) -> tuple[str, int]:
    """Fill `part`, going on where it ends; returns (SHA-256, bytes). Raises FetchError."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download_once(url, part, progress=progress)
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429, 500, 502, 503, 504) or attempt == ATTEMPTS:
                raise FetchError(f"{url}: the server answers {error.code} {error.reason}.") from error
        except (OSError, http.client.HTTPException) as error:  # URLError, reset, timeout, IncompleteRead
            if isinstance(error, FetchError) or getattr(error, "errno", None) in OF_THE_DISK:
                raise
            if attempt == ATTEMPTS:
                kept = part.stat().st_size if part.exists() else 0
                raise FetchError(
                    f"{url}: the connection failed {ATTEMPTS} times ({error}); {kept} bytes are kept, the "
                    "same command goes on from there."
                ) from error
        time.sleep(PAUSE * min(2.0 ** (attempt - 1), 8.0))
    raise AssertionError("unreachable")


def _download_once(url: str, part: Path, *, progress: bool) -> tuple[str, int]:
    state_file = Path(f"{part}.json")
    try:
        state = json.loads(state_file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        state = {}
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "patchbank", "Accept-Encoding": "identity"})
    # only the very same version may be continued; a server without one is asked from the start
    if have and state.get("url") == url and state.get("validator"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", state["validator"])
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)  # longer than the file there is now: from the start
        raise ConnectionError("the server has no such range") from error
    with response:
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise FetchError(f"{url}: the server leads to {response.url}, which is not encrypted.")
        start = 0
        if response.status == 206:
            start = int(response.headers["Content-Range"].split()[1].split("-")[0])
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # a weak ETag does not promise the same bytes
        validator = "" if validator.startswith("W/") else validator
        state_file.write_text(json.dumps({"url": url, "validator": validator}), "utf-8")
        digest = hashlib.sha256()
        with part.open("r+b" if part.exists() else "w+b") as stream, _bar(total, part.stem, progress) as bar:
            while stream.tell() < start:  # what is there already
                block = stream.read(min(CHUNK, start - stream.tell()))
                if not block:
                    raise ConnectionError("the server goes on behind the end of what is here")
                digest.update(block)
                bar.update(len(block))
            stream.truncate()
            while block := response.read(CHUNK):
                stream.write(block)
                digest.update(block)
                bar.update(len(block))
            size = stream.tell()
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")
    return digest.hexdigest(), size


@contextmanager
def _bar(total: int | None, name: str, progress: bool) -> Iterator[tqdm]:
    with tqdm(
        total=total,
        desc=f"fetch {name}",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        mininterval=1.0,
        disable=not progress,
        file=sys.stderr,
    ) as bar:
        yield bar


# --- unpack -----------------------------------------------------------------------------------------


def unpack(
    archive: Path, place: Path, *, max_bytes: int = MAX_BYTES, replace: bool = False, progress: bool = True
) -> None:
    """Unpack a zip or tar (.gz, .bz2, .xz) to the folder `place`, which appears when all of it is there.

    Refused, before or while unpacking, with nothing left behind: absolute paths and ".." and backslashes,
    links, devices, the same name twice, more than `max_bytes` (counted while writing, whatever the headers
    say), more than 200 times the archive's size, too many files.

    Raises FetchError.
    """
    if place.exists() and not replace:
        raise FetchError(f"{place} is there already; move it away, or say --again to replace it.")
    limit = min(max_bytes, max(archive.stat().st_size * MAX_RATIO, 1 << 20))
    temporary = place.parent / f".{place.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, temporary, limit, progress)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, temporary, limit, progress)
        else:
            with archive.open("rb") as stream:
                start = stream.read(16)
            raise FetchError(f"{archive.name} is no zip and no tar (it starts with {start!r}).")
        old = None
        if place.exists():
            old = temporary.with_suffix(".old")
            place.rename(old)
        temporary.rename(place)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_zip(archive: Path, to: Path, limit: int, progress: bool) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            targets = {}
            for info in members:
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise FetchError(
                        f"{archive.name}: the member {info.filename!r} is a link or device; refused."
                    )
                if not info.is_dir():
                    _claim(targets, info.filename, archive)
            with _bar(sum(info.file_size for info in members), "unpack", progress) as bar:
                room = limit
                for name, target in targets.items():
                    with packed.open(name) as source:
                        room -= _write(source, to / target, room, archive, bar)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise FetchError(f"{archive.name} cannot be unpacked: {error}.") from error


def _unpack_tar(archive: Path, to: Path, limit: int, progress: bool) -> None:
    try:
        with tarfile.open(archive) as packed, _bar(None, "unpack", progress) as bar:
            targets: dict[str, PurePosixPath] = {}
            room = limit
            for info in packed:
                if info.isdir():
                    _safe(info.name, archive)
                    continue
                if not info.isreg():
                    raise FetchError(
                        f"{archive.name}: the member {info.name!r} is a link or device; refused."
                    )
                target = _claim(targets, info.name, archive)
                source = packed.extractfile(info)
                assert source is not None
                room -= _write(source, to / target, room, archive, bar)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise FetchError(f"{archive.name} cannot be unpacked: {error}.") from error


def _claim(targets: dict[str, PurePosixPath], name: str, archive: Path) -> PurePosixPath:
    """The safe relative path of a member; each only once."""
    target = _safe(name, archive)
    if name in targets or len(targets) >= MAX_FILES:
        what = f"the member {name!r} occurs twice" if name in targets else f"more than {MAX_FILES} files"
        raise FetchError(f"{archive.name}: {what}; refused.")
    targets[name] = target
    return target


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        raise FetchError(f"{archive.name}: the member {name!r} would leave the folder; refused.")
    return path


def _write(source: IO[bytes], target: Path, room: int, archive: Path, bar: tqdm) -> int:
    """Copy at most `room` bytes; returns how many."""
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            while block := source.read(CHUNK):
                written += len(block)
                if written > room:
                    raise FetchError(
                        f"{archive.name} unpacks to far more than an archive of images would; refused at "
                        f"{target.name!r}."
                    )
                stream.write(block)
                bar.update(len(block))
    except (FileExistsError, NotADirectoryError):  # "a" and "./a" or "a/b", or names that differ in case
        raise FetchError(f"{archive.name}: two members are one file, {target.name!r}; refused.") from None
    return written
