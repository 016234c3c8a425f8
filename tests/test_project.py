"""The files around the package say the same as the package."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robustcli import __version__
from robustcli.cli.commands import COMMANDS
from robustcli.cli.launch import written_out

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIRED = [Requirement(line) for line in [*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["hf"]]]
CI: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def test_citation_and_changelog_know_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


@pytest.mark.parametrize("required", REQUIRED, ids=str)
def test_a_dependency_has_a_lower_bound_and_a_tested_version_within_its_bounds(required: Requirement) -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:60]]
    tested = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert any(bound.operator == ">=" for bound in required.specifier)
    assert required.specifier.contains(tested[canonicalize_name(required.name)])


def test_every_python_that_is_named_is_tested() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert CI["test"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_continuous_integration_calls_targets_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    versions = [row["versions"] for row in CI["bounds"]["strategy"]["matrix"]["include"]]
    steps = [step["run"] for job in CI.values() for step in job["steps"] if "run" in step]
    called = [line.split()[1] for line in steps if "${{" not in line] + versions
    assert set(called) <= set(targets) and {"lint", "test", "smoke", "full-size", "lowest", "newest"} <= set(called)


def test_what_the_makefile_runs_is_composed_without_a_refusal() -> None:
    """The overrides of `make smoke`, `demo` and the assets contradict neither each other nor a group."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    lines = re.findall(r"^\t\$\(RUN\) ([a-z-]+)((?: +[^\s]+)*)", makefile, flags=re.MULTILINE)
    runs = {(name, words) for name, words in lines if name in COMMANDS}
    assert {name for name, _ in runs} == set(COMMANDS)
    for name, words in sorted(runs):
        written = written_out(name, [word for word in words.split() if "$" not in word and word != "--multirun"])
        assert written is not None, name
