"""Texts of ``--help``: the commands by the question that each answers, and all that one command takes.

Only Typer is imported here, so that help answers at once.
"""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperGroup

from robustcli.cli.commands import QUESTIONS, Command
from robustcli.config import groups as config_groups

EPILOG = "robustcli COMMAND --help: examples, config groups with their choices, keys."
EXIT_CODES = (
    "0 done, 1 a job failed, 2 a mistake in what was asked for, 130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 129 SIGHUP."
)
_NARROW, _WIDE = 60, 120  # columns within which a text is easy to read, whatever the terminal has


class ByQuestion(TyperGroup):
    """The commands under the question that each answers (its ``rich_help_panel``), then the options; one screen."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write both; called by Click."""
        self.format_commands(ctx, formatter)
        records = (parameter.get_help_record(ctx) for parameter in self.get_params(ctx))
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, one line each."""
        by_question: dict[str, list[Any]] = {question: [] for question in QUESTIONS}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            by_question[command.rich_help_panel].append(command)
        width = max(map(len, self.list_commands(ctx)))
        formatter.write_paragraph()
        for question, commands in by_question.items():
            formatter.write(f"{question}\n")
            with formatter.indentation():
                formatter.write_dl(
                    [(f"{each.name:<{width}}", each.get_short_help_str(formatter.width)) for each in commands]
                )


def help_text(command: Command, argv: Sequence[str]) -> str:
    """Help of a command that takes overrides: summary, examples, its groups with their choices, its keys, flags and
    exit codes, as wide as the terminal.
    """
    choices = config_groups.groups_of(command.name, argv)
    lines = [command.summary, "", f"Usage: robustcli {command.name} [KEY=VALUE]... [FLAGS]", "", "Examples:"]
    lines += [f"  robustcli {command.name} {example}".rstrip() for example in command.examples]
    lines += ["", f"Config groups (GROUP=CHOICE; `robustcli list {command.name}` says what each choice is):"]
    typed = config_groups.as_typed(command.name)
    lines += _columns([(typed[group], ", ".join(names)) for group, names in choices.items()])
    lines += ["", "Keys (KEY=VALUE, here with their defaults; those of the choices: --cfg job):"]
    lines += _columns(
        [
            (f"{each.key}={each.value}" if each.value else f"{each.key}.KEY", each.comment)
            for name in (command.name, "common")
            for each in config_groups.keys_in(name)
        ]
    )
    lines += ["", "Flags:", *_columns(FLAGS), "", f"Exit codes: {EXIT_CODES}"]
    return "\n".join(lines)


FLAGS = (
    ("--cfg job", "print the composed config and stop (every key that can be set)"),
    ("--info defaults", "print where each part of the config comes from"),
    ("--multirun, -m", "one job for each combination of KEY=A,B,C; hydra/launcher=joblib runs them side by side"),
    ("--config-dir DIR", "a directory with config groups of your own"),
    ("--trust", "with resume=DIR: run code from outside of robustcli that the directory names"),
    ("--help, -h", "this text"),
)


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    return list(_wrapped(rows, min(_WIDE, max(_NARROW, shutil.get_terminal_size().columns))))


def _wrapped(rows: Sequence[tuple[str, str]], columns: int) -> Iterator[str]:
    """Names and texts side by side; a text that is longer than its line goes on under itself."""
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        room = max(20, columns - width - 4)
        first, *rest = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        yield f"  {name:<{width}}  {first}".rstrip()
        yield from (" " * (width + 4) + line for line in rest)
