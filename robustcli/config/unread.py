"""Refusal of overrides that nothing would read, so that the command line tells what ran."""

from hydra.core.hydra_config import HydraConfig

from robustcli.config.overrides import key
from robustcli.utils.errors import UserError


def refuse_unread(name: str, why: str) -> None:
    """Check that no override sets ``name``, a group or a key, or a key below it; outside a job there are none.

    Args:
        why: as it goes on after "nothing would read it, because".

    Raises:
        UserError: there is such an override.
    """
    if not HydraConfig.initialized():
        return
    for word in HydraConfig.get().overrides.task:
        if key(word) == name or key(word).startswith(f"{name}."):
            raise UserError(f"{word}: nothing would read it, because {why}.")
