"""Words of Hydra's grammar: the key and the value of an override, and a path as a value."""

from pathlib import Path


def key(word: str) -> str:
    """``attack.image.eps`` of ``++attack.image.eps=4/255``."""
    return word.partition("=")[0].lstrip("+~")


def value(word: str) -> str:
    """``outputs/a`` of ``resume='outputs/a'``."""
    return word.partition("=")[2].strip("'\"")


def quoted(path: Path) -> str:
    """``path`` as a value that Hydra's grammar reads as one string, whatever it holds."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
