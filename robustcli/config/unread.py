"""Refusal of overrides that nothing would read, so that the command line tells what ran."""

from collections.abc import Collection
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from robustcli.config.overrides import key, keys_within
from robustcli.utils.errors import UserError


def refuse_unread(name: str, why: str) -> None:
    """Check that no override sets ``name``, a group or a key, or a key below it; outside a job there are none.

    What is deleted by ``~name`` is not asked for.

    Args:
        why: as it goes on after "nothing would read it, because".

    Raises:
        UserError: there is such an override.
    """
    for word in typed_words():
        if not word.startswith("~") and (key(word) == name or key(word).startswith(f"{name}.")):
            raise UserError(f"{word}: nothing would read it, because {why}.")
        if name in keys_within(word):
            raise UserError(f"{name}: nothing would read it, because {why}.")


def refuse_all_but(group: str, read: Collection[str], why: str) -> None:
    """`refuse_unread` for every key of ``group`` but those of ``read``; to choose a file of the group is no key."""
    for word in typed_words():
        first, _, rest = key(word).partition(".")
        if first == group and rest and rest.partition(".")[0] not in read:
            refuse_unread(key(word), why)


def typed_words() -> list[str]:
    """The overrides of the job as they were typed; none outside a job.

    An interpolation in one of them is a text here: Hydra would look for it among its own keys.
    """
    words: Any = (
        OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False) if HydraConfig.initialized() else []
    )
    return [str(word) for word in words]


def typed(name: str) -> bool:
    """True where an override sets ``name``, a group or a key, or a key below it; outside a job there are none."""
    return any(key(word) == name or key(word).startswith(f"{name}.") for word in typed_words())
