"""Every key of every command is read by its run or refused where it is typed: no setting is taken without a word."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from robustcli.cli.job import engine_of
from robustcli.cli.launch import written_out
from robustcli.cli.validate import as_job
from robustcli.config.checks import check
from robustcli.config.compose import compose
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import flatten, plain

from ..colours import COLOURS, write_table

SCENES = ["dataset.train=16", "dataset.val=8", "dataset.test=8", "threat.edits=query"]
TRAINER = ["trainer.max_steps=1", "trainer.batch_size=8"]
DIGITS = ["dataset=digits", "model=digits"]
FEW = ["evaluation.limit=4", "diagnostics=off"]
PAIRS = ["attacks=none", "+attack@attacks.sep=sep", "attacks.sep.image.steps=1", "attacks.sep.text.search=hotflip"]
ONE = ["attacks=none", "+attack@attacks.fgsm=fgsm"]
PURIFIED = ["purifier=noise", "purifier.draws=1", "evaluation.fresh=1", "evaluation.access=[static]"]
TYPOS = ["attacks=none", "attack=typos", "attack.positions=2"]
COMMANDS = {
    "train-mat": [*SCENES, *TRAINER, *FEW, *PAIRS, "model.checkpoint=null", "evaluation.before=false"],
    "train-classifier": [*DIGITS, *TRAINER, *FEW, *ONE, "objective=pgd_at"],
    "train-generator": [*TRAINER, "evaluation.limit=4"],
    "attack": [*DIGITS, *FEW, "attack=fgsm", "threat=image"],
    "evaluate": [*SCENES, *FEW, *PAIRS],
    "evaluate sentences": [
        "dataset=sentences",
        f"dataset.classes=[{','.join(COLOURS)}]",
        "threat=characters",
        *FEW,
        *TYPOS,
    ],
    "purify": [*FEW, *ONE, *PURIFIED, "~baselines.noise", "~baselines.blur", "evaluation.eps_curve=[1]"],
    "learn-alphas": ["evaluation.limit=64", "adversarial.images=2", "purifier.draws=1", "trials=1"],
}
# Keys of the command line itself, and of what is written beside the figures.
ELSEWHERE = {"resume", "retry", "tracker"}


@contextmanager
def recorded(read: set[str]) -> Iterator[None]:
    """Context in which the dotted key of every node that is looked up is added to ``read``."""
    original: Any = DictConfig._get_node

    def look_up(self: Any, key: Any, *arguments: Any, **options: Any) -> Any:
        parts, node = [str(key)], self
        while node._key() is not None:
            parts, node = [str(node._key()), *parts], node._get_parent()
        read.add(".".join(parts))
        return original(self, key, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DictConfig, "_get_node", look_up)
        yield


def composed(command: str, words: list[str]) -> DictConfig:
    return compose(command, written_out(command, words), with_hydra=True)


@pytest.mark.parametrize("case", COMMANDS)
def test_a_key_that_the_run_does_not_read_is_refused(case: str, tmp_path: Path) -> None:
    command, words = case.split()[0], COMMANDS[case]
    if "dataset=sentences" in words:
        words = [*words, f"dataset.table={write_table(tmp_path / 'colours.csv', 8)}"]
    config, read, engine = composed(command, words), set[str](), engine_of(command)
    with as_job(config):
        check(config)
        settings: dict[str, Any] = flatten(plain(config))
        with Run.open(command, plain(config), tmp_path / "run", []) as run, recorded(read):
            run.finish(engine.run(config, run))
    unread = sorted(key for key in settings if key not in read | ELSEWHERE)
    print(command, unread)
    accepted = []
    for key in unread:
        word = f"++{key}={value_of(settings[key])}"
        typed = composed(command, [*words, word])
        with as_job(typed):
            try:
                engine.load(typed)
            except UserError as error:
                assert "nothing would read it" in str(error), error
            else:
                accepted.append(word)
    assert not accepted


def value_of(setting: Any) -> str:
    """A setting as a word of Hydra's grammar."""
    if setting is None:
        return "null"
    return f"'{setting}'" if isinstance(setting, str) else str(OmegaConf.create([setting])[0])
