"""The commit log: which blocks of a store exist. Nothing else does. FORMAT.md has its lines in words.

Every writer appends to a file of its own. What `finalize` and `repair` say (new blocks, what they replace,
the order) is a log of its own that appears whole, under a generation that only one can take.
"""

import errno
import json
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import xxhash

from ..errors import StoreError
from .filesystem import Files, LocalFiles, explained, sync_folder
from .identity import safe_name
from .records import check_record

FOLDER = "parts/log"
_END = re.compile(rb',"sum":"([0-9a-f]{16})"\}')
_FINALIZE = re.compile(r"finalize-(\d{10,18})(\.jsonl)?")
_END_BYTES = len(b',"sum":"0123456789abcdef"}')


def encode(record: dict[str, Any]) -> bytes:
    """One line, with its checksum, without the newline."""
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return body + b',"sum":"' + xxhash.xxh3_64_hexdigest(body).encode() + b'"}'


def decode(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None where the checksum says that it is not what was written."""
    end = _END.fullmatch(line[-_END_BYTES:])
    body = line[:-_END_BYTES]
    if end is None or xxhash.xxh3_64_hexdigest(body).encode() != end[1]:
        return None
    try:
        return json.loads(body + b"}")
    except (ValueError, RecursionError):  # checksums are not signatures: other software wrote this
        return None


@dataclass(frozen=True)
class Block:
    """A published block of whole rows.

    segments  64-bit checksums, 16 hex digits each, of every 256 rows (their vectors, then their keys)
    keys_sum, first_sum  of all keys, and of the first vector: is this file the block that it should be?
    extra     what the backend needs to find the rows in its files
    """

    id: str
    rows: int
    segments: str
    keys_sum: str
    first_sum: str
    time: float
    writer: str
    extra: dict[str, Any]

    def record(self) -> dict[str, Any]:
        return {
            "type": "block",
            "block": self.id,
            "rows": self.rows,
            "segments": self.segments,
            "keys": self.keys_sum,
            "first": self.first_sum,
            "time": self.time,
            "writer": self.writer,
            **self.extra,
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Block":
        known = ("block", "rows", "segments", "keys", "first", "time", "writer")
        extra = {name: value for name, value in record.items() if name not in {*known, "type", "n"}}
        block, rows, segments, keys, first, when, writer = (record[name] for name in known)
        return cls(block, rows, segments, keys, first, when, writer, extra)


@dataclass(frozen=True)
class BadLine:
    """A line of a log that is not what its writer wrote.

    kind    "damaged"; "missing" (lines before it are gone); "cut" (it and those after it are gone); "torn"
            (an unfinished last line: its writer died, nothing is wrong)
    digest  of the line as it is; `repair` excuses exactly that
    """

    file: str
    line: int
    kind: str
    digest: str

    def excuse(self) -> str:
        return f"{self.file}:{self.line}:{self.digest}"


@dataclass
class Catalog:
    """What the logs of a store say. `read` takes in what was added since the last call."""

    files: Files
    published: dict[str, Block] = field(default_factory=dict)
    retired: dict[str, float] = field(default_factory=dict)  # block -> when, seconds since the epoch
    order: list[str] = field(default_factory=list)
    order_record: dict[str, Any] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)  # block -> its place in the order
    sessions: list[dict[str, Any]] = field(default_factory=list)
    excused: set[str] = field(default_factory=set)
    bad: dict[str, BadLine] = field(default_factory=dict)  # by excuse; without the excused
    next_generation: int = 1  # what `commit` may be asked for
    version: int = 0  # counts up with every record that changes which blocks there are
    _seen: dict[str, "_Place"] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        return int(self.order_record.get("generation", 0))

    def live(self) -> list[Block]:
        """Published and not retired, in the order in which all readers see them: by time, then name."""
        blocks = [block for name, block in self.published.items() if name not in self.retired]
        return sorted(blocks, key=lambda block: (block.time, block.id))

    def damage(self) -> list[BadLine]:
        return [bad for bad in self.bad.values() if bad.kind != "torn"]

    def read(self, *, strict: bool = True) -> None:
        """Raises StoreError at a line that was changed after it was written, unless `strict` is off."""
        with explained("read the log of", self.files):
            for name in self.files.names(FOLDER):
                if self.files.remote:
                    self._read_objects(name)
                elif name.endswith(".jsonl"):
                    self._read_file(name)
                else:
                    continue
                self._look_for_a_cut(name)
        self.bad = {excuse: bad for excuse, bad in self.bad.items() if excuse not in self.excused}
        if strict and self.damage():
            bad = self.damage()[0]
            what = {
                "missing": "lines before it are missing",
                "cut": "the file ends before it, cut short",
            }.get(bad.kind, "not what was written there")
            raise StoreError(
                f"{self.files}/{bad.file}, line {bad.line}: {what} (damaged, or edited by hand); "
                "`patchbank cache verify` says what is lost, `patchbank cache repair` saves the rest"
            )

    def _read_file(self, name: str) -> None:
        reading = self._seen.setdefault(name, _Place())
        content = self.files.read(f"{FOLDER}/{name}", reading.bytes)
        pieces = content.split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            self._take(name, reading, piece)
        reading.bytes += len(content) - len(rest)
        rest = rest.rstrip(b"\0")  # what a power failure may leave of a line that was never acknowledged
        if decode(rest) is not None:  # only the newline is missing
            reading.bytes += len(rest)
            reading.at_newline = False
            self._take(name, reading, rest)
        elif len(rest.rpartition(b',"sum":"')[2]) > 18 and b',"sum":"' in rest:
            self._note(
                name, reading.lines + 1, "damaged", rest
            )  # whole, but for a newline that is another byte
        elif rest:
            self._note(name, reading.lines + 1, "torn", rest)

    def _read_objects(self, name: str) -> None:
        reading = self._seen.setdefault(name, _Place())
        for item in self.files.names(f"{FOLDER}/{name}")[reading.objects :]:
            reading.objects += 1
            for line in self.files.read(f"{FOLDER}/{name}/{item}").removesuffix(b"\n").split(b"\n"):
                self._take(name, reading, line)

    def _look_for_a_cut(self, name: str) -> None:
        generation = _FINALIZE.fullmatch(name)
        if generation is None:
            return
        self.next_generation = max(self.next_generation, int(generation[1]) + 1)
        reading = self._seen[name]
        if 0 < reading.lines < reading.wanted:
            self._note(name, reading.lines + 1, "cut", b"")

    def _take(self, name: str, reading: "_Place", line: bytes) -> None:
        if not line and not reading.at_newline:  # the newline of a line that was taken without it
            reading.at_newline = True
            return
        reading.lines += 1
        record = decode(line)
        if record is None:
            self._note(name, reading.lines, "damaged", line)
            reading.number = None
            return
        fault = check_record(record)
        if fault:
            raise StoreError(f"{self.files}/{FOLDER}/{name}, line {reading.lines} {fault}")
        self._take_record(name, reading, line, record)

    def _take_record(self, name: str, reading: "_Place", line: bytes, record: dict[str, Any]) -> None:
        if reading.number is not None and record["n"] != reading.number:
            self._note(name, reading.lines, "missing", line)
        reading.number = record["n"] + 1
        match record["type"]:
            case "block":
                self.published[record["block"]] = Block.of(record)
                self.version += 1
            case "retire":
                when = record.get("time", reading.begun)  # patchbank 0.1.0 did not say when
                self.retired.update(dict.fromkeys(record["blocks"], when))
                self.version += 1
            case "order":
                if record["generation"] > self.generation:
                    self.order, self.order_record = record["blocks"], record
                    self.chunks = {name: chunk for chunk, name in enumerate(self.order)}
                    self.next_generation = max(self.next_generation, self.generation + 1)
            case "excuse":
                self.excused.update(record["lines"])
            case "writer":
                self.sessions.append(record)
                reading.begun, reading.wanted = float(record["time"]), int(record.get("lines", 0))
            case _:  # check_record knows no other
                pass

    def _note(self, name: str, line: int, kind: str, content: bytes) -> None:
        bad = BadLine(f"{FOLDER}/{name}", line, kind, xxhash.xxh3_64_hexdigest(content))
        self.bad[bad.excuse()] = bad


@dataclass
class _Place:
    """How far a log was read."""

    bytes: int = 0
    objects: int = 0
    lines: int = 0
    wanted: int = 0  # lines that the first one promises
    begun: float = 0.0
    number: int | None = 0  # that the next line has to have; None after a damaged one
    at_newline: bool = True


def commit(files: Files, generation: int, records: list[dict[str, Any]], about: dict[str, Any]) -> bool:
    """Publishes the records of a `finalize` at once, all or none; False: the generation is taken.

    What they retire was decided on what the catalog said before: `Catalog.next_generation` of that moment.
    """
    name = f"finalize-{generation:010d}"
    first = {"type": "writer", "writer": name, "time": time.time(), "lines": len(records) + 1, **about}
    lines = [encode({**record, "n": n}) + b"\n" for n, record in enumerate([first, *records])]
    file = f"{FOLDER}/{name}/{0:08d}.json" if files.remote else f"{FOLDER}/{name}.jsonl"
    with explained("write to the log of", files):
        return files.create(file, b"".join(lines))


class LogWriter:
    """Appends to a log of its own. A record is published when `append` has returned."""

    def __init__(self, files: Files, name: str | None, about: dict[str, Any]) -> None:
        self.files = files
        word = safe_name(name or f"{socket.gethostname()}-{os.getpid()}")
        self.name = f"{word}-{secrets.token_hex(4)}"
        self._lines = 0
        self._descriptor = -1
        if isinstance(files, LocalFiles):
            with explained("write to", files):
                path = files.path(f"{FOLDER}/{self.name}.jsonl")
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                sync_folder(path.parent)
        self.append({"type": "writer", "writer": self.name, "time": time.time(), **about})

    def append(self, record: dict[str, Any]) -> None:
        line = encode({**record, "n": self._lines}) + b"\n"
        with explained("write to the log of", self.files):
            if isinstance(self.files, LocalFiles):
                if self._descriptor < 0:
                    raise OSError(
                        errno.EBADF, "a line could not be written; nothing can follow it", self.name
                    )
                self._append_to_file(line)
            else:
                self.files.put({f"{FOLDER}/{self.name}/{self._lines:08d}.json": [line]})
        self._lines += 1

    def _append_to_file(self, line: bytes) -> None:
        """A line that could not be written and synced completely is removed: it must not corrupt the next."""
        size = os.fstat(self._descriptor).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except BaseException as error:
            if written < len(line) or isinstance(error, OSError):  # else: interrupted when all was done
                try:
                    os.ftruncate(self._descriptor, size)
                    os.lseek(self._descriptor, size, os.SEEK_SET)
                except OSError:
                    self.close()  # a next line would be behind what is left of this one
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
