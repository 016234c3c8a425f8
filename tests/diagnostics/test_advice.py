"""Advice can be pasted behind the command that printed it: every override is accepted, and it cures what it is for."""

import re
from pathlib import Path

import pandas as pd
import pytest

from robustcli.attacks import APGD, PGD, Square
from robustcli.cli.launch import launch
from robustcli.cli.validate import validate
from robustcli.diagnostics import NOT_RUN, OK, SUSPECT, Advice, ConfigKeys

OVERRIDE = re.compile(r"\+?[a-z_.@0-9]+=[a-z_0-9]+")
DIGITS = ["dataset=digits", "model=digits", "threat.eps=32/255", "evaluation.limit=48"]
PAIRS = ["dataset.test=12", "evaluation.eps_curve=[]"]
STILL = ["model.checkpoint=null", "trainer.batch_size=32", "dataset.train=96", "dataset.val=16", "dataset.test=16"]
COMMANDS = {
    "attack": (["attack", *DIGITS, "attack=pgd"], ConfigKeys(), "autoattack"),
    "beside a suite": (["evaluate", *DIGITS, "attacks=quick"], ConfigKeys(image="attacks.pgd"), "autoattack"),
    "pairs": (
        ["evaluate", *PAIRS, "attacks=quick"],
        ConfigKeys(image="attacks.sep.image", text="attacks.sep.text"),
        "retrieval_autoattack",
    ),
    "training": (
        ["train-mat", *STILL, "attacks=quick"],
        ConfigKeys(image="attacks.pgd", text="attacks.words", another="+attack@attacks.{0}={0}"),
        "retrieval_autoattack",
    ),
    "purify": (
        ["purify", "attacks=purification"],
        ConfigKeys(image="attacks.pgd", another="+attack@attacks.{0}={0}"),
        "autoattack",
    ),
}


def advised(advice: Advice) -> set[str]:
    """The overrides in all that it has to say."""
    names = [name for name, value in vars(Advice).items() if isinstance(value, property) and not name.startswith("_")]
    said = [getattr(advice, name) for name in names] + [advice.more_steps(40), advice.still_rising(40)]
    return {override for text in said for override in OVERRIDE.findall(text)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_override_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, keys, ensemble = COMMANDS[name]
    found = advised(Advice(keys=keys, ensemble=ensemble, search=PGD(alpha="1/255")))
    if keys.text == "attack":  # nothing there searches captions
        found -= {"attack.search=exhaustive", "candidates=neighbours"}
    assert {f"{keys.image}.alpha=null", f"{keys.image}.steps=40", keys.another.format("square")} <= found
    for override in sorted(found):
        assert validate(words[0], [*words[1:], override]) == 0, override


def test_what_a_search_does_not_have_is_not_advised() -> None:
    assert "attack.queries=40" in advised(Advice(search=Square()))
    assert not {word for word in advised(Advice(search=APGD())) if "alpha" in word}


@pytest.mark.parametrize(
    ("words", "check"),
    [
        (["attack", *DIGITS, "attack=fgsm"], "stronger search"),
        (["attack", *DIGITS, "attack=pgd", "attack.steps=2", "evaluation.limit=64"], "more steps"),
        (["evaluate", *PAIRS, "attacks=none", "+attack@attacks.weak=fgsm", "dataset.test=4"], "stronger search"),
    ],
)
def test_what_is_advised_first_cures(words: list[str], check: str, tmp_path: Path) -> None:
    """Pasted behind the command, again where it says so ("until nothing changes"), it ends in a number to believe."""
    typed: list[str] = []
    for turn in range(6):
        run = tmp_path / str(turn)
        assert launch(words[0], [*words[1:], *typed, f"hydra.run.dir={run}"]) == 0
        finding = pd.read_csv(run / "diagnostics.csv").set_index("check").loc[check]
        if finding["status"] != SUSPECT:
            break
        typed.append(OVERRIDE.findall(finding["advice"])[0])
    assert typed and finding["status"] in (OK, NOT_RUN)
