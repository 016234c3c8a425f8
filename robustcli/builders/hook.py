"""Instantiation of a config node by the class's own ``build`` where it has one, and the errors of constructors."""

from inspect import signature
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.utils.errors import UserError, constructor_errors


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
        return construct(config, node=node)
    plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    settings = {key: value for key, value in plain.items() if key != "_target_"}
    with constructor_errors(f"{node} {kind.__name__}"):
        return kind.build(settings, *parts)


def construct(config: DictConfig | dict[str, Any], *, node: str, **parts: Any) -> Any:
    """The object of ``_target_``: ``Class(**settings, **parts)``, nodes among the settings first.

    Args:
        node: the config group, for the message.
        parts: of the run; handed over as they are, where Hydra would take a dataclass among them for a config.

    Raises:
        UserError: settings of which none can be made.
    """
    kind: Any = get_object(config["_target_"])
    name = f"{node} {getattr(kind, '__name__', config['_target_'])}"
    with constructor_errors(name):
        try:
            partial = instantiate(config, _partial_=True, _convert_="all")
        except InstantiationException as error:  # of a node below; Hydra's text leaves out the reason
            cause = error.__cause__ or error
            raise cause from cause.__cause__
        try:
            signature(kind).bind(*partial.args, **{**partial.keywords, **parts})
        except TypeError as error:
            raise UserError(f"{name} does not take these settings: {error}.") from error
        return partial(**parts)
