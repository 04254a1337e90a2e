"""The command `patchbank`: one subcommand per folder, loaded when it is called."""

import sys
from importlib import import_module
from typing import Any

import click

from . import __version__
from .errors import PatchbankError

# command -> (module, attribute); the modules import click alone at their top (held by tests/test_cli.py)
COMMANDS = {
    "quickstart": (".cli", "quickstart_command"),
    "doctor": (".extract.cli", "doctor_command"),
    "datasets": (".datasets.cli", "datasets_group"),
    "encoders": (".extract.cli", "encoders_group"),
    "extract": (".extract.cli", "extract_command"),
    "cache": (".cache.cli", "cache_group"),
    "probe": (".probe.cli", "probe_group"),
}


class LazyGroup(click.Group):
    """Imports a subcommand's module only when that subcommand is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        return getattr(import_module(module, __package__), attribute)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1) if args else []
            if near:
                error.message = f"{error.message.rstrip('.')}. Did you mean {near[0]!r}?"
            raise


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `patchbank quickstart`: it runs offline in about a minute. "
    "`patchbank COMMAND --help` has examples.",
)
@click.version_option(__version__, prog_name="patchbank")
def patchbank() -> None:
    """Extract patch embeddings once, cache them, probe them on a CPU."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; errors of `patchbank.errors` become one message and an exit code."""
    try:
        code = patchbank.main(args=args, prog_name="patchbank", standalone_mode=False)
    except click.exceptions.Abort:  # Ctrl-C that nobody handled: published blocks stay published
        click.echo("Interrupted. What was committed is kept; the same command goes on from there.", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except PatchbankError as error:
        click.echo(f"Error: {error}", err=True)
        for note in getattr(error, "__notes__", []):
            click.echo(f"  {note}", err=True)
        code = error.exit_code
    except BrokenPipeError:  # `patchbank cache ls | head`
        sys.stderr.close()
        code = 141
    sys.exit(code if isinstance(code, int) else 0)
