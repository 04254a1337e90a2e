"""The options that several commands have: the same name, letter, meaning and words in each of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import terminal
from .errors import InvalidRequest

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
BANK = "PATCHBANK_BANK"  # the environment variable


def bank(help: str = "Folder or URL of the embedding stores.", **settings: Any) -> Any:
    """`-b/--bank`, also from PATCHBANK_BANK; required unless `required=False` or a default is given."""
    settings = {"required": "default" not in settings} | settings
    return click.option("-b", "--bank", envvar=BANK, show_envvar=True, help=help, **settings)


def out(help: str, **settings: Any) -> Any:
    """`-o/--out`."""
    settings = {"type": PATH} | settings
    return click.option("-o", "--out", help=help, **settings)


def json(help: str = "Print JSON.") -> Any:
    """`--json`: the same content for programs, on stdout."""
    return click.option("--json", "as_json", is_flag=True, help=help)


def encoder(*name: str, help: str, **settings: Any) -> Any:
    """`-e/--encoder`; cards and the bank's encoders complete it."""
    return click.option("-e", "--encoder", *name, shell_complete=encoder_names, help=help, **settings)


def view(*name: str, help: str, **settings: Any) -> Any:
    """`-v/--view`."""
    return click.option("-v", "--view", *name, help=help, **settings)


def tokens(help: str, **settings: Any) -> Any:
    """`-t/--tokens`."""
    return click.option("-t", "--tokens", help=help, **settings)


def format(name: str, formats: Sequence[str], help: str, **settings: Any) -> Any:
    """`-f/--format`."""
    return click.option("-f", "--format", name, type=click.Choice(formats), help=help, **settings)


def choice(name: str, *words: str, help: str) -> Any:
    """One of several words, the first by default."""
    return click.option(name, type=click.Choice(words), default=words[0], show_default=True, help=help)


jobs = click.option("--jobs", type=int, help="Feature sets probed at once (default: one a processor).")


def _memory(larger: str) -> Any:
    return click.option(
        "--memory",
        metavar="SIZE",
        envvar="PATCHBANK_MEMORY",
        show_envvar=True,
        help=f"For features, as 8GB; larger ones are {larger} (default: half of what is free).",
    )


memory, memory_at_most = _memory("read from a file"), _memory("refused")
sample = click.option(
    "--sample",
    type=int,
    metavar="ROWS",
    help="At most so many rows of a set: of every label, domain and slide the same share (default: all).",
)


# --- what every command has


def _quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        terminal.be_quiet()


def _verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        terminal.be_verbose()


def _log_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        terminal.log_to(value)


def output() -> list[click.Option]:
    """`-q/--quiet`, `--verbose` and `--log-file`, before a command's name or after it."""
    flag: dict[str, Any] = {"is_flag": True, "expose_value": False}
    return [
        click.Option(["-q", "--quiet"], help="No progress bars and no notes.", callback=_quiet, **flag),
        click.Option(
            ["--verbose"], help="Print what libraries log, and tracebacks.", callback=_verbose, **flag
        ),
        click.Option(
            ["--log-file"],
            type=click.Path(path_type=Path, dir_okay=False),
            help="Add what is printed to this file, with times.",
            callback=_log_file,
            expose_value=False,
        ),
    ]


# --- names that a shell completes; nothing is imported for them


def _starting(names: Sequence[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def encoder_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Cards that come with patchbank, and encoders of the bank."""
    shipped = [card.stem for card in (Path(__file__).parent / "manifests" / "encoders").glob("*.toml")]
    stored = [name.partition(".")[0] for name in _stores(ctx)]
    return _starting(list({*shipped, *stored}), incomplete)


def store_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Stores of the bank that --bank or PATCHBANK_BANK names."""
    return _starting(_stores(ctx), incomplete)


def dataset_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Data sets that come with patchbank."""
    shipped = (Path(__file__).parent / "manifests" / "datasets").glob("*.toml")
    return _starting([file.stem for file in shipped], incomplete)


def study_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Studies that come with patchbank, and files."""
    from click.shell_completion import CompletionItem

    shipped = (Path(__file__).parent / "manifests" / "studies").glob("*.toml")
    names = _starting([file.stem for file in shipped if not file.stem.startswith("published")], incomplete)
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


def _stores(ctx: click.Context) -> list[str]:
    """The names of the stores of a local bank, by the folders alone."""
    bank_folder = str(ctx.params.get("bank") or os.environ.get(BANK, ""))
    folder = Path(bank_folder) / "stores"
    if not bank_folder or "://" in bank_folder or not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def together(*options: Any) -> Any:
    """One decorator of several options, which `--help` lists in their order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


# which stores of a bank are read
stores = together(
    encoder("encoders", multiple=True, help="Encoder id; may be repeated."),
    view("views", multiple=True, default=("full",), show_default=True, help="May be repeated."),
    tokens("Token policy (default: the only one in the bank).", multiple=True),
)
stored_as = together(
    click.option("--precision", help="Of the stores to read, where there are several: fp32, bf16, fp16."),
    click.option("--dtype", help="Of the stores to read, where there are several: float16, float32."),
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn at random.")
backend = choice("--backend", "zarr", "hdf5", help="Layout of new stores.")
# how images are read
on_error = choice(
    "--on-error", "fail", "skip", help="At an image that cannot be read: stop, or leave it out and list it."
)
# how an encoder is built
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
weights_dir = click.option(
    "--weights-dir", type=FOLDER, help="Folder of weights, for machines without a network."
)
checkpoint = click.option("--checkpoint", type=PATH, help="File of the encoder's weights.")
trust_code = click.option(
    "--trust-code", is_flag=True, help="Run the Python code that an encoder's card names."
)
trust_remote_code = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code from the encoder's hub repository."
)
# what a user says of a data set of their own
described = together(
    click.option("--positive", default="", help="The positive class, of two."),
    click.option(
        "--classes", default="", metavar="A,B,...", help="The labels in their order. [default: sorted]"
    ),
    click.option("--ordered", is_flag=True, help="They are grades, from the lowest to the highest."),
    click.option(
        "--targets",
        default="",
        metavar="A,B,...",
        help="Instead of labels: columns of numbers that are to be predicted.",
    ),
    click.option("--split", default="", help="The split of rows that have none."),
    click.option("--domain", default="", help="The domain of rows that have none."),
    click.option(
        "--map",
        "mapping",
        multiple=True,
        metavar="OLD=NEW",
        help="Rename a label; of others: group:OLD=NEW, split:0=train, ...; empty: not known. Repeat it.",
    ),
    click.option("--strip", is_flag=True, help="Remove blanks around labels, groups, domains, splits."),
    click.option("--licence", default="not stated", help="Of the images."),
    click.option("--source", default="not stated", help="Where they come from."),
    click.option("--description", default="", help="One line."),
    click.option("--dataset-version", "version", default="1", show_default=True, help="Of the data set."),
    click.option(
        "--group-kind",
        default="",
        metavar="WORD",
        help="What a group is: slide, patient, ... [default: from its column's name]",
    ),
)
columns = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Which of its columns is our label, group, domain, split, x, y, ...; repeat it.",
)
# what is learned
positive = click.option(
    "--positive", help="Which of two classes is the positive one (default: the manifest's)."
)
one_vs_rest = click.option(
    "--one-vs-rest",
    metavar="CLASS",
    help="One of more than two classes against the rest (default: all classes).",
)
folds = click.option(
    "--folds", default="balanced", show_default=True, help="Shipped name, fold file, or a number."
)
fold = click.option(
    "--fold", "only_folds", multiple=True, type=int, help="Train this fold only; may be repeated."
)
bootstrap = click.option(
    "--bootstrap", type=int, default=2000, show_default=True, help="Resamples for the intervals."
)
allow_leaks = click.option(
    "--allow-leaks", multiple=True, help="Kind of leak to report, not to refuse; or all."
)
near_duplicates = click.option(
    "--near-duplicates",
    help="images (default: pixels, embeddings where they are not at hand), embeddings, none, or the CSV of "
    "`datasets check --near --pairs`.",
)
# the table that goes with a store's rows
table = click.option("--table", type=PATH, help="Manifest (.toml), CSV or parquet with content_hash.")


def pairs(values: Sequence[str], option: str, *, empty: bool = False) -> dict[str, str]:
    """KEY=VALUE texts of an option as a dictionary. Raises InvalidRequest; empty: values may be empty."""
    mapping: dict[str, str] = {}
    for value in values:
        key, mark, target = value.partition("=")
        if not mark or not key or not (target or empty) or key in mapping:
            raise InvalidRequest(f"{option} {value!r}: write {option} KEY=VALUE, each key once.")
        mapping[key] = target
    return mapping
