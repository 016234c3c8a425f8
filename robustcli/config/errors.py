"""Hydra's complaints about a command line, each as one sentence that names the nearest valid key or choice."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustcli.config import groups as config_groups
from robustcli.config import schemas
from robustcli.config.overrides import key, value
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean, nearest_keys


def compose(command: str, overrides: Sequence[str], argv: Sequence[str] = ()) -> DictConfig:
    """The config of ``command`` without running it; ``argv`` is looked through for ``--config-dir``."""
    schemas.register()
    added = [f"file://{root.absolute()}" for root in config_groups.roots(argv)[1:]]
    path = [f"hydra.searchpath=[{','.join(added)}]"] if added else []
    with hydra.initialize_config_dir(str(config_groups.conf_directory()), version_base="1.3"):
        return hydra.compose(command.replace("-", "_"), [*overrides, *path])


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, inner nodes too."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    for name, inner in node.items():
        yield f"{prefix}{name}"
        if isinstance(inner, dict):
            yield from keys(inner, f"{prefix}{name}.")


def sentence(command: str, argv: Sequence[str], error: HydraException | OmegaConfBaseException) -> str:
    """What is wrong with ``argv`` and what would be right."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if found := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(command, argv, found[1])
    if found := re.match(r"Ambiguous value for argument '([^']+)'", text):
        name, listed = key(found[1]), value(found[1])
        return f"{found[1]} lists several values: add --multirun for a job each, or write {name}=[{listed}] for a list"
    if found := re.match(r"Error merging override (.+)", text):
        return f"{found[1].strip()} does not fit: {_first_line(error.__cause__ or error)}"
    cause = _first_line(error.__cause__) if error.__cause__ is not None else ""
    return _first_line(error) + (f" ({cause})" if cause not in text else "")


def refuse_null_choices(argv: Sequence[str]) -> None:
    """A `UserError` for ``GROUP=null``, on which Hydra has no sentence."""
    suspects = [word for word in argv if "=" in word and value(word) in ("null", "")]
    groups = config_groups.groups(argv) if suspects else {}
    for word in suspects:
        group = key(word).partition("@")[0]
        if group in groups:
            choices = ", ".join(groups[group])
            raise UserError(f"{word}: a group takes the name of a choice ({choices}); leave it out for its default.")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _unknown_choice(error: MissingConfigException) -> str:
    missing = Path(error.missing_cfg_file or "")
    group, choice = missing.parent.as_posix(), missing.stem if missing.suffix == ".yaml" else missing.name
    if group == "hydra/launcher" and choice.startswith("submitit"):
        return f"hydra/launcher={choice} needs the cluster extra: pip install 'robustcli[cluster]'"
    if group == "." or error.options is None:
        return _first_line(error)
    options = sorted(error.options)
    return f"{group} has no choice {choice!r}{did_you_mean(choice, options)} (choices: {', '.join(options)})"


def _unreadable(word: str) -> str:
    if "=" not in word and re.fullmatch(r"[\w.\-/@]+", word):
        chosen = [f"{group}={word}" for group, names in config_groups.groups().items() if word in names]
        hint = f": did you mean {' or '.join(chosen)}?" if chosen else ": write KEY=VALUE, for example seed=1"
        return f"{word!r} has no value{hint}"
    return f"{word!r} cannot be read: write KEY=VALUE, with quotes in quotes around blanks or brackets, \"KEY='VALUE'\""


def _unknown_key(command: str, argv: Sequence[str], wrong: str) -> str:
    choices = config_groups.groups(argv)
    chosen = [word for word in argv if key(word) in choices and value(word) in choices[key(word)]]
    try:
        valid = list(keys(compose(command, chosen, argv)))
    except (HydraException, OmegaConfBaseException):
        valid = list(keys(compose(command, [])))
    near = nearest_keys(wrong, [*valid, *(name for name in choices if name not in valid)])
    if not near:
        return f"{command} has no key {wrong!r}: `robustcli {command} --cfg job` prints those that it has"
    return f"{command} has no key {wrong!r}: did you mean {' or '.join(map(repr, near))}?"
