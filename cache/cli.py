"""`patchbank cache`: what the bank holds, is it whole, and how to move it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..errors import InvalidRequest
from ..terminal import echo, note, print_table, printable

if TYPE_CHECKING:
    import pandas as pd

    from .store import Store

LAYOUTS = (
    *("trident", "clam", "stamp", "eva", "npy", "parquet", "huggingface", "h5ad", "zarr", "safetensors"),
    *("npz", "webdataset", "csv", "projector", "fiftyone", "qupath"),
)

store_argument = click.argument("name", metavar="STORE", shell_complete=options.store_names)
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), help="Blocks read at once (default: one a processor)."
)


def _show(as_json: bool, document: Any, text: str) -> None:
    echo(json.dumps(document, indent=2) if as_json else text)


def _say(text: str) -> None:
    echo(text, err=True)


def _open(bank: str, name: str, *, lenient: bool = False) -> "Store":
    from .bank import Bank

    return Bank(bank).open_name(name, lenient=lenient)


def _all_names(bank: str) -> list[str]:
    """The stores of a bank, which has to be there; says so if it has none."""
    from .bank import Bank

    opened = Bank(bank)
    opened.require()
    names = opened.names()
    if not names:
        echo(f"no stores in {bank}", err=True)
    return names


def _table(path: Path, bank: str, where: str | None = None) -> "pd.DataFrame":
    """The rows of a table that `where` picks, with the content hashes that extract found where it has none.

    The root command hands in the function that looks them up: cache may not import datasets.
    """
    from .table import read_table, select, with_hash

    table = read_table(path)
    complete = "content_hash" in table.columns and len(with_hash(table)) == len(table)
    if path.suffix == ".toml" and not complete:
        look_up = click.get_current_context().find_root().obj["known_hashes"]
        table = table.assign(content_hash=look_up(path, bank))
    return select(table, where)


def _keys(table: Path, bank: str, where: str | None = None) -> Any:
    from .table import keys_of_table

    keys = keys_of_table(_table(table, bank, where))
    if not len(keys):
        raise InvalidRequest(f"{table} has no rows" + (f" of which {where!r} is true" if where else ""))
    return keys


@click.group("cache")
def cache_group() -> None:
    """List, check, repair, combine and export embedding stores.

    STORE is a store's name as `patchbank cache ls` shows it; its beginning is enough.
    """


@cache_group.command("ls")
@options.bank()
@click.option(
    "--table",
    "tables",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Manifest (.toml), CSV or parquet: show how many of its patches each store has. May be repeated.",
)
@options.json()
def ls_command(bank: str, tables: tuple[Path, ...], as_json: bool) -> None:
    """List the stores of a bank, and which data sets they are complete for.

    \b
    Examples:
      patchbank cache ls --bank bank
      patchbank cache ls --bank bank --table ami-br.toml --table atnorm-br.toml
      patchbank cache ls --bank s3://bucket/bank --json
    """
    from .bank import Bank
    from .listing import listing

    entries = listing(Bank(bank), {path.stem: _table(path, bank) for path in tables})
    if as_json:
        echo(json.dumps(entries, indent=2))
        return
    if not entries:
        return echo(f"no stores in {bank}")
    rows: list[list[Any]] = []
    for entry in entries:
        if "damage" in entry:
            rows.append([entry["name"], *[""] * 5, "cannot be read: cache verify", *[""] * len(tables)])
            continue
        shown = [entry[part] for part in ("rows", "dim", "dtype", "precision")]
        size = f"{entry['bytes'] / 2**20:,.1f} MB"
        complete = ["all" if a == b else f"{a}/{b}" for a, b in entry["complete"].values()]
        rows.append([entry["name"], *shown, size, entry["state"], *complete])
    heads = ["store", "rows", "dim", "dtype", "precision", "size", "state", *(t.stem for t in tables)]
    print_table(heads, rows, right=(5,), boxed=False)
    if any(entry.get("state", "finalized") != "finalized" for entry in entries):
        note(
            "Zarr and HDF5 readers see rows that "
            f"`patchbank cache finalize STORE --bank {bank}` has finished."
        )


@cache_group.command("info")
@store_argument
@options.bank()
@options.json()
def info_command(name: str, bank: str, as_json: bool) -> None:
    """Show a store's identity, provenance, blocks and writers.

    \b
    Examples:
      patchbank cache info efficientnet-lite0.full --bank bank
      patchbank cache info dinov2-s.full.cls --bank bank --json
    """
    from .listing import information

    document = information(_open(bank, name))
    _show(as_json, document, "\n".join(f"{key:12} {_indented(value)}" for key, value in document.items()))


def _indented(value: Any) -> str:
    text = json.dumps(value, indent=2) if isinstance(value, dict | list) else str(value)
    return text.replace("\n", "\n" + " " * 13)


@cache_group.command("verify")
@click.argument("names", nargs=-1, metavar="[STORE]...", shell_complete=options.store_names)
@options.bank()
@jobs_option
@options.json()
def verify_command(names: tuple[str, ...], bank: str, jobs: int | None, as_json: bool) -> None:
    """Compare every byte with its checksum; all stores if none is named.

    Exit code 1 if a store is damaged, or if there is none.

    \b
    Examples:
      patchbank cache verify --bank bank
      patchbank cache verify efficientnet-lite0.full --bank bank
    """
    from .verify import verify

    documents: list[dict[str, Any]] = []
    for name in names or _all_names(bank):
        store = _open(bank, name, lenient=True)
        report = verify(store, progress=not as_json, jobs=jobs)
        document: dict[str, Any] = {
            "store": store.name,
            "good": report.good,
            "blocks": report.blocks,
            "rows": report.rows,
            "bytes": report.bytes,
            "damage": [str(damage) for damage in report.damage],
            "notes": report.notes,
        }
        documents.append(document)
        if not as_json:
            verdict = (
                "good"
                if report.good
                else f"{len(report.damage)} damaged: patchbank cache repair {store.name}"
            )
            echo(f"{store.name}: {report.rows} rows in {report.blocks} blocks, {verdict}")
            for line in [*document["damage"], *(f"note: {note}" for note in report.notes)]:
                echo(f"  {line}")
    if as_json:
        echo(json.dumps(documents, indent=2))
    if not documents or not all(document["good"] for document in documents):
        raise click.exceptions.Exit(1)


@cache_group.command("repair")
@store_argument
@options.bank()
@jobs_option
@options.json()
def repair_command(name: str, bank: str, jobs: int | None, as_json: bool) -> None:
    """Take out what is damaged and keep every good row; `patchbank extract` embeds the lost ones again.

    \b
    Examples:
      patchbank cache repair efficientnet-lite0.full --bank bank
    """
    from .verify import repair

    done = repair(_open(bank, name, lenient=True), progress=not as_json, say=_say, jobs=jobs)
    text = [*done.actions, f"{done.lost} rows have to be embedded again: run the same `patchbank extract`"]
    keys = [key.tobytes().hex() for key in done.lost_keys]
    document = {"lost": done.lost, "saved": done.saved, "actions": done.actions, "lost_keys": keys}
    _show(as_json, document, "\n".join(text if done.lost else [*done.actions, "no row was lost"]))


@cache_group.command("gc")
@click.argument("names", nargs=-1, metavar="[STORE]...", shell_complete=options.store_names)
@options.bank()
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=86_400,
    show_default=True,
    help="Keep files younger than this (seconds). Use a small value only while no process writes.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def gc_command(names: tuple[str, ...], bank: str, grace: int, dry_run: bool) -> None:
    """Sweep leftovers of killed writers and packed blocks; published rows are never touched.

    \b
    Examples:
      patchbank cache gc --bank bank --dry-run
      patchbank cache gc efficientnet-lite0.full --bank bank --grace 3600
    """
    from .bank import Bank
    from .verify import gc

    for name in names or _all_names(bank):
        store = _open(bank, name)
        swept = gc(store, grace=grace, dry_run=dry_run)
        verb = "would be removed" if dry_run else "removed"
        echo(f"{store.name}: {len(swept.files)} files, {swept.bytes / 2**20:.1f} MB {verb}")
        if swept.published:
            also = "would be" if dry_run else "were"
            echo(f"  {swept.published} rows missing from the log {also} published again")
    if not names:
        opened = Bank(bank)
        for name in opened.empty_names():  # runs that failed before their first row
            if dry_run or opened.remove_empty(name, grace=grace):
                echo(f"{name}: an empty folder {'would be removed' if dry_run else 'removed'}")


@cache_group.command("rm")
@store_argument
@options.bank()
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm_command(name: str, bank: str, yes: bool) -> None:
    """Remove a store and all its embeddings.

    \b
    Examples:
      patchbank cache rm efficientnet-lite0.full.pooled.0123456789ab --bank bank
      patchbank cache rm efficientnet-lite0.full --bank bank --yes
    """
    from .bank import Bank

    full = Bank(bank).full_name(name)
    if not yes:
        click.confirm(printable(f"Remove {full} from {bank}?"), abort=True)
    Bank(bank).remove(full)
    echo(f"{full} was removed")


@cache_group.command("finalize")
@store_argument
@options.bank()
@options.table
def finalize_command(name: str, bank: str, table: Path | None) -> None:
    """Make plain Zarr or HDF5 arrays of a store, which any reader opens; no second copy.

    With --table its columns (patch_id, label, ...) become string arrays beside them.

    \b
    Examples:
      patchbank cache finalize efficientnet-lite0.full --bank bank
      patchbank cache finalize dinov2-s.full.cls --bank bank --table ami-br.toml
    """
    from .finalize import finalize
    from .table import with_hash

    store = _open(bank, name)
    frame = None if table is None else _table(table, bank)
    if frame is not None and len(with_hash(frame)):  # what was never read is in no store
        frame = with_hash(frame)
    done = finalize(store, frame, say=_say)
    file = store.path if store.backend == "zarr" else f"{store.path}/embeddings.h5"
    echo(f"{done.rows} rows in {done.blocks} chunks ({done.packed} rows were packed): {file}")


@cache_group.command("merge")
@click.argument("sources", nargs=-1, required=True, metavar="BANK...")
@click.option("--into", required=True, help="The bank that gets the rows; created if it does not exist.")
@click.option("--store", "name", help="Only this store (a unique prefix is enough).")
def merge_command(sources: tuple[str, ...], into: str, name: str | None) -> None:
    """Copy missing rows from the stores of the same identity in other banks.

    \b
    Examples:
      patchbank cache merge node1/bank node2/bank --into bank
      patchbank cache merge s3://bucket/bank --into bank --store dinov2-s.full
    """
    from .listing import merge_banks

    for store, copied in merge_banks(into, sources, name):
        echo(f"{store}: {copied} rows copied")


@cache_group.command("subset")
@store_argument
@options.bank()
@click.option("--to", required=True, help="The bank (another folder or URL) that gets the subset.")
@click.option(
    "--table", required=True, type=click.Path(path_type=Path), help="Manifest (.toml), CSV or parquet."
)
@click.option("--where", help="pandas query on the table's columns, as in \"domain == 'hamamatsu'\".")
def subset_command(name: str, bank: str, to: str, table: Path, where: str | None) -> None:
    """Copy the rows of some patches to another bank.

    \b
    Examples:
      patchbank cache subset dinov2-s.full.cls --bank bank --to small --table ami-br.toml
      patchbank cache subset dinov2-s.full.cls -b bank --to small --table all.csv --where "split == 'train'"
    """
    from .bank import Bank
    from .merge import subset

    target = subset(_open(bank, name), _keys(table, bank, where), Bank(to), progress=True)
    echo(f"{target.path}: {len(target)} rows")


@cache_group.command("diff")
@click.argument("first", metavar="STORE", shell_complete=options.store_names)
@click.argument("second", metavar="STORE", shell_complete=options.store_names)
@options.bank()
@click.option("--other-bank", help="The bank of the second store, if it differs.")
@options.table
@options.json()
def diff_command(
    first: str, second: str, bank: str, other_bank: str | None, table: Path | None, as_json: bool
) -> None:
    """How far apart are the vectors of the same patches in two stores?

    \b
    Examples:
      patchbank cache diff dinov2-s.full.cls.1a2b dinov2-s.full.cls.3c4d --bank bank
      patchbank cache diff uni.full uni.full --bank bank --other-bank colleague/bank --json
    """
    from dataclasses import asdict

    from .merge import diff

    keys = None if table is None else _keys(table, bank)
    difference = diff(_open(bank, first), _open(other_bank or bank, second), keys, progress=not as_json)
    lines = [
        f"{difference.shared} patches in both, {difference.only_a} only in the first, "
        f"{difference.only_b} only in the other",
        f"verdict      {difference.verdict}",
        f"identical    {difference.identical}",
    ]
    lines += [
        "             median / 99 % / largest",
        "cosine dist. " + " / ".join(f"{value:.3g}" for value in difference.cosine),
        "|a-b| / |a|  " + " / ".join(f"{value:.3g}" for value in difference.relative),
        f"component    {difference.largest:.3g} at most",
        *(f"worst        {key} {distance:.3g}" for key, distance in difference.worst),
    ] * (difference.identical < difference.shared)  # of equal vectors there is nothing to say
    lines += [f"identity     {part}" for part in difference.parts]
    _show(as_json, {**asdict(difference), "verdict": difference.verdict}, "\n".join(lines))


@cache_group.command("export")
@store_argument
@click.argument("path", type=click.Path(path_type=Path))
@options.bank()
@options.format("layout", LAYOUTS, "What to write.", required=True)
@options.table
@click.option("--where", help="pandas query: only these rows of the table.")
@click.option(
    "--by", help="(trident, clam, stamp, qupath) A folder with one file for each value of this column."
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), help="Of the vectors (default: as stored)."
)
@click.option("--tile-um", type=float, help="(stamp) Edge of a tile in um.")
@click.option("--tile-px", type=int, help="(stamp) Edge of a tile in pixels, as the encoder saw it.")
@click.option("--mpp", type=float, help="(stamp) um per pixel of the table's x and y.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    help="(trident, clam, qupath) KEY=VALUE of the coordinates, such as patch_size_level0=512.",
)
def export_command(
    name: str,
    path: Path,
    bank: str,
    layout: str,
    table: Path | None,
    where: str | None,
    attributes: tuple[str, ...],
    **options: Any,
) -> None:
    """Write embeddings, metadata and provenance in a format that other tools read.

    \b
    Examples:
      patchbank cache export uni.full slides/ --bank bank -f trident --table wsi.toml --by group
      patchbank cache export uni.full ami.parquet --bank bank -f parquet --table ami-br.toml
      patchbank cache export uni.full ami.h5ad -b bank -f h5ad --table ami-br.toml --where "split == 'train'"
      patchbank cache export uni.full clam/ -b bank -f clam --table wsi.toml
      patchbank cache export uni.full slides/ -b bank -f stamp --table wsi.toml --by group \\
          --tile-um 112 --tile-px 224 --mpp 0.5
    """
    from .export.write import export

    if where and table is None:
        raise click.UsageError("--where picks rows of a table: add --table")
    frame = None if table is None else _table(table, bank, where)
    about = dict(_attribute(text) for text in attributes)
    rows = export(_open(bank, name), path, layout, frame, attributes=about, **options)
    echo(f"{path}: {rows} rows")


def _attribute(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as a number where it is one."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--attribute")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


@cache_group.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@options.bank()
@options.encoder(default="", help="That made them [default: what the source says].")
@click.option("--name", "dataset", default="", help="The data set's name [default: the source's].")
@options.out("The manifest to write, NAME.toml by default.")
@click.option(
    "--table", type=options.PATH, help="CSV or parquet of labels, groups, ...: a row a patch, or a slide."
)
@options.columns
@click.option(
    "--join", default="", help="OURS=THEIRS: columns of source and table that belong together; row: by order."
)
@options.choice("--unmatched", "fail", "drop", help="Rows of the source or the table without a partner.")
@click.option("--manifest", type=options.PATH, help="Of these patches, instead of a table: a second encoder.")
@click.option("--key", default="", help="The array or column of embeddings, where it has no usual name.")
@click.option("--revision", default="", help="Of the encoder: sources of one revision share a store.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="As stored (default: the source's).")
@options.described
@click.option("--table-out", type=click.Path(path_type=Path), help="(exports) Write the columns here (CSV).")
@options.backend
def import_command(path: Path, bank: str, table_out: Path | None, backend: str, **settings: Any) -> None:
    """Import embeddings: of another program, with a manifest; or an export of patchbank, bit for bit.

    PATH is a file (.npy, .npz, .h5, .pt, .parquet, .h5ad, .safetensors, .tar, .csv) or a folder: of TRIDENT,
    CLAM, STAMP, eva, slide2vec, Hugging Face data sets, or of one file a slide. An export knows its encoder
    and patches; it needs no other option.

    \b
    Examples:
      patchbank cache import features.npy --table labels.csv --encoder uni --positive tumor --bank bank
      patchbank cache import job/features_uni_v1 --table slides.csv --join group=slide_id --bank bank \\
          --column label=subtype --column group=patient --positive LUAD
      patchbank cache import features_virchow2 --encoder virchow2 --manifest slides.toml --bank bank
      patchbank cache import ami.parquet --bank bank
    """
    from .importing.exports import is_export

    if is_export(path):
        given = [name for name, value in settings.items() if value and name not in _DEFAULTS]
        if given:
            raise click.UsageError(
                f"{path} is an export of patchbank, which knows its encoder and patches: leave out "
                f"{', '.join('--' + name.replace('_', '-') for name in given)}"
            )
        _import_export(path, bank, table_out, backend)
        return
    if table_out is not None:
        raise click.UsageError("--table-out is of exports; a manifest is written to --out")
    settings["columns"] = options.pairs(settings["columns"], "--column")
    settings["mapping"] = options.pairs(settings["mapping"], "--map", empty=True)
    for name in ("classes", "targets"):
        settings[name] = tuple(part.strip() for part in settings[name].split(",") if part.strip())
    known = settings["manifest"] is not None
    if not settings["dataset"]:
        settings["dataset"] = "" if known else _data_set_name(path)
    if settings["out"] is None and not known:
        settings["out"] = Path(f"{settings['dataset']}.toml")
    work = click.get_current_context().find_root().obj["import_embeddings"]
    notes: list[str] = []
    settings = {name: value for name, value in settings.items() if value not in (None, "", (), {})}
    done = work(path, bank=bank, backend=backend, on_note=notes.append, **settings)
    for text in notes:
        note(f"Note: {text}.", err=True)
    echo(f"{done.store.name}: {done.added} of {len(done.manifest)} rows were new")
    if done.file is not None:
        encoder = done.store.identity.encoder["id"]
        echo(f"wrote {done.file}: {len(done.manifest)} patches")
        if done.manifest.header.classes or done.manifest.header.targets:
            echo(f"Next: patchbank probe run {done.file} --bank {bank} --encoder {encoder} -o results")
        else:
            echo("No row has a label: a probe needs a column of them, --column label=NAME, or --table LABELS")


_DEFAULTS = {"unmatched", "licence", "source", "version"}  # options that always have a value


def _data_set_name(path: Path) -> str:
    import re

    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-._") or "imported"


def _import_export(path: Path, bank: str, table_out: Path | None, backend: str) -> None:
    from ..files import check_writable
    from ..texts import write_csv
    from .bank import Bank
    from .importing.exports import import_export

    if table_out is not None:
        check_writable(table_out)
    done = import_export(Bank(bank), path, backend=backend)
    if table_out is not None:
        write_csv(table_out, done.table)
    echo(f"{done.store.name}: {done.added} of {done.rows} rows were new")
    if done.unchecked:
        more = f" and {len(done.unchecked) - 1} more files have" if len(done.unchecked) > 1 else " has"
        echo(
            f"Note: {done.unchecked[0]}{more} no checksums (exported by patchbank 0.1.0): damage in such an "
            "export cannot be detected. Export again with this version to add them.",
            err=True,
        )


@cache_group.command("push")
@store_argument
@click.argument("repo", metavar="ORG/NAME")
@options.bank()
@click.option(
    "--public", is_flag=True, help="Make a new repository public (check the encoder's licence first)."
)
@click.option("--with-table", is_flag=True, help="Send the columns of the finalised table too.")
@click.option("--host-names", is_flag=True, help="Keep the names of the machines that wrote the store.")
@click.option("--replace", is_flag=True, help="Remove rows of the store that only the repository has.")
@click.option("--endpoint", help="URL of another hub.")
def push_command(
    name: str,
    repo: str,
    bank: str,
    public: bool,
    with_table: bool,
    host_names: bool,
    replace: bool,
    endpoint: str | None,
) -> None:
    """Upload a store to a Hugging Face data set repository, with a data card.

    Sent are embeddings, content hashes of the patches and the encoder's description; names of patches, labels
    and groups only with --with-table.

    \b
    Examples:
      patchbank cache push dinov2-s.full.cls my-org/ami-br-embeddings --bank bank
    """
    from .hub import push

    done = push(
        _open(bank, name),
        repo,
        private=not public,
        with_table=with_table,
        host_names=host_names,
        replace=replace,
        endpoint=endpoint,
    )
    echo(f"pushed to {done.url}")
    if done.left_out:
        echo(f"columns that were not sent (--with-table sends them): {', '.join(done.left_out)}")
    if done.removed:
        echo(f"files of an earlier push that were removed (the history keeps them): {len(done.removed)}")


@cache_group.command("pull")
@click.argument("repo", metavar="ORG/NAME")
@options.bank()
@click.option("--store", "name", help="Which store, where the repository holds several.")
@click.option("--revision", help="Branch, tag or commit.")
@click.option("--endpoint", help="URL of another hub.")
def pull_command(repo: str, bank: str, name: str | None, revision: str | None, endpoint: str | None) -> None:
    """Download a store from a Hugging Face data set repository and verify every byte.

    \b
    Examples:
      patchbank cache pull my-org/ami-br-embeddings --bank bank
    """
    from .bank import Bank
    from .hub import pull

    store = pull(repo, Bank(bank), name=name, revision=revision, endpoint=endpoint, progress=True)
    echo(f"{store.path}: {len(store)} rows, verified")
