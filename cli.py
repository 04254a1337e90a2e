"""The command `patchbank`: one subcommand per folder, loaded when it is called."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from . import options, terminal
from .errors import PatchbankError
from .terminal import echo, note, print_table
from .version import __version__

SHOWN_ROWS = 20  # of predictions, on a terminal
# command -> (module, attribute); the modules import click alone at their top (held by tests/test_cli.py)
COMMANDS = {
    "quickstart": (".cli", "quickstart_command"),
    "run": (".cli", "run_command"),
    "doctor": (".extract.cli", "doctor_command"),
    "datasets": (".datasets.cli", "datasets_group"),
    "encoders": (".extract.cli", "encoders_group"),
    "extract": (".extract.cli", "extract_command"),
    "cache": (".cache.cli", "cache_group"),
    "probe": (".probe.cli", "probe_group"),
    "finetune": (".finetune.cli", "finetune_group"),
    "predict": (".cli", "predict_command"),
}


class LazyGroup(click.Group):
    """Imports a subcommand's module only when that subcommand is called."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            return super().main(*args, standalone_mode=standalone_mode, **extra)
        finally:
            if standalone_mode:  # else `main` below has something to say yet
                terminal.reset()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        return _with_output_options(getattr(import_module(module, __package__), attribute))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from .settings import nearest

            alike = nearest(args[0], COMMANDS) if args else ""
            if not alike:
                raise
            message = f"{error.message.rstrip('.')}. Did you mean {alike!r}?"
            raise click.UsageError(message, ctx) from None


def _with_output_options(command: click.Command) -> click.Command:
    """The command with the options that all have, and those below it too."""
    if not any(param.name == "quiet" for param in command.params):
        command.params += options.output()
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _with_output_options(below)
    return command


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `patchbank quickstart`: it runs offline in under a minute. "
    "`patchbank COMMAND --help` has examples.",
)
@click.version_option(__version__, prog_name="patchbank")
@click.pass_context
def patchbank(ctx: click.Context) -> None:
    """Extract patch embeddings once, cache them, probe them on a CPU."""
    ctx.obj = {"known_hashes": _known_hashes, "import_embeddings": _import_embeddings}


patchbank.params += options.output()


def _known_hashes(manifest: Path, bank: str) -> list[str]:
    """What `cache` asks for the content hashes of a manifest: it may not import `datasets`."""
    from .datasets.hashes import known_hashes

    return known_hashes(manifest, bank)


def _import_embeddings(embeddings: Path, **settings: Any) -> Any:
    """What `cache import` and `probe run` call for other programs' embeddings; neither imports `extract`."""
    from .extract.external import import_embeddings

    return import_embeddings(embeddings, **settings)


@click.command("quickstart")
@options.out(
    "Folder for the sample, the bank and the results.",
    default="patchbank-quickstart",
    show_default=True,
    type=options.FOLDER,
)
@options.json("Print the results and the seconds of each step as JSON.")
def quickstart_command(out: Path, as_json: bool) -> None:
    """Run the main job offline: sample -> extract -> cache -> probe -> result table.

    The patches are generated (synthetic, with a real signal, in four stains); the encoder and every step are
    those of real work. Takes half a minute on two cores.

    \b
    Examples:
      patchbank quickstart
      patchbank quickstart --out /tmp/try --json
    """
    from .quickstart import quickstart

    done = quickstart(out)
    if as_json:
        reports = {"first": asdict(done.first), "second": asdict(done.second)}
        echo(json.dumps({"seconds": done.seconds, **reports, "results": done.result.to_json()}))
        return
    first, second = done.first, done.second
    echo(
        f"Extracted {first.embedded} embeddings in {done.seconds['extract']:.1f} s; "
        f"a second run: {second.forwards} forward passes, {done.seconds['extract again']:.1f} s."
    )
    done.result.show()
    echo("The patches are synthetic: they show only that the pipeline works.")
    echo("Next:")
    echo(f"  patchbank datasets check {out}/data/*.toml")
    echo(f"  patchbank cache ls --bank {out}/bank")
    echo(f"  patchbank probe report {out}/results -o report.html")


@click.command("run")
@click.argument("study", shell_complete=options.study_names)
@click.option(
    "--data",
    default=".",
    show_default=True,
    type=options.FOLDER,
    help="Folder with NAME.toml of every data set (`patchbank datasets build`).",
)
@options.bank("Folder of embeddings.", default="bank", show_default=True, type=options.PATH)
@options.out("Folder of results [default: NAME].", type=options.FOLDER)
@options.weights_dir
@click.option("--checkpoint", "checkpoints", multiple=True, help="ENCODER=FILE of weights; may be repeated.")
@click.option("--only", multiple=True, help="System to run, by name; may be repeated (default: all).")
@options.device
@options.choice(
    "--finetune",
    "none",
    "plan",
    "all",
    help="Train the LoRA and end-to-end systems: those that the plan chooses, or all.",
)
@options.jobs
@options.memory
@options.trust_code
@click.option(
    "--dry-run", is_flag=True, help="Print the plan (what is cached, what it takes) and do nothing."
)
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="With --dry-run: time a forward pass of encoders that were not run yet.",
)
@click.option("--strict", is_flag=True, help="Exit 1 where a system is blocked, not only where one failed.")
@options.json("Print steps and results as JSON.")
def run_command(
    study: str,
    out: Path | None,
    checkpoints: tuple[str, ...],
    only: tuple[str, ...],
    dry_run: bool,
    measure: bool,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a whole study: extract -> probe -> (plan -> fine-tune) -> report, for every system it names.

    STUDY is a TOML file, or the name of one that comes with patchbank (ami-br, ami-br-2025, patch-benchmarks,
    patch-benchmarks-small). What is cached is not done again: a second run does nothing, a changed grid
    extracts nothing. Ctrl-C or a crash at any moment: run the same command to continue. A system whose
    weights are unavailable is a row that says so.

    \b
    Examples:
      patchbank run ami-br --dry-run
      patchbank run ami-br
      patchbank run ami-br-2025 --weights-dir /mnt/weights --finetune plan
      patchbank run mine.toml --only "UNI" --checkpoint uni=uni.bin -o results
    """
    from .cache.identity import safe_name
    from .probe.report.study_tables import frame, show
    from .probe.report.tasks import show as show_tasks
    from .steps import Places
    from .study import plan_study, run_study
    from .study_file import load_study
    from .study_tasks import plan_tasks, run_tasks

    wanted = load_study(study).only(only)
    out = out or Path(safe_name(wanted.name))
    where = Places(out=out, checkpoints=_checkpoints(checkpoints), progress=not as_json, **options)
    say = (lambda text: echo(text, err=True)) if as_json else echo
    if dry_run:
        steps = (plan_tasks if wanted.tasks else plan_study)(wanted, where, measure=measure)
        lines = json.dumps({"steps": _plain(steps)}) if as_json else "\n".join(step.line() for step in steps)
        echo(lines)
        if strict and any(step.state == "blocked" for step in steps):
            raise click.exceptions.Exit(1)
        return
    if wanted.tasks:
        done = run_tasks(wanted, where, say=say)
        table, files = done.table, done.files
        show_results = partial(show_tasks, table, done.missing, title=wanted.title)
    else:
        done = run_study(wanted, where, say=say)
        table, files = frame(done.page), done.files if done.page.result is not None else []
        show_results = partial(show, done.page)
    if as_json:
        results = json.loads(table.to_json(orient="records"))
        echo(json.dumps({"seconds": done.seconds, "steps": _plain(done.steps), "results": results}))
    else:
        show_results()
        wrote = f"\nWrote {', '.join(map(str, files))}." if files else ""
        echo(f"{'Everything was cached' if done.idle else 'Done'} in {done.seconds:.1f} s.{wrote}")
    if done.failed or (strict and done.blocked):
        raise click.exceptions.Exit(1)


def _plain(steps: Sequence[Any]) -> list[dict[str, Any]]:
    return [step.to_json() for step in steps]


def _checkpoints(texts: Sequence[str]) -> dict[str, Path]:
    """Encoder -> file, of ENCODER=FILE."""
    files = {}
    for text in texts:
        encoder, equals, file = text.rpartition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not ENCODER=FILE", param_hint="--checkpoint")
        files[encoder] = Path(file)
    return files


@click.command("predict")
@click.argument("model")
@click.argument("source", type=options.PATH)
@options.out("CSV to write; or a folder, into which slides get GeoJSON and heat maps too.")
@click.option(
    "--coordinates",
    type=options.PATH,
    help="Of slides: a CSV with slide, x, y, or TRIDENT's or CLAM's .h5 files.",
)
@click.option("--size", type=int, default=0, help="Of patches from a CSV: pixels a side.")
@click.option("--level", type=int, help="Of patches from a CSV: the slide's level (default: 0).")
@click.option(
    "--mpp",
    type=float,
    help="Of patches from a CSV: micrometres a pixel, instead of a level; of images: theirs.",
)
@click.option("--mpp0", type=float, help="Micrometres a level-0 pixel, of slides that do not say it.")
@click.option(
    "--suffixes", default="", metavar=".A,.B,...", help="Files of these are images too, such as .jp2,.gif."
)
@options.bank("Of a probe: folder of embeddings, read and added to (default: none are kept).", required=False)
@click.option("--features", help="Of a probe: another feature set than the one its folds chose.")
@click.option(
    "--role",
    type=click.Choice(["refit", "ensemble"]),
    help="Of a probe: the refit (default), or its folds' mean.",
)
@options.encoder("encoders", multiple=True, metavar="ID=SPEC", help="Of a probe: how an encoder is loaded.")
@options.device
@click.option(
    "--precision", help="Of a probe: to embed in (default: what it was fitted on; on a CPU not fp16)."
)
@click.option("--batch-size", type=int, help="Patches in a forward pass (default: as in extract).")
@click.option("--workers", type=int, help="Threads (of fine-tuned models processes) that read images.")
@click.option("--tta", is_flag=True, help="Of fine-tuned models: mean over the 8 flips and quarter turns.")
@options.on_error
@options.checkpoint
@options.weights_dir
@options.trust_code
@options.json("Print the rows as JSON.")
def predict_command(
    model: str,
    source: Path,
    out: Path | None,
    encoders: tuple[str, ...],
    suffixes: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Predict SOURCE with a MODEL: a probe's results, or a fine-tuned model.

    MODEL is the folder of `patchbank probe run` (or a copy of its probe.json and probe.safetensors), a probe
    on the Hugging Face hub (hf:OWNER/NAME, hf:OWNER/NAME@REVISION), or the folder of `patchbank finetune
    run`: a fold's, or the one above, whose mean counts. SOURCE is a folder of images, one image, a manifest,
    a zip, tar, .h5, .npz or .parquet with images, or slides with --coordinates; for a probe on features of
    another program, a file or folder of such features. Neither the training data nor a bank is needed. A row
    is called positive where its calibrated probability reaches the threshold beside it.

    \b
    Examples:
      patchbank predict results images -o predictions.csv
      patchbank predict results patch.png
      patchbank predict hf:my-lab/mitoses images -o predictions.csv
      patchbank predict results slide.svs --coordinates slide.h5 -o predictions
      patchbank predict results slides --coordinates patches.csv --size 224 --mpp 0.5 -o predictions
      patchbank predict models/dinov2-s+lora images --tta -o predictions.csv
    """
    from .files import check_folder_writable, check_writable
    from .prediction import predict
    from .texts import write_csv

    is_file = out is not None and out.suffix.lower() == ".csv"
    if out is not None:
        (check_writable if is_file else check_folder_writable)(out)
    odd = [text for text in encoders if "=" not in text]
    if odd:
        raise click.BadParameter(f"{odd[0]!r} is not ID=SPEC", param_hint="--encoder")
    predictions = predict(
        model,
        source,
        encoders=dict(text.split("=", 1) for text in encoders),
        suffixes=tuple(filter(None, suffixes.split(","))),
        on_note=lambda text: note(f"{source}: {text}.", err=as_json),
        progress=not as_json,
        **options,
    )
    files = []
    if out is not None:
        files.append(write_csv(out if is_file else out / "predictions.csv", predictions.table))
    if out is not None and not is_file:
        from .slides import slide_files, write_slides

        if (slide_files(predictions) != "").any():
            files += write_slides(predictions, out)
    if as_json:
        echo(predictions.table.to_json(orient="records"))
    else:
        _show_predictions(predictions, files)


def _show_predictions(predictions: Any, files: Sequence[Path]) -> None:
    """What was left out, the first rows where no file has them, counts, and the files."""
    table = predictions.table
    for _, why in predictions.skipped:
        note(f"left out: {why}", err=True)
    if not files:
        _show_rows(table)
    counts = (
        "numbers"
        if "prediction" not in table
        else ", ".join(f"{n} {name}" for name, n in table["prediction"].value_counts().items())
    )
    seconds = predictions.seconds
    parts = ", ".join(f"{name} {seconds[name]:.1f} s" for name in ("encoder", "images", "model"))
    images = f"{len(table)} image{'s' if len(table) != 1 else ''}"
    echo(f"{images} in {seconds['all']:.1f} s ({parts}): {counts}")
    if len(files) > 6:
        echo(f"Wrote {', '.join(map(str, files[:5]))}, {len(files) - 5} more.")
    elif files:
        echo(f"Wrote {', '.join(map(str, files))}.")


def _show_rows(table: Any) -> None:
    """The first rows; the file has all of them."""
    shown = [name for name in table if str(name).startswith(("path", "probability", "prediction"))]
    shown = [name for name in shown if not str(name).startswith("prediction_fold_")]  # each model's
    rows = [
        [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
        for row in table[shown].head(SHOWN_ROWS).itertuples(index=False)
    ]
    print_table([str(name) for name in shown], rows, right=range(1, len(shown) - 1))
    if len(table) > SHOWN_ROWS:
        echo(f"... {len(table) - SHOWN_ROWS} more; -o FILE.csv writes all")


def main(args: list[str] | None = None) -> None:
    """Run the command line; known errors become one message and an exit code."""
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "160")  # tables for a file or a pipe are not cut to 80 columns
    try:
        terminal.plain_warnings()
        code = patchbank.main(args=args, prog_name="patchbank", standalone_mode=False)
    except click.exceptions.Abort as error:  # click's name for Ctrl-C; published blocks stay published
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more, while Python ends: no traceback
        notes = getattr(error.__cause__, "__notes__", [])
        kept = " ".join(notes) or "What was committed is kept; run the same command to continue."
        echo(f"Interrupted. {kept}", err=True)
        code = 130
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and error.option_name == "-v":  # the letter of --view
            error = click.NoSuchOption("-v", f"{error.message} Did you mean '--verbose'?", ctx=error.ctx)
        error.show()
        code = error.exit_code
    except PatchbankError as error:
        terminal.trace(error)
        echo(f"Error: {error}", err=True)
        for note in getattr(error, "__notes__", []):
            echo(f"  {note}", err=True)
        code = error.exit_code
    except BrokenPipeError:  # `patchbank cache ls | head`
        sys.stderr.close()
        code = 141
    except OSError as error:  # a name that is too long, a folder that may not be read
        where = f"{error.filename}: " if error.filename is not None else ""
        echo(f"Error: {where}{error.strerror or error}", err=True)
        code = 1
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        echo(f"Error: a file name contains a NUL character ({error})", err=True)
        code = 1
    finally:
        terminal.reset()
    sys.exit(code if isinstance(code, int) else 0)
