"""The short form of several models, ``models={small: digits, mine: my_module.Net}``, as overrides that Hydra reads."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from robustcli.config.overrides import in_grammar, key
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_KEY, _GROUP = "models", "model"
_ADDED = ("checkpoint", "pretrained", "weights_key", "output")  # settings of every model, in its file or not


def with_models(words: Sequence[str], choices: Collection[str]) -> list[str]:
    """``words`` with ``+model@models.small=digits`` for each model of ``models={small: digits, ...}``.

    An entry is a choice of the group ``model``, the dotted path of a factory or a class, or a node: ``name``, which is
    one of both, or ``_target_``, and settings.

    Args:
        choices: of the group ``model``.

    Raises:
        UserError: an entry that is none of these.
    """
    found: list[str] = []
    for word in words:
        found += _in_full(word, choices) if key(word) == _KEY and word.partition("=")[2].startswith("{") else [word]
    return found


def _in_full(word: str, choices: Collection[str]) -> Iterator[str]:
    try:
        models: Any = OverridesParser.create().parse_override(word).value()
    except HydraException:  # told by Hydra, which reads the word again
        models = {}
    if not isinstance(models, dict):
        raise UserError(
            f"{word}: this short form is one set of models; for a job each give one label several choices, "
            f"+{_GROUP}@{_KEY}.LABEL=digits,small_cnn."
        )
    if not models:
        yield word
    for label, entry in models.items():
        if not re.fullmatch(r"\w[\w-]*", str(label)):
            raise UserError(
                f"{_KEY}: the label {str(label)!r} names a node of the config: give it letters, digits, _ and - alone."
            )
        node = f"{_KEY}.{label}"
        settings = {str(name): value for name, value in entry.items()} if isinstance(entry, dict) else {"name": entry}
        name = settings.pop("name", None)
        if name is not None and str(name) in choices:
            yield f"+{_GROUP}@{node}={name}"
            for setting, value in settings.items():
                yield f"{'++' if setting in _ADDED else ''}{node}.{setting}={in_grammar(value)}"
        elif "_target_" in settings or "." in str(name):
            yield f"+{node}={in_grammar({'_target_': str(name), **settings})}"
        else:
            raise UserError(
                f"{node} is {name!r}{did_you_mean(str(name), list(choices))} (a choice of `robustcli list model`, the "
                "dotted path of a factory, or a node such as {name: torchvision, architecture: resnet50, checkpoint: "
                "FILE})"
            )
