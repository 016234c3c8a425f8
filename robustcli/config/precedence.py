"""Check that nothing behind a typed group in the defaults list, a protocol or an experiment, changes it in silence."""

from collections.abc import Mapping, Sequence
from itertools import product

from omegaconf import OmegaConf

from robustcli.config import groups as config_groups
from robustcli.config.compose import compose
from robustcli.config.overrides import key, value
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import differences

_LAYERS = ("protocol", config_groups.EXPERIMENT)  # which set keys of the groups before them; in their order


def refuse_overruled(command: str, argv: Sequence[str]) -> None:
    """Check of each protocol and experiment in ``argv`` against the groups that are typed beside it, job by job.

    A typed key wins over all of them and is no mistake. Costs a composition a layer and one more, where there are both.

    Raises:
        UserError: a layer sets a key of a typed group, or of a layer before it, to another value.
        HydraException, OmegaConfBaseException: groups that do not compose.
    """
    known = config_groups.groups_of(command, argv)
    typed = {key(word): value(word).split(",") for word in argv if "=" in word and key(word) in known}
    if not set(_LAYERS) & set(typed) or len(typed) < 2:
        return
    keys = [key(word) for word in argv if key(word) not in known]
    for choices in product(*typed.values()):
        _check_job(command, argv, dict(zip(typed, choices, strict=True)), keys)


def _check_job(command: str, argv: Sequence[str], chosen: Mapping[str, str], keys: Sequence[str]) -> None:
    words = [f"{group}={choice}" for group, choice in chosen.items() if group not in _LAYERS]
    owners = {word.partition("=")[0]: word for word in words}  # group, or key that a layer has set -> the word
    before = OmegaConf.to_container(compose(command, words, argv))
    for layer in (f"{name}={chosen[name]}" for name in _LAYERS if name in chosen):
        words.append(layer)
        after = OmegaConf.to_container(compose(command, words, argv))
        changed = differences(before, after)
        for name in (name for name in changed if not _covered(name, keys)):
            if owner := _covered(name, owners):
                raise UserError(
                    f"{layer} sets {name} to {changed[name][1]}, which is not what {owners[owner]} says: leave one of "
                    f"the two out, or give the value itself, {name}=VALUE."
                )
        owners |= dict.fromkeys(changed, layer)
        before = after


def _covered(name: str, keys: Sequence[str] | Mapping[str, str]) -> str | None:
    """The one of ``keys`` that is ``name`` or a node above it."""
    return next((each for each in keys if name == each or name.startswith(f"{each}.")), None)
