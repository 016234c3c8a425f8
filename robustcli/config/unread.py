"""Refusal of what a user typed and nothing would read: what one writes is what runs."""

from hydra.core.hydra_config import HydraConfig

from robustcli.config.overrides import key
from robustcli.utils.errors import UserError


def refuse_unread(name: str, why: str) -> None:
    """Refuse an override of ``name``, a group or a key, or of anything below it; nothing where no job is running.

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
