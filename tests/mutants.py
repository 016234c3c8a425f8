"""Mutation testing: each fault of ``mutants.toml`` is put into a copy of the package, where a named test has to fail.

Run by ``make mutants``. A mutant that lives shows a line of the package that no test holds. Exit codes: 0, all are
killed; 1, some live; 2, the list or the tests are wrong, so that nothing is known.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = Path("tests", "mutants.toml")
COPIED = ("robustcli", "conf", "tests", "pyproject.toml")
PASSED, FAILED = 0, 1  # exit codes of pytest; any other says that tests did not run


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: path of the module, relative to the root.
        before, after: text of the module, and what stands there in the mutant.
        tests: arguments of pytest, files or single tests, one of which fails on the mutant.
        equivalent: reason why no test can tell the mutant from the original; empty for all others.
    """

    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.before!r} -> {self.after!r}"

    def apply(self, root: Path) -> str:
        """Write the mutant over the module under ``root``; the text of the original."""
        path = root / self.file
        original = path.read_text(encoding="utf-8")
        path.write_text(original.replace(self.before, self.after), encoding="utf-8")
        return original


def read(path: Path) -> tuple[list[Mutant], list[str]]:
    """The mutants of a list, in its order, and the libraries that their tests import."""
    mutants, sections = [], tomllib.loads(path.read_text(encoding="utf-8"))
    libraries = sections.pop("libraries", [])
    for file, section in sections.items():
        for before, after, *tests in section.get("mutants", []):
            mutants.append(Mutant(file, before, after, tuple(tests or section["tests"])))
        for before, after, reason in section.get("equivalent", []):
            mutants.append(Mutant(file, before, after, (), reason))
    return mutants, libraries


def faults_of(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """A sentence for each text that does not stand in its module exactly once, and each test file that is not there."""
    faults = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.before) if path.is_file() else 0
        if count != 1:
            faults.append(f"{mutant}: the text stands there {count} times")
        faults += [f"{mutant}: no {test}" for test in mutant.tests if not (root / test.partition("::")[0]).is_file()]
    return faults


def run(mutants: Sequence[Mutant], libraries: Sequence[str], root: Path, jobs: int) -> int:
    """Put each mutant to its tests, ``jobs`` at a time; the exit code.

    Args:
        libraries: imported once, before the processes of the tests fork: a start of Python with all of them costs as
            much as the tests.
    """
    if faults := faults_of(mutants, root):
        return _end("entries are out of date", faults, 2)
    chosen = [mutant for mutant in mutants if not mutant.equivalent]
    for name in libraries:
        with suppress(ImportError):
            importlib.import_module(name)
    # Tests that fail anyway would kill every mutant.
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    shares = [(None, share) for share in (tests[number::jobs] for number in range(jobs)) if share]
    if faults := [output for _, code, output in _outcomes(shares, root, jobs) if code != PASSED]:
        return _end("runs of the tests fail without any mutant", faults, 2)
    living = []
    for number, code, output in _outcomes([(mutant, mutant.tests) for mutant in chosen], root, jobs):
        print({PASSED: "LIVES ", FAILED: "killed"}.get(code, "NO TEST"), chosen[number], flush=True)
        if code == PASSED:
            living.append(str(chosen[number]))
        elif code != FAILED:
            faults.append(f"{chosen[number]}: pytest ended with {code}\n{output}")
    if faults:
        return _end("mutants were not tested", faults, 2)
    return _end(f"of {len(chosen)} mutants live", living, 1 if living else 0)


def _outcomes(
    tasks: Sequence[tuple[Mutant | None, Sequence[str]]], root: Path, jobs: int
) -> Iterator[tuple[int, int, str]]:
    """Number, exit code of pytest and end of its output of each task, as they end; the working tree is not touched."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free = [_copy(root, Path(folder) / str(number)) for number in range(min(jobs, len(tasks)))]
        waiting, running = list(enumerate(tasks))[::-1], dict[int, tuple[int, Path, str]]()
        while waiting or running:
            while free and waiting:
                number, (mutant, tests) = waiting.pop()
                place = free.pop()
                original = mutant.apply(place) if mutant is not None else ""
                running[_start(place, tests)] = number, place, original
            process, status = os.wait()
            number, place, original = running.pop(process)
            if (mutant := tasks[number][0]) is not None:
                (place / mutant.file).write_text(original, encoding="utf-8")
            free.append(place)
            yield number, os.waitstatus_to_exitcode(status), (place / "output").read_text(errors="replace")[-3000:]


def _copy(root: Path, place: Path) -> Path:
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, place / name)
    return place


def _start(place: Path, tests: Sequence[str]) -> int:
    """Number of a process that runs ``tests`` on the package in ``place``, and ends with pytest's exit code."""
    if process := os.fork():
        return process
    code = 3
    try:
        with (place / "output").open("w") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
        os.chdir(place)
        os.environ["PYTHONPATH"] = sys.path[0] = str(place)
        # A mutant of the size and the second of its original would be taken for it.
        os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
        package = importlib.import_module("robustcli")
        assert Path(str(package.__file__)).is_relative_to(place), f"tests would read {package.__file__}"
        code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def _end(what: str, entries: Sequence[str], code: int) -> int:
    print(f"{len(entries)} {what}", *entries, sep="\n  ", flush=True)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Puts faults into a copy of the package, one at a time, and tests it.")
    parser.add_argument("only", nargs="*", help="parts of the files or texts of the mutants wanted; none: all")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree of the package")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    given = parser.parse_args()
    every, libraries = read(given.root / LIST)
    chosen = [mutant for mutant in every if not given.only or any(part in str(mutant) for part in given.only)]
    sys.exit(run(chosen, libraries, given.root, given.jobs))
