"""What ends a command with a sentence in place of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the key, the value, what was expected and the remedy.

    The command line prints ``error: <sentence>`` and exits with code 2, without a traceback.
    """


class SuspectClaim(Exception):
    """Numbers that ``diagnostics=strict`` does not let pass: all is written, and the exit code is 1."""
