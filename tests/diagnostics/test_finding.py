"""Binomial test of a count against chance, and the verdict of all findings on a number."""

import pytest

from robustcli.diagnostics.finding import NOT_RUN, OK, SUSPECT, Finding, Status, exceeds_chance, verdict


def test_thousands_of_queries_are_no_overflow() -> None:
    assert exceeds_chance(600, 1200, 0.45)  # the tail is 3e-4
    assert not exceeds_chance(600, 1200, 0.49)  # the tail is 0.25


def test_the_tail_begins_with_the_count_itself() -> None:
    assert exceeds_chance(5, 5, 0.5) and not exceeds_chance(4, 5, 0.5)  # 1/32, and 6/32


def test_what_every_query_may_do_is_never_too_much() -> None:
    assert not exceeds_chance(20, 20, 1.05)


def test_a_count_below_a_share_is_no_excess() -> None:
    assert not exceeds_chance(1, 100, 0.5)
    assert exceeds_chance(60, 100, 0.45) and not exceeds_chance(-1, 100, 0.05) and not exceeds_chance(0, 0, 0.05)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ({"unbounded eps": OK, "gradients": OK}, OK),
        ({"words": OK, "unbounded eps": NOT_RUN}, OK),
        ({"unbounded eps": OK, "gradients": SUSPECT}, SUSPECT),
        ({"gradients": OK, "black box": OK}, NOT_RUN),
        ({}, NOT_RUN),
    ],
)
def test_a_number_is_sound_only_if_a_core_check_ran(statuses: dict[str, Status], expected: Status) -> None:
    assert verdict(Finding(check=name, status=status, measured="") for name, status in statuses.items()) == expected
