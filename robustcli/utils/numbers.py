"""Parsing of numbers and choices from a config, with errors in one sentence.

``node`` and ``key`` are what the error calls the value, as one types it on the command line: ``threat.eps``.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from robustcli.utils.errors import UserError

Number = int | float | str  # 0.0157, or a fraction such as "4/255"


def parse_number(key: str, value: Number, *, node: str = "attack") -> float:
    """``value`` of ``<node>.<key>`` as a finite float of at least 0; fractions such as ``"0.5/255"`` are read.

    Raises:
        UserError: no number, a negative one, NaN or an infinity.
    """
    try:
        if isinstance(value, str):
            above, _, below = value.partition("/")  # either side of the stroke may be a decimal
            number = float(Fraction(above) / Fraction(below or "1"))
        else:
            number = float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{node}.{key} is {value!r}: expected a number or a fraction such as 4/255.") from error
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{node}.{key} is {value}: expected a finite number that is not negative, such as 4/255.")
    return number


def parse_share(key: str, value: Number, *, node: str = "attack") -> float:
    """``value`` of ``<node>.<key>`` as a float in [0,1], read as by `parse_number`.

    Raises:
        UserError: no number, or one out of range.
    """
    share = parse_number(key, value, node=node)
    if share > 1:
        raise UserError(f"{node}.{key} is {share:g}: it is a share, between 0 and 1.")
    return share


def at_least(key: str, value: int, least: int, *, node: str = "attack") -> int:
    """``value`` of ``<node>.<key>``, an integer of at least ``least``.

    Raises:
        UserError: a smaller one, a bool, or no integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{node}.{key} is {value!r}: expected a whole number, {least} or more.")
    return value


def one_of(key: str, value: str, known: Sequence[str], *, node: str = "attack") -> str:
    """``value`` of ``<node>.<key>``, one of ``known``.

    Raises:
        UserError: another one; the message lists the choices.
    """
    if value not in known:
        raise UserError(f"{node}.{key} is {value!r}: choose one of {', '.join(known)}.")
    return value
