"""The Typer application. Only Typer is imported here, so that help answers at once; Hydra and torch come later."""

import io
import os
import sys
from typing import Annotated

import typer

from robustcli import __version__
from robustcli.cli.commands import CHECK, COMMANDS, LOOK, RESULTS, Command
from robustcli.cli.help import EPILOG, ByQuestion, help_text
from robustcli.config import groups as config_groups

RAW = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


app = typer.Typer(name="robustcli", cls=ByQuestion, no_args_is_help=True, rich_markup_mode=None, epilog=EPILOG)


def _complete(ctx: typer.Context, args: list[str], incomplete: str) -> list[str]:
    from robustcli.cli.completion import complete

    command = ctx.params.get("command") or ctx.info_name  # of `validate COMMAND`, or the one that stands first
    return complete(str(command), [*(ctx.params.get("overrides") or []), *args], incomplete)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(autocompletion=_complete, metavar="[KEY=VALUE]...", help="Hydra overrides and flags, in any order."),
]


def _add(command: Command) -> None:
    @app.command(
        command.name,
        help=command.summary,
        context_settings=RAW,
        add_help_option=False,
        rich_help_panel=command.question,
    )
    def _(overrides: Overrides = None) -> None:
        from robustcli.cli.launch import guarded, launch

        arguments = overrides or []
        if {"-h", "--help"} & set(arguments):
            raise typer.Exit(guarded(lambda: _print_help(command, arguments)))
        raise typer.Exit(launch(command.name, arguments))


for _command in COMMANDS.values():
    _add(_command)


def _print_help(command: Command, argv: list[str]) -> int:
    config_groups.check_roots(argv)
    typer.echo(help_text(command, argv))
    return 0


@app.command(
    "validate", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, rich_help_panel=LOOK
)
def validate(
    command: Annotated[str, typer.Argument(autocompletion=lambda: list(COMMANDS), help="The command that would run.")],
    overrides: Overrides = None,
) -> None:
    """Check a command line without running it.

    The config is composed, data is opened, models and attacks are built; exit code 0, or 2 with what is wrong.
    """
    from robustcli.cli.launch import guarded

    def work() -> int:
        from robustcli.cli.validate import validate as check

        return check(command, overrides or [])

    raise typer.Exit(guarded(work))


@app.command("list", rich_help_panel=LOOK)
def list_(
    name: Annotated[str | None, typer.Argument(help="A config group, or a command for its own.")] = None,
    config_dir: Annotated[
        str | None, typer.Option("--config-dir", "-cd", metavar="DIR", help="Config groups of your own, listed too.")
    ] = None,
) -> None:
    """Show the commands and what can be configured."""
    from robustcli.cli.launch import guarded

    def work() -> int:
        from robustcli.cli.listing import print_choices

        print_choices(name, [] if config_dir is None else ["--config-dir", config_dir])
        return 0

    raise typer.Exit(guarded(work))


@app.command("rerun", rich_help_panel=CHECK)
def rerun(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory of a finished run.")],
    trust: Annotated[bool, typer.Option("--trust", help="Run code from outside of robustcli that it names.")] = False,
) -> None:
    """Rebuild a run and compare every number."""
    from robustcli.cli.launch import guarded

    def work() -> int:
        from pathlib import Path

        from robustcli.cli.rerun import rerun as rebuild

        return rebuild(Path(directory), trust=trust)

    raise typer.Exit(guarded(work))


@app.command("verify", rich_help_panel=CHECK)
def verify(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory of a finished run.")],
    trust: Annotated[bool, typer.Option("--trust", help="Load code from outside of robustcli that it names.")] = False,
) -> None:
    """Judge the stored inputs of a run again, with no attack.

    Every verdict is confirmed or named, files that were changed since too; exit code 0, or 1 where anything differs.
    """
    from robustcli.cli.launch import guarded

    def work() -> int:
        from pathlib import Path

        from robustcli.cli.verify import verify as judge

        return judge(Path(directory), trust=trust)

    raise typer.Exit(guarded(work))


@app.command("report", rich_help_panel=RESULTS)
def report(
    directories: Annotated[list[str], typer.Argument(metavar="DIR...", help="Directories of runs or of sweeps.")],
    measure: Annotated[str, typer.Option(help="A figure of metrics.csv, such as recall_at_5.")] = "recall_at_1",
    form: Annotated[
        str,
        typer.Option(help="runs; or purification: robust accuracy at every bound, over all images and those right."),
    ] = "runs",
    published: Annotated[
        str | None, typer.Option(metavar="CSV", help="Numbers of papers: attack, published, and what tells the row.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write table.md, table.tex, table.html and table.csv there.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Join runs and sweeps into one table."""
    from robustcli.cli.launch import guarded

    def work() -> int:
        from pathlib import Path

        from robustcli.engines.report import report as join

        paths = [None if each is None else Path(each).expanduser() for each in (published, out)]
        places = [Path(each).expanduser() for each in directories]
        join(places, measure=measure, form=form, published=paths[0], out=paths[1], show=show)
        return 0

    raise typer.Exit(guarded(work))


@app.command("compare", rich_help_panel=RESULTS)
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The directory of a run, or DIR:MODEL.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, or another model of the same.")],
) -> None:
    """Compare two models query by query."""
    from robustcli.cli.launch import guarded

    def work() -> int:
        from robustcli.engines.compare import print_comparison

        print_comparison(first, second)
        return 0

    raise typer.Exit(guarded(work))


@app.command("view", rich_help_panel=RESULTS)
def view(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where runs stand.")] = "outputs",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: any free one.")] = 8265,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Show runs in a browser: list, filter, open, compare.

    It only reads, and answers on this machine alone.
    """
    from robustcli.cli.launch import guarded

    def work() -> int:
        from pathlib import Path

        from robustcli.view.server import serve

        serve(Path(directory).expanduser(), port=port, show=show)
        return 0

    raise typer.Exit(guarded(work))


@app.command("doctor", rich_help_panel=LOOK)
def doctor() -> None:
    """Show versions, devices, cache, extras and data.

    What is missing stands there with what it would give, and with the command that brings it.
    """
    from robustcli.cli.launch import guarded

    def work() -> int:
        from robustcli.cli.doctor import print_doctor

        print_doctor()
        return 0

    raise typer.Exit(guarded(work))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robustcli {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Adversarial defences for vision and vision-language models, and the honest measurement of any defence."""


def main() -> None:
    """Run the command line of this process; see `robustcli.__main__`."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter must not cost a finished run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Modules in the working folder are importable, as under `python -m`; last, so that none stands before a library.
    sys.path.append(os.getcwd())
    app(prog_name="robustcli", args=sys.argv[1:])
