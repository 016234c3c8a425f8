"""Sources of synonyms of captions' words: the data set's own, a table, or WordNet."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.words import STOP_WORDS, read_table

LookUp = Callable[[str], Sequence[str]]  # a word in lower case -> words of the same meaning, in a fixed order
_WORDNET = "wordnet"
_FILES = ("data.adj", "data.adv", "data.noun", "data.verb")  # of WordNet: what its answers depend on


class SynonymSource:
    """Synonyms of words, looked up in lower case; stop words have none.

    Args:
        synonyms: a JSON file of word -> words, the format of ``candidates.table``; ``wordnet``; None: those of the data
            set.
        wordnet: folder of nltk's data, with ``corpora/wordnet``; None: where nltk looks for it.

    Attributes:
        name: of the source, in the provenance; None for the data set's own, which its fingerprint covers.
        sha256: of the source's files.

    Raises:
        UserError: a file that is not there or is no such table; nltk or WordNet's files are missing.
    """

    def __init__(self, synonyms: str | None, wordnet: str | None = None) -> None:
        self.name, self.sha256 = synonyms, None
        self._look_up: LookUp | None = None
        if wordnet is not None and synonyms != _WORDNET:
            raise UserError(f"augment.wordnet is {wordnet!r}: nothing would read it without augment.synonyms=wordnet.")
        if synonyms == _WORDNET:
            self._look_up, self.sha256 = _wordnet(wordnet)
        elif synonyms is not None:
            path = Path(synonyms).expanduser()
            self._look_up = _in_table(read_table(path, "augment.synonyms"))
            self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def of(self, data: ImageTextData) -> LookUp:
        """Synonyms of a word, without the word itself, for the captions of ``data``.

        Raises:
            UserError: no source was named, and ``data`` brings no synonyms.
        """
        look_up = self._look_up
        if look_up is None:
            if data.synonyms is None:
                raise UserError(
                    f"dataset {data.name} brings no synonyms: give augment.synonyms=FILE.json (word -> list of words), "
                    "or augment.synonyms=wordnet."
                )
            look_up = _in_table(data.synonyms)

        def synonyms(word: str) -> Sequence[str]:
            lower = word.lower()
            return [] if lower in STOP_WORDS else [other for other in look_up(lower) if other.lower() != lower]

        return synonyms


def _in_table(table: Mapping[str, Sequence[str]]) -> LookUp:
    lower = {str(word).lower(): others for word, others in table.items()}
    return lambda word: lower.get(word, ())


def _wordnet(folder: str | None) -> tuple[LookUp, str]:
    """WordNet's synonyms through nltk, which finds the base form of a word too, and the hash of its files."""
    remedy = (
        "put nltk's corpus into FOLDER/corpora/wordnet (data.noun, index.noun, ...) and give augment.wordnet=FOLDER, "
        "or run `python -m nltk.downloader wordnet` on a machine with a network"
    )
    try:
        from nltk import data
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
        from nltk.corpus.util import LazyCorpusLoader
    except ImportError as error:
        raise UserError("augment.synonyms=wordnet needs nltk: install robustcli[wordnet].") from error
    if folder is not None:
        place = str(Path(folder).expanduser().absolute())
        if not any((Path(place) / "corpora" / name).exists() for name in (_WORDNET, f"{_WORDNET}.zip")):
            raise UserError(f"augment.wordnet is {folder}, which has no corpora/wordnet: {remedy}.")
        if place not in data.path:
            data.path.insert(0, place)  # nltk reads no file outside of its search path
    reader: Any = LazyCorpusLoader(_WORDNET, WordNetCorpusReader, None)
    sha256 = hashlib.sha256()
    try:
        with warnings.catch_warnings(action="ignore"):  # of languages other than English
            reader.ensure_loaded()
        for name in _FILES:
            with reader.open(name) as file:
                sha256.update(str(file.read()).encode())
    except LookupError as error:
        raise UserError(f"WordNet is not where nltk looks for it: {remedy}.") from error
    except Exception as error:  # of nltk's reader: OSError, AssertionError, ValueError, WordNetError
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the files of WordNet cannot be read ({told:.200}): {remedy}.") from error

    @cache
    def look_up(word: str) -> Sequence[str]:
        lemmas = (lemma for synset in reader.synsets(word) for lemma in synset.lemma_names())
        return tuple(dict.fromkeys(lemma.replace("_", " ") for lemma in lemmas))

    return look_up, sha256.hexdigest()
