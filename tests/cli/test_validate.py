"""``validate``: every command's load phase without a run, or the sentence of the mistake."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from robustcli.cli.commands import COMMANDS
from robustcli.cli.main import app
from robustcli.models.weights import ASSETS

SMALL = {
    "train-mat": ["attacks=quick", "model.checkpoint=null", "dataset.train=150", "dataset.val=16", "dataset.test=16"],
    "train-classifier": ["dataset=digits", "model=digits"],
    "attack": ["attack=pgd", "dataset=digits", "model=digits"],
    "evaluate": ["dataset=digits", "model=digits", "attack=square", "attacks=standard"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def validated(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["validate", *words], prog_name="robustcli", catch_exceptions=False)
    out, err = capfd.readouterr()
    return result.exit_code, result.output + out, err


# All but the one that needs a directory of augmented pairs.
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "augment-quality"])
def test_a_command_that_would_run_is_told_so_and_nothing_is_written(
    command: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*SMALL.get(command, []), "seed=3"]
    code, out, err = validated(capfd, command, *words)
    assert code == 0 and out.count("\n") == 1 and "error" not in err, out + err
    assert out.startswith(f"all is well, nothing was run: robustcli {command} dataset=") and "seed=3" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("defence", "attack"),
    [("leaf", ["attack=characters", "threat=characters"]), ("text", ["attack=words"]), ("fare", ["attack=apgd"])],
)
def test_an_objective_of_one_side_takes_an_attack_on_that_side(
    defence: str, attack: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = validated(capfd, "train-mat", *SMALL["train-mat"], "attacks=none", f"defense={defence}", *attack)
    assert code == 0, out + err


def test_no_engine_is_run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = ModuleType("robustcli.engines.train")
    loaded: list[int] = []
    engine.load = lambda config: loaded.append(config.seed)
    monkeypatch.setitem(sys.modules, "robustcli.engines.train", engine)
    assert validated(capfd, "train-mat", "seed=4", "experiment=tiny_clean")[0] == 0
    assert loaded == [4]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train-mat", "trainer.batch_size=0"], "trainer.batch_size is 0, but must be at least 1"),
        (["train-mat", "trainer.lrr=1"], "train-mat has no key 'trainer.lrr': did you mean 'trainer.lr'?"),
        (["train-classifier", "objective=pgd_at", "attack=mat", "dataset=digits", "model=digits"], "edits captions"),
        (
            ["train-classifier", "trainer.optimizer=lion", "dataset=digits", "model=digits"],
            "trainer.optimizer is 'lion'",
        ),
        (["train-generator", "moments.temperatures=[0.8]"], "which moments.temperatures [0.8] lacks"),
        (["evaluate", "checkpoint=nowhere.safetensors"], "nowhere.safetensors"),
        (["purify", "threat.norm=linf"], "threat.norm is 'linf'"),
        (["learn-alphas", "purifier=blur"], "learn-alphas needs a purifier that has alphas"),
        (["purify", "trainer=smoke"], "purify has no group 'trainer'"),
        (["train-mat", "seed=0,1"], "seed=0,1 lists several values"),
        (["train-mat", "--multirun", "seed=0"], "takes no --multirun"),
        (["train-mat", "--config-dir", "my_conf"], "--config-dir my_conf is no directory"),
        (["evaluate", "checkpoints=a.safetensors"], "checkpoints is a.safetensors, without labels: write checkpoints="),
        (["evaluate", "checkpoint=a", "checkpoints={b: c}"], "give it a label"),
        (["evaluate", "dataset=digits", "model=small_cnn"], "model small_cnn has random weights"),
        (["evaluate", f"checkpoint={ASSETS}/nvae_digits.safetensors", *SMALL["evaluate"]], "is of a generator"),
        (["evalute"], "there is no command 'evalute': did you mean 'evaluate'?"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_the_sentence_that_the_run_would_end_with(
    words: list[str], sentence: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = validated(capfd, *words)
    assert code == 2 and sentence in out + err and "Traceback" not in out + err, out + err
    assert not list(tmp_path.iterdir())


def test_groups_of_the_user_are_found(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("# Mine.\n_target_: robustcli.data.Digits\n")
    words = ["purify", "--config-dir", str(tmp_path), "dataset=mine"]
    said = validated(capfd, *words)[1]
    assert "dataset=mine" in said and f"--config-dir {tmp_path}" in said


def test_the_command_that_is_shown_is_the_whole_one(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["+attack@attacks.x=square", "attacks.x.queries=5"]
    said = validated(capfd, "evaluate", "dataset=digits", "model=digits", "attacks=none", *words)[1]
    assert said.endswith(f" {' '.join(words)}\n") and " attacks=none " in said
