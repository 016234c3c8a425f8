"""Shell completion of Hydra overrides: config groups, their choices, keys and their current values."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.cli.arguments import FLAGS, SHORT
from robustcli.config import groups as config_groups
from robustcli.config.overrides import key


def complete(command: str, words: Sequence[str], incomplete: str) -> list[str]:
    """Completions of the word ``incomplete`` after ``words``.

    Bash splits words at ``=``: ``dataset=sc`` arrives as ``dataset``, ``=``, ``sc``, and ``dataset=`` as ``dataset``
    and nothing. They are joined here, and the answers then hold only what stands after the ``=``.
    """
    before, prefix = list(words), ""
    if before and before[-1] == "=":
        prefix = f"{before[-2]}="
        del before[-2:]
    elif not incomplete and before and _awaits_value(before):
        prefix = f"{before.pop()}="
    return [match.removeprefix(prefix) for match in _matches(command, _joined(before), prefix + incomplete)]


def _awaits_value(words: Sequence[str]) -> bool:
    """True if the last word is a key without its ``=``: no flag, and no value that bash split off."""
    return "=" not in words[-1] and not words[-1].startswith("-") and words[-2:-1] != ["="]


def _joined(words: Sequence[str]) -> list[str]:
    """``["a", "=", "b"]`` as ``["a=b"]``."""
    out: list[str] = []
    for word in words:
        if out and (word == "=" or out[-1].endswith("=")):
            out[-1] += word
        else:
            out.append(word)
    return out


def _matches(command: str, words: Sequence[str], word: str) -> list[str]:
    flag = SHORT.get(words[-1], words[-1]) if words else ""
    if FLAGS.get(flag):
        return [value for value in FLAGS[flag] or () if value.startswith(word)]
    typed, launchers = config_groups.as_typed(command), ["basic", "joblib", "submitit_slurm"]
    groups = config_groups.groups_of(command, words)
    choices = {**{typed[group]: names for group, names in groups.items()}, "hydra/launcher": launchers}
    name, equals, _ = word.partition("=")
    if equals and name in choices:
        return _choices(word, choices[name])
    values = _values(command, words)
    if equals:
        return _current_values(values, word)
    found = [f"{group}=" for group in choices if group.startswith(word)] + _keys(values, word)
    if len(found) != 1 or found[0] == word:
        return found
    # A second candidate keeps bash from putting a blank after a lone `key=` or `node.`.
    lone = found[0]
    return [lone, *(_choices(lone, choices.get(lone[:-1], [])) or _current_values(values, lone) or _keys(values, lone))]


def _choices(word: str, names: Sequence[str]) -> list[str]:
    """Completions of the last choice of ``word``, also within a sweep (``defense=mat,te``)."""
    head, comma, last = word.rpartition(",") if "," in word else (word.partition("=")[0], "=", word.partition("=")[2])
    return [f"{head}{comma}{name}" for name in names if name.startswith(last)]


def _keys(values: Mapping[str, Any], word: str) -> list[str]:
    """Keys one level deeper than what is typed: ``trainer.`` before ``trainer.lr=``."""
    depth = word.count(".") + 1
    found = [full.split(".") for full in values if full.startswith(word)]
    return list(dict.fromkeys(".".join(parts[:depth]) + ("." if len(parts) > depth else "=") for parts in found))


def _current_values(values: Mapping[str, Any], word: str) -> list[str]:
    """Completions after ``key=``: the current value, or both values of a bool."""
    name, _, typed = word.partition("=")
    if name not in values:
        return []
    held = ("true", "false") if isinstance(values[name], bool) else (_text(values[name]),)
    return [f"{name}={value}" for value in held if value.startswith(typed)]


def _values(command: str, words: Sequence[str]) -> dict[str, Any]:
    """Leaf keys and values of the config that ``words`` compose; those of the plain command where they compose none."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from robustcli.config.compose import compose

    overrides = [word for word in words if "=" in word and not word.startswith("-") and key(word) != "resume"]
    try:
        composed = compose(command, overrides, words)
    except (HydraException, OmegaConfBaseException):
        composed = compose(command, [])
    return dict(_leaves(OmegaConf.to_container(composed), ""))


def _leaves(node: Any, prefix: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        named = ((f"{prefix}.{name}" if prefix else str(name), inner) for name, inner in node.items())
        return [leaf for name, inner in named for leaf in _leaves(inner, name)]
    return [(prefix, node)]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
