"""Syntax of Hydra overrides: key and value of a word, quoted paths, and the expansion of short forms."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# Short forms of the keys that are typed most; expanded before Hydra reads them, so that a run records the full keys.
SHORT_FORMS: Mapping[str, str] = {"eps": "threat.eps", "norm": "threat.norm"}
# Nodes that a word alone stands for -> the key below them that it is the value of: diagnostics=off.
WORDS: Mapping[str, str] = {"diagnostics": "extent"}
# What a group was called once -> its name.
FORMER_GROUPS: Mapping[str, str] = {"judges": "attacks"}
# Budget keys that other libraries have at the attack -> their key in the threat model, one for all attacks.
BUDGETS: Mapping[str, str] = {
    "eps": "threat.eps",
    "norm": "threat.norm",
    "max_words": "threat.words",
    "max_characters": "threat.characters",
}


def key(word: str) -> str:
    """``attack.image.eps`` of ``++attack.image.eps=4/255``."""
    return word.partition("=")[0].lstrip("+~")


def value(word: str) -> str:
    """``outputs/a`` of ``resume='outputs/a'``."""
    return word.partition("=")[2].strip("'\"")


@cache
def text_of(word: str) -> str:
    """The value of ``word`` without the quotes and backslashes of the grammar; a list or a mapping as it stands.

    The sweeper writes ``$\\{hydra\\:job.num\\}`` where ``${hydra:job.num}`` was typed.
    """
    rest = word.partition("=")[2]
    if not set(rest) & set("'\"\\"):
        return rest
    try:
        meant = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return rest
    return str(meant) if isinstance(meant, str) else rest


def in_grammar(value: Any) -> str:
    """``value``, plain data, as Hydra's grammar and OmegaConf read it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {in_grammar(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_grammar, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def quoted(text: Path | str) -> str:
    """``text`` as a value that Hydra's grammar and OmegaConf read as this very string, whatever it holds."""
    # Before an interpolation a backslash escapes, elsewhere it is itself.
    return _in_quotes(re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", str(text)))


def _in_quotes(text: str) -> str:
    # In Hydra's quotes a backslash escapes before a quote and at the end alone.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def keys_within(word: str) -> list[str]:
    """``diagnostics.share`` of ``diagnostics={share: 0.1}``: the keys right below that of a word that is a mapping."""
    if not word.partition("=")[2].startswith("{"):
        return []
    try:
        given = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return []
    return [f"{key(word)}.{name}" for name in given] if isinstance(given, dict) else []


def readable(word: str) -> bool:
    """Whether Hydra's grammar reads ``word``."""
    try:
        OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError):
        return False
    return True


def in_quotes(word: str) -> tuple[str, str] | None:
    """The characters of ``word`` that Hydra's grammar takes for its own, and ``word`` with quotes around what has them.

    Returns: ``("=", "classes=['a=b',c]")`` for ``classes=[a=b,c]``; None where quotes would not make it readable.
    """
    name, _, rest = word.partition("=")
    listed = rest.startswith("[") and rest.endswith("]")
    parts = rest[1:-1].split(",") if listed else [rest]
    if any(part.lstrip().startswith(("[", "{")) for part in parts):
        return None
    odd = sorted({c for c in "".join(parts) if not readable(f"x=a{c}b")})
    marked = [_in_quotes(part) if set(part) & set(odd) else part for part in parts]
    mended = f"{name}=[{','.join(marked)}]" if listed else f"{name}={marked[0]}"
    return (" ".join(odd), mended) if odd and readable(mended) else None


def in_full(
    words: Sequence[str], keys: Callable[[], Collection[str]], forms: Mapping[str, str] | None = None
) -> list[str]:
    """``words`` with ``eps=4/255`` as ``threat.eps=4/255``, where the command has the one key and not the other.

    Args:
        keys: gives the keys that the command has; asked only where a short form is used, since composing them costs.
        forms: short key -> the key that it stands for; None: `SHORT_FORMS`.
    """
    forms = SHORT_FORMS if forms is None else forms
    if not any("=" in word and key(word) in forms for word in words):
        return list(words)
    known = keys()

    def full(word: str) -> str:
        name, equals, rest = word.partition("=")
        meant = forms.get(key(word), "")
        if not equals or meant not in known or key(word) in known:
            return word
        return f"{name.removesuffix(key(word))}{meant}={rest}"

    return [full(word) for word in words]


def with_quotes(word: str) -> str:
    """``dataset.table='a_{split}.csv'`` of the same without quotes, in which Hydra would read ``{split}`` as a mapping.

    Each value of a sweep gets quotes of its own. What holds quotes, a list or a mapping stays as it is.
    """
    name, equals, text = word.partition("=")
    if not equals or "{split}" not in text or text.startswith("[") or any(mark in text for mark in "'\"\\"):
        return word
    values = re.split(r",(?![^{]*\})", text)  # no comma within braces, which a pattern of shards may hold
    return f"{name}=" + ",".join(_in_quotes(each) if "{" in each else each for each in values)


def at_their_keys(words: Sequence[str]) -> list[str]:
    """``words`` with ``diagnostics=full`` as ``diagnostics={extent: full}``: Hydra would put the word in place of the
    node, and its other keys would be lost. A sweep is one over such nodes.
    """

    def full(word: str) -> str:
        name, _, rest = word.partition("=")
        if name not in WORDS or not re.fullmatch(r"[\w,]+", rest):
            return word
        return f"{name}=" + ",".join(f"{{{WORDS[name]}: {each}}}" for each in rest.split(","))

    return [full(word) for word in words]


def in_folder(word: str, choices: Collection[str]) -> str:
    """``experiment=tiny_clean`` as ``experiment=train_mat/tiny_clean``: each name with the folder of its command.

    Args:
        choices: of the group that ``word`` sets.
    """
    name, _, names = word.partition("=")
    whole = {choice.partition("/")[2]: choice for choice in choices}
    return f"{name}=" + ",".join(each if each in choices else whole.get(each, each) for each in names.split(","))
