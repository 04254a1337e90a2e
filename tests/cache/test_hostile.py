"""Stores that somebody made to do harm: nothing outside of them is read, moved or removed."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from patchbank.cache.backend import seal
from patchbank.cache.bank import Bank
from patchbank.cache.filesystem import LocalFiles, RemoteFiles, open_files
from patchbank.cache.finalize import finalize
from patchbank.cache.log import encode
from patchbank.cache.merge import merge
from patchbank.cache.store import Store
from patchbank.cache.verify import gc, repair, verify
from patchbank.errors import PatchbankError, StoreError

SUM = "0123456789abcdef"
ID = f"{SUM[:12]}-{SUM * 2}"
OUT = [
    "../../../victim/file",
    "/VICTIM/file",
    "..",
    ".",
    "a/../../../../victim/file",
    "..\\victim",
    "c:x",
    "\0",
]
WRITER = {"type": "writer", "writer": "w", "time": 1.0, "provenance": {}}
BLOCK = {
    "type": "block",
    "block": ID,
    "rows": 1,
    "segments": SUM,
    "keys": SUM,
    "first": SUM,
    "time": 1.0,
    "writer": "w",
}
EXTRAS = {"vectors_at": 0, "keys_at": 16, "frame": f"16:{SUM}"}
ORDER = {"type": "order", "generation": 99, "blocks": [], "view": {}, "time": 1.0}


class Attack:
    """A store with 20 rows, finalised, and a folder beside the bank that nothing may touch."""

    def __init__(self, folder: Path) -> None:
        self.victim = folder / "victim"
        self.bank = Bank(folder / "bank")
        self.clean = self.bank.open_name("fake-noise")
        self.root = Path(str(self.clean.path))
        self.other = Bank(folder / "other").open_store(self.clean.identity, create=True)
        self.before = self.state()

    @staticmethod
    def prepare(folder: Path, identity: Any, rows: Any, backend: str) -> None:
        victim = folder / "victim"
        victim.mkdir(parents=True)
        for name in ("file", "file.vectors", "file.h5"):
            (victim / name).write_text("precious")
        (victim / "folder").mkdir()
        store = Bank(folder / "bank").open_store(identity, create=True, block_rows=8, backend=backend)
        with store.writer() as writer:
            writer.append(*rows[:])
        finalize(store)
        with store.writer() as writer:  # something to pack
            writer.append(rows.keys[:3] ^ 255, rows.vectors[:3], rows.ids[:3])

    def state(self) -> dict[str, tuple[bytes | None, int]]:
        """Everything outside the bank: content, and time of the last change."""
        return {
            str(path): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
            for path in [self.victim, *self.victim.rglob("*")]
        }

    def add_line(self, *records: dict[str, Any]) -> None:
        lines = [encode({**record, "n": n}) for n, record in enumerate([WRITER, *records])]
        (self.root / "parts/log/evil-00000000.jsonl").write_bytes(b"\n".join([*lines, b""]))

    def try_everything(self) -> list[str]:
        """Every operation on the store; the errors, each of which has to be one of patchbank's."""
        errors = []
        work: list[Callable[[Store], Any]] = [
            verify,
            finalize,
            repair,
            lambda store: gc(store, grace=-1.0),
            lambda store: merge(self.other, [store]),
            lambda store: store.load(store.keys()),
            finalize,
        ]
        for operation in work:
            for lenient in (False, True):
                try:
                    operation(Store(LocalFiles(self.root), lenient=lenient))
                except PatchbankError as error:
                    errors.append(str(error))
                assert self.state() == self.before, operation
        return errors


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory, identity: Any, make_rows: Any) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    for backend in ("zarr", "hdf5"):
        Attack.prepare(folder / backend, identity(), make_rows(20), backend)
    return folder


@pytest.fixture(params=["zarr", "hdf5"])
def attack(request: pytest.FixtureRequest, tmp_path: Path, templates: Path) -> Attack:
    shutil.copytree(templates / request.param, tmp_path, dirs_exist_ok=True)
    return Attack(tmp_path)


def named(attack: Attack, word: str) -> str:
    return word.replace("VICTIM", str(attack.victim)[1:])


def test_block_ids_lead_nowhere(attack: Attack) -> None:
    for number, word in enumerate(named(attack, word) for word in OUT):
        records = [
            {**BLOCK, **EXTRAS, "block": word},
            {"type": "retire", "blocks": [word], "reason": ""},
            {**ORDER, "blocks": [word]},
            {**ORDER, "blocks": [ID, ID]},
        ]
        for record in records:
            attack.add_line(record)
            with pytest.raises(StoreError, match=r"evil-00000000.jsonl, line 2 says 'blocks?' is"):
                Store(LocalFiles(attack.root))
        attack.add_line(records[number % 3])
        errors = attack.try_everything()
        assert len(errors) == 13
        assert all("evil-00000000.jsonl, line 2" in error for error in errors)


def test_view_names_lead_nowhere(attack: Attack) -> None:
    names = [
        *OUT,
        "../zarr.json",
        "zarr.json",
        "store.json",
        "parts/zarr.json",
        "parts/c/0",
        "embeddings/c/0",
        "embeddings/c/0/0",
        "content_hash/c/0/0",
        "parts/log/x.jsonl",
        f"parts/blocks/{ID}.vectors",
        "embeddings.h5/x",
        "label/c/0/../../../../../victim/file",
    ]
    for name in names:
        attack.add_line({**ORDER, "view": {named(attack, name): SUM}})
        with pytest.raises(StoreError, match=r"line 2 says 'view'"):
            Store(LocalFiles(attack.root))
    assert len(attack.try_everything()) == 13
    (attack.root / "parts/log/evil-00000000.jsonl").unlink()
    assert verify(Store(LocalFiles(attack.root))).good


@pytest.mark.parametrize(
    ("member", "values"),
    [
        ("rows", [0, -1, "1", 1.0, None, True, 10**18, [1], 300]),
        ("segments", ["", SUM[:15], SUM * 2, "g" * 16, 1, None]),
        ("keys", [SUM[:8], None, 1]),
        ("first", ["", [SUM]]),
        ("time", ["now", None, True]),
        ("writer", [None, {}]),
        ("vectors_at", [-1, "0", 1.5, None, 10**30]),
        ("keys_at", [-16, None]),
        ("padding", [-1, "x", None]),
        ("frame", [SUM, 5, f"-1:{SUM}"]),
        ("block", [None, 7, ID.upper(), ID + "\n", ID[:-1]]),
        ("type", [None, 5, [], "unknown"]),
        ("n", [None, "0", -1]),
    ],
)
def test_members_of_another_type(attack: Attack, member: str, values: list[Any]) -> None:
    for value in values:
        record = {**BLOCK, **EXTRAS, "n": 1, member: value}
        lines = [encode({**WRITER, "n": 0}), encode(record), b""]
        (attack.root / "parts/log/evil-00000000.jsonl").write_bytes(b"\n".join(lines))
        with pytest.raises(StoreError, match=r"evil-00000000.jsonl, line 2"):
            Store(LocalFiles(attack.root))
    for missing in sorted({*BLOCK} - {"type"}):
        attack.add_line({name: value for name, value in BLOCK.items() if name != missing})
        with pytest.raises(StoreError, match=rf"line 2 has no '{missing}'"):
            Store(LocalFiles(attack.root))


def test_a_block_that_is_not_there_is_an_error_of_one_sentence(attack: Attack) -> None:
    for record in (BLOCK, {**BLOCK, **EXTRAS}, {**BLOCK, **EXTRAS, "vectors_at": 1 << 61}):
        attack.add_line(record)
        for operation in (verify, lambda store: store.load(store.keys()), finalize):
            try:
                operation(Store(LocalFiles(attack.root)))
            except StoreError as error:
                assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("rows", [1 << 24, 1 << 21])
def test_blocks_that_claim_more_than_their_files_have(attack: Attack, rows: int) -> None:
    """A line of a megabyte that claims terabytes; each operation refuses it, in little memory."""
    resource = pytest.importorskip("resource")
    identity = {**attack.clean.identity.to_json(), "dim": 1 << 17}
    path = attack.root / attack.clean.layout.descriptions[0]
    for name in attack.clean.layout.descriptions:
        document = seal({**attack.clean.description, "identity": identity, "block_rows": 1 << 13})
        (attack.root / name).write_bytes(attack.clean.layout.describe(document))
    for log in (attack.root / "parts/log").iterdir():
        log.unlink()
    segments = SUM * (rows // 256)
    files = ["vectors", "keys"] if attack.clean.backend == "zarr" else ["h5"]
    for kind in files:
        (attack.root / f"parts/blocks/{ID}.{kind}").write_bytes(bytes(1000))
    attack.add_line({**BLOCK, **EXTRAS, "rows": rows, "segments": segments})
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), limits[1]))
    try:
        errors = attack.try_everything()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert len(errors) >= 8
    assert any("tampered with" in error or "shorter than" in error for error in errors)
    assert all("\n" not in error for error in errors)
    assert path.exists()


def test_a_block_length_that_would_fill_the_memory(attack: Attack) -> None:
    document = seal({**attack.clean.description, "block_rows": 1 << 31})
    path = attack.root / attack.clean.layout.descriptions[0]
    path.write_bytes(attack.clean.layout.describe(document))
    with pytest.raises(StoreError, match=r"block of 2,147,483,648 rows x 8 would have .* bytes, more than"):
        Store(LocalFiles(attack.root))
    with pytest.raises(StoreError, match="fewer rows a block"):
        Bank(attack.root.parent / "new").open_store(attack.clean.identity, create=True, block_rows=1 << 30)


@pytest.mark.parametrize(
    "line", [b'{"a":1', b"{" + b'"a":[' * 100_000, b"{" + b"9" * 5000, b'{"type":"block"\xff']
)
def test_lines_that_are_no_json(attack: Attack, line: bytes) -> None:
    sealed = line + b',"sum":"' + xxhash.xxh3_64_hexdigest(line).encode() + b'"}'
    (attack.root / "parts/log/evil-00000000.jsonl").write_bytes(sealed + b"\n")
    with pytest.raises(StoreError, match=r"evil-00000000.jsonl, line 1"):
        Store(LocalFiles(attack.root))


@pytest.mark.parametrize("name", ["zarr.json", "parts", "parts/log", "parts/blocks", "embeddings"])
@pytest.mark.parametrize("to", ["file", "folder", "nothing"])
def test_links_are_not_followed(attack: Attack, name: str, to: str) -> None:
    if name == "embeddings" and attack.clean.backend == "hdf5":
        name = "embeddings.h5"
    path = attack.root / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(attack.victim / to)
    attack.try_everything()
    assert not (attack.victim / "nothing").exists()
    with pytest.raises(StoreError, match="symbolic link"):
        attack.clean.files.walk()


def test_a_link_in_the_place_of_a_block(attack: Attack) -> None:
    """Its content is what the log says; it is not read all the same."""
    secret = attack.victim / "secret"
    path = next(p for p in (attack.root / "parts/blocks").iterdir() if p.suffix in {".vectors", ".h5"})
    path.rename(secret)
    path.symlink_to(secret)
    attack.before = attack.state()
    errors = attack.try_everything()
    assert any("symbolic link" in error for error in errors)


def test_pipes_do_not_hang(attack: Attack) -> None:
    log = next((attack.root / "parts/log").iterdir())
    for path in (log, attack.root / attack.clean.layout.descriptions[0]):
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(StoreError, match="device, pipe or socket"):
            Store(LocalFiles(attack.root))
        path.unlink()
        path.write_bytes(kept)


def test_removing_a_store_leaves_what_its_links_lead_to(attack: Attack) -> None:
    (attack.root / "link").symlink_to(attack.victim)
    attack.bank.remove(attack.clean.name)
    assert attack.state() == attack.before
    assert not attack.root.exists()
    attack.root.symlink_to(attack.victim)
    with pytest.raises(StoreError, match=r"symbolic link to .*victim"):
        attack.bank.remove(attack.clean.name)
    assert attack.state() == attack.before


def test_a_bank_and_its_stores_may_be_links_of_the_user(attack: Attack, tmp_path: Path) -> None:
    moved = tmp_path / "big disk"
    attack.root.rename(moved)
    attack.root.symlink_to(moved)
    (tmp_path / "link").symlink_to(tmp_path / "bank")
    assert len(Bank(tmp_path / "link").open_name("fake-noise")) == 23


@pytest.mark.parametrize("files", [LocalFiles(Path("/nowhere")), open_files("memory://names")])
def test_names_stay_below_the_root(files: LocalFiles | RemoteFiles) -> None:
    tried = 0
    parts = ["a", "..", ".", "", "a\\b", "c:", "\0"]
    for words in itertools.chain(itertools.product(parts, parts), itertools.product(parts, parts, parts)):
        name = "/".join(words)
        if set(words) == {"a"}:
            assert str(files.path(name)).endswith(name)
            continue
        for ask in (files.path, files.at, files.exists, files.names, files.remove, files.read, files.size):
            with pytest.raises(StoreError, match="is not the name of a file of a store"):
                ask(name)
            tried += 1
    assert tried > 2000


@pytest.mark.parametrize(
    ("member", "values"),
    [
        ("block_rows", [0, -1, "8", None, 10**12, True]),
        ("identity", [None, [], {}, {"encoder": 5}]),
        ("provenance", [None, "x"]),
        ("backend", ["zarr2", None, 5]),
        ("created", [None]),
    ],
)
def test_descriptions_of_another_type(attack: Attack, member: str, values: list[Any]) -> None:
    first, copy = attack.clean.layout.descriptions
    for value in values:
        document = seal({**attack.clean.description, member: value})
        for name in (first, copy):
            (attack.root / name).write_bytes(attack.clean.layout.describe(document))
        for lenient in (False, True):
            with pytest.raises(StoreError):
                Store(LocalFiles(attack.root), lenient=lenient)


def test_identities_of_another_type(attack: Attack) -> None:
    good = attack.clean.identity.to_json()
    wrong: dict[str, list[Any]] = {
        "encoder": [None, [], {}, {"id": 5}, {"id": ""}],
        "preprocess": [None, "x"],
        "dim": [0, -8, "8", 10**12, 8.0],
        "dtype": ["object", None, ">f4", "O"],
        "view": [None, ""],
        "precision": [None, []],
    }
    for part, values in wrong.items():
        for value in values:
            document = seal({**attack.clean.description, "identity": {**good, part: value}})
            path = attack.root / attack.clean.layout.descriptions[0]
            path.write_bytes(attack.clean.layout.describe(document))
            with pytest.raises(StoreError, match=part):
                Store(LocalFiles(attack.root))


def test_arrays_of_a_finalised_store_run_no_code(attack: Attack) -> None:
    """Their digests fit, as whoever made the store can see to; verify looks at what they say."""
    if attack.clean.backend != "zarr":
        pytest.skip("of Zarr")
    finalize(attack.clean)
    record = dict(Store(LocalFiles(attack.root)).catalog.order_record)
    for name in ("embeddings/zarr.json", "content_hash/zarr.json", "evil/zarr.json"):
        path = attack.root / name
        path.parent.mkdir(exist_ok=True)
        document = json.loads((attack.root / "embeddings/zarr.json").read_text())
        content = json.dumps(document | {"codecs": [{"name": "numcodecs.pickle"}]}).encode()
        kept = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        record["generation"] += 1
        attack.add_line({**record, "view": record["view"] | {name: xxhash.xxh3_64_hexdigest(content)}})
        found = verify(Store(LocalFiles(attack.root)))
        assert any("does not describe the array" in str(damage) for damage in found.damage), name
        if kept is not None:
            path.write_bytes(kept)
    repair(Store(LocalFiles(attack.root)))
    assert verify(Store(LocalFiles(attack.root))).good
    assert not any(b"pickle" in path.read_bytes() for path in attack.root.rglob("zarr.json"))


@pytest.mark.parametrize("kind", ["virtual", "external link", "soft link", "external", "column"])
def test_arrays_of_a_finalised_store_lie_in_no_other_file(attack: Attack, kind: str) -> None:
    if attack.clean.backend != "hdf5":
        pytest.skip("of HDF5")
    secret = attack.victim / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["embeddings"] = np.ones((20, 8), np.float16)
    attack.before = attack.state()
    finalize(attack.clean)
    record = dict(Store(LocalFiles(attack.root)).catalog.order_record)
    path = attack.root / "embeddings.h5"
    with h5py.File(path, "r+") as file:
        name = "label" if kind == "column" else "embeddings"
        if name in file:
            del file[name]
        match kind:
            case "virtual" | "column":
                whole = h5py.VirtualLayout((20, 8), np.float16)
                whole[:] = h5py.VirtualSource(str(secret), "embeddings", (20, 8))
                file.create_virtual_dataset(name, whole)
            case "external link":
                file[name] = h5py.ExternalLink(str(secret), "embeddings")
            case "soft link":
                file[name] = h5py.SoftLink("/content_hash")
            case "external":
                file.create_dataset(name, (20, 8), np.float16, external=[(str(secret), 0, 320)])
    view = {"embeddings.h5": xxhash.xxh3_64_hexdigest(path.read_bytes())}
    attack.add_line({**record, "generation": record["generation"] + 1, "view": view})
    found = verify(Store(LocalFiles(attack.root)))
    assert any("embeddings.h5" in str(damage) for damage in found.damage)
    attack.try_everything()
    repair(Store(LocalFiles(attack.root)))
    assert verify(Store(LocalFiles(attack.root))).good


def test_a_block_that_is_a_link_inside_its_file(attack: Attack) -> None:
    """The rows are where the log says; whoever opens the block with h5py would read another file."""
    if attack.clean.backend != "hdf5":
        pytest.skip("of HDF5")
    secret = attack.victim / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["embeddings"] = np.ones((8, 8), np.float16)
    attack.before = attack.state()
    store = Store(LocalFiles(attack.root))
    block = store.catalog.live()[0]
    path = attack.root / f"parts/blocks/{block.id}.h5"
    with h5py.File(path, "r+") as file:
        file.move("embeddings", "hidden")
        file["embeddings"] = h5py.ExternalLink(str(secret), "embeddings")
    layout: Any = store.layout
    extra = {part: block.extra[part] for part in ("vectors_at", "keys_at")}
    frame = layout._frame(f"parts/blocks/{block.id}.h5", block.rows, extra)
    attack.add_line({**block.record(), "frame": frame, "time": 0.5})
    assert any(
        block.id in str(damage) for damage in verify(Store(LocalFiles(attack.root), lenient=True)).damage
    )
    attack.try_everything()
