"""Names of attacks, defences and models in a table: none that the table uses itself, none twice."""

from collections import Counter
from collections.abc import Iterable

from robustcli.evaluation.records import BARE, CLEAN, WORST
from robustcli.utils.errors import UserError

_RESERVED = (BARE, CLEAN, WORST)  # rows without defence, without attack, and of the worst case


def refuse_reserved(kind: str, names: Iterable[str], *also: str) -> None:
    """Check that no attack or defence has a name under which a table keeps rows of its own.

    Args:
        kind: of what is named, such as ``an attack``.
        also: further names that are taken.

    Raises:
        UserError: there is one.
    """
    for name in names:
        if name in (*_RESERVED, *also):
            raise UserError(
                f"{kind} is called {name!r}, which stands for something else in tables or settings (as do "
                f"{', '.join(each for each in (*_RESERVED, *also) if each != name)}): call it otherwise."
            )


def refuse_repeated(labels: Iterable[str]) -> None:
    """Check that the models of a table can be told apart; any label will do, ``clean`` for clean training too.

    Raises:
        UserError: a label that occurs twice.
    """
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(
            f"two models would be called {repeated[0]!r} in the table, one of them with its purifier: rename its label "
            "in checkpoints."
        )
