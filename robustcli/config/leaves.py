"""Types of the settings below a ``_target_``: those that its class declares, read as OmegaConf reads a typed key.

The groups whose files differ in their keys (data set, model, attack, defence, ...) have no schema of their own; without
this, the text ``off`` where a truth value belongs would be true, and a text in place of an attack a traceback.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from inspect import Parameter, isclass, signature
from pathlib import Path
from pkgutil import resolve_name
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import ValidationError

from robustcli.utils.errors import UserError

_NODES: Mapping[type, Callable[[Any], Any]] = {bool: BooleanNode, int: IntegerNode, float: FloatNode}
_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "settings, {KEY: VALUE}",
    object: "an object, {_target_: CLASS, ...}",
}
_HYDRAS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
_LARGEST = 2**63 - 1


def settle_types(config: DictConfig) -> None:
    """Put every truth value and number below a ``_target_`` into the type that the target declares.

    Raises:
        UserError: a value of another type, a setting that the target does not take, or a target that is not there.
    """
    for key, node in _targets(config):
        kinds = declared_types(_imported(key, str(node["_target_"])))
        for name in [str(name) for name in node if name not in _HYDRAS]:
            if name in kinds and not OmegaConf.is_missing(node, name):
                settled = _typed(_below(key, name), node[name], kinds[name])
                if settled is not node[name]:
                    node[name] = settled


def declared_types(called: Any) -> dict[str, frozenset[type]]:
    """Kinds of value that each parameter of a callable takes, of those of `_WORDS` and None; nothing for any.

    ``object`` stands for an instance of a class, which a config gives as a node with a ``_target_``. A class with a
    ``build`` reads its settings itself, so that only plain ones are told.
    """
    try:
        parameters = signature(called).parameters
    except (TypeError, ValueError):  # of a class in C
        return {}
    made = called.__init__ if isclass(called) and isinstance(called.__init__, FunctionType) else called
    try:
        hints = get_type_hints(made)
    except Exception:  # a hint that names what is imported for type checkers alone
        hints = {}
    kinds = {name: _kinds(hints.get(name), each) for name, each in parameters.items()}
    built = hasattr(called, "build")
    return {name: kind for name, kind in kinds.items() if kind and not (built and object in kind)}


def refuse_vast(content: Any, key: str = "") -> None:
    """Check that every whole number of a config fits into 64 bits, more than which no library takes.

    Raises:
        UserError: there is a larger one.
    """
    entries: Any = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in entries:
        if isinstance(value, dict | list):
            refuse_vast(value, _below(key, str(name)))
        elif isinstance(value, int) and abs(value) > _LARGEST:
            raise UserError(f"{_below(key, str(name))} is {value}, more than can be meant: at most {_LARGEST}.")


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _imported(key: str, target: str) -> Any:
    try:
        module, _, name = target.rpartition(".")
        try:
            called = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            called = resolve_name(target)  # of a class in a class; where both have a name it would take the module
    except Exception as error:  # whatever an import of another's module raises
        said = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{_below(key, '_target_')} is {target!r}, which cannot be imported ({type(error).__name__}: {said}): give "
            "the dotted path of a class; the folder of a module of your own stands in PYTHONPATH."
        ) from error
    if not callable(called):
        raise UserError(f"{_below(key, '_target_')} is {target!r}, which is no class: give the dotted path of one.")
    return called


def _targets(node: DictConfig, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node.get("_target_"), str):
        yield key, node
    for name in node:  # which in a user's own mapping may be a number: ``variants={0.5: {attenuation: 0.5}}``
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):  # type: ignore[arg-type]
            continue
        if isinstance(inner := node[name], DictConfig):
            yield from _targets(inner, _below(key, str(name)))


def _kinds(hint: Any, parameter: Parameter) -> frozenset[type]:
    """The kinds that a hint allows; empty for any; without a hint that of a plain default.

    None is one of them where the parameter has no default, too: the data set or the run may give what is null.
    """
    if hint is None:
        return frozenset({type(parameter.default), NoneType}) if type(parameter.default) in _NODES else frozenset()
    parts = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    found = [_kind(part) for part in parts]
    free = {NoneType} if parameter.default is None or parameter.default is Parameter.empty else set()
    return frozenset() if None in found else frozenset(kind for kind in found if kind is not None) | free


def _kind(hint: Any) -> type | None:
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return None
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    plain = get_origin(hint) or hint
    if plain in _NODES or plain in (str, NoneType):
        return plain  # type: ignore[no-any-return]
    if not isclass(plain):
        return None
    if issubclass(plain, Path):
        return str
    if issubclass(plain, Mapping):
        return dict
    return list if issubclass(plain, Sequence | Set) else object


def _typed(key: str, value: Any, kinds: frozenset[type]) -> Any:
    """``value``, or what it says in the kind that is asked for."""
    given = list if isinstance(value, ListConfig) else dict if isinstance(value, DictConfig) else type(value)
    if given in kinds or (given is dict and object in kinds):
        return value
    if value is None:
        raise UserError(f"{key} is null, but needs a value.")
    numbers = kinds & _NODES.keys()
    if given in _NODES or (given is str and str not in kinds):
        for kind in sorted(numbers, key=lambda each: list(_NODES).index(each)):
            try:
                return _NODES[kind](value)._value()
            except ValidationError:
                continue
    if given is int and str in kinds and not numbers:
        return str(value)  # a name of digits alone, which YAML reads as a number
    expected = " or ".join(text for kind, text in _WORDS.items() if kind in kinds)
    quotes = f" ({key}=\"'{value}'\" is one)" if str in kinds and given in _NODES else ""
    raise UserError(f"{key} is {value!r}, but must be {expected}{quotes}.")
