"""`patchbank datasets`: build, check and fetch data sets, make and show folds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..errors import InvalidRequest
from ..options import pairs
from ..terminal import echo, print_table, say

if TYPE_CHECKING:
    import pandas as pd

    from .audit import Audit
    from .declarations import Declaration
    from .manifest import Manifest

SHOWN = 12  # rows of a finding on the terminal
Command = Callable[..., Any]


@click.group("datasets")
def datasets_group() -> None:
    """Tables of patches: list, fetch, build, check, folds."""


@datasets_group.command("ls")
@options.json()
def ls(as_json: bool) -> None:
    """List the public data sets that patchbank has a declaration of.

    \b
    Examples:
      patchbank datasets ls
      patchbank datasets ls --json
    """
    from .declarations import load_declaration, names

    declarations = [load_declaration(name) for name in names()]
    if as_json:
        keys = {"name", "version", "classes", "positive", "ordered", "targets", "licence", "source", "paper",
                "access", "rows", "counts", "groups", "domains", "known_faults", "unverified",
                "description"}  # fmt: skip
        return _json(
            [
                {**entry.model_dump(include=keys), "patches": entry.total, "size": entry.size}
                for entry in declarations
            ]
        )
    print_table(
        ("name", "classes", "patches", "GB", "licence", "to get it"),
        [
            (
                declaration.name,
                _labels(declaration),
                declaration.total or "unknown",
                _gigabytes(declaration),
                declaration.short_licence,
                _way(declaration),
            )
            for declaration in declarations
        ],
        right=(2, 3),
        boxed=False,  # with lines around the cells it is wider than 80 columns
    )
    echo("More: patchbank datasets show NAME. Then: datasets fetch NAME, datasets build NAME --root DIR.")
    echo("For your own images: patchbank datasets build folder|from-csv|hdf5|npz|parquet|wsi --help")
    return None


def _labels(declaration: "Declaration") -> str:
    if count := len(declaration.targets) or declaration.target_count:
        return f"{count} no."
    count = len(declaration.classes) or declaration.class_count
    return f"{count} grades" if declaration.ordered else str(count)


def _gigabytes(declaration: "Declaration") -> str:
    return f"{declaration.size / 1e9:.3g}" if declaration.size else "unknown"


def _download(declaration: "Declaration") -> str:
    """The size of the download with who states it, or how to learn it."""
    if not declaration.size:
        return f"size unknown; {declaration.source} says it"
    stated = declaration.gigabytes_source
    return f"{_gigabytes(declaration)} GB" + (f" ({stated})" if stated else "")


def _way(declaration: "Declaration") -> str:
    """What it takes to get a data set, in a word."""
    return declaration.access.partition(":")[0] if declaration.access else "fetch"


@datasets_group.command("show")
@click.argument("name", metavar="NAME|FILE.toml")
@options.json()
def show(name: str, as_json: bool) -> None:
    """Show what a declaration says of a data set: classes, counts, known faults, how to get it.

    \b
    Examples:
      patchbank datasets show ami-br
      patchbank datasets show mine.toml --json
    """
    from .declarations import load_declaration

    declaration = load_declaration(name)
    if as_json:
        return _json(declaration.model_dump(by_alias=True))
    echo(f"{declaration.name}: {declaration.description or declaration.source}")
    labels = ", ".join(declaration.targets or declaration.classes)
    facts = {
        "targets"
        if declaration.targets
        else "grades, lowest first"
        if declaration.ordered
        else "classes": labels,
        "positive class": declaration.positive,
        "patches": declaration.total or "",
        "groups": declaration.group_kind
        + "".join(f", {split} {n}" for split, n in declaration.groups.items()),
        "licence": declaration.licence,
        "source": declaration.source,
        "paper": declaration.paper,
        "download": _download(declaration),
        "to get it": declaration.access or "".join(f"\n  {archive.url}" for archive in declaration.archives),
        "not verified": ", ".join(declaration.unverified),
    }
    for what, text in facts.items():
        if text:
            echo(f"{what}: {text}")
    for fault in declaration.known_faults:
        say(f"known: {fault}", style="yellow")
    echo(f"build: patchbank datasets build {name} --root DIR")
    return None


# --- build ------------------------------------------------------------------------------------------


class _Builders(click.Group):
    """The builders, and a command for each declaration: of a name, or of a TOML file."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        from .declarations import names

        return _declared_command(cmd_name) if cmd_name.endswith(".toml") or cmd_name in names() else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from ..settings import near
            from .declarations import names

            known = [*self.commands, *names()]
            hint = (
                near(args[0], known) or f"; builders are {', '.join(self.commands)}; `datasets ls` has names"
            )
            raise click.UsageError(f"no builder or data set is called {args[0]!r}{hint}", ctx) from None


@datasets_group.group("build", cls=_Builders, subcommand_metavar="BUILDER|NAME|FILE.toml [OPTIONS]")
def build() -> None:
    """Make a manifest of images: a table with one row a patch, and a header.

    Of a public data set by its name (see `patchbank datasets ls`) or a declaration of your own, else with one
    of the builders below.

    \b
    Examples:
      patchbank datasets build ami-br --root data --out ami-br.toml
      patchbank datasets build ./declared.toml --root data --name mine
      patchbank datasets build folder --root images --name mine --layout "{split}/{label}" --positive tumor
      patchbank datasets build from-csv --root images --table labels.csv --name mine \\
          --column label=diagnosis --column path=file --column group=patient --positive tumor
    """


# what all builders have
_common = options.together(
    options.out("The manifest, NAME.toml by default.", type=click.Path(dir_okay=False)),
    options.on_error,
    click.option("--hashes/--no-hashes", default=None,
                 help="Decode every image now, for its content hash. [default: yes; no for wsi]"),
    options.format("table_format", ["csv", "parquet"], "Of the table. [default: csv up to 200,000 rows]"),
    click.option("--workers", type=click.IntRange(1), help="Threads that decode."),
    options.json(),
)  # fmt: skip


def _own(command: Command) -> Command:
    """The options that describe a data set of the user's own."""
    name = click.option(
        "--name", "dataset", required=True, help="The data set's name; every patch_id starts with it."
    )
    mpp = click.option(
        "--mpp",
        type=click.FloatRange(0, min_open=True),
        help="Micrometres a pixel of the patches; regions of slides are read at it.",
    )
    return name(options.described(mpp(command)))


_ROOT = click.option("--root", required=True, type=click.Path(exists=True), help="Where the files are.")


def _build(
    name: str, root: str, out: str | None, table_format: str | None, as_json: bool, **options: Any
) -> None:
    from .builders import build_manifest, fault_lines
    from .manifest import check_place, classes_note, groups_note, lone_rows_note

    skipped: list[tuple[str, str]] = []
    notes: list[str] = []
    if "mapping" in options:
        options["mapping"] = pairs(options["mapping"], "--map", empty=True)
    options = {key: value for key, value in options.items() if value not in (None, "", {}, ())}
    for key in {"classes", "targets"} & options.keys():
        options[key] = tuple(part.strip() for part in options[key].split(","))
    place = Path(out or f"{options.get('dataset', Path(name).stem)}.toml")
    if place.exists() and place.samefile(name if Path(name).exists() else root):
        raise InvalidRequest(f"{place} is the declaration itself: name the manifest with --out.")
    check_place(place, table_format or "csv")  # before the work, not after it
    manifest = build_manifest(
        name, root, on_skip=lambda *item: skipped.append(item), on_note=notes.append, **options
    )
    notes += filter(None, (groups_note(manifest), lone_rows_note(manifest), classes_note(manifest)))
    file = manifest.save(place, table_format=table_format)
    if as_json:
        return _json(
            {
                "manifest": str(file),
                **_summary(manifest),
                "notes": notes,
                "skipped": [list(item) for item in skipped],
            }
        )
    for line in fault_lines(skipped):
        echo(f"left out: {line}", err=True)
    _show(manifest)
    for note in notes:
        _note(manifest.header.name, note)
    echo(f"wrote {file}: {len(manifest)} patches" + (f", {len(skipped)} left out" if skipped else ""))
    return None


def _declared_command(name: str) -> click.Command:
    """The command of a declared data set."""

    def run(**options: Any) -> None:
        _build(name, **options)

    run.__doc__ = f"""Of the files of the data set {Path(name).name}.

    \b
    Examples:
      patchbank datasets fetch {name} --to data
      patchbank datasets build {name} --root data --out {Path(name).stem}.toml
    """
    called = click.option("--name", "dataset", default="", help="Another name for the data set.")
    command = click.command(name)(_ROOT(called(_common(run))))
    command.params += options.output()  # which the other commands have from `cli`
    return command


@build.command("folder")
@_ROOT
@_own
@click.option("--layout", default="", help='What the folders\' names mean. [default: "{label}"]')
@click.option("--pattern", default="", help="Instead: a regular expression with the groups label, group, ...")
@click.option(
    "--suffixes", default="", metavar=".A,.B,...", help="Files of these are images too, such as .jp2,.gif."
)
@_common
def folder(suffixes: str, **options: Any) -> None:
    """Images in folders (or in a zip or tar) whose names say what they are.

    \b
    Examples:
      patchbank datasets build folder --root images --name mine --positive tumor
      patchbank datasets build folder --root images.zip --name mine --positive tumor \\
          --layout "{split}/{label}/{group}"
      patchbank datasets build folder --root tcga --name mine --positive tumor \\
          --pattern "(?P<label>[^/]+)/(?P<group>TCGA-..-....)"
    """
    _build("folder", suffixes=tuple(filter(None, suffixes.split(","))), **options)


@build.command("from-csv")
@_ROOT
@click.option(
    "--table", required=True, type=click.Path(exists=True, dir_okay=False), help="A CSV or parquet file."
)
@_own
@options.columns
@click.option("--path-format", default="", help='A path made of columns: "{label}/{file}.png".')
@click.option(
    "--sep",
    "separator",
    type=click.Choice([",", ";", "tab", "|"]),
    help="Between the cells. [default: as the first line has it]",
)
@_common
def from_csv(columns: Sequence[str], separator: str | None, **options: Any) -> None:
    """Images that a table lists, one row a patch.

    \b
    Examples:
      patchbank datasets build from-csv --root images --table labels.csv --name mine --positive tumor
      patchbank datasets build from-csv --root images --table labels.csv --name mine --positive tumor \\
          --column label=diagnosis --column group=patient --path-format "{diagnosis}/{uid}.png"
    """
    separator = "\t" if separator == "tab" else separator
    _build("from-csv", columns=pairs(columns, "--column"), separator=separator, **options)


@build.command("hdf5")
@_ROOT
@_own
@click.option(
    "--images", multiple=True, required=True, metavar="SPLIT=FILE",
    help='HDF5 files under the root, a folder, or "slides/*.h5"; repeat it.',
)  # fmt: skip
@click.option("--labels", multiple=True, metavar="SPLIT=FILE", help="HDF5 files with the labels.")
@click.option("--meta", multiple=True, metavar="SPLIT=FILE", help="CSVs with one row a patch, see --column.")
@click.option("--array", default="", help="The images' array. [default: x]")
@click.option("--labels-array", default="", help="The labels' array. [default: y]")
@click.option("--group-by-file", is_flag=True, help="Each file is a group: a slide.")
@options.columns
@_common
def hdf5(columns: Sequence[str], **options: Any) -> None:
    """Patches in HDF5 arrays, as PatchCamelyon has them.

    \b
    Examples:
      patchbank datasets build hdf5 --root pcam --name pcam --classes normal,tumor --positive tumor \\
          --images train=camelyonpatch_level_2_split_train_x.h5 \\
          --labels train=camelyonpatch_level_2_split_train_y.h5 \\
          --meta train=camelyonpatch_level_2_split_train_meta.csv --column group=wsi
      patchbank datasets build hdf5 --root h5 --name mine --images "train=train/*.h5" \\
          --images "test=test/*.h5" --group-by-file --positive tumor
    """
    for key in ("images", "labels", "meta"):
        files: dict[str, list[str]] = {}
        for value in options[key]:
            ((split, file),) = pairs([value], f"--{key}").items()
            files.setdefault(split, []).append(file)
        options[key] = files
    _build("hdf5", columns=pairs(columns, "--column"), **options)


@build.command("npz")
@_ROOT
@_own
@_common
def npz(**options: Any) -> None:
    """Patches in one npz, as MedMNIST has them (train_images, train_labels, ...).

    \b
    Examples:
      patchbank datasets build npz --root breastmnist.npz --name breastmnist --classes malignant,normal \\
          --positive malignant
    """
    _build("npz", **options)


@build.command("parquet")
@_ROOT
@_own
@click.option("--image", default="", help="The image column. [default: the one with embedded images]")
@options.columns
@_common
def parquet(columns: Sequence[str], **options: Any) -> None:
    """Patches in parquet files, as Hugging Face's image data sets are stored.

    \b
    Examples:
      patchbank datasets build parquet --root hub/data --name mine --positive tumor --column group=patient
    """
    _build("parquet", columns=pairs(columns, "--column"), **options)


@build.command("wsi")
@_ROOT
@_own
@click.option("--coordinates", required=True, type=click.Path(exists=True),
              help="A CSV (slide, x, y), a .h5 of TRIDENT or CLAM, or a folder of them.")  # fmt: skip
@click.option("--size", type=click.IntRange(1), help="Pixels a side, with a CSV (or a .h5 without).")
@click.option("--level", type=click.IntRange(0), help="The pyramid's level to read at, instead of --mpp.")
@click.option("--mpp0", type=click.FloatRange(0, min_open=True),
              help="Micrometres a level-0 pixel, of slides that do not say it.")  # fmt: skip
@click.option("--border", default="white", show_default=True,
              help="What lies outside of the slide: white, black, RRGGBB, or crop.")  # fmt: skip
@click.option("--slides", type=click.Path(exists=True, dir_okay=False),
              help="A CSV with a row a slide: slide, label, group, domain, split, mpp0.")  # fmt: skip
@options.columns
@_common
def wsi(columns: Sequence[str], **options: Any) -> None:
    """Regions of whole-slide images, by coordinates (pixels of level 0, upper left corner).

    \b
    Examples:
      patchbank datasets build wsi --root slides --coordinates regions.csv --size 256 --mpp 0.5 --name mine
      patchbank datasets build wsi --root slides --coordinates trident/20x_256px_0px_overlap/patches \\
          --name mine --slides slides.csv --positive tumor
    """
    _build("wsi", columns=pairs(columns, "--column"), **options)


# --- check ------------------------------------------------------------------------------------------


@datasets_group.command("check")
@click.argument("manifests", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--root", type=click.Path(exists=True, file_okay=False), help="Where the images are now.")
@click.option(
    "--near", is_flag=True, help="Look for shifted near-duplicates too, and list them all: n^2, slow."
)
@click.option(
    "--pairs",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --near: write the pairs as CSV.",
)
@click.option(
    "--declaration",
    "declared",
    type=click.Path(exists=True, dir_okay=False),
    help="Of your own: compare with what it declares.",
)
@click.option("--workers", type=click.IntRange(1), help="Threads that decode.")
@options.json()
@click.pass_context
def check(
    ctx: click.Context,
    manifests: Sequence[str],
    root: str | None,
    declared: str | None,
    near: bool,
    file: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Look at every image: unreadable and changed files, duplicates, contradictions, leaks, known facts.

    Images that are nearly identical are named where they lie in several splits, data sets (all MANIFESTS are
    compared), labels or groups; so are patches of two data sets at one place of a slide.
    Ends with status 1 where images are lost or changed, splits or data sets leak, or known facts are not met.

    \b
    Examples:
      patchbank datasets check ami-br.toml
      patchbank datasets check ami-br.toml atnorm-br.toml --near --json
      patchbank datasets check ami-br.toml atnorm-br.toml --near --pairs near.csv
    """
    from ..texts import write_csv
    from .audit import audit, between, near_duplicates
    from .declarations import load_declaration
    from .manifest import load_manifest
    from .overlaps import same_places, shared_slides

    if file and not near:
        raise click.UsageError("--pairs writes what --near finds: add --near")
    loaded = [load_manifest(path, root=root) for path in manifests]
    own = load_declaration(declared) if declared else None
    audits = [
        audit(manifest, facts=own if own and own.name == manifest.header.name else None, workers=workers)
        for manifest in loaded
    ]
    pairs = near_duplicates(loaded, workers=workers) if near else None
    across, unsought = (between(pairs), "") if pairs is not None else _near_identical(loaded, audits, workers)
    if across is not None:  # identical images of one set are in its audit
        across = across[~across["identical"] | (across["set_a"] != across["set_b"])]
    leaking = across is not None and bool(
        (across["identical"] & across[["split_a", "split_b"]].isin(["train", ""]).any(axis=1)).any()
    )
    places = same_places(loaded)
    leaking |= bool(places[["split_a", "split_b"]].isin(["train", ""]).any(axis=None))
    slides = shared_slides(loaded)
    if file and pairs is not None:
        write_csv(file, pairs)
    if as_json:
        tables = {"near_duplicates": pairs, "across": across, "same_places": places, "shared_slides": slides}
        records = {key: table.to_dict(orient="records") for key, table in tables.items() if table is not None}
        note = {"note": unsought} if unsought else {}
        _json({"audits": [item.to_json() for item in audits], **records, **note})
    else:
        for item in audits:
            _show_audit(item)
        if pairs is not None:
            _finding("near-duplicates", pairs[~pairs["identical"]].drop(columns=["set_a", "set_b"]))
        if across is not None:
            _show_across(across)
        _show_places(places, slides)
        _note(", ".join(item.name for item in audits), unsought)
    if leaking or not all(item.ok for item in audits):
        ctx.exit(1)


def _near_identical(manifests: Sequence[Any], audits: Sequence[Any], workers: int | None) -> tuple[Any, str]:
    """The pairs, or None, and why these are too many to look for."""
    from .audit import near_identical
    from .clusters import MOST, MOST_PAIRS, TooManyAlikeError

    why = f"these are more than {MOST} rows"
    if sum(map(len, manifests)) <= MOST:
        try:
            return near_identical(manifests, audits, workers=workers), ""
        except TooManyAlikeError:
            why = f"more than {MOST_PAIRS} pairs look alike"
    return None, f"near-identical images were not looked for: {why}; --near does, slowly"


# --- fetch ------------------------------------------------------------------------------------------


@datasets_group.command("fetch")
@click.argument("name", shell_complete=options.dataset_names)
@click.option(
    "--to", "folder", default="data", show_default=True, type=click.Path(file_okay=False), help="Folder."
)
@click.option("--url", default="", help="Download from here instead.")
@click.option("--sha256", default="", help="The archive's checksum; another one is refused.")
@click.option("--again", is_flag=True, help="Download and replace what is there.")
@options.json()
def fetch_command(name: str, folder: str, url: str, sha256: str, again: bool, as_json: bool) -> None:
    """Download a public data set: resumed where it broke off, checked, safely unpacked.

    NAME is one of `patchbank datasets ls`, or the TOML file of a declaration. What takes a form or an account
    is named, with what to do.

    \b
    Examples:
      patchbank datasets fetch ami-br --to data
      patchbank datasets fetch ami-br --to data --again
    """
    from .declarations import load_declaration
    from .fetch import fetch

    declaration = load_declaration(name)
    got = fetch(declaration, folder, url=url, sha256=sha256, again=again)
    if as_json:
        return _json([{**vars(fetched), "folder": str(fetched.folder)} for fetched in got])
    for archive in got:
        echo(f"{'unpacked to' if archive.new else 'already there:'} {archive.folder} ({archive.bytes} bytes)")
        echo(
            f"sha256 {archive.sha256}"
            + (" (as pinned)" if archive.pinned else " (not pinned; recorded for next time)")
        )
        for file, state in archive.files.items():
            echo(f"{file}: {state}")
    echo(f"licence: {declaration.licence}")
    if declaration.access:
        say(f"to get the rest: {declaration.access}", style="yellow")
    echo(f"next: patchbank datasets build {name} --root {folder if len(got) > 1 else got[0].folder}")
    return None


# --- folds ------------------------------------------------------------------------------------------


@datasets_group.group("folds")
def folds() -> None:
    """Folds are files: no group in two folds, and no library upgrade changes them."""


@folds.command("make")
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False))
@click.option("--n-splits", type=click.IntRange(2), default=5, show_default=True, help="How many folds.")
@options.seed
@click.option("--split", default="train", show_default=True, help='Of these rows; "" = all.')
@options.out("FOLDS.toml", required=True, type=click.Path(dir_okay=False))
def folds_make(manifest: str, n_splits: int, seed: int, split: str, out: str) -> None:
    """Make grouped, stratified, seeded folds.

    \b
    Examples:
      patchbank datasets folds make mine.toml --n-splits 5 --seed 0 --out mine.folds.toml
    """
    from pathlib import Path

    from .folds import effective_groups, make_folds
    from .manifest import load_manifest

    rows = load_manifest(manifest)
    rows = rows.select(split) if split else rows
    made = make_folds(
        rows.table["label"].to_numpy(), effective_groups(rows), n_splits=n_splits, seed=seed,
        name=Path(out).stem, dataset=rows.header.name,
    )  # fmt: skip
    _show_folds(made.assign(effective_groups(rows)), rows)
    echo(f"wrote {made.save(out)}")


@folds.command("show")
@click.argument("folds_name", metavar="FOLDS")
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False))
@click.option("--split", default="train", show_default=True, help='Of these rows; "" = all.')
@options.json()
def folds_show(folds_name: str, manifest: str, split: str, as_json: bool) -> None:
    """Show what each fold holds of a manifest's rows. FOLDS is a shipped name or a file.

    \b
    Examples:
      patchbank datasets folds show paper ami-br.toml
      patchbank datasets folds show mine.folds.toml mine.toml
    """
    from .folds import effective_groups, load_folds
    from .manifest import load_manifest

    rows = load_manifest(manifest)
    rows = rows.select(split) if split else rows
    loaded = load_folds(folds_name)
    assigned = loaded.assign(effective_groups(rows))
    if as_json:
        return _json(
            {"name": loaded.name, "n_splits": loaded.n_splits, "fold_of_group": dict(loaded.fold_of_group)}
        )
    _show_folds(assigned, rows)
    echo(f"{loaded.name}: {loaded.made_with}")
    return None


# --- printing ---------------------------------------------------------------------------------------


def _json(value: Any) -> None:
    import json

    echo(json.dumps(value, indent=2, default=str))


def _summary(manifest: "Manifest") -> dict[str, Any]:
    table = manifest.table
    return {
        "name": manifest.header.name,
        "rows": len(manifest),
        "groups": int(table["group"][table["group"] != ""].nunique()),
        "groups_known": manifest.groups_known,
        "domains": {str(k): int(v) for k, v in table["domain"].value_counts(sort=False).items()},
        "counts": manifest.counts().to_dict(orient="records"),
    }


def _show(manifest: "Manifest") -> None:
    counts = manifest.counts()
    print_table(tuple(counts.columns), counts.to_numpy().tolist())


def _note(name: str, text: str) -> None:
    """A yellow line, for what is not a fault and must be known. Nothing for ""."""
    if text:
        say(f"{name}: {text}{'' if text.endswith('?') else '.'}", style="yellow")


def _finding(what: str, table: "pd.DataFrame") -> None:
    if len(table):
        more = f" (the first {SHOWN} of {len(table)})" if len(table) > SHOWN else ""
        print_table(
            [str(c) for c in table.columns], table.head(SHOWN).to_numpy().tolist(), title=f"{what}{more}"
        )


_FINDINGS = {  # of an audit: title, and what to do about it
    "counts": "",
    "changed": "the pixels are not those of the manifest; build it again",
    "contradictions": "identical images with several labels; correct or remove them",
    "group_leaks": "groups in several splits; move whole groups",
    "duplicate_leaks": "identical images in several splits; remove one side",
    "split_contents": "identical images of several groups, which `probe` refuses; give them one group",
}


def _show_audit(audit: "Audit") -> None:
    from .builders import fault_lines

    for line in fault_lines(
        list(zip(audit.unreadable["patch_id"], audit.unreadable["message"], strict=True))
    ):
        say(f"unreadable: {line}")
    for what, meaning in _FINDINGS.items():
        title = what.replace("_", " ").replace("split contents", "contents in several groups")
        _finding(title + (f": {meaning}" if meaning else ""), getattr(audit, what))
    _finding(
        "facts that are not met; is the download complete?", audit.facts[~audit.facts["ok"].astype(bool)]
    )
    counts: dict[str, int | str] = {
        "unreadable": len(audit.unreadable),
        "changed": len(audit.changed),
        "repeated images": len(audit.duplicates) - audit.duplicate_groups,
        "images with contradictory labels": audit.contradictory_groups,
        "groups in several splits": len(audit.group_leaks),
        "images in several splits": len(audit.duplicate_leaks),
        "images in several groups": len(audit.split_contents),
    }
    if len(audit.facts):
        counts["known facts met"] = f"{int(audit.facts['ok'].sum())} of {len(audit.facts)}"
    counted = "".join(f", {count} {what}" for what, count in counts.items() if count)
    _note(audit.name, audit.note)
    say(f"{audit.name}: {audit.rows} patches, {audit.unique} distinct images{counted}.")
    say(f"{audit.name}: {'ok' if audit.ok else 'NOT ok'}")


_ACROSS = {  # of `audit.between`: what is shown beside the ids, what it means
    "splits": ("split", "what is trained on is scored too; remove one side"),
    "data sets": ("set", "do not train on one and score the other; remove one side"),
    "labels": ("label", "one of them is wrong; correct or remove it"),
    "groups": ("group", "folds may part them; give both one group"),
}


def _show_across(pairs: "pd.DataFrame") -> None:
    for identical, what in ((True, "identical"), (False, "nearly identical")):
        for kind, (column, meaning) in _ACROSS.items():
            of_kind = pairs[(pairs["between"] == kind) & (pairs["identical"] == identical)]
            columns = ["patch_a", "patch_b", f"{column}_a", f"{column}_b"]
            _finding(f"{what} images in two {kind}", of_kind[columns])
            if len(of_kind):
                say(f"{len(of_kind)} pairs of {what} images in two {kind}: {meaning}.", style="yellow")


def _show_places(places: "pd.DataFrame", slides: "pd.DataFrame") -> None:
    """Patches of two data sets at one place of a slide, and slides whose name is in several."""
    columns = ["slide", "patch_a", "patch_b", "set_a", "set_b", "distance"]
    _finding("the same place of a slide in two data sets", places[columns])
    if len(places):
        say(
            f"{len(places)} pairs of patches at one place of a slide: {_ACROSS['data sets'][1]}.",
            style="yellow",
        )
    if len(slides):
        names = ", ".join(slides["slide"].head(SHOWN)) + (", ..." if len(slides) > SHOWN else "")
        say(
            f"{len(slides)} slides have one name in several data sets ({names}): if they are the same, do "
            "not train on one set and score the other.",
            style="yellow",
        )


def _show_folds(assigned: Any, rows: "Manifest") -> None:
    import pandas as pd

    from .manifest import groups_note

    table = rows.table.assign(fold=assigned)
    counts = pd.crosstab(table["fold"], table["label"])
    shown = counts.rename(columns={"": "no label"}).assign(rows=counts.sum(axis=1))
    if rows.groups_known:
        shown["groups"] = table[table["group"] != ""].groupby("fold")["group"].nunique()
    print_table(
        ["fold", *shown.columns],
        [[fold, *row] for fold, row in zip(shown.index, shown.to_numpy().tolist(), strict=True)],
    )
    _note(rows.header.name, groups_note(rows))
