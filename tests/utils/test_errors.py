"""Errors and what led to them."""

from robustcli.utils.errors import behind


def test_a_cause_that_is_raised_in_place_of_its_error_is_met_once() -> None:
    cause, wrapped = ValueError("inner"), RuntimeError("outer")
    wrapped.__cause__, cause.__context__ = cause, wrapped
    assert list(behind(cause)) == [cause, wrapped]
