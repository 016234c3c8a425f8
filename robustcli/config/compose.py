"""Composition of a command's config by Hydra, without a run."""

from collections.abc import Iterator, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustcli.config import groups as config_groups
from robustcli.config import schemas
from robustcli.config.overrides import key, value


def compose(
    command: str, overrides: Sequence[str], argv: Sequence[str] = (), *, with_hydra: bool = False
) -> DictConfig:
    """The composed config of ``command``.

    Args:
        argv: searched for ``--config-dir``.
        with_hydra: keep Hydra's own node, ``hydra``, which holds the chosen file of each group.

    Raises:
        HydraException, OmegaConfBaseException: overrides that do not compose; see `robustcli.config.errors.explain`.
    """
    schemas.register()
    added = [f"file://{root.absolute()}" for root in config_groups.roots(argv)[1:]]
    path = [f"hydra.searchpath=[{','.join(added)}]"] if added else []
    with hydra.initialize_config_dir(str(config_groups.conf_directory()), version_base="1.3"):
        return hydra.compose(command.replace("-", "_"), [*overrides, *path], return_hydra_config=with_hydra)


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, inner nodes too."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    for name, inner in node.items():
        yield f"{prefix}{name}"
        if isinstance(inner, dict):
            yield from keys(inner, f"{prefix}{name}.")


def keys_of(command: str, argv: Sequence[str]) -> list[str]:
    """Every dotted key of ``command`` with the groups that ``argv`` chooses; of its defaults where they do not compose.

    Costs a composition, a fifth of a second: for mistakes and short forms, not for every start.
    """
    choices = config_groups.groups_of(command, argv)
    # A node of several models chooses from its group too: `+model@models.small=digits`.
    chosen = [word for word in argv if value(word) in choices.get(key(word).partition("@")[0], ())]
    try:
        return list(keys(compose(command, chosen, argv)))
    except (HydraException, OmegaConfBaseException):
        return list(keys(compose(command, [])))
