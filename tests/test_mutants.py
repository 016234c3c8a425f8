"""The list of mutants, and the tool that puts them to their tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from .mutants import LIST, ROOT, Mutant, faults_of, read

MUTANTS, _ = read(ROOT / LIST)


def test_every_text_stands_where_the_list_says_exactly_once() -> None:
    assert faults_of(MUTANTS, ROOT) == []


def test_every_mutant_is_another_program_and_names_its_tests_or_a_reason() -> None:
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.before != mutant.after and bool(mutant.tests) != bool(mutant.equivalent), mutant
        compile(source.replace(mutant.before, mutant.after), mutant.file, "exec")


def test_every_room_that_makes_a_number_is_covered() -> None:
    rooms = {Path(mutant.file).parts[1] for mutant in MUTANTS}
    assert len(MUTANTS) >= 60
    assert rooms >= {"attacks", "data", "defenses", "evaluation", "metrics", "models", "runs", "training"}


TESTS = """
from robustcli import double


def test_double() -> None:
    assert double(2) == 4
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of one function, which is tested at a single number."""
    for folder in ("robustcli", "conf", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "robustcli" / "__init__.py").write_text("def double(x: int) -> int:\n    return 2 * x\n")
    (tmp_path / "tests" / "test_double.py").write_text(TESTS)
    return tmp_path


def ended(tree: Path, before: str, after: str, test: str = "tests/test_double.py") -> tuple[int, str]:
    """Exit code and output of the tool on a list of one mutant."""
    entry = f"[['{before}', '{after}']]"
    (tree / "tests" / "mutants.toml").write_text(f"['robustcli/__init__.py']\ntests = ['{test}']\nmutants = {entry}\n")
    command = [sys.executable, str(ROOT / "tests" / "mutants.py"), "--root", str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("before", "after", "code", "says"),
    [
        ("2 * x", "3 * x", 0, "0 of 1 mutants live"),
        ("2 * x", "x ** 2", 1, "LIVES"),
        ("5 * x", "3 * x", 2, "the text stands there 0 times"),
        ("x", "y", 2, "the text stands there 2 times"),
        ("2 * x", "2 *", 2, "mutants were not tested"),
    ],
)
def test_the_exit_code_says_if_all_die(tree: Path, before: str, after: str, code: int, says: str) -> None:
    source = (tree / "robustcli" / "__init__.py").read_text()
    found, output = ended(tree, before, after)
    assert found == code and says in output
    assert (tree / "robustcli" / "__init__.py").read_text() == source


def test_tests_that_fail_without_a_mutant_or_are_not_there_kill_nothing(tree: Path) -> None:
    assert ended(tree, "2 * x", "3 * x", "tests/test_triple.py")[0] == 2
    (tree / "tests" / "test_double.py").write_text(TESTS.replace("4", "5"))
    code, output = ended(tree, "2 * x", "3 * x")
    assert code == 2 and "without any mutant" in output


def test_a_mutant_shows_its_place_and_both_texts() -> None:
    assert str(Mutant("a.py", "x", "y", ("t",))) == "a.py: 'x' -> 'y'"
