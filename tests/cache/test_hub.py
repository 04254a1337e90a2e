"""Push and pull against a stand-in of the hub on loopback: the real client, a hundred lines of server."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patchbank.cache.bank import Bank
from patchbank.cache.finalize import finalize
from patchbank.cache.hub import pull, push
from patchbank.cache.merge import merge
from patchbank.cache.store import Store
from patchbank.cache.verify import verify
from patchbank.errors import InvalidRequest, StoreError, StoreNotFound

pytest.importorskip("huggingface_hub")


@pytest.fixture
def filled(tmp_path: Path, identity: Any, make_rows: Any) -> tuple[Store, Any]:
    provenance = {"licence": "CC-BY-NC-ND 4.0", "torch": "2.9"}
    store = Bank(tmp_path / "bank").open_store(identity(), create=True, block_rows=64, provenance=provenance)
    rows = make_rows(150)
    with store.writer() as writer:
        writer.append(*rows[:])
    store.refresh()
    return store, rows


def test_push_and_pull(hub: Any, filled: tuple[Store, Any], tmp_path: Path) -> None:
    endpoint, repositories = hub
    store, rows = filled
    finalize(store)
    (Path(store.path) / "parts/blocks/.tmp-leftover").write_bytes(b"x")
    assert push(store, "org/ami", endpoint=endpoint, token="secret").url.endswith("datasets/org/ami")
    files = repositories["org/ami"]
    card = files["README.md"].decode()
    for word in (
        "license: other",
        "cc-by-nc-nd",
        "fake:noise",
        "150 patch embeddings",
        store.identity.digest,
        '"torch"',
    ):
        assert word in card
    root = Path(store.path)
    sent = {name.removeprefix(f"stores/{store.name}/"): content for name, content in files.items()}
    logs = [name for name in sent if name.startswith("parts/log/")]
    assert [name for name in logs if re.fullmatch(r"parts/log/pushed-[0-9a-f]{8}\.jsonl", name)] == logs
    assert len(logs) == 1
    assert {*sent} - {"README.md", *logs} == {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file()
        and not path.name.startswith(".tmp-")
        and path.parent.name != "log"
        and store.layout.block_of(path.name) not in store.catalog.retired
        and store.layout.block_of(path.name) not in store.catalog.chunks  # sent as chunks of the arrays
    }
    for name in {*sent} - {"README.md", *logs}:
        assert sent[name] == (root / name).read_bytes()

    again = dict(files)
    push(store, "org/ami", endpoint=endpoint, token="secret")
    assert files == again
    bank = Bank(tmp_path / "pulled")
    pulled = pull("org/ami", bank, endpoint=endpoint, token="secret")
    assert pulled.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert [p.name for p in (tmp_path / "pulled").iterdir()] == ["stores"]
    with pytest.raises(InvalidRequest, match=r"exists already.*cache merge"):
        pull("org/ami", bank, endpoint=endpoint, token="secret")
    with pulled.writer() as writer:  # it goes on like any other store
        writer.append(rows.keys[:1] ^ np.uint8(255), rows.vectors[:1], ["new"])
    pulled.refresh()
    assert len(pulled) == 151


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_a_table_stays_here_unless_asked_for(
    hub: Any, tmp_path: Path, identity: Any, make_rows: Any, backend: str
) -> None:
    """Neither words of the table nor of the machine are anywhere in what is sent."""
    endpoint, repositories = hub
    rows = make_rows(150)
    store = Bank(tmp_path / "bank").open_store(identity(), create=True, block_rows=64, backend=backend)
    with store.writer(name="dr-house-pc") as writer:
        writer.append(*rows[:])
    store.refresh()
    with pytest.raises(InvalidRequest, match=r"no columns of a table: .*cache finalize"):
        push(store, "org/ami", with_table=True, endpoint=endpoint, token="secret")
    finalize(store, rows.table())
    words = [b"slide 3", b"atypical", "scänner".encode(), b"dr-house", b"set/0-1"]
    own = [path.read_bytes() for path in Path(store.path).rglob("*") if path.is_file()]
    names = b" ".join(str(path).encode() for path in Path(store.path).rglob("*"))
    assert all(any(word in content for content in [*own, names]) for word in words)

    done = push(store, "org/ami", endpoint=endpoint, token="secret")
    files = repositories["org/ami"]
    assert done.left_out == ["domain", "group", "label", "patch_id", "split", "x", "y"]
    for name, content in files.items():
        assert not any(word in content or word in name.encode() for word in words), name
    assert "Table columns (patch names, labels, groups) are not included" in files["README.md"].decode()
    pulled = pull("org/ami", Bank(tmp_path / "pulled"), endpoint=endpoint)
    assert pulled.load(rows.keys).tobytes() == rows.vectors.tobytes()
    assert verify(pulled).notes == []

    with_table = push(store, "org/ami", with_table=True, host_names=True, endpoint=endpoint, token="secret")
    assert with_table.left_out == []
    for word in words:
        assert any(word in content for content in files.values()), word
    card = files["README.md"].decode()
    assert "domain, group, label, patch\\_id, split, x, y" in card
    assert "groups) are not included" not in card
    assert verify(pull("org/ami", Bank(tmp_path / "again"), endpoint=endpoint)).good

    without = push(store, "org/ami", endpoint=endpoint, token="secret")  # takes them out again
    assert all(
        "pushed-" in name or name.endswith((".json", "/c/0", "/c/1", "/c/2")) for name in without.removed
    )
    for content in files.values():
        assert not any(word in content for word in words)


def test_what_others_pushed_is_not_removed_unasked(
    hub: Any, filled: tuple[Store, Any], tmp_path: Path, make_rows: Any
) -> None:
    endpoint, repositories = hub
    store, rows = filled
    push(store, "org/ami", endpoint=endpoint, token="secret")
    more = make_rows(30, seed=1)
    colleague = pull("org/ami", Bank(tmp_path / "colleague"), endpoint=endpoint)
    with colleague.writer() as writer:
        writer.append(*more[:])
    colleague.refresh()
    push(colleague, "org/ami", endpoint=endpoint, token="secret")
    before = dict(repositories["org/ami"])
    with pytest.raises(InvalidRequest, match=r"30 rows of .*--replace"):
        push(store, "org/ami", endpoint=endpoint, token="secret")
    assert repositories["org/ami"] == before
    merge(store, [colleague])
    push(store, "org/ami", replace=True, endpoint=endpoint, token="secret")
    last = pull("org/ami", Bank(tmp_path / "last"), endpoint=endpoint)
    assert last.load(more.keys).tobytes() == more.vectors.tobytes()
    assert last.load(rows.keys).tobytes() == rows.vectors.tobytes()


def test_names_in_a_card_are_text(hub: Any, tmp_path: Path, identity: Any, make_rows: Any) -> None:
    endpoint, repositories = hub
    evil = "x\nlicense: mit\n---\n<img src=x onerror=alert(1)> [a](http://evil) `b` *c*"
    changed = identity(encoder={"id": evil, "weights": "none"}, view=evil, tokens=evil)
    store = Bank(tmp_path / "bank").open_store(changed, create=True, provenance={"licence": evil})
    with store.writer() as writer:
        writer.append(*make_rows(3)[:])
    push(store, "org/ami", endpoint=endpoint, token="secret")
    card = repositories["org/ami"]["README.md"].decode()
    _, header, body = card.split("---\n", 2)
    assert header.count("\nlicense") == 1  # license_name, after license
    assert "license: mit\n" not in header
    outside = "".join(re.split(r"```.*?```", body, flags=re.DOTALL))
    assert "<" not in outside
    assert "](" not in outside.replace("\\](", "")
    assert "://" not in outside


@pytest.mark.parametrize("kind", ["../x", "a/b", ".tmp-x", "..", "x;y", "\x1b[31m"])
def test_pull_takes_no_store_of_another_name(
    hub: Any, filled: tuple[Store, Any], tmp_path: Path, kind: str
) -> None:
    endpoint, repositories = hub
    store, _ = filled
    push(store, "org/ami", endpoint=endpoint, token="secret")
    bank = Bank(tmp_path / "pulled")
    files = repositories["org/ami"]
    repositories["org/ami"] = {name.replace(store.name, kind): content for name, content in files.items()}
    with pytest.raises(StoreNotFound, match="holds no store"):
        pull("org/ami", bank, endpoint=endpoint)
    other = store.name[:-1] + ("0" if store.name[-1] != "0" else "1")
    repositories["org/ami"] = {name.replace(store.name, other): content for name, content in files.items()}
    with pytest.raises(StoreError, match="has a store named"):
        pull("org/ami", bank, endpoint=endpoint)
    repositories["org/ami"] = files | {f"stores/{store.name}/{kind}/../../evil": b"evil"}
    with pytest.raises(StoreError, match="not the name of a file"):
        pull("org/ami", bank, endpoint=endpoint)
    assert bank.names() == []
    assert not list(tmp_path.rglob("evil"))


def test_links_are_not_followed_on_push(hub: Any, filled: tuple[Store, Any], tmp_path: Path) -> None:
    endpoint, repositories = hub
    store, _ = filled
    (tmp_path / "secret").write_text("my key")
    (Path(store.path) / "notes").symlink_to(tmp_path / "secret")
    (Path(store.path) / "mine.txt").write_text("my notes")
    push(store, "org/ami", endpoint=endpoint, token="secret")
    assert not any(b"my" in content for content in repositories["org/ami"].values())
    vectors = next((Path(store.path) / "parts/blocks").glob("*.vectors"))
    vectors.rename(tmp_path / "moved")
    vectors.symlink_to(tmp_path / "moved")
    with pytest.raises(StoreError, match="symbolic link"):
        push(store, "org/ami", endpoint=endpoint, token="secret")


def test_pull_of_one_among_several(
    hub: Any, filled: tuple[Store, Any], tmp_path: Path, identity: Any
) -> None:
    endpoint, _ = hub
    store, rows = filled
    other = Bank(tmp_path / "bank").open_store(identity(tokens="mean"), create=True)
    with other.writer() as writer:
        writer.append(*rows[:5])
    other.refresh()
    for one in (store, other):
        push(one, "org/two", endpoint=endpoint, token="secret")
    bank = Bank(tmp_path / "pulled")
    with pytest.raises(StoreNotFound, match=r"full.cls.*full.mean.*--store"):
        pull("org/two", bank, endpoint=endpoint)
    assert len(pull("org/two", bank, name="fake-noise.full.mean", endpoint=endpoint)) == 5
    assert bank.names() == [other.name]


def test_damage_on_the_way_is_found(hub: Any, filled: tuple[Store, Any], tmp_path: Path) -> None:
    endpoint, repositories = hub
    push(filled[0], "org/ami", endpoint=endpoint, token="secret")
    name = next(n for n in repositories["org/ami"] if n.endswith(".vectors"))
    content = bytearray(repositories["org/ami"][name])
    content[100] ^= 1
    repositories["org/ami"][name] = bytes(content)
    bank = Bank(tmp_path / "pulled")
    with pytest.raises(StoreError, match=r"org/ami is damaged.*nothing was added"):
        pull("org/ami", bank, endpoint=endpoint)
    assert bank.names() == []


def test_refusals_are_one_sentence(
    hub: Any, filled: tuple[Store, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, _ = hub
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries five times
    bank = Bank(tmp_path / "pulled")
    with pytest.raises(StoreError, match=r"was not pushed to org/ami: .*token \(401\).*hf auth login"):
        push(filled[0], "org/ami", endpoint=endpoint, token="wrong")
    with pytest.raises(StoreError, match=r"org/none was not pulled: the hub has no data set org/none"):
        pull("org/none", bank, endpoint=endpoint)
    with pytest.raises(StoreError, match=r"was not pulled: the hub cannot be reached .*127.0.0.1:9.*network"):
        pull("org/ami", bank, endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreError, match="was not pulled: 'not/a/name' is not a name of a data set"):
        pull("not/a/name", bank, endpoint=endpoint)
    with pytest.raises(InvalidRequest, match="not local"):
        push(Bank("memory://hub").open_store(filled[0].identity, create=True), "org/ami", endpoint=endpoint)
    with pytest.raises(InvalidRequest, match="not a local folder"):
        pull("org/ami", Bank("memory://hub"), endpoint=endpoint)


@pytest.mark.parametrize(
    ("code", "content", "why"),
    [
        (401, b"", r"401\).*hf auth login"),
        (403, b"", r"forbids this machine's token to (read|write) org/ami \(403\).*settings/tokens"),
        (404, b"", r"(404|no data set org/ami)"),
        (418, b"", r"answers 418 for org/ami"),
        (429, b"", r"too many requests.*429"),
        (500, b"", r"hub reports a server error \(500.*status.huggingface.co"),
        (503, b"", r"hub reports a server error \(503"),
        (
            200,
            b"<html><title>Log in</title></html>",
            "is answered by a proxy or a login page instead of the hub",
        ),
    ],
)
def test_each_answer_of_the_hub_has_its_reason(
    hub: Any,
    refuse: Any,
    filled: tuple[Store, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    content: bytes,
    why: str,
) -> None:
    endpoint, repositories = hub
    monkeypatch.setattr(time, "sleep", lambda _: None)
    refuse(code, content)
    for work in (
        lambda: push(filled[0], "org/ami", endpoint=endpoint, token="secret"),
        lambda: pull("org/ami", Bank(tmp_path / "pulled"), endpoint=endpoint, token="secret"),
    ):
        with pytest.raises(StoreError, match=why) as caught:
            work()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert repositories == {}


def test_a_place_that_cannot_be_written_is_not_the_hubs_fault(
    hub: Any, filled: tuple[Store, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "pulled/x"))

    endpoint, _ = hub
    push(filled[0], "org/ami", endpoint=endpoint, token="secret")
    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", full)
    with pytest.raises(StoreError, match=r"cannot be written to .*pulled: No space left .*free some space"):
        pull("org/ami", Bank(tmp_path / "pulled"), endpoint=endpoint)
