"""Binomial test of a count against chance."""

from robustcli.diagnostics.finding import exceeds_chance


def test_thousands_of_queries_are_no_overflow() -> None:
    assert exceeds_chance(600, 1200, 0.45)  # the tail is 3e-4
    assert not exceeds_chance(600, 1200, 0.49)  # the tail is 0.25


def test_what_every_query_may_do_is_never_too_much() -> None:
    assert not exceeds_chance(20, 20, 1.05)
