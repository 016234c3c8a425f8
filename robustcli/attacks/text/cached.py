"""Cache on disk of replacements, computed once a caption, for this process and the next."""

import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from robustcli.attacks.text.candidates import CandidateSource, Replacements
from robustcli.utils.cache import cache_directory
from robustcli.utils.errors import UserError
from robustcli.utils.files import refuse_link

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds to wait for another process that writes
_TABLE = "CREATE TABLE IF NOT EXISTS candidates (caption TEXT PRIMARY KEY, answer TEXT NOT NULL)"
_AT_ONCE = 500  # captions of a query; SQLite binds a limited number


class Cached:
    """A candidate source whose answers are kept, one SQLite file for each fingerprint of a source.

    An answer is written in one transaction, so a killed process leaves whole answers or none; processes may share a
    file.

    Args:
        source: asked for the captions that are not kept yet.
        directory: of the files; None: ``$ROBUSTCLI_CACHE/candidates``, see `robustcli.utils.cache.cache_directory`.
    """

    def __init__(self, source: CandidateSource, directory: str | Path | None = None) -> None:
        self.source, self.directory = source, directory
        self._fingerprint = source.fingerprint
        folder = cache_directory("candidates") if directory is None else Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{self._fingerprint}.sqlite"
        self._cache: dict[str, Replacements] = {}
        if self.path.exists() and not self._is_whole():
            log.warning("the candidates in %s are damaged: they are computed anew", self.path)
            self.path.unlink()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __repr__(self) -> str:
        return f"Cached({self.source!r}, directory={None if self.directory is None else str(self.directory)!r})"

    def __call__(self, captions: Sequence[str]) -> list[Replacements]:
        missing = list(dict.fromkeys(caption for caption in captions if caption not in self._cache))
        if missing:
            with self._open() as connection:
                self._read(connection, missing)
            fresh = [caption for caption in missing if caption not in self._cache]
            if fresh:
                self._compute(fresh)
        return [list(self._cache[caption]) for caption in captions]

    def _compute(self, captions: Sequence[str]) -> None:
        answers = self.source(captions)  # before the file is opened: a slow source must not hold a lock
        rows = [(caption, json.dumps(answer)) for caption, answer in zip(captions, answers, strict=True)]
        with self._open() as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO candidates VALUES (?, ?)", rows)
        self._cache.update(zip(captions, answers, strict=True))

    def _read(self, connection: sqlite3.Connection, captions: Sequence[str]) -> None:
        for start in range(0, len(captions), _AT_ONCE):
            part = captions[start : start + _AT_ONCE]
            query = f"SELECT caption, answer FROM candidates WHERE caption IN ({','.join('?' * len(part))})"
            for caption, answer in connection.execute(query, part):
                self._cache[caption] = [(int(position), str(word)) for position, word in json.loads(answer)]

    def _is_whole(self) -> bool:
        """False for a file whose pages SQLite cannot make sense of, for example zeros of a disk that was full."""
        try:
            with self._open() as connection:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.DatabaseError:
            return False

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        refuse_link(self.path)  # which another user of a shared cache may have put there: SQLite would write through it
        try:
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection:
                connection.execute(_TABLE)
                yield connection
        except sqlite3.OperationalError as error:  # no right to write, no room, or another process for too long
            raise UserError(
                f"the cache {self.path} cannot be used ({error}): set the environment variable ROBUSTCLI_CACHE to a "
                "folder with room that can be written to"
            ) from error
