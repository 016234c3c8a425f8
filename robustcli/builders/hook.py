"""Instantiation of a config node by the class's own ``build`` where it has one."""

from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.utils.errors import wrong_type


def build(config: DictConfig | dict[str, Any], *parts: Any, node: str) -> Any:
    """The object of ``_target_``: ``Class.build(settings, *parts)``, or ``Class(**settings)`` if it has no ``build``.

    A class whose settings are not all that it needs has a ``build``; no class is special-cased here.

    Args:
        parts: of the run, such as the data set and the model; handed over as they are, where Hydra would copy them.
        node: the config group, for the message.

    Raises:
        UserError: settings of which none can be made.
    """
    kind: Any = get_object(config["_target_"])
    if not hasattr(kind, "build"):
        return instantiate(config)
    plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    settings = {key: value for key, value in plain.items() if key != "_target_"}
    try:
        return kind.build(settings, *parts)
    except (TypeError, ValueError) as error:
        raise wrong_type(f"{node} {kind.__name__}", error) from error
