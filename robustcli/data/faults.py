"""Faults in a user's files: an error at the first one, or logged, counted and left out."""

import logging
from typing import Literal, get_args

from robustcli.utils.errors import UserError

OnError = Literal["raise", "skip"]

log = logging.getLogger(__name__)


class Faults:
    """Counter of the bad entries of one set: the first one is an error, or, with ``skip``, each is logged and counted.

    Args:
        quiet: count only, for a split that is looked at beside the one that is asked for.

    Attributes:
        count: entries left out.
        first: what was wrong with the first of them.

    Raises:
        UserError: ``on_error`` is neither ``raise`` nor ``skip``.
    """

    def __init__(self, on_error: OnError, *, quiet: bool = False) -> None:
        if on_error not in get_args(OnError):
            raise UserError(f"dataset.on_error is {on_error!r}, expected one of {', '.join(get_args(OnError))}.")
        self.on_error, self.quiet = on_error, quiet
        self.count = 0
        self.first = ""

    def report(self, where: str, what: str) -> None:
        """Count and log a bad entry.

        Args:
            where: names the file and the line or record.
            what: goes on with the sentence: "is missing".

        Raises:
            UserError: unless bad entries are to be skipped.
        """
        if self.on_error == "raise":
            raise UserError(f"{where} {what}: mend it, or leave such entries out with dataset.on_error=skip.")
        self.count += 1
        self.first = self.first or f"{where} {what}"
        if not self.quiet:
            log.warning("skipped: %s %s", where, what)

    def notes(self) -> list[str]:
        """A sentence on what was left out, for the foot of a table; none where nothing was."""
        if not self.count:
            return []
        what = "1 entry was" if self.count == 1 else f"{self.count:,} entries were"
        return [f"{what} left out (dataset.on_error=skip), the first: {self.first}; all are in the log of the run."]
