"""Refusal of overrides that nothing would read, so that the command line tells what ran."""

from collections.abc import Collection, Iterator

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
    for word in _typed():
        if key(word) == name or key(word).startswith(f"{name}."):
            raise UserError(f"{word}: nothing would read it, because {why}.")


def refuse_all_but(group: str, read: Collection[str], why: str) -> None:
    """`refuse_unread` for every key of ``group`` but those of ``read``; to choose a file of the group is no key."""
    for word in _typed():
        first, _, rest = key(word).partition(".")
        if first == group and rest and rest.partition(".")[0] not in read:
            refuse_unread(key(word), why)


def _typed() -> Iterator[str]:
    if HydraConfig.initialized():
        # What is deleted by `~key` is not asked for.
        yield from (word for word in HydraConfig.get().overrides.task if not word.startswith("~"))
