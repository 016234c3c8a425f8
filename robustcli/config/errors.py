"""Error sentences for mistakes on a command line, each with the nearest valid key or choice."""

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from robustcli.config import groups as config_groups
from robustcli.config.compose import keys_of
from robustcli.config.overrides import BUDGETS, FORMER_GROUPS, WORDS, in_quotes, key, value
from robustcli.config.schemas import SCHEMAS
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean, nearest_keys

# A number, a truth value, a mapping or a list, none of which Hydra takes for the name of a choice.
_NO_NAME = re.compile(r"[-+]?([\d.]+(e[-+]?\d+)?|inf|nan)|true|false|[\[{].*", re.IGNORECASE)
# What OmegaConf says of a value of the wrong type -> what a typed key must be.
_EXPECTED: Mapping[str, str] = {
    "converted to Integer": "a whole number",
    "converted to Float": "a number",
    "not a valid bool": "true or false",
    "to string": "a text",
    "ListConfig": "a list, such as [1, 2]",
}


def explain(command: str, argv: Sequence[str], error: HydraException | OmegaConfBaseException) -> str:
    """One sentence for the ``error`` that composing ``argv`` raised: the mistake and the nearest valid word.

    Hydra has few exception types, so most cases are told apart by the text of its message.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_choice(command, argv, error)
    if isinstance(error, OverrideParseException):
        return _unreadable(command, argv, error.override)
    if found := re.match(r"Could not override '([^']+)'", text):
        return _unknown_key(command, argv, found[1])
    if found := re.match(r"Ambiguous value for argument '([^']+)'", text):
        name, listed = key(found[1]), value(found[1])
        return (
            f"{found[1]} lists several values: add --multirun for a job each, or write {name}=[{listed}] for a list, "
            f"\"{name}='{listed}'\" for one text"
        )
    if found := re.match(r"Error merging override (.+)", text):
        return _misfit(found[1].strip(), _first_line(error.__cause__ or error))
    cause = _first_line(error.__cause__) if error.__cause__ is not None else ""
    return _first_line(error) + (f" ({cause})" if cause not in text else "")


def check_groups(command: str, argv: Sequence[str]) -> None:
    """Check of every ``GROUP=CHOICE`` in ``argv``.

    Hydra would say nothing of a null, speak of "the defaults list" where the group is another command's, and take a
    group that has the name of a key for the value of this key.

    Raises:
        UserError: ``command`` has no such group, the group is called otherwise now, the choice is another command's
            experiment, or it is null.
    """
    for former, group in FORMER_GROUPS.items():
        for word in argv:
            renamed = re.sub(rf"^([+~]*|[^=]*@){former}(?=[.=@]|$)", rf"\1{group}", word)
            if renamed != word:
                raise UserError(f"{word}: the group {former!r} is called {group!r}: write {renamed}.")
    every, own = config_groups.groups(argv), config_groups.groups_of(command, argv)
    for word in (word for word in argv if "=" in word and not word.startswith("-")):
        if word.startswith("+") and "@" in key(word):  # put where it says, +attack@attacks.apgd=apgd
            continue
        group, choice = key(word).partition("@")[0], value(word)
        if group in own and choice in ("null", ""):
            listed = ", ".join(own[group])
            raise UserError(f"{word}: a group takes the name of a choice ({listed}); leave it out for its default.")
        if group in own and choice not in own[group] and _NO_NAME.fullmatch(choice):
            raise UserError(f"{group} has no choice {choice} (choices: {', '.join(own[group])})")
        if group in every and group not in own and _NO_NAME.fullmatch(choice):  # which Hydra takes for a choice too
            raise UserError(f"{word}: {command} has no group {group!r}; of a node set the keys, {group}.KEY=VALUE.")
        if group == config_groups.EXPERIMENT:
            _check_experiments(command, choice.split(","), every.get(group, []), own.get(group, []))
        elif choice in every.get(group, ()) and group not in own and (owners := _owners(group)):
            raise UserError(f"{word}: {command} has no group {group!r}; {_listed(owners)}.")


def _check_experiments(command: str, asked: Sequence[str], every: Sequence[str], own: Sequence[str]) -> None:
    for name in asked:
        homes = [other for other in every if name in (other, other.rpartition("/")[2])]
        if name not in own and homes:
            theirs = homes[0].partition("/")[0].replace("_", "-")
            choices = f"choices: {', '.join(own)}" if own else "it has none of its own"
            raise UserError(
                f"experiment={name} is one of {theirs}, not of {command} ({choices}): "
                f"write `robustcli {theirs} experiment={homes[0]}`."
            )


def _owners(group: str) -> list[str]:
    """The commands that have ``group``, as typed."""
    return [name.replace("_", "-") for name in SCHEMAS if group in config_groups.default_groups(name)]


def _listed(owners: Sequence[str]) -> str:
    names = owners[0] if len(owners) == 1 else f"{', '.join(owners[:-1])} and {owners[-1]}"
    return f"{names} {'has' if len(owners) == 1 else 'have'} it"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _unknown_choice(command: str, argv: Sequence[str], error: MissingConfigException) -> str:
    if not error.missing_cfg_file or "primary config" in str(error):
        return (
            f"{_first_line(error)}; --config-path and --config-name take the place of the configs of robustcli: to add "
            "your own, give --config-dir"
        )
    missing = Path(error.missing_cfg_file)
    group, choice = missing.parent.as_posix(), missing.stem if missing.suffix == ".yaml" else missing.name
    if group == "hydra/launcher" and choice.startswith("submitit") and find_spec("submitit") is None:
        return f"hydra/launcher={choice} needs the cluster extra: pip install 'robustcli[cluster]'"
    options = sorted(error.options or [])
    if missing.parts[0] == config_groups.EXPERIMENT:
        group, choice = missing.parts[0], missing.with_suffix("").relative_to(missing.parts[0]).as_posix()
        options = config_groups.groups_of(command, argv).get(group, [])
    if group == "." or not options:
        return _first_line(error)
    asked = next((value(word).rstrip("/") for word in argv if key(word) == group), "")
    if group == "model" and Path(asked).is_file():
        return (
            f"model={asked} is a file of weights: say of which network, such as model=torchvision "
            f"model.architecture=resnet18 checkpoint={asked}; `robustcli list model` shows the choices"
        )
    if group == "dataset" and Path(asked).is_dir():
        return (
            f"dataset={asked} is a folder: say what lies in it, such as dataset=class_folders dataset.root={asked} for "
            "images in a folder for each class; `robustcli list dataset` shows the choices"
        )
    return f"{group} has no choice {choice!r}{did_you_mean(choice, options)} (choices: {', '.join(options)})"


def _unreadable(command: str, argv: Sequence[str], word: str) -> str:
    if "=" not in word and re.fullmatch(r"[\w.\-/@]+", word):
        choices = config_groups.groups_of(command, argv)
        chosen = [f"{group}={word}" for group, names in choices.items() if word in names]
        hint = f": did you mean {' or '.join(chosen)}?" if chosen else ": write KEY=VALUE, for example seed=1"
        return f"{word!r} has no value{hint}"
    if (mended := in_quotes(word)) is None:
        quotes = "with quotes in quotes around blanks or brackets, \"KEY='VALUE'\""
        return f"{word!r} cannot be read: write KEY=VALUE, {quotes}"
    odd, typed = mended
    # Between double quotes, a shell reads these four itself.
    shell = shlex.quote(typed) if set('"$`!') & set(typed) else f'"{typed}"'
    return f"{word!r} cannot be read: put quotes in quotes around what has {odd} in it, {shell}"


def _misfit(word: str, reason: str) -> str:
    """A value of the wrong type, in the words of `leaves`; Hydra's ``reason`` where it is another mistake."""
    given = value(word)
    if "not Optional" in reason:
        return f"{key(word)} is null, but needs a value"
    expected = next((meant for said, meant in _EXPECTED.items() if said in reason), None)
    if expected is None:
        return f"{word} does not fit: {reason}"
    plain = re.fullmatch(r"[\[{].*|[-+]?[\d.]+(e[-+]?\d+)?", given)
    return f"{key(word)} is {given if plain else repr(given)}, but must be {expected}"


def _unknown_key(command: str, argv: Sequence[str], wrong: str) -> str:
    choices, valid = config_groups.groups_of(command, argv), keys_of(command, argv)
    budget = BUDGETS.get(wrong.rpartition(".")[2], "")
    if wrong.partition(".")[0] in ("attack", "attacks") and budget in valid:
        asked = next((f"={value(word)}" for word in argv if key(word) == wrong), "")
        return f"{wrong}: what an attack may change is the threat model, one for all attacks: set {budget}{asked}"
    node = wrong.partition(".")[0]
    if node in WORDS and f"{node}.{WORDS[node]}" not in valid:
        return f"{wrong}: a config file sets {node} to a word alone: write it there as {node}: {{{WORDS[node]}: WORD}}"
    typed = config_groups.as_typed(command)
    elsewhere = [typed[wrong]] if typed.get(wrong, wrong) != wrong else []
    near = elsewhere or nearest_keys(wrong, [*valid, *(name for name in choices if name not in valid)])
    first = wrong.partition(".")[0]
    if first not in choices and first not in valid and (owners := _owners(first)):
        return f"{command} has no key {wrong!r}, because it has no group {first!r}; {_listed(owners)}"
    if not near:
        return f"{command} has no key {wrong!r}: `robustcli {command} --cfg job` prints those that it has"
    return f"{command} has no key {wrong!r}: did you mean {' or '.join(map(repr, near))}?"
