"""What is wrong with a user's files, and what happens then."""

import logging
from typing import Literal, get_args

from robustcli.utils.errors import UserError

OnError = Literal["raise", "skip"]

log = logging.getLogger(__name__)


class Faults:
    """Collects the bad entries of one set: the first one is an error, or, with ``skip``, each is logged and counted."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise UserError(f"dataset.on_error is {on_error!r}, expected one of {', '.join(get_args(OnError))}.")
        self.on_error = on_error
        self.count = 0

    def report(self, where: str, what: str) -> None:
        """``where`` names the file and the line or record, ``what`` goes on with the sentence: "is missing".

        Raises:
            UserError: unless bad entries are to be skipped.
        """
        if self.on_error == "raise":
            raise UserError(f"{where} {what}: mend it, or leave such entries out with dataset.on_error=skip.")
        self.count += 1
        log.warning("skipped: %s %s", where, what)
