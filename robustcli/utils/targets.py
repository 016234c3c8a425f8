"""Targets of configs: classes and factories named by a dotted path, and the rule of which of them may be called."""

import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from inspect import isclass, isfunction, unwrap
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from robustcli.utils.errors import UserError

PACKAGE = "robustcli"
# Packages whose classes and factories a config may name; the others hold functions that write and start things.
_ROOMS = tuple(f"{PACKAGE}.{room}." for room in ("attacks", "data", "defenses", "models"))
_TORCH_MODULE = "torch.nn.modules.module"  # by name, so that nothing is imported for a look at it


def targets(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every ``_target_`` in plain data, as (dotted key, value), depth first."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            place = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield place, str(value)
            else:
                yield from targets(value, place)
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from targets(value, f"{key}[{number}]")


def is_ours(target: str) -> bool:
    """True for a path inside of robustcli."""
    return target.startswith(f"{PACKAGE}.")


def resolve_target(target: str, key: str) -> Callable[..., Any]:
    """The class or factory at a dotted path, which imports its module.

    Callable is a class of the rooms attacks, data, defenses and models or a factory there, annotated with what it
    makes; and any class or function that a module outside of installed packages defines. From an installed package it
    has to derive from a class of robustcli or ``torch.nn.Module``, or to be annotated as making one. The standard
    library is never imported for a config, and what a module only has imported itself (``os.system`` in
    ``mine.os.system``) counts as of where it was defined.

    Args:
        key: where the path stands, such as ``model._target_``, for the message.

    Raises:
        UserError: it is none of these.
        ImportError, AttributeError, ValueError: there is no such thing.
    """
    found = None if target.partition(".")[0] in sys.stdlib_module_names else _locate(target)
    if (isclass(found) or isfunction(found)) and _is_component(found):
        return found
    raise UserError(
        f"{key} is {target!r}, which no config may call: expected a class or a factory of robustcli, such as "
        "robustcli.attacks.PGD or robustcli.models.tiny, or one that a module of your own defines."
    )


def _locate(target: str) -> Any:
    """The object at a path, found in the order of Hydra's own search, so that both come to the same one."""
    first, *rest = target.split(".")
    found: Any = importlib.import_module(first)
    for count, name in enumerate(rest, 2):
        try:
            found = getattr(found, name)
        except AttributeError:
            if not isinstance(found, ModuleType):
                raise
            found = importlib.import_module(".".join(target.split(".")[:count]))
    return found


def _is_component(found: Callable[..., Any]) -> bool:
    # A decorated factory is where its function was written: `functools.wraps` copies names, but not the globals.
    home = found.__module__ if isclass(found) else unwrap(found).__globals__["__name__"]
    if is_ours(home):
        return home.startswith(_ROOMS) and (isclass(found) or _makes_component(found))
    if home.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return False
    return not _is_installed(home) or (_derives(found) if isclass(found) else _makes_component(found))


def _makes_component(factory: Callable[..., Any]) -> bool:
    """True where the annotation of what a function returns is a class that a config may name, or a union with one."""
    try:
        made = get_type_hints(factory).get("return")
    except Exception:  # a hint that names what is imported for type checkers alone
        return False
    return any(isclass(part) and _derives(part) for part in (get_args(made) or (made,)))


def _derives(kind: type) -> bool:
    """True for a class of the rooms, a module of torch, or a class derived from one."""
    return any(base.__module__.startswith(_ROOMS) or base.__module__ == _TORCH_MODULE for base in kind.__mro__)


def _is_installed(module: str) -> bool:
    """True for a module of an installed package, or one without a file, as those that are built in have."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return True
    path = Path(file).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or path.is_relative_to(library)
