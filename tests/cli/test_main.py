"""What a person types before any job runs: help, version, list, completion, and what they cost."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from typer.main import get_command
from typer.testing import CliRunner

from robustcli import __version__
from robustcli.cli import readiness
from robustcli.cli.commands import COMMANDS, QUESTIONS
from robustcli.cli.completion import complete
from robustcli.cli.launch import one_sentence, written_out
from robustcli.cli.listing import print_table
from robustcli.cli.main import app
from robustcli.config import groups as config_groups
from robustcli.config.compose import compose
from robustcli.utils.errors import UserError

HEAVY = {"torch", "hydra", "omegaconf", "pandas", "open_clip", "rich", "numpy"}


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), prog_name="robustcli")
    return result.exit_code, result.output


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train-mat", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['robustcli', *{words!r}]\nfrom robustcli.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0, end.code\n"
        f"found = {HEAVY!r} & set(sys.modules)\nassert not found, found"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_what_a_run_on_digits_does_not_use_is_not_imported() -> None:
    """A second of torchvision, a second of scikit-learn, half a second of scipy, in each process of each run."""
    code = (
        "import sys\n"
        "from robustcli.engines import attack, evaluate, purify, train, verify\n"
        "from robustcli import data, diagnostics, metrics\n"
        "data.Digits(split='test'), metrics.wilson(3, 4)\n"
        "unused = {'torchvision', 'scipy', 'sklearn', 'transformers', 'open_clip', 'timm', 'torchattacks', 'optuna'}\n"
        "assert not unused & set(sys.modules), unused & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_version() -> None:
    assert run("--version") == (0, f"robustcli {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_examples_and_every_choice_of_its_groups(name: str) -> None:
    code, text = run(name, "--help")
    assert code == 0 and run(name, "seed=1", "-h") == (code, text)
    assert f"robustcli {name} " in text and "Exit codes: 0 done" in text
    listed = _rows(text.partition("Config groups ")[2].partition("\n\n")[0])
    typed = config_groups.as_typed(name)
    assert listed == {typed[group]: ", ".join(names) for group, names in config_groups.groups_of(name).items()}
    keys = _rows(text.partition("Keys ")[2].partition("\n\n")[0])
    composed = OmegaConf.to_container(compose(name, []))
    for key in keys:
        node: Any = composed
        for part in key.partition("=")[0].removesuffix(".KEY").split("."):
            node = node[part]  # a KeyError: the help has a key that the command lacks
    own = yaml.safe_load((config_groups.conf_directory() / f"{name.replace('-', '_')}.yaml").read_text())
    assert own.keys() - {"defaults", "hydra"} <= {key.partition("=")[0].partition(".")[0] for key in keys}


def _rows(section: str) -> dict[str, str]:
    """Names and texts of a section of two columns, whose continued lines begin under the text."""
    found: dict[str, str] = {}
    last = ""
    for line in section.splitlines()[1:]:
        name, _, text = line.strip().partition("  ")
        if line.startswith("   "):
            found[last] += " " + line.strip()
        else:
            last = name
            found[name] = text.strip()
    return found


def test_the_help_is_one_screen_and_puts_each_command_under_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, text = run("--help")
    lines = text.splitlines()
    assert code == 0 and 24 <= len(lines) <= 40 and max(map(len, lines)) <= 80
    places = [lines.index(question) for question in QUESTIONS]
    assert places == sorted(places) and "..." not in text.partition("\n")[2], "no summary is cut"
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        assert any(line.startswith(f"  {command} ") for line in lines[places[0] : lines.index("Options:")])


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_help_of_a_command_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    groups = run("evaluate", "-h")[1].partition("Config groups ")[2].partition("\n\n")[0].splitlines()[1:]
    assert max(map(len, groups)) <= max(columns, 60)


def test_a_group_that_goes_elsewhere_is_shown_completed_and_suggested_as_it_is_typed() -> None:
    assert "model@reference=" in complete("augment-quality", [], "mod")
    assert complete("augment-quality", [], "model@reference=tin") == ["model@reference=tiny"]
    words = ["model=a"]
    with pytest.raises(UserError, match=r"mean 'model@reference'\?"), one_sentence("augment-quality", words):
        compose("augment-quality", words)


def test_a_file_or_a_folder_in_place_of_a_choice_gets_the_command_line_that_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    for word, said in (
        ("model=mine.pt", r"model=torchvision model\.architecture=resnet18 checkpoint=mine\.pt"),
        ("dataset=photos/", r"dataset=class_folders dataset\.root=photos for"),
        ("model=other.pt", "has no choice"),
    ):
        with pytest.raises(UserError, match=said), one_sentence("evaluate", [word]):
            compose("evaluate", [word])


@pytest.mark.parametrize(
    ("name", "example"),
    [(name, example) for name, command in COMMANDS.items() for example in command.examples if "resume=" not in example],
)
def test_an_example_of_the_help_composes(name: str, example: str) -> None:
    overrides = written_out(name, [word for word in shlex.split(example) if word != "--multirun"])
    if "--multirun" in example:
        overrides = [word.partition(",")[0] for word in overrides if not word.startswith("hydra/")]
    compose(name, overrides)


@pytest.mark.parametrize(
    ("command", "has", "lacks"),
    [
        (
            "evaluate",
            {"dataset", "model", "threat", "attack", "attacks"},
            {"trainer", "defense", "generator", "protocol"},
        ),
        (
            "train-generator",
            {"generator", "trainer", "augmentation"},
            {"model", "attack", "attacks", "threat", "objective"},
        ),
        ("purify", {"purifier", "protocol", "experiment"}, {"trainer", "attack", "candidates"}),
    ],
)
def test_a_command_knows_the_groups_of_its_defaults_list_alone(command: str, has: set[str], lacks: set[str]) -> None:
    own = set(config_groups.groups_of(command))
    assert has <= own and not lacks & own
    completed = {word.rstrip("=.") for word in complete(command, [], "")}
    assert has <= completed and not (lacks - {"objective"}) & completed  # a key of train-generator, but no group


def test_experiments_are_those_of_the_command() -> None:
    assert config_groups.groups_of("train-mat")["experiment"][-1] == "train_mat/tiny_clean"
    assert all(name.startswith("purify/") for name in config_groups.groups_of("purify")["experiment"])
    assert "experiment" not in config_groups.groups_of("attack"), "it has none"
    assert complete("train-classifier", [], "experiment=train_classifier/tiny_d") == [
        "experiment=train_classifier/tiny_digits"
    ]


def test_an_unknown_command_gets_the_nearest_one() -> None:
    code, text = run("trian-mat")
    assert code == 2 and "train-mat" in text and "Traceback" not in text


def test_list_shows_commands_groups_and_what_each_choice_is() -> None:
    code, text = run("list")
    assert code == 0
    for word in (*COMMANDS, *config_groups.groups()):
        assert word in text
    code, text = run("list", "defense")
    assert code == 0 and "tecoa" in text and "TeCoA, Mao" in " ".join(text.split()) and "karpathy" not in text


def test_list_of_a_command_shows_its_groups() -> None:
    code, text = run("list", "learn-alphas")
    assert code == 0 and "purifier=" in text and "trainer=" not in text and "train_mat/" not in text


def test_list_shows_what_a_directory_of_ones_own_adds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# A model of mine.\n_target_: mine.mine\n")
    code, text = run("list", "model", "--config-dir", str(tmp_path))
    assert code == 0 and "A model of mine." in text and "open_clip" in text
    code, text = run("list", "model", "--config-dir", str(tmp_path / "nowhere"))
    assert code == 2 and "is no directory" in text + capfd.readouterr().err


def test_list_shows_brackets_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", [("name", "needs robustcli[hf].")])
    assert "needs robustcli[hf]." in capsys.readouterr().out


def test_list_of_an_unknown_group_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    code, text = run("list", "defence")
    assert code == 2 and "did you mean 'defense'" in text + capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "defen", ["defense="]),
        ([], "dataset=fl", ["dataset=flickr30k", "dataset=flickr8k"]),
        (["dataset", "="], "fl", ["flickr30k", "flickr8k"]),
        (["attack", "=", "pgd", "defense", "="], "te", ["tecoa", "text"]),
        ([], "defense=mat,te", ["defense=mat,tecoa", "defense=mat,text"]),
        ([], "trainer.max_", ["trainer.max_steps=", "trainer.max_seconds="]),
        ([], "trainer.log_every", ["trainer.log_every=", "trainer.log_every=10"]),
        ([], "trainer.compile=", ["trainer.compile=true", "trainer.compile=false"]),
        (["dataset=table"], "dataset.caption_c", ["dataset.caption_column=", "dataset.caption_column=caption"]),
        (["--cfg"], "", ["job", "hydra", "all"]),
        ([], "hydra/launcher=jo", ["hydra/launcher=joblib"]),
        (["defense=wrong"], "see", ["seed=", "seed=0"]),
    ],
)
def test_completion(words: list[str], incomplete: str, expected: list[str]) -> None:
    found = complete("train-mat", words, incomplete)
    assert [match for match in found if not match.endswith(".")][: len(expected)] == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"_ROBUSTCLI_COMPLETE": "complete_bash", "COMP_WORDS": "robustcli trai", "COMP_CWORD": "1"}, "train-mat"),
        (
            {
                "_ROBUSTCLI_COMPLETE": "complete_bash",
                "COMP_WORDS": "robustcli train-mat dataset = sc",
                "COMP_CWORD": "4",
            },
            "scenes",
        ),
        (
            {"_ROBUSTCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "robustcli train-mat dataset=sc"},
            "dataset=scenes",
        ),
        (
            {
                "_ROBUSTCLI_COMPLETE": "complete_fish",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
                "_TYPER_COMPLETE_ARGS": "robustcli evaluate attacks=q",
            },
            "attacks=quick",
        ),
        (
            {"_ROBUSTCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "robustcli validate purify dataset=scene_"},
            "dataset=scene_classes",
        ),
        ({"_ROBUSTCLI_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "robustcli validate pur"}, "purify"),
    ],
    ids=["bash-command", "bash-choice", "zsh", "fish", "validate-choice", "validate-command"],
)
def test_completion_by_the_protocol_of_the_shell(environment: dict[str, str], expected: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "robustcli"], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert expected in ended.stdout.replace('"', " ").split() or ended.stdout.strip() == expected, ended


@pytest.mark.parametrize("words", [["train-mat", "--help"], ["list"]])
def test_a_directory_of_groups_that_is_not_there_is_named(words: list[str]) -> None:
    code, said = run(*words, "--config-dir", "nowhere")
    assert code == 2 and "--config-dir nowhere is no directory" in said


def test_a_terminal_that_lacks_a_letter_gets_its_code() -> None:
    code = "import robustcli.cli.main as m\nm.app = lambda **_: print('±')\nm.main()"
    settings = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert (ended.returncode, ended.stdout) == (0, "\\xb1\n"), ended.stderr


def test_doctor_tells_versions_devices_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    code, text = run("doctor")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert code == 0 and not (tmp_path / "cache").exists()
    assert __version__ in lines["robustcli"] and "GiB" in lines["memory"] and "cores" in lines["cpu"]
    assert "cuda" in text and str(tmp_path / "cache") in lines["place"] and "yes" in lines["can"]
    for name, size in (("a/pixels.u8", 3_000_000), (".tmp-a-here-1/pixels.u8", 1_000_000), ("a.lock", 9_000_000)):
        path = tmp_path / "cache" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    assert "3.0 MB in 1 entries, 1 being written or left by killed runs (1.0 MB)" in run("doctor")[1]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path / "file" / "x"))
    assert "NO: " in run("doctor")[1]


def test_doctor_tells_what_each_missing_extra_gives_and_which_data_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "data" / "flickr8k" / "images").mkdir(parents=True)  # without its captions
    found = dict(readiness.datasets())
    assert found["mnist"] == "yes, data/mnist" and found["embedded"] == "digits, scene_classes, scenes"
    assert "flickr8k," in found["not here"] and "mnist" not in found["not here"] and "npz" in found["of your own"]
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    lines = [f"{each}; extra == '{extra}'" for extra, of in declared["optional-dependencies"].items() for each in of]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    monkeypatch.setattr(readiness, "_installed", lambda name: name in ("robustcli", "starlette"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    states = dict(readiness.extras())
    assert states["view"] == "no (uvicorn); it gives robustcli view: pip install 'robustcli[view]'"
    assert states["git"].startswith("no; it gives the commit") and states["git"].endswith("apt install git")
    developer = {"dev", "benchmark", "browser"}
    assert set(readiness.EXTRAS) == declared["optional-dependencies"].keys() - developer
    monkeypatch.setattr(readiness, "_installed", lambda name: False)
    assert dict(readiness.extras())["view"].startswith("not known")


def test_ctrl_c_while_the_libraries_are_imported_ends_in_silence(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsum(range(10**6))\n")
    ended = subprocess.run(
        [sys.executable, "-m", "robustcli", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])},
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")
