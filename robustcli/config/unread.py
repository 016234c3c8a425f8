"""The overrides of a job: those that nothing would read are refused, so that the command line tells what ran, and what
its run records of the others.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustcli.config.overrides import in_grammar, key, keys_within
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import ABSENT, plain

_REFERENCE = re.compile(r"\$\\?\{")  # with the backslash of the sweeper, or without


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


def recorded_words(config: DictConfig) -> list[str]:
    """The overrides of the job as its run records them: where one refers to something, the value that ``config`` has,
    or the choice of a group.

    ``seed='${hydra:job.num}'`` is ``seed=3`` of the job 3: its number, as a variable of the environment, is no longer
    there when the run goes on, or is rebuilt. What cannot be resolved stays as it was typed.
    """
    words = typed_words()
    choices = HydraConfig.get().runtime.choices if words else {}
    return [_with_value(word, config, choices) if _REFERENCE.search(word) else word for word in words]


def _with_value(word: str, config: DictConfig, choices: Mapping[str, str]) -> str:
    name = word.partition("=")[0]
    if choice := choices.get(key(word)):
        return f"{name}={choice}"
    try:
        value = plain(OmegaConf.select(config, key(word), default=ABSENT))
    except OmegaConfBaseException:
        return word
    return word if value == ABSENT else f"{name}={in_grammar(value)}"


def typed(name: str) -> bool:
    """True where an override sets ``name``, a group or a key, or a key below it; outside a job there are none."""
    return any(key(word) == name or key(word).startswith(f"{name}.") for word in typed_words())
