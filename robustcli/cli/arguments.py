"""Hydra's flags, checked before Hydra sees them: a mistyped one gets a sentence instead of argparse's usage."""

from collections.abc import Mapping, Sequence

from robustcli.config.overrides import key
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

# Flag -> the values it takes: none at all, a fixed choice, or anything (None).
FLAGS: Mapping[str, tuple[str, ...] | None] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": None,
    "--config-dir": None,
    "--config-path": None,
    "--config-name": None,
    "--multirun": (),
    "--run": (),
    "--resolve": (),
    "--hydra-help": (),
    "--trust": (),  # of ours: Hydra does not see it
}
READING = frozenset({"--cfg", "--info", "--hydra-help"})  # they print, and make no run
SHORT: Mapping[str, str] = {
    "-c": "--cfg",
    "-i": "--info",
    "-p": "--package",
    "-cd": "--config-dir",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-m": "--multirun",
    "-r": "--run",
}


def ordered(argv: Sequence[str]) -> list[str]:
    """``argv`` with its flags first, since Hydra's parser wants the overrides in one piece.

    Raises:
        UserError: an unknown flag, a missing or wrong value, or flags that exclude each other.
    """
    words, found, overrides = iter(argv), {}, []
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, glued, value = word.partition("=")
        name = SHORT.get(name, name)
        if name not in FLAGS:
            raise UserError(f"unknown flag {word!r}{did_you_mean(name, list(FLAGS))} (flags: {', '.join(FLAGS)})")
        if FLAGS[name] != ():
            found[name] = [value if glued else next(words, "")]
            _check_value(name, *found[name])
        else:
            found[name] = []
    _check_together(set(found), resumes=any(key(word) == "resume" for word in overrides))
    return [*(part for name, values in found.items() for part in (name, *values)), *overrides]


def _check_together(seen: set[str], *, resumes: bool) -> None:
    if "--trust" in seen and not resumes:
        raise UserError("--trust is for resume=DIR with the directory of another: what you type yourself is trusted")
    several = sorted(seen & {"--run", "--multirun", "--cfg", "--info"})
    if len(several) > 1:
        raise UserError(f"{' and '.join(several)} exclude each other: give one of them")
    if "--resolve" in seen and "--cfg" not in seen:
        raise UserError("--resolve needs --cfg job: it prints the composed config with its interpolations resolved")


def _check_value(name: str, value: str) -> None:
    allowed = FLAGS[name]
    if not value:
        raise UserError(f"{name} needs a value" + (f": one of {', '.join(allowed)}" if allowed else ""))
    if allowed and value not in allowed:
        raise UserError(f"{name} cannot be {value!r}{did_you_mean(value, allowed)} (choices: {', '.join(allowed)})")
