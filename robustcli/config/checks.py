"""Bounds and choices of settings, declared at the schema field and enforced by one check.

batch_size: int = bounded(1)
schedule: str = choice("cosine", "constant")
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from robustcli.config.leaves import refuse_vast, settle_types
from robustcli.config.overrides import WORDS
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean
from robustcli.utils.targets import is_ours, resolve_target, targets

# YAML 1.1 reads `off` and `on` as booleans, which OmegaConf turns into these texts where a text is expected.
_BOOLEANS: Mapping[str, tuple[str, ...]] = {"False": ("off", "none"), "True": ("on",)}


def bounded(low: float | None = None, high: float | None = None, *, default: Any = MISSING) -> Any:
    """A dataclass field for a number from ``low`` to ``high``, both allowed; None stands for no bound."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(*choices: str, default: Any = MISSING) -> Any:
    """A dataclass field for one of ``choices``."""
    return field(default=default, metadata={"choices": choices})


def check(config: DictConfig, *, trusted: bool = True) -> None:
    """Refuse a composed config that no run could work with, or that names what no config may call.

    What stands in it in another type than it should (the text ``off`` for a truth value, a choice that is a boolean in
    YAML, a word in place of a node) is put right.

    Args:
        trusted: the config is the user's own; one from the directory of a run may only name what is of robustcli.

    Raises:
        UserError: a missing value, one out of its bounds or not among the choices, an interpolation without target, or
            a ``_target_`` that may not be called.
    """
    try:
        _settle_words(config)
        _restore_defaults(config)
        content = OmegaConf.to_container(config, resolve=True)
        refuse_vast(content)
        deleted = {key for key, node, entry in _settings(config) if entry.name not in node}  # by `~key`
        missing = sorted(OmegaConf.missing_keys(config) | deleted)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from error
    if missing:
        raise UserError(f"{missing[0]} has no value: give it one on the command line as {missing[0]}=VALUE")
    _refuse_unknown(config)
    if not trusted:
        refuse_foreign(content)
    _check_targets(content)  # before the types, which ask the targets for their parameters
    settle_types(config)
    for key, node, entry in _settings(config):
        value = node[entry.name]
        if value is None:
            continue
        if {"low", "high"} <= set(entry.metadata):
            _check_bounds(key, value, entry.metadata["low"], entry.metadata["high"])
        if choices := entry.metadata.get("choices"):
            node[entry.name] = _chosen(key, value, choices)


def _settle_words(config: DictConfig) -> None:
    """Put the settings of its schema in the place of each node that a word alone may stand for, see `WORDS`."""
    for name, _, entry in list(_settings(config)):
        schema, given = entry.metadata.get("schema"), config.get(name)
        if schema is None or name not in config or OmegaConf.get_type(given) is schema:
            continue
        settings = given if isinstance(given, DictConfig) else {WORDS[name]: given}
        settled = OmegaConf.structured(schema)
        choices = {each.name: each.metadata.get("choices", ()) for each in fields(schema)}
        keys = list(choices)
        for key, value in settings.items():
            if key not in keys:
                raise UserError(f"{name} has no key {str(key)!r}{did_you_mean(str(key), keys)} ({', '.join(keys)})")
            try:
                settled[key] = value
            except ValidationError as error:
                meant = f"one of {', '.join(choices[key])}" if choices[key] else "a number, or null"
                shown = "null" if value is None else repr(value)
                raise UserError(f"{name}.{key} is {shown}, but must be {meant}") from error
        config[name] = settled


def _restore_defaults(config: DictConfig) -> None:
    """Put the default in the place of what ``~key`` deleted, where there is one."""
    for _, node, entry in list(_settings(config)):
        if entry.name not in node and entry.default is not MISSING:
            with open_dict(node):
                node[entry.name] = entry.default


def _refuse_unknown(config: DictConfig) -> None:
    """Check for keys that `+key=` put beside those of a schema; one that an interpolation reads is a user's own."""
    declared = list(_settings(config))
    own = {re.split(r"[}.:]", read)[0] for read in re.findall(r"\$\{([^}]+)\}", OmegaConf.to_yaml(config))}
    for parent, node in {key.rpartition(".")[0]: node for key, node, _ in declared}.items():
        names = [entry.name for _, holder, entry in declared if holder is node]
        for name in map(str, node):
            if name not in names and not (parent == "" and name in own):
                key = f"{parent}.{name}".lstrip(".")
                raise UserError(f"nothing would read {key}{did_you_mean(name, names)} (keys there: {', '.join(names)})")


def refuse_foreign(content: Any) -> None:
    """Check by their names alone, so that nothing is imported, that all targets in plain data are robustcli's.

    Raises:
        UserError: one is not.
    """
    if foreign := [f"{key}={target}" for key, target in targets(content) if not is_ours(target)]:
        raise UserError(
            f"the run names code from outside of robustcli ({', '.join(foreign)}), which would be run with your "
            "rights: read it, and add --trust if its author is one whom you trust."
        )


def _check_targets(content: Any) -> None:
    for key, target in targets(content):
        try:
            resolve_target(target, key)
        except UserError:
            raise
        except Exception:  # whatever an import of another's module raises: the builder says it in a sentence
            continue


def _settings(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig, "Field[Any]"]]:
    """Every field of a structured config, depth first: dotted key, node that holds it, and declaration."""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    for entry in fields(schema):
        yield f"{prefix}{entry.name}", node, entry
        inner = None if OmegaConf.is_missing(node, entry.name) else node.get(entry.name)
        if isinstance(inner, DictConfig):
            yield from _settings(inner, f"{prefix}{entry.name}.")


def _check_bounds(key: str, value: float, low: float | None, high: float | None) -> None:
    # Written so that NaN, which compares as false, is refused too.
    if not ((low is None or value >= low) and (high is None or value <= high)):
        expected = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise UserError(f"{key} is {value}, but must be {expected}")


def _chosen(key: str, value: str, choices: tuple[str, ...]) -> str:
    meant = next((each for each in _BOOLEANS.get(value, ()) if each in choices), value)
    if meant not in choices:
        raise UserError(f"{key} is {value!r}{did_you_mean(value, choices)} (choices: {', '.join(choices)})")
    return meant
