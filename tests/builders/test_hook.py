"""Constructors that fail: reason and path stay, and what is no mistake of a user keeps its type."""

import errno
from typing import Any

import pytest

from robustcli.builders.hook import build, construct
from robustcli.utils.errors import UserError


class Failing:
    """An object that is never made."""

    def __init__(self, *, inner: Any = None, error: str = "") -> None:
        raise {
            "full": OSError(errno.ENOSPC, "No space left on device", "/cache/a.npy"),
            "plain": OSError("1536000 requested and 200576 written"),
            "value": ValueError("two\nlines"),
            "type": TypeError("can only join an iterable"),
            "memory": RuntimeError("CUDA out of memory."),
            "inside": RuntimeError("expected a matrix"),
            "user": UserError("dataset.x is wrong."),
        }[error]


class Built:
    """An object with a ``build`` that fails in the same ways."""

    build = staticmethod(lambda settings: Failing(**settings))


REASONS = [
    ("full", r"node {} cannot be made: /cache/a\.npy: No space left on device; make room there"),
    ("plain", "node {} cannot be made: 1536000 requested and 200576 written"),
    ("value", r"node {} cannot be made of its settings \(ValueError: two\)"),
    ("type", r"node {} cannot be made of its settings \(TypeError: can only join an iterable\)"),
    ("user", r"dataset\.x is wrong\."),
    ("memory", "node {} needs more memory than there is: lower the sizes in its settings"),
]


@pytest.mark.parametrize("kind", ["Failing", "Built"])
@pytest.mark.parametrize(("error", "message"), REASONS)
def test_the_reason_and_the_path_of_a_constructor_s_error_stay(error: str, message: str, kind: str) -> None:
    with pytest.raises(UserError, match=message.format(kind)):
        build({"_target_": f"{__name__}.{kind}", "error": error}, node="node")
    with pytest.raises(UserError, match=message.format("Failing")):  # of a node below
        inner = {"_target_": f"{__name__}.Failing", "error": error}
        construct({"_target_": f"{__name__}.Failing", "inner": inner}, node="node")


@pytest.mark.parametrize("kind", ["Failing", "Built"])
def test_what_is_no_mistake_of_a_user_keeps_its_type(kind: str) -> None:
    with pytest.raises(RuntimeError, match="expected a matrix"):
        build({"_target_": f"{__name__}.{kind}", "error": "inside"}, node="node")


def test_a_setting_that_is_not_taken_is_named() -> None:
    with pytest.raises(UserError, match=r"node Failing does not take these settings: got an unexpected .* 'eror'"):
        construct({"_target_": f"{__name__}.Failing", "eror": "x"}, node="node")
