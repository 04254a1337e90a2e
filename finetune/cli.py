"""`patchbank finetune`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..errors import InvalidRequest
from ..terminal import echo, note, print_table

if TYPE_CHECKING:
    from ..probe.results.files import ProbeResult


@click.group("finetune")
def finetune_group() -> None:
    """Fine-tune encoders: LoRA, full training, attention pooling; plans, models, leaks."""


@finetune_group.command("plan")
@click.argument("results", type=options.PATH)
@click.argument("train", type=options.PATH)
@click.argument("tests", nargs=-1, type=options.PATH)
@options.out("The plan's file.", default=Path("plan.toml"), show_default=True)
@click.option(
    "--recipe", default=("lora",), show_default=True, multiple=True, help="To train with; may be repeated."
)
@options.encoder("encoders", multiple=True, metavar="ID=SPEC", help="How an encoder is loaded (a card file).")
@click.option(
    "--metric", default="auroc", show_default=True, help="auroc, balanced_accuracy; of numbers r2, pearson."
)
@click.option("--target", type=float, default=0.9, show_default=True, help="Weak: lower bound below this.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Behind: adjusted p below this.")
@click.option(
    "--min-gap", type=float, default=0.01, show_default=True, help="Behind: difference at least this."
)
@click.option(
    "--recovery",
    type=float,
    default=0.3,
    show_default=True,
    help="Expected gain, as a fraction of 1 - value.",
)
@click.option(
    "--gain-per-hour", type=float, default=0.0, show_default=True, help="Minimum expected gain per hour."
)
@click.option("--max-hours", type=float, default=48.0, show_default=True, help="Maximum hours per encoder.")
@click.option(
    "--keep-within",
    type=float,
    default=1.0,
    show_default=True,
    help="Leave out encoders whose upper bound is further below the best one's lower bound.",
)
@click.option(
    "--measure/--no-measure", default=True, help="Time a few steps on this machine to estimate the cost."
)
@options.device
@options.json("Print the plan as JSON.")
def plan_command(
    results: Path,
    train: Path,
    tests: tuple[Path, ...],
    out: Path,
    recipe: tuple[str, ...],
    encoders: tuple[str, ...],
    measure: bool,
    device: str,
    as_json: bool,
    **thresholds: Any,
) -> None:
    """Choose which encoders to fine-tune, with reasons, from the RESULTS of `patchbank probe run`.

    The rule is written in the plan; edit the plan as you like before `finetune run --plan`.

    \b
    Examples:
      patchbank finetune plan results ami-br.toml atnorm-br.toml -o plan.toml
      patchbank finetune plan results ami-br.toml --target 0.8 --max-hours 4 --gain-per-hour 0.02
      patchbank finetune plan results ami-br.toml --recipe lora --recipe midog25 -e mine=mine.toml
    """
    from ..files import check_writable
    from .plan import Rule, make_plan

    check_writable(out)
    plan = make_plan(
        results,
        train=train,
        tests=tests,
        recipe=recipe,
        encoders=dict(_pair(text, "--encoder", "ID=SPEC") for text in encoders),
        rule=Rule(**thresholds),
        measure=measure,
        device=device,
    )
    plan.save(out)
    if as_json:
        return echo(json.dumps(plan.model_dump(), indent=1))
    heads, rows = plan.table()
    print_table(heads, rows, lead=heads.index("recipe") + 1)
    chosen = len(plan.chosen)
    echo(
        f"wrote {out}: {chosen} of {len(rows)} to train" + ("" if chosen else "; edit `train` to change that")
    )
    if chosen:
        echo(f"next: patchbank finetune run --plan {out} --out models")


@finetune_group.command("run")
@click.argument("train", required=False, type=options.PATH)
@click.argument("tests", nargs=-1, type=options.PATH)
@click.option(
    "--plan",
    "plan_file",
    type=options.PATH,
    help="Train what this plan says, instead of TRAIN and --encoder.",
)
@options.encoder(help="Encoder: card, timm:NAME, hf:ORG/NAME, card file.")
@click.option(
    "--recipe", default="lora", show_default=True, help="lora, full, midog25, paper, or a TOML file."
)
@options.out("Folder for the models and results.", required=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
@options.folds
@options.fold
@options.device
@options.checkpoint
@options.weights_dir
@click.option(
    "--engine", default="local", show_default=True, help="local, or ray: folds and models side by side."
)
@click.option("--threads", type=int, default=0, help="CPU threads of a fold (default: torch's).")
@click.option(
    "--workers", type=int, default=0, show_default=True, help="Processes that read and augment, a fold."
)
@options.bootstrap
@options.positive
@options.one_vs_rest
@options.near_duplicates
@options.allow_leaks
@options.trust_code
@options.json("Print results.json instead of the table.")
def run_command(
    train: Path | None,
    tests: tuple[Path, ...],
    plan_file: Path | None,
    encoder: str | None,
    recipe: str,
    settings: tuple[str, ...],
    folds: str,
    only_folds: tuple[int, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune one encoder on TRAIN, one model a fold, and score TESTS; or all encoders of a plan.

    TRAIN's header says what is learned: two classes, several, grades (ordered = true), or numbers. The same
    command continues an interrupted or killed run after its last complete epoch.

    \b
    Examples:
      patchbank finetune run ami-br.toml atnorm-br.toml -e dinov2-s --folds balanced -o models
      patchbank finetune run ami-br.toml -e virchow2 --recipe paper --folds paper -o models
      patchbank finetune run ami-br.toml -e uni --set rank=16 --set view=center:0.5 --fold 1 -o models
      patchbank finetune run gleason.toml -e uni --set loss=ranked -o models
      patchbank finetune run ami-br.toml -e timm:tf_efficientnetv2_m --recipe full -o models
      patchbank finetune run --plan plan.toml --engine ray -o models
    """
    from ..datasets.manifest import load_manifest
    from ..settings import near
    from .recipe import Recipe
    from .run import run_finetune, run_plan

    overrides = dict(_setting(text) for text in settings)
    for key in overrides.keys() - Recipe.model_fields.keys():
        raise InvalidRequest(f"--set {key}: no option of a recipe{near(key, Recipe.model_fields)}")
    said = {name: value for name, value in options.items() if value is not None}
    given = {"only_folds": list(only_folds) or None, **said, **overrides}
    if plan_file is not None:
        if train or encoder or recipe != "lora":
            raise InvalidRequest(
                "--plan sets the training data, encoders and recipes: omit TRAIN, -e and --recipe"
            )
        results = run_plan(plan_file, **given)
    else:
        if train is None or encoder is None:
            raise InvalidRequest("name a manifest and an encoder (TRAIN -e ENCODER), or a --plan")
        results = [
            run_finetune(
                train=load_manifest(train),
                tests=[load_manifest(one) for one in tests],
                encoder=encoder,
                recipe=recipe,
                folds=int(folds) if folds.isdigit() else folds,
                **given,
            )
        ]
    if as_json:
        return echo(json.dumps([result.to_json() for result in results], indent=1))
    _scores(*results)


@finetune_group.command("recipe")
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
def recipe_command(name: str | None, markdown: bool) -> None:
    """Show every option of a recipe: its default, what NAME (a recipe or a TOML file) sets, what it means.

    \b
    Examples:
      patchbank finetune recipe
      patchbank finetune recipe midog25
    """
    from ..texts import markdown_table
    from .recipe import load_recipe, options_table

    heads, rows = options_table(load_recipe(name) if name else None)
    if markdown:
        echo(markdown_table(heads, rows, words=len(heads)))
    else:
        print_table(heads, rows, boxed=False)


@finetune_group.command("attention")
@click.argument("train", type=options.PATH)
@click.argument("tests", nargs=-1, type=options.PATH)
@options.encoder(required=True, help="Encoder id, as the bank has it.")
@options.bank("Folder that `patchbank extract --tokens patches` wrote.")
@options.view(default="full", show_default=True, help="As extracted.")
@options.stored_as
@click.option("--token-dim", type=int, help="Width of one token (default: of the encoder's card).")
@options.out("Folder for the models and results.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="heads, lr, epochs, choose_on, ..."
)
@options.folds
@options.fold
@options.bootstrap
@options.positive
@options.one_vs_rest
@options.json("Print results.json instead of the table.")
def attention_command(
    train: Path,
    tests: tuple[Path, ...],
    settings: tuple[str, ...],
    folds: str,
    only_folds: tuple[int, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train attention pooling over cached patch tokens: between probe and LoRA, without the encoder.

    \b
    Examples:
      patchbank extract ami-br.toml -e dinov2-s --tokens patches --bank bank
      patchbank finetune attention ami-br.toml -e dinov2-s --bank bank -o models
      patchbank finetune attention ami-br.toml -e dinov2-s --bank bank --set choose_on=inner --fold 1
    """
    from ..datasets.manifest import load_manifest
    from .attention import run_attention

    result = run_attention(
        train=load_manifest(train),
        tests=[load_manifest(one) for one in tests],
        folds=int(folds) if folds.isdigit() else folds,
        only_folds=list(only_folds) or None,
        settings=dict(_setting(text) for text in settings),
        **options,
    )
    if as_json:
        return echo(json.dumps(result.to_json(), indent=1))
    _scores(result)


@finetune_group.command("ls")
@click.argument("folder", type=options.PATH)
@options.json()
def ls_command(folder: Path, as_json: bool) -> None:
    """List the fine-tuned models below FOLDER, and the runs that are not finished.

    \b
    Examples:
      patchbank finetune ls models
      patchbank finetune ls models --json
    """
    from .listing import list_models

    rows = list_models(folder)
    if as_json:
        return echo(json.dumps(rows, indent=1))
    print_table(
        ("model", "state", "epochs", "best", "validation", "hours"),
        [(r["folder"], r["state"], r["epoch"], r["best_epoch"], _validation(r), r["hours"]) for r in rows],
    )


@finetune_group.command("show")
@click.argument("folder", type=options.PATH)
@options.json("Print the card.")
def show_command(folder: Path, as_json: bool) -> None:
    """Show one model's card: what it was trained on, how, and what to type to use it as an encoder.

    \b
    Examples:
      patchbank finetune show models/dinov2-s+lora/fold-1
      patchbank finetune show models/dinov2-s+lora/fold-1 --json
    """
    from .checkpoint import check_files, read_card
    from .listing import describe_card

    card = read_card(folder)
    check_files(folder, card)
    echo(json.dumps(card, indent=1) if as_json else describe_card(folder, card))


@finetune_group.command("compare")
@click.argument("models", type=options.PATH)
@click.argument("probe", type=options.PATH)
@click.option("--features", help="Feature set of the probe (default: the one that its folds chose).")
@click.option("--fold", type=int, help="Train rows of this fold only.")
@options.json()
def compare_command(models: Path, probe: Path, features: str | None, fold: int | None, as_json: bool) -> None:
    """Compare a fine-tuned model's scores with a probe's, on the same patches, with paired intervals.

    \b
    Examples:
      patchbank finetune compare models/dinov2-s+lora results
      patchbank finetune compare models/dinov2-s+lora results --features dinov2-s/center:0.5/cls --fold 1
    """
    from .compare import compare_results

    records = compare_results(models, probe, features=features, fold=fold)
    if as_json:
        return echo(json.dumps(records, indent=1))
    print_table(
        (
            "scored on",
            "patches",
            "metric",
            records[0]["ours"],
            records[0]["theirs"],
            "difference",
            "p (Holm)",
        ),
        [
            (
                r["dataset"],
                r["n"],
                r["metric"],
                f"{r['value_ours']:.3f}",
                f"{r['value_theirs']:.3f}",
                f"{r['difference']:+.3f}" + _bounds(r["low"], r["high"]),
                "-" if r["p_holm"] is None else f"{r['p_holm']:.2g}",
            )
            for r in records
        ],
    )


@finetune_group.command("unseen")
@click.argument("folder", type=options.PATH)
@click.argument("manifest", type=options.PATH)
@options.out("Manifest to write, NAME.toml.", required=True)
def unseen_command(folder: Path, manifest: Path, out: Path) -> None:
    """Write the manifest of the patches that a fold's model was not trained on.

    Only these may be embedded with `--encoder finetuned:FOLDER`: embeddings of the others have seen their
    labels.

    \b
    Examples:
      patchbank finetune unseen models/dinov2-s+lora/fold-1 ami-br.toml -o ami-br.unseen-1.toml
      patchbank extract ami-br.unseen-1.toml -e finetuned:models/dinov2-s+lora/fold-1 --bank bank
    """
    from ..datasets.manifest import load_manifest
    from .adapted import unseen

    loaded = load_manifest(manifest)
    rest = unseen(folder, loaded)
    rest.save(out)
    echo(f"wrote {out}: {len(rest)} of {len(loaded)} patches")


def _validation(row: dict[str, Any]) -> str:
    named = {"auroc": "AUROC", "r2": "R2"}
    return ", ".join(f"{title} {row[name]:.3f}" for name, title in named.items() if name in row) or "-"


def _bounds(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    """The two sides of the first "="."""
    first, equals, second = text.partition("=")
    if not (equals and first):
        raise InvalidRequest(f"{option} {text!r} is not {form}")
    return first, second


def _setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE; the value is TOML where it is (numbers, true, lists), else text."""
    import tomllib

    key, value = _pair(text, "--set", "KEY=VALUE")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _scores(*results: "ProbeResult") -> None:
    from ..probe.results.display import SHOWN, TITLES, Table, interval

    shown = ("r2", "pearson") if any(result.results.targets for result in results) else SHOWN[:2]
    rows = [
        [one.dataset, one.features, one.role_name, one.n, *(interval(one.estimate(m)) for m in shown)]
        for result in results
        for one in result.results.whole()
    ]
    Table(["scored on", "model", "by", "patches", *(TITLES[m] for m in shown)], rows, left=3).show()
    for text in dict.fromkeys(text for result in results for text in result.results.notes):
        note(f"Note: {text}.")
