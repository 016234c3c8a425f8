"""The commands that a person types. Only Typer is imported here; Hydra, torch and the rest come with the job."""

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from robustcli import __version__
from robustcli.config import groups as config_groups

EPILOG = "robustcli COMMAND --help shows examples and every config group with its choices."
RAW = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@dataclass(frozen=True)
class Command:
    """A command whose options are Hydra overrides; ``examples`` leave out the leading ``robustcli NAME``."""

    name: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = (
    Command(
        "train-mat",
        "Train a model against attacks and judge it.",
        (
            "",
            "dataset=flickr30k model=vit_b_16 defense=mat attack.image.eps=4/255 seed=3",
            "--multirun seed=0,1,2 defense=mat,tecoa hydra/launcher=joblib",
            "resume=outputs/train-mat/2026-01-31/12-00-00-4f1c2a",
        ),
    ),
    Command(
        "train-classifier",
        "Train a classifier and judge it.",
        (
            "",
            "dataset=digits model=digits augmentation.shift=1 judges=classes",
            "dataset=cifar10 model=resnet20_cifar augmentation.shift=4 augmentation.flip=true trainer=long",
        ),
    ),
    Command(
        "train-generator",
        "Train a generator of images, with which purify cleans them.",
        (
            "",
            "dataset=mnist generator=nvae_mnist trainer.max_steps=2000",
            "dataset=class_folders dataset.root=faces 'dataset.classes=[a,b]' dataset.image_size=64 generator=nvae_64",
        ),
    ),
    Command(
        "purify",
        "Clean images with a generator in front of an untouched classifier, and judge that against all attackers.",
        (
            "",
            "purifier.alphas=linear purifier.attenuation=0.5 protocol.eot=4",
            "'variants={linear: {alphas: linear}, cosine: {alphas: cosine}}' baselines=null",
            "dataset=scene_classes model=scene_classes",
        ),
    ),
    Command(
        "learn-alphas",
        "Learn how much of each latent the purifier draws anew.",
        (
            "",
            "'objectives=[adversarial,clean]' trials=100",
            "dataset=scene_classes model=scene_classes adversarial.eps=2 sampler=tpe",
        ),
    ),
    Command(
        "attack",
        "Attack a data set and write what was found.",
        ("attack=sga attack.image.eps=2/255 attack.text.max_words=1", "attack=pgd checkpoint=model.safetensors"),
    ),
    Command(
        "evaluate",
        "Judge models, clean and under every attack.",
        (
            "checkpoint=outputs/train-mat/2026-01-31/12-00-00-4f1c2a/checkpoints/last.safetensors",
            "'checkpoints={clean: clean.safetensors, mat: mat.safetensors}' judges=quick",
        ),
    ),
)

app = typer.Typer(name="robustcli", no_args_is_help=True, rich_markup_mode=None, epilog=EPILOG)


def _complete(ctx: typer.Context, args: list[str], incomplete: str) -> list[str]:
    from robustcli.cli.completion import complete

    return complete(str(ctx.info_name), [*(ctx.params.get("overrides") or []), *args], incomplete)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(autocompletion=_complete, metavar="[KEY=VALUE]...", help="Hydra overrides and flags, in any order."),
]


def _add(command: Command) -> None:
    @app.command(command.name, help=command.summary, context_settings=RAW, add_help_option=False)
    def _(overrides: Overrides = None) -> None:
        arguments = overrides or []
        if {"-h", "--help"} & set(arguments):
            typer.echo(help_text(command, arguments))
            return
        from robustcli.cli.launch import launch

        raise typer.Exit(launch(command.name, arguments))


for _command in COMMANDS:
    _add(_command)


def help_text(command: Command, argv: list[str]) -> str:
    """Help of a command: what it does, examples, and the config groups with their choices."""
    lines = [command.summary, "", f"Usage: robustcli {command.name} [KEY=VALUE]... [FLAGS]", "", "Examples:"]
    lines += [f"  robustcli {command.name} {example}".rstrip() for example in command.examples]
    lines += ["", "Config groups (GROUP=CHOICE):"]
    choices = config_groups.groups(argv)
    width = max(map(len, choices))
    lines += [f"  {group:<{width}}  {' | '.join(names)}" for group, names in choices.items()]
    lines += [
        "",
        "Flags:",
        "  --cfg job          print the composed config and stop (every key that can be set)",
        "  --info defaults    print where each part of the config comes from",
        "  --multirun, -m     one job for each combination of KEY=A,B,C; hydra/launcher=joblib runs them side by side",
        "  --config-dir DIR   a directory with config groups of your own",
        "  --help, -h         this text",
        "",
        f"Exit codes: {EXIT_CODES}",
    ]
    return "\n".join(lines)


EXIT_CODES = "0 done, 1 a job failed, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 143 by SIGTERM."


@app.command("list")
def list_(
    group: Annotated[str | None, typer.Argument(help="One config group; all where it is left out.")] = None,
) -> None:
    """Show the commands and what can be configured."""
    from robustcli.cli.launch import guarded

    raise typer.Exit(guarded(lambda: _list(group)))


def _list(group: str | None) -> int:
    from robustcli.cli.listing import show

    show([(command.name, command.summary) for command in COMMANDS], group)
    return 0


@app.command("rerun")
def rerun(directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory of a finished run.")]) -> None:
    """Rebuild a run and compare every number."""
    from robustcli.cli.launch import guarded

    def work() -> int:
        from pathlib import Path

        from robustcli.cli.rerun import rerun as rebuild

        return rebuild(Path(directory))

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
    """Entry point of the console script."""
    app(prog_name="robustcli", args=sys.argv[1:])
