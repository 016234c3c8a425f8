"""Words of captions: punctuation around them, stop words, and tables of words of the same meaning."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustcli.utils.errors import UserError

_AFFIXES = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)
# Grammar rather than content, neither replaced nor inserted by a word attack. A list of our own.
_LISTS = (
    "a an the this that these those",
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves",
    "he him his himself she her hers herself it its itself they them their theirs themselves one oneself",
    "who whom whose which what where when why how",
    "someone somebody something anyone anybody anything everyone everybody everything nobody nothing none",
    "some any each every either neither both all no not nor few many much more most other another such same",
    "am is are was were be been being do does did doing done have has had having",
    "can could may might must shall should will would ought",
    "isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't couldn't won't wouldn't shouldn't",
    "isn aren wasn weren don doesn didn haven hasn hadn couldn won wouldn shouldn mustn needn shan ll ve re",
    "and or but if because as until while although though unless whereas whether since so than then yet",
    "of at by for with about against between into through during before after above below to from up down in out on",
    "off over under across along amid among around behind beneath beside besides beyond despite inside near onto",
    "outside past per throughout toward towards underneath unlike upon via within without",
    "again further once here there very too just only also even ever never still already almost quite rather",
)

STOP_WORDS: frozenset[str] = frozenset(word for line in _LISTS for word in line.split())


def affixes(word: str) -> tuple[str, str, str]:
    """Leading punctuation, core and trailing punctuation."""
    match = _AFFIXES.match(word)
    return (match[1], match[2], match[3]) if match else ("", word, "")


def read_table(table: Mapping[str, Sequence[str]] | str | Path, key: str) -> Mapping[str, Sequence[str]]:
    """Word -> words, from such a mapping or from a JSON file, whose entries may be sorted by part of speech.

    Raises:
        UserError: a file that is not there or is no such table; it names ``key``.
    """
    if isinstance(table, Mapping):
        return table
    try:
        content = json.loads(Path(table).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{key} is {str(table)!r}, which does not exist: give a JSON file.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{key} is {str(table)!r}, which is no JSON file: {error}.") from error
    try:
        return {word: _others(entry) for word, entry in content.items()}
    except (AttributeError, TypeError) as error:
        raise UserError(
            f'{key} is {str(table)!r}: expected JSON like {{"word": ["others"]}} or {{"word": {{"noun": ["others"]}}}}.'
        ) from error


def read_words(path: str | Path, key: str) -> list[str]:
    """Words of a text file, between blanks or line ends.

    Raises:
        UserError: a file that is not there or cannot be read; it names ``key``.
    """
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise UserError(f"{key} is {str(path)!r}, which does not exist: give a file of words.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{key} is {str(path)!r}, which cannot be read: {error}.") from error


def _others(entry: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
    """Words of an entry, of all parts of speech where it has several, each once."""
    lists = list(entry.values()) if isinstance(entry, Mapping) else [entry]
    if not all(isinstance(each, list) for each in lists):
        raise TypeError("an entry is a list of words, or lists by part of speech")
    return list(dict.fromkeys(str(other) for each in lists for other in each))
