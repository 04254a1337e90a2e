"""`patchbank extract`, `patchbank encoders` and `patchbank doctor`."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .. import options
from ..terminal import echo

# a cluster that takes its machine back sends SIGTERM, a terminal that closes SIGHUP: publish as after Ctrl-C
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stoppable() -> Iterator[None]:
    """The first stop publishes what was computed; the second is left to the system, which kills at once."""
    before = {number: signal.getsignal(number) for number in STOPS}
    hook = sys.unraisablehook

    def missed(error: Any) -> None:
        """A second stop while the handlers are changed: Python would print that it is ignored, and go on."""
        if isinstance(error.exc_value, OSError) and "race condition" in str(error.exc_value):
            signal.raise_signal(signal.SIGTERM)
        hook(error)

    def stop(number: int, frame: object) -> None:
        sys.unraisablehook = missed
        for each in STOPS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\nStopping: what was computed is published. Once more stops at once.\n")
        raise KeyboardInterrupt

    try:
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):  # nohup, or set from C
                signal.signal(number, stop)
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@click.command("extract")
@click.argument(
    "manifests", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@options.encoder(multiple=True, help="Card, timm:NAME or hf:ORG/NAME; may be repeated.")
@click.option("--card", multiple=True, type=options.PATH, help="A card of your own (TOML); may be repeated.")
@options.bank()
@options.view(
    multiple=True,
    help="full, center:F, mpp:M, stain:METHOD, d4, d4:K, d4:mean; may be repeated.",
)
@options.tokens("cls, mean, cls+mean, registers, patches, pooled, cls@K; may be repeated.", multiple=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs), cuda:N, mps.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--dtype", default="float16", show_default=True, help="Stored as float16 or float32.")
@click.option("--batch-size", type=int, help="Default: what fits on a GPU, what is fastest on a CPU.")
@click.option("--workers", type=int, help="Decoding threads.")
@options.on_error
@options.checkpoint
@options.weights_dir
@click.option("--revision", help="Commit of the encoder's hub repository.")
@options.choice("--resize", "pil", "device", help="Where to resize; part of the identity.")
@options.backend
@click.option(
    "--channels-last/--channels-first", default=None, help="Memory layout; last for CNNs by default."
)
@click.option("--compile", is_flag=True, help="torch.compile the encoder: slower to start, faster to run.")
@options.trust_remote_code
@options.trust_code
@options.choice(
    "--engine",
    "local",
    "ray",
    help="ray: all machines of a Ray cluster that share the bank's file system.",
)
@click.option("--actors", type=int, help="With --engine ray: as many as GPUs (or machines) by default.")
@click.option("--dry-run", is_flag=True, help="Only say what is cached and what would be embedded.")
@click.option("--progress/--no-progress", default=True, help="The bar on stderr.")
@options.json("Print the report as JSON.")
def extract_command(
    manifests: tuple[Path, ...], encoder: tuple[str, ...], card: tuple[Path, ...], bank: str, **options: Any
) -> None:
    """Embed the patches of MANIFESTS that the bank does not hold yet.

    Every encoder x view x token policy is a store of its own. Patches are keyed by the hash of their pixels:
    what the bank holds is not computed again, a repeated image is embedded once, and the command can be
    stopped (Ctrl-C) and repeated at any time.

    \b
    Examples:
      patchbank extract ami-br.toml --encoder efficientnet-lite0 --bank bank
      patchbank extract ami-br.toml -e virchow2 -e uni2-h -b bank --view full --view center:0.5
      patchbank extract ami-br.toml -e dinov2-s -b bank --tokens cls --tokens mean --view d4
      patchbank extract ami-br.toml -e dinov2-s -b bank --checkpoint vit_small_dinov2.safetensors
      patchbank extract mine.toml -e timm:convnext_tiny -b bank --on-error skip
      patchbank extract large.toml -e virchow2 -b /shared/bank --engine ray
      HF_HUB_OFFLINE=1 patchbank extract ami-br.toml -e uni -b bank --weights-dir /data/weights
    """
    from .run import run_extract

    specs: list[str | Path] = [*encoder, *card]
    if not specs:
        raise click.UsageError(
            "which encoder? --encoder efficientnet-lite0 works offline; `patchbank encoders ls`"
        )
    as_json = options.pop("as_json")
    options["remote_code"] = options.pop("trust_remote_code")
    options["view"] = options["view"] or "full"
    with stoppable():
        report = run_extract(list(manifests), encoder=specs, bank=bank, **options)
    if as_json:
        echo(report.to_json())
        return
    for store in report.stores:
        echo(
            f"{store.encoder}  view {store.view}  tokens {store.tokens}  {store.precision}  {store.dim}-d  "
            f"{store.path}"
        )
    echo(report.summary())
    for patch_id, message in report.failed:
        echo(f"failed: {patch_id}: {message}", err=True)


@click.group("encoders")
def encoders_group() -> None:
    """List, show and check encoders."""


@encoders_group.command("ls")
@click.argument("words", nargs=-1)
@options.json()
def ls_command(words: tuple[str, ...], as_json: bool) -> None:
    """List the encoder cards; with WORDS those whose row has all of them.

    \b
    Examples:
      patchbank encoders ls
      patchbank encoders ls ViT-S open
      patchbank encoders ls trident gated
      patchbank encoders ls --json
    """
    from .listing import describe, matching, show_cards
    from .registry import plugged_cards, shipped_cards

    cards = matching((shipped_cards() | plugged_cards()).values(), words)
    if as_json:
        echo(json.dumps([describe(card) for card in cards], indent=2))
    else:
        show_cards(cards)


@encoders_group.command("show")
@click.argument("encoder", shell_complete=options.encoder_names)
@options.json()
def show_command(encoder: str, as_json: bool) -> None:
    """Show everything a card says, as the TOML of a card of your own would say it.

    \b
    Examples:
      patchbank encoders show virchow2
      patchbank encoders show timm:resnet50
      patchbank encoders show uni2-h > mine.toml
    """
    from .listing import describe, to_toml
    from .registry import load_card

    card = load_card(encoder, trust_code=True)  # nothing is built
    echo(json.dumps(describe(card), indent=2) if as_json else to_toml(card))


@encoders_group.command("check")
@click.argument("encoder", shell_complete=options.encoder_names)
@options.checkpoint
@options.weights_dir
@click.option("--random-weights", is_flag=True, help="Check the architecture alone, without its weights.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@options.trust_remote_code
@options.trust_code
@options.json()
def check_command(encoder: str, as_json: bool, trust_remote_code: bool, **options: Any) -> None:
    """Build an encoder, embed one image and compare what comes out with its card.

    \b
    Examples:
      patchbank encoders check efficientnet-lite0
      patchbank encoders check dinov2-s --checkpoint vit_small_dinov2.safetensors
      patchbank encoders check virchow2 --random-weights
      patchbank encoders check ./mine.toml
    """
    from .check import check_encoder

    report = check_encoder(encoder, remote_code=trust_remote_code, **options)
    if as_json:
        echo(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            echo(f"{key:>14}  {value}")


@click.command("doctor")
@options.bank("Folder whose disk is looked at.", default=Path(), type=options.PATH)
@options.weights_dir
@options.json()
def doctor_command(bank: Path, weights_dir: Path | None, as_json: bool) -> None:
    """Say what is installed, what this machine has, and which encoders can be used.

    \b
    Examples:
      patchbank doctor
      patchbank doctor --weights-dir /data/weights
      patchbank doctor --json
    """
    from .doctor import examine, show

    report = examine(bank=bank, weights_dir=weights_dir)
    if as_json:
        echo(json.dumps(report, indent=2))
    else:
        show(report)
    sys.exit(0 if report["ok"] else 1)
