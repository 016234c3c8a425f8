"""Types of the settings below a ``_target_``: those that its class declares, read as OmegaConf reads a typed key.

The groups whose files differ in their keys (data set, model, attack, defence, ...) have no schema of their own; without
this, the text ``off`` where a truth value belongs would be true.
"""

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, isclass, signature
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf
from omegaconf.errors import ValidationError

from robustcli.utils.errors import UserError

_NODES: Mapping[type, tuple[Callable[[Any], Any], str]] = {
    bool: (BooleanNode, "true or false"),
    int: (IntegerNode, "a whole number"),
    float: (FloatNode, "a number"),
}


def settle_types(config: DictConfig) -> None:
    """Put every truth value and number below a ``_target_`` into the type that the target declares.

    Raises:
        UserError: a value that cannot be read as this type.
    """
    for key, node in _targets(config):
        for name, kind in declared_types(str(node["_target_"])).items():
            if name in node and not OmegaConf.is_missing(node, name) and node[name] is not None:
                node[name] = _typed(f"{key}.{name}" if key else name, node[name], kind)


def declared_types(target: str) -> dict[str, type]:
    """``bool``, ``int`` or ``float`` by parameter of what ``target`` names; nothing where it cannot be imported."""
    try:
        called = get_object(target)
        parameters = signature(called).parameters
    except Exception:  # whatever an import of another's module raises: the builder says it in a sentence
        return {}
    try:
        hints = get_type_hints(called.__init__ if isclass(called) and "__init__" in vars(called) else called)
        hints = hints or get_type_hints(called)
    except Exception:  # a hint that names what is imported for type checkers alone
        hints = {}
    kinds = {name: _kind(hints.get(name), each) for name, each in parameters.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _targets(node: DictConfig, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node.get("_target_"), str):
        yield key, node
    for name in map(str, node):
        if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
            continue
        if isinstance(inner := node[name], DictConfig):
            yield from _targets(inner, f"{key}.{name}" if key else name)


def _kind(hint: Any, parameter: Parameter) -> type | None:
    """The one of `_NODES` that a hint stands for, optional or not; without a hint that of the default."""
    if hint is None:
        return type(parameter.default) if type(parameter.default) in _NODES else None
    parts = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    kinds = {part for part in parts if part is not NoneType}
    if kinds == {int, float}:
        return float
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= _NODES.keys() else None


def _typed(key: str, value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    make, expected = _NODES[kind]
    try:
        return make(value)._value()
    except ValidationError:
        raise UserError(f"{key} is {value!r}, but must be {expected}.") from None
