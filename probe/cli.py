"""`patchbank probe`: probe cached embeddings, report the results."""

import json
from pathlib import Path
from typing import Any

import click

from .. import options
from ..errors import PatchbankError
from ..terminal import echo, note, say


@click.group("probe")
def probe_group() -> None:
    """Probe cached embeddings on a CPU: sweeps, intervals, reports."""


@probe_group.command("run")
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("tests", nargs=-1, type=click.Path(path_type=Path))
@options.bank("Folder that `patchbank extract` wrote.", required=False)
@click.option(
    "--table", type=options.PATH, help="Where TRAIN is a file of embeddings: CSV or parquet of labels."
)
@options.columns
@options.stores
@click.option(
    "--features",
    multiple=True,
    help='A feature set written out, ENCODER[/VIEW[/TOKENS]]; "A + B" puts columns side by side.',
)
@options.out("Folder for results and predictions.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with a table [probe].")
@click.option("--probe", help="logistic (default), knn, centroid (SimpleShot), ridge, svm, mlp.")
@click.option("--solver", help="exact (default), or a published recipe: paper-sgd, thunder, eva; hest.")
@click.option(
    "--preprocess",
    multiple=True,
    help="standardize (default), l2, whiten, none (default of knn, centroid); may be repeated.",
)
@click.option("-C", "C", help="Grid of inverse penalties, as 1e-4,1e-2,1 (default: 40, 1e-6 .. 10).")
@click.option("--k", help="Grid of neighbours, for knn (default: 200,100,50,20,10,5).")
@click.option("--alpha", help="Grid of penalties, for ridge and mlp.")
@click.option("--components", type=int, help="Principal components to fit on, where targets are numbers.")
@click.option(
    "--per-target/--one-alpha",
    default=None,
    help="Where targets are numbers: a penalty for each (default), or one for all.",
)
@click.option("--hidden", type=int, help="Hidden units, for mlp (default: 128).")
@click.option("--metric", help="cosine (default) or euclidean, for knn.")
@click.option("--temperature", type=float, help="Neighbours weigh exp(cosine / temperature), for knn.")
@click.option("--class-weight", multiple=True, help="balanced (default), none, votes (soft labels).")
@click.option("--select", help="log_loss (default), auroc or balanced_accuracy; r2 (default) or pearson.")
@click.option(
    "--select-on", metavar="SPLIT", help="folds (default), or TRAIN's own split that chooses, such as val."
)
@click.option("--folds", help="balanced (default), another shipped name, a fold file, or a number.")
@click.option(
    "--inner-folds",
    help="What chooses inside each fold: a number of folds, or shared, the other folds (default of 5 to 11).",
)
@click.option("--repeats", type=int, help="Runs, each with folds of another seed: SD over them (default: 1).")
@options.positive
@options.one_vs_rest
@click.option("--bootstrap", type=int, help="Resamples for the intervals (default: 2000; 0: none).")
@click.option("--interval", help="jackknife (default), bca or percentile; all over whole groups.")
@click.option("--domains", help="Leave-one-domain-out and domain matrix for: chosen (default), all, none.")
@options.stored_as
@options.near_duplicates
@options.allow_leaks
@click.option("--seed", type=int, help="Of folds and resamples (default: 0).")
@options.sample
@options.jobs
@options.memory
@options.choice("--backend", "loky", "threading", "ray", help="ray: a Ray cluster, or a local one.")
@options.json("Print results.json instead of the table.")
def run_command(
    train: Path,
    tests: tuple[Path, ...],
    config: Path | None,
    as_json: bool,
    out: Path | None,
    table: Path | None,
    columns: tuple[str, ...],
    **options: Any,
) -> None:
    """Probe embeddings: fit on TRAIN's split "train", score its other splits and every manifest in TESTS.

    Hyperparameters are chosen on grouped folds of the train rows (nested), never on test rows. TRAIN may be
    embeddings of another program, a file or folder, as `cache import` takes them.

    \b
    Examples:
      patchbank probe run ami-br.toml atnorm-br.toml --bank bank --encoder dinov2-s -o results
      patchbank probe run ami-br.toml --bank bank --encoder uni --encoder virchow2 --json > results.json
      patchbank probe run ami-br.toml --bank bank --encoder dinov2-s --view full --view center:0.5
      patchbank probe run ami-br.toml --bank bank --features "dinov2-s/center:0.5/cls + dinov2-s/full/cls"
      patchbank probe run ami-br.toml --bank bank --encoder uni --select auroc --folds paper
      patchbank probe run ami-br.toml --bank bank --encoder uni --solver paper-sgd --folds paper
      patchbank probe run features.npy --table labels.csv --column label=diagnosis --positive tumor
    """
    from ..datasets.manifest import load_manifest
    from .config import read_settings
    from .run import run_probe

    settings = read_settings(config) if config else {}
    settings |= {name: value for name, value in options.items() if value not in (None, ())}
    for grid in ("C", "k", "alpha"):
        if options[grid] is not None:
            settings[grid] = _numbers(options[grid])
    for name in ("folds", "inner_folds"):
        if (given := options[name]) is not None:
            settings[name] = int(given) if given.isdigit() else given
    if train.suffix == ".toml":
        if table is not None or columns:
            raise click.UsageError("--table and --column are of embeddings; a manifest has its table")
        if options["bank"] is None:
            raise click.UsageError("--bank is missing: the folder that `patchbank extract` wrote")
        manifest = load_manifest(train)
    else:
        manifest = _imported(train, table, columns, settings, quiet=as_json)
    result = run_probe(train=manifest, tests=[load_manifest(path) for path in tests], out=out, **settings)
    if as_json:
        echo(json.dumps(result.to_json()))
        return
    result.show()
    if out is not None:
        echo(f"Wrote {out}/results.json, results.csv, predictions.parquet, probe.json, probe.safetensors.")
        echo(f"Next: patchbank probe report {out} -o report.html")


def _imported(
    train: Path, table: Path | None, columns: tuple[str, ...], settings: dict[str, Any], *, quiet: bool
) -> Any:
    """The manifest of embeddings of another program, which are in `settings["bank"]` then: the user's, or one
    for this command only.
    """
    from tempfile import TemporaryDirectory

    from ..options import pairs

    import_embeddings = click.get_current_context().find_root().obj["import_embeddings"]
    encoders = settings.get("encoders", ())
    if len(encoders) > 1 or settings.get("features"):
        raise click.UsageError(f"{train} has the embeddings of one encoder: name it with one --encoder")
    if settings.get("bank") is None:
        temporary = TemporaryDirectory(prefix="patchbank-")
        settings["bank"] = click.get_current_context().with_resource(temporary)
    try:
        done = import_embeddings(
            train,
            bank=settings["bank"],
            table=table,
            columns=pairs(columns, "--column"),
            encoder=encoders[0] if encoders else "",
            unnamed=True,
            positive=settings.pop("positive", ""),
            on_note=lambda text: note(f"Note: {text}.", err=quiet),
        )
    except PatchbankError as error:
        if any(option in str(error) for option in ("--join", "--key", "--dtype", "--targets")):
            error.add_note("`patchbank cache import` has this option, and writes a manifest for `probe run`.")
        raise
    settings["encoders"] = [done.store.identity.encoder["id"]]
    settings["tokens"] = [done.store.identity.tokens]
    return done.manifest


@probe_group.command("few-shot")
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("tests", nargs=-1, type=click.Path(path_type=Path))
@options.bank("Folder that `patchbank extract` wrote.")
@options.stores
@click.option("--features", multiple=True, help="A feature set written out, as for `probe run`.")
@options.stored_as
@click.option("--probe", default="centroid", show_default=True, help="centroid, knn, ridge, svm or mlp.")
@click.option("--preprocess", help="standardize, l2, whiten, none (default: as in `probe run`).")
@click.option("--shots", default="1,2,4,8,16,32,64", show_default=True, help="Patches of each class.")
@click.option("--repeats", type=int, default=20, show_default=True, help="Draws of the shots.")
@options.seed
@options.positive
@options.one_vs_rest
@options.near_duplicates
@options.allow_leaks
@options.sample
@options.memory_at_most
@options.out("CSV of every draw.")
@options.json("Print means and deviations as JSON.")
def few_shot_command(
    train: Path, tests: tuple[Path, ...], shots: str, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Fit a probe on k patches of each class of TRAIN, score its other splits and TESTS.

    \b
    Examples:
      patchbank probe few-shot ami-br.toml atnorm-br.toml --bank bank --encoder dinov2-s
      patchbank probe few-shot ami-br.toml --bank bank --encoder uni --probe ridge --shots 8,64 -o shots.csv
    """
    from ..datasets.manifest import load_manifest
    from ..files import check_writable
    from ..texts import write_csv
    from .fewshot import run_few_shot, summarise

    options = {name: value for name, value in options.items() if value not in (None, ())}
    if out is not None:
        check_writable(out)
    curve = run_few_shot(
        train=load_manifest(train),
        tests=[load_manifest(path) for path in tests],
        shots=[int(k) for k in _numbers(shots)],
        on_note=lambda text: note(f"Note: {text}.", err=as_json),
        **options,
    )
    if out is not None:
        write_csv(out, curve)
    summary = summarise(curve)
    if as_json:
        echo(summary.to_json(orient="records"))
        return
    from .results.display import Table

    wide = summary.assign(
        text=[f"{m:.3f} ± {s:.3f}" for m, s in zip(summary["mean"], summary["sd"], strict=True)]
    )
    grid = wide.pivot_table(
        index=["evaluation", "metric", "features"],
        columns="shots",
        values="text",
        aggfunc="first",
        sort=False,
    )
    Table(
        [*map(str, grid.index.names), *(f"{k} shots" if k != 1 else "1 shot" for k in grid.columns)],
        [
            [*(index if isinstance(index, tuple) else (index,)), *row]
            for index, row in zip(grid.index, grid.to_numpy(), strict=True)
        ],
        left=3,
    ).show(title="Few-shot curves: mean and standard deviation over the draws")


@probe_group.command("robustness")
@click.argument("manifest", type=click.Path(path_type=Path))
@options.bank("Folder that `patchbank extract` wrote.")
@options.stores
@click.option("--features", multiple=True, help="A feature set written out, as for `probe run`.")
@options.stored_as
@click.option("-k", "--neighbours", "k", type=int, help="Nearest patches (default: chosen by their vote).")
@click.option(
    "--iterations", type=int, default=20, show_default=True, help="Draws for the performance drop; 0: none."
)
@click.option(
    "--trials", type=int, default=10, show_default=True, help="Runs of k-means a pair; 0: no clustering."
)
@options.seed
@options.sample
@options.memory_at_most
@options.out("Folder for robustness.json; `probe report` of it shows the tables.")
@options.json("Print robustness.json instead of the tables.")
def robustness_command(manifest: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how much embeddings are of the domain (centre, scanner) instead of the class.

    Robustness index, performance drop and clustering score of PathoROB; how well the domain can be predicted;
    retrieval; agreement of the views of a patch; alignment of encoders. MANIFEST needs classes and domains.

    \b
    Examples:
      patchbank probe robustness ami-br.toml --bank bank -e dinov2-s -e efficientnet-lite0
      patchbank probe robustness ami-br.toml --bank bank -e uni -v full -v d4:1 -v center:0.75 -o results
    """
    from ..datasets.manifest import load_manifest
    from ..files import check_folder_writable
    from .report.sections.robustness import robustness
    from .results.display import Table
    from .robustness import run_robustness

    if out is not None:
        check_folder_writable(out)
    options = {name: value for name, value in options.items() if value not in (None, ())}
    result = run_robustness(
        load_manifest(manifest),
        on_note=lambda text: note(text, err=True),
        **options,
    )
    if out is not None:
        result.save(out)
    if as_json:
        echo(json.dumps(result.to_json()))
        return
    for part in robustness(result.model_copy(update={"notes": []})):
        if isinstance(part, Table):
            part.show()
        else:
            say(part.replace("**", ""), prose=True)
    if out is not None:
        echo(f"Wrote {out}/robustness.json.")


@probe_group.command("ensemble")
@click.argument("members", nargs=-1, required=True, metavar="RESULTS RESULTS ...")
@options.out("Folder of the result: a row a member and the ensemble's.")
@click.option("--name", default="ensemble", show_default=True, help="Of the ensemble, in tables.")
@click.option(
    "--weights",
    type=click.Choice(["folds", "equal"]),
    default="folds",
    show_default=True,
    help="Chosen on scores out of fold, or the same for all.",
)
@options.json("Print results.json instead of the tables.")
def ensemble_command(
    members: tuple[str, ...], out: Path | None, name: str, weights: str, as_json: bool
) -> None:
    """Combine systems (probes, fine-tuned models) into one, and compare it with each of them, paired.

    RESULTS are folders of `probe run` or `finetune run`, on the same train rows and folds; RESULTS::FEATURES
    is another feature set than the chosen one. Weights are chosen on scores of the train rows out of fold,
    never on test sets.

    \b
    Examples:
      patchbank probe ensemble results models/dinov2-s+lora -o both
      patchbank probe ensemble results::dinov2-s/full/cls results::uni/full/cls --weights equal -o both
    """
    from ..files import check_folder_writable
    from .ensemble import ensemble_systems, read_members, tables_of

    if out is not None:
        check_folder_writable(out)
    result = ensemble_systems(read_members(members), name=name, weights=weights)
    if out is not None:
        result.save(out)
    if as_json:
        return echo(json.dumps(result.to_json(), indent=1))
    for title, table in tables_of(result, name).items():
        table.show(title=title)
    for text in result.results.notes:
        note(text)
    if out is not None:
        echo(f"Wrote {out}; next: patchbank probe report {out} -o report.html")


@probe_group.command("report")
@click.argument("results", type=click.Path(path_type=Path))
@options.out("File to write: .html or .md.")
@click.option("--no-images", is_flag=True, help="Leave the thumbnails of errors out.")
@click.option(
    "--errors",
    type=click.IntRange(1),
    default=12,
    show_default=True,
    help="Images of each kind of error; six are seen at once.",
)
@click.option("--figures", type=click.Path(path_type=Path), help="Folder for the plots as files for print.")
@options.format(
    "formats", ["pdf", "svg", "png"], "Of the figures; may be repeated (default: all three).", multiple=True
)
def report_command(
    results: Path,
    out: Path | None,
    no_images: bool,
    errors: int,
    figures: Path | None,
    formats: tuple[str, ...],
) -> None:
    """Write RESULTS (the folder of `probe run`) as one HTML file that needs nothing else, or as Markdown.

    --figures writes ROC, precision-recall and calibration plots, decision curves, forest plots and domain
    matrices, in the sizes and fonts of print (needs matplotlib: pip install 'patchbank[figures]').

    \b
    Examples:
      patchbank probe report results -o report.html
      patchbank probe report results -o report.md
      patchbank probe report results --figures figures --format pdf
    """
    from .report.write import write_report
    from .results.files import ProbeResult

    if out is None and figures is None:
        raise click.UsageError(
            "name a file to write (-o report.html), a folder for figures (--figures), or both"
        )
    if formats and figures is None:
        raise click.UsageError("--format is of figures: name a folder for them with --figures")
    result = ProbeResult.load(results)
    if out is not None:
        echo(f"Wrote {write_report(result, out, images=not no_images, errors=errors)}.")
    if figures is not None:
        from .report.figures import FORMATS, write_figures

        files = write_figures(result, figures, formats=formats or FORMATS)
        echo(f"Wrote {len(files)} files into {figures}.")


@probe_group.command("push")
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--features", help="Another feature set than the one that the folds chose.")
@click.option(
    "--role", type=click.Choice(["refit", "ensemble"]), help="The refit (default), or its folds' mean."
)
@click.option(
    "--public", is_flag=True, help="Make a new repository public (check the encoder's licence first)."
)
@click.option("--endpoint", help="URL of another hub (default: HF_ENDPOINT, or huggingface.co).")
def push_command(
    results: Path, repo: str, features: str | None, role: str | None, public: bool, endpoint: str | None
) -> None:
    """Upload the probe of RESULTS to a model repository of the Hugging Face hub, with a model card.

    \b
    Examples:
      patchbank probe push results my-org/mitosis-probe
      patchbank probe push results my-org/mitosis-probe --role ensemble --public
    """
    from .hub import push_probe
    from .model import ProbeModel

    probe = ProbeModel.load(results, features=features, role=role)
    echo(push_probe(probe, repo, private=not public, endpoint=endpoint))


@probe_group.command("pull")
@click.argument("repo", metavar="ORG/NAME")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--revision", help="Commit of the repository.")
@click.option("--endpoint", help="URL of another hub (default: HF_ENDPOINT, or huggingface.co).")
def pull_command(repo: str, folder: Path, revision: str | None, endpoint: str | None) -> None:
    """Download a probe of the Hugging Face hub into FOLDER, for `patchbank predict`.

    \b
    Examples:
      patchbank probe pull my-org/mitosis-probe probe
    """
    from .hub import pull_probe

    probe = pull_probe(repo, folder, revision=revision, endpoint=endpoint)
    echo(f"Wrote {folder}: {probe.about.features}, {', '.join(probe.classes)}")
    echo(f"Next: patchbank predict {folder} images -o predictions.csv")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1e-4,1e-2,1") from error
