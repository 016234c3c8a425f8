"""Nested settings and metrics as flat ``key -> value`` mappings, to compare and to print them."""

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ABSENT = "absent"


def plain(config: Any) -> Any:
    """A config as dictionaries, lists and scalars; resolved where it can be, and text such as ``4/255`` stays text."""
    if isinstance(config, Mapping) and not isinstance(config, DictConfig):
        return {key: plain(value) for key, value in config.items()}
    if not OmegaConf.is_config(config):
        return config
    try:
        return OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except OmegaConfBaseException:
        return _plain_by_item(config)


def _plain_by_item(config: DictConfig | ListConfig) -> Any:
    raw: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    if not isinstance(raw, dict):
        return raw

    def value(key: Any) -> Any:
        try:
            return plain(config[key])
        except OmegaConfBaseException:
            return raw[key]

    return {key: value(key) for key in raw}


def flatten(content: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists are leaves, an empty mapping is a leaf too."""
    if not isinstance(content, Mapping) or (prefix and not content):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return flat


def differences(old: Any, new: Any, ignore: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Flat keys whose values differ, with the old and the new value (:data:`ABSENT` where one side lacks the key)."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in before | after if key not in ignore]
    pairs = {key: (before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if type(pair[0]) is not type(pair[1]) or pair[0] != pair[1]}
