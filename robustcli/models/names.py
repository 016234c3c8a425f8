"""Resolution of a name or a config node to a factory and its settings."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from robustcli.config.groups import conf_directory
from robustcli.models.registry import MODELS, Factory, import_factory
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_HUBS = ("hf-hub:", "local-dir:")


def resolve(config: str | Path | Mapping[str, Any]) -> tuple[Factory, dict[str, Any]]:
    """The factory that ``_target_`` or ``name`` asks for, and the other settings, those of a named file among them.

    A name is a row of the registry, a file of ``conf/model``, or an architecture of torchvision, open_clip or timm, in
    this order.

    Raises:
        UserError: a path that cannot be imported, or a name that nobody knows.
    """
    settings = {**config} if isinstance(config, Mapping) else {"name": str(config)}
    target, name = settings.pop("_target_", None), settings.pop("name", None)
    if target is not None:
        return import_factory(str(target)), settings
    if name is None:
        return import_factory(MODELS["open_clip"].target), settings
    if name in MODELS:
        if MODELS[name].kind in ("generator", "trained"):
            raise UserError(f"model is {name!r}, which is a generator: robustcli.models.generators.load_generator")
        return import_factory(MODELS[name].target), settings
    if name in presets():
        return resolve(preset(name) | settings)
    return import_factory(MODELS[_library_of(name)].target), {**settings, "architecture": name}


def presets(group: str = "model") -> list[str]:
    """The files of ``conf/<group>``, without their suffix, in the order of the alphabet."""
    return sorted(file.stem for file in (conf_directory() / group).glob("*.yaml"))


def preset(name: str, group: str = "model") -> dict[str, Any]:
    """The settings of ``conf/<group>/<name>.yaml`` over those of the files in its defaults list."""
    node: Any = OmegaConf.load(conf_directory() / group / f"{name}.yaml")
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    merged = OmegaConf.merge(*(preset(base, group) for base in bases), node)
    settings: Any = OmegaConf.to_container(merged, resolve=True)
    return dict(settings)


def _library_of(name: str) -> str:
    """The library that knows an architecture; they are imported in this order, and only as far as it takes."""
    if name.startswith(_HUBS):
        return "open_clip"
    vision = importlib.import_module("torchvision.models")
    known = vision.list_models(module=vision)
    if name in known:
        return "torchvision"
    clips = importlib.import_module("open_clip").list_models()
    if name in clips:
        return "open_clip"
    library = importlib.import_module("timm")
    if library.is_model(name):
        return "timm"
    names = [*MODELS, *presets(), *known, *clips, *library.list_models()]
    raise UserError(
        f"model is {name!r}, which neither robustcli, torchvision, open_clip nor timm knows" + did_you_mean(name, names)
    )
