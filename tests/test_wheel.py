"""What is installed is whole: the wheel, alone in an empty environment, finds its configuration from any directory."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def sh(*words: str | Path, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree as it stands, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    sh(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("robustcli-*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``robustcli`` of an environment that holds the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    sh(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # A path of a .pth file is searched last, and .pth files in it (that of an editable install) are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "robustcli"


def test_the_wheel_holds_every_config_and_every_shipped_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"robustcli/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "conf").rglob("*.yaml")}
    assets = {file.relative_to(ROOT).as_posix() for file in (ROOT / "robustcli" / "assets").rglob("*.*")}
    templates = {file.relative_to(ROOT).as_posix() for file in (ROOT / "robustcli").rglob("*.j2")}
    assert configs and templates and configs | assets | templates | {"robustcli/py.typed"} <= held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/", "outputs/"))]


def test_the_installed_command_runs_from_anywhere(command: Path, tmp_path: Path) -> None:
    place = sh(command.with_name("python"), "-c", "import robustcli; print(robustcli.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(command.parents[1])
    assert "flickr30k" in sh(command, "list", cwd=tmp_path)
    assert "eps: 4/255" in sh(command, "train-mat", "--cfg", "job", "--resolve", "attack=pgd", cwd=tmp_path)
    assert f"{command.parents[1]}" in sh(command, "evaluate", "--info", "searchpath", cwd=tmp_path)


def test_a_directory_of_the_user_adds_choices_to_the_installed_ones(command: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "attack").mkdir(parents=True)
    (tmp_path / "mine" / "attack" / "strong.yaml").write_text("defaults:\n  - sga\n  - _self_\nimage:\n  steps: 77\n")
    words = ("train-mat", "--config-dir", "mine", "attack=strong", "--cfg", "job", "-p", "attack.image")
    assert "steps: 77" in sh(command, *words, cwd=tmp_path)
