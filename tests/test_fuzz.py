"""A few inputs of each kind of `tests.fuzz`; ``make fuzz`` puts thousands."""

import pickle
from pathlib import Path

import pytest

from robustcli.utils.errors import UserError

from . import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_every_input_ends_in_a_result_or_in_one_sentence(kind: str) -> None:
    count = 8 if kind in ("command_line", "config_directory") else 40
    assert [said for seed in range(count) if (said := fuzz.failure(seed, kind))] == []


def test_what_goes_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_lines(*_: object) -> None:
        raise UserError("a\nb")

    def runs(_: object, place: Path) -> None:
        pickle.loads(pickle.dumps(fuzz.Ran(place / "ran")))

    def never_ends(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    bad = {"crash": lambda *_: [][0], "two_lines": two_lines, "runs": runs, "never_ends": never_ends}
    monkeypatch.setattr(fuzz, "KINDS", bad)
    said = {kind: fuzz.failure(0, kind) for kind in bad}
    assert said["crash"].startswith("crash 0: IndexError: list index out of range")
    assert "not one sentence" in said["two_lines"] and "code of the file was run" in said["runs"]
    assert "TimeoutError: took longer than 0.1 s" in said["never_ends"]
