"""Downloads of public data sets: resumed where they broke off, checked, unpacked without trusting them.

FOLDER/.fetch/NAME.part        what has arrived, and beside it NAME.part.json: from where, and which version
FOLDER/fetched.json            URL without secrets -> SHA-256, size and place of what was unpacked
FOLDER/UNPACK/                 the files; appears under this name only when all of them exist
"""

import base64
import bz2
import errno
import gzip
import hashlib
import http.client
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from ..errors import FetchError, InvalidRequest, PatchbankError
from ..files import publish, sync_folder, sync_tree, write_text
from ..terminal import progress_bar
from ..texts import public_url
from .declarations import UNPINNED, Archive, Declaration

if TYPE_CHECKING:
    from tqdm import tqdm

CHUNK = 1 << 18
ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, then doubled
TIMEOUT = 30.0  # seconds without a byte
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # trying again does not help
MAX_FILES = 2_000_000
MAX_BYTES = 200 << 30  # unpacked
MAX_HEADER = 1 << 20  # of a member of a tar: its long name, its attributes
SCHEMES = ("http", "https")
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
    declaration: Declaration,
    folder: str | os.PathLike[str],
    *,
    url: str = "",
    sha256: str = "",
    again: bool = False,
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
) -> list[Fetched]:
    """Download a data set's archives into `folder` and unpack each of them there.

    url, sha256: instead of those that are declared (a mirror, a pinned checksum), of a set with one archive.
    again: download although it is there. Without a pinned checksum the one that was computed is recorded, and
    later ones must be the same.

    Raises InvalidRequest where no archive is declared, saying what it takes to get the set; FetchError: the
    connection breaks off again and again (what has arrived is kept), another checksum, an archive that is not
    safe.
    """
    archives = declaration.archives
    if url and len(archives) < 2:
        archive = archives[0].replace(url=_checked_url(url)) if archives else Archive(url=_checked_url(url))
        archives = (archive.replace(unpack=archive.unpack or declaration.name),)
    if not archives:
        how = declaration.access or f"see {declaration.source}."
        raise InvalidRequest(f"{declaration.name!r} has no public archive to download: {how}")
    if (url or sha256) and len(archives) > 1:
        raise InvalidRequest(
            f"{declaration.name!r} has {len(archives)} archives: --url and --sha256 are of one."
        )
    sha256 = sha256.strip().lower()
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InvalidRequest(f"{sha256!r} is not a SHA-256 (64 hex digits).")
    got = []
    for archive in archives:
        try:
            one = _fetch(
                archive.replace(url=_checked_url(archive.url)),
                Path(folder),
                sha256,
                again,
                max_bytes,
                progress,
            )
        except OSError as error:
            if isinstance(error, PatchbankError):
                raise
            # a full or read-only disk
            raise FetchError(
                f"{error.filename or folder}: {error.strerror or error}; nothing was unpacked."
            ) from error
        got.append(replace(one, files=_known_files(declaration, one.folder)))
    return got


def _checked_url(url: str) -> str:
    """The URL as it is asked for: http or https, a host, characters outside ASCII encoded."""
    url = urllib.parse.quote(url.strip(), safe="%/:=&?~#+!$,;'@()*[]")
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # ValueError where it is not a number
    except ValueError as error:
        raise InvalidRequest(f"{url.rpartition('@')[2]} is not a URL: {error}.") from error
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise InvalidRequest(f"{public_url(url)}: only http and https are downloaded.")
    return url


def _fetch(
    archive: Archive, folder: Path, sha256: str, again: bool, max_bytes: int, progress: bool
) -> Fetched:
    wanted = sha256 or archive.sha256
    pinned = wanted != UNPINNED or bool(archive.md5)
    place = folder / archive.place
    record = _Record(folder / "fetched.json")
    earlier = record.of(archive.url)
    if earlier and place.exists() and not again and (wanted in (UNPINNED, earlier["sha256"])):
        return Fetched(place, earlier["sha256"], earlier["bytes"], pinned, False)
    if wanted == UNPINNED and earlier:
        wanted = earlier["sha256"]

    part = folder / ".fetch" / f"{place.name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    digest, size = _download(
        archive.url,
        part,
        max_bytes=max_bytes,
        progress=progress,
        declared=None if sha256 else archive.size,  # who gives a checksum wants that file
    )
    seen = {"SHA-256": (digest, "" if wanted == UNPINNED else wanted)}
    if archive.md5:
        with part.open("rb") as stream:
            seen["MD5"] = (hashlib.file_digest(stream, "md5").hexdigest(), archive.md5)
    for kind, (computed, stated) in seen.items():
        if stated and computed != stated:
            _forget(part)
            who = "is pinned" if pinned else f"was downloaded before (recorded in {record.file})"
            raise FetchError(
                f"{public_url(archive.url)}: the archive's {kind} is {computed}, but {stated} {who}. Nothing "
                "was unpacked. If the new one is right, give it as --sha256."
            )
    if archive.file:
        _keep(part, place, max_bytes=max_bytes, replace=again, progress=progress)
    else:
        unpack(part, place, skip=archive.skip, max_bytes=max_bytes, replace=again, progress=progress)
    entry = {"sha256": digest, "bytes": size, "folder": place.name, "date": time.strftime("%Y-%m-%d")}
    record.add(archive.url, entry)
    if part.exists():
        _forget(part)
    return Fetched(place, digest, size, pinned, True)


def _forget(part: Path) -> None:
    part.unlink()
    Path(f"{part}.json").unlink(missing_ok=True)


class _Record:
    """fetched.json: what was downloaded into a folder, by public URL (secrets in URLs are not kept)."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads(self.file.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise FetchError(f"{self.file} is damaged ({error}); fix or delete it.") from error
        wanted = {"sha256": str, "bytes": int}
        for url, entry in entries.items() if isinstance(entries, dict) else [("", None)]:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(k), t) for k, t in wanted.items()):
                raise FetchError(f"{self.file} is damaged (the entry {url!r}); fix or delete it.")
        return entries

    def of(self, url: str) -> dict[str, Any] | None:
        entries = self._read()
        return entries.get(public_url(url), entries.get(url))  # records of before have the whole URL

    def add(self, url: str, entry: dict[str, Any]) -> None:
        entries = {known: old for known, old in self._read().items() if known != url}
        entries[public_url(url)] = entry
        write_text(self.file, json.dumps(entries, indent=2) + "\n")


def _known_files(declaration: Declaration, place: Path) -> dict[str, str]:
    """The tables whose checksums are known, each "ok", "missing" or "differs"."""
    result = dict.fromkeys(declaration.files, "missing")
    for folder, _, names in os.walk(place) if place.is_dir() else [(place.parent, [], [place.name])]:
        for name in result.keys() & set(names):
            kind = "sha256" if len(declaration.files[name]) == 64 else "md5"
            with (Path(folder) / name).open("rb") as stream:
                same = hashlib.file_digest(stream, kind).hexdigest() == declaration.files[name]
            result[name] = "ok" if same else "differs"
    return result


# --- download ---------------------------------------------------------------------------------------


def _download(
    url: str, part: Path, *, max_bytes: int, progress: bool, declared: int | None
) -> tuple[str, int]:
    """Fill `part`, going on where it ends; returns (SHA-256, bytes).

    declared : the bytes that it has to have; None: not known
    Raises FetchError.
    """
    shown = public_url(url)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download_once(url, part, max_bytes=max_bytes, progress=progress, declared=declared)
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429, 500, 502, 503, 504) or attempt == ATTEMPTS:
                # of a redirect that is not followed the reason holds the whole URL
                reason = error.reason if error.code >= 400 else "and redirects to neither http nor https"
                raise FetchError(f"{shown}: the server answers {error.code} {reason}.") from error
        except (OSError, http.client.HTTPException) as error:  # URLError, reset, timeout, IncompleteRead
            if isinstance(error, FetchError) or getattr(error, "errno", None) in OF_THE_DISK:
                raise
            if attempt == ATTEMPTS:
                kept = part.stat().st_size if part.exists() else 0
                raise FetchError(
                    f"{shown}: the connection failed {ATTEMPTS} times ({error}); {kept} bytes are kept, the "
                    "same command goes on from there."
                ) from error
        time.sleep(PAUSE * min(2.0 ** (attempt - 1), 8.0))
    raise AssertionError("unreachable")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http and https only, and from https to https only."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in SCHEMES or (req.type == "https" and scheme != "https"):
            fp.close()
            raise FetchError(
                f"{public_url(req.full_url)}: the server redirects to {public_url(newurl)}, which is "
                f"{'not encrypted' if scheme == 'http' else 'neither http nor https'}; not followed."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, part: Path, state: dict[str, Any], have: int) -> http.client.HTTPResponse:
    """The server's answer, from byte `have` on where that is the very same version."""
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    bare = urllib.parse.urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(bare, headers={"User-Agent": "patchbank", "Accept-Encoding": "identity"})
    if login:  # not sent on to where a redirect leads
        token = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    if have and state.get("url") == _name_of(url) and isinstance(state.get("validator"), str):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", state["validator"])
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()  # the connection: what the server says beside the code is not read
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)  # longer than the file there is now: from the start
        raise ConnectionError("the server has no such range") from error


def _name_of(url: str) -> str:
    """Names a URL in a file without its secrets."""
    return hashlib.sha256(url.encode()).hexdigest()


def _lengths(response: http.client.HTTPResponse, shown: str) -> tuple[int, int | None]:
    """(first byte of the file that the answer brings, length of the file or None).

    Raises FetchError for headers that make no sense, ConnectionError for a part that does not say which.
    """
    start = 0
    if response.status == 206:
        match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
        if match is None:
            raise ConnectionError("the server sent a part and did not say which")
        start = int(match[1])
    length = response.headers.get("Content-Length")
    if length is None:
        return start, None
    if not re.fullmatch(r"\d{1,18}", length.strip()):
        raise FetchError(f"{shown}: it sends {length!r} bytes, which is not a number.")
    return start, start + int(length)


def _download_once(
    url: str, part: Path, *, max_bytes: int, progress: bool, declared: int | None
) -> tuple[str, int]:
    state_file = Path(f"{part}.json")
    try:
        state = json.loads(state_file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        state = {}
    have = part.stat().st_size if part.exists() else 0
    shown = public_url(url)
    too_long = FetchError(f"{shown} is longer than {max_bytes:,} bytes; not downloaded.")
    with _open(url, part, state if isinstance(state, dict) else {}, have) as response:
        try:
            start, total = _lengths(response, shown)
        except ConnectionError:
            state_file.unlink(missing_ok=True)  # the next attempt begins at the start
            raise
        if (total or 0) > max_bytes:
            raise too_long
        if total is not None:
            _check_size(total, declared, shown)
            free = shutil.disk_usage(part.parent).free
            if total - start > free:
                raise FetchError(
                    f"{shown}: {(total - start) / 1e9:.3g} GB are to come, and {part.parent} has "
                    f"{free / 1e9:.3g} GB left; not downloaded. Fix: make room, or give another --to."
                )
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # a weak ETag does not promise the same bytes
        validator = "" if validator.startswith("W/") else validator
        kept = {"url": _name_of(url), **({"validator": validator} if validator else {})}
        state_file.write_text(json.dumps(kept), "utf-8")  # cut short, it is as none
        digest = hashlib.sha256()
        with part.open("r+b" if part.exists() else "w+b") as stream, _bar(total, part.stem, progress) as bar:
            while stream.tell() < start:  # what exists already
                block = stream.read(min(CHUNK, start - stream.tell()))
                if not block:
                    raise ConnectionError("the server goes on behind the end of what is here")
                digest.update(block)
                bar.update(len(block))
            stream.truncate()
            while block := response.read(CHUNK):
                if stream.tell() + len(block) > max_bytes:
                    raise too_long
                stream.write(block)
                digest.update(block)
                bar.update(len(block))
            size = stream.tell()
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and size != total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")
    _check_size(size, declared, shown)
    return digest.hexdigest(), size


def _check_size(size: int, declared: int | None, shown: str) -> None:
    if declared not in (None, size):
        raise FetchError(
            f"{shown} has {size:,} bytes, and {declared:,} are declared: another version, or an error page; "
            "nothing was unpacked. If it is right, give its checksum as --sha256."
        )


def _bar(total: int | None, name: str, progress: bool) -> "tqdm[Any]":
    about = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    return progress_bar(total=total, shown=progress, desc=f"fetch {name}", **about)


# --- unpack -----------------------------------------------------------------------------------------


def unpack(
    archive: Path,
    place: Path,
    *,
    skip: str = "",
    max_bytes: int = MAX_BYTES,
    replace: bool = False,
    progress: bool = True,
) -> None:
    """Unpack a zip or tar (.gz, .bz2, .xz) to the folder `place`, which appears when it is complete.

    Refused, before or while unpacking, with nothing left behind: absolute paths and ".." and backslashes,
    links, devices, duplicate names, more than `max_bytes` (counted while writing, whatever the headers
    say), more than 200 times the archive's size, too many files.

    skip : a regular expression, found in the names of members that are left out
    Raises FetchError.
    """
    if place.exists() and not replace:
        raise FetchError(f"{place} already exists; move it away, or give --again to replace it.")
    limit = min(max_bytes, max(archive.stat().st_size * MAX_RATIO, 1 << 20))
    temporary = place.parent / f".{place.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    left_out = re.compile(skip or r"(?!)")
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, temporary, limit, progress, left_out)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, temporary, limit, progress, left_out)
        else:
            with archive.open("rb") as stream:
                start = stream.read(16)
            page = " It is a web page: a login or an error page?" if b"<" in start[:4] else ""
            raise FetchError(f"{archive.name} is neither a zip nor a tar (it starts with {start!r}).{page}")
        sync_tree(temporary)
        old = temporary.with_suffix(".old") if place.exists() else None
        if old is not None:
            place.rename(old)
        try:
            temporary.rename(place)
        except OSError:
            if old is not None:
                old.rename(place)
            raise
        sync_folder(place.parent)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _keep(part: Path, target: Path, *, max_bytes: int, replace: bool, progress: bool) -> None:
    """Give a file that is no archive its name; a gzip is decompressed. Raises FetchError."""
    if target.exists() and not replace:
        raise FetchError(f"{target} already exists; move it away, or give --again to replace it.")
    with part.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b" and target.suffix != ".gz"
    if not packed:
        publish(part, target)
        return
    limit = min(max_bytes, max(part.stat().st_size * MAX_RATIO, 1 << 20))
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        with gzip.open(part) as stream, _bar(None, "decompress", progress) as bar:
            _write(stream, temporary, limit, part, bar)
        publish(temporary, target)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise FetchError(f"{part.name} cannot be decompressed: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _unpack_zip(archive: Path, to: Path, limit: int, progress: bool, skip: re.Pattern[str]) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [info for info in packed.infolist() if not skip.search(info.filename)]
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


class _Headers:
    """The bytes of a tar, read in small pieces only: a header may claim any length, and is read whole."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self.stream, self.archive = stream, archive
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise FetchError(f"{self.archive.name}: a header of {size:,} bytes; refused.")
        return self.stream.read(size)


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    with archive.open("rb") as plain:
        start = plain.read(6)
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((one for magic, one in openers.items() if start.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        headers: Any = _Headers(stream, archive)
        with tarfile.open(fileobj=headers, mode="r:") as packed:
            yield packed


def _unpack_tar(archive: Path, to: Path, limit: int, progress: bool, skip: re.Pattern[str]) -> None:
    try:
        with _tar(archive) as packed, _bar(None, "unpack", progress) as bar:
            targets: dict[str, PurePosixPath] = {}
            room = limit
            for number, info in enumerate(packed):
                if number >= MAX_FILES:
                    raise FetchError(f"{archive.name}: more than {MAX_FILES} members; refused.")
                if skip.search(info.name):
                    continue
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
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, gzip.BadGzipFile) as error:
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


def _write(
    source: IO[bytes] | gzip.GzipFile, target: Path, room: int, archive: Path, bar: "tqdm[Any]"
) -> int:
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
        raise FetchError(
            f"{archive.name}: two members have one file name, {target.name!r}; refused."
        ) from None
    return written
