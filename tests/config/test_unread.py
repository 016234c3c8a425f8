"""What a user writes is what runs: words that would change nothing, or something else than they say, are refused."""

from typing import Any

import pytest

from robustcli.cli.job import engine_of
from robustcli.cli.launch import written_out
from robustcli.cli.validate import as_job
from robustcli.config.checks import check
from robustcli.config.compose import compose
from robustcli.models.weights import ASSETS
from robustcli.utils.errors import UserError

D = ["dataset=digits", "model=digits", "threat=image", "threat.eps=0.1", "evaluation.limit=32", "diagnostics=off"]
ALONE = [*D, "attacks=none", "evaluation.eps_curve=[]"]
CLASSIFIER = ["dataset=digits", "model=digits"]
MAT = ["dataset.train=16", "dataset.val=8", "dataset.test=8", "trainer.batch_size=8", "attacks=none"]
WEIGHTS = ASSETS / "tiny_digits.safetensors"
NO_CAPTIONS = "threat=image"
UNREAD = "nothing would read it, because"


def loaded(command: str, *words: str) -> Any:
    config = compose(command, written_out(command, words), with_hydra=True)
    with as_job(config):
        check(config)
        return engine_of(command).load(config)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("evaluate", [*ALONE, "attack=fgsm", "purifier=noise", "evaluation.draws=50"], "set purifier.draws=50"),
        ("evaluate", [*ALONE, "attack=fgsm", "evaluation.draws=50"], UNREAD),
        ("evaluate", [*ALONE, "attack=fgsm", "evaluation.before=true"], UNREAD),
        ("evaluate", [*ALONE, "attack=fgsm", "candidates=neighbours"], UNREAD),
        ("evaluate", [NO_CAPTIONS, "attacks=quick", "candidates=neighbours"], UNREAD),
        ("evaluate", [*ALONE, "attack=fgsm", "transfer=true"], UNREAD),
        ("evaluate", [*ALONE, "attack=fgsm", "diagnostics={extent: full, share: 0.1}"], f"share: {UNREAD}"),
        ("evaluate", [*ALONE, "attack=fgsm", "diagnostics=strict", "diagnostics.share=1"], f"share=1: {UNREAD}"),
        ("evaluate", [*CLASSIFIER, "attacks=none", "threat.eps=3/255"], UNREAD),
        ("evaluate", [*CLASSIFIER, "attacks=none", "diagnostics=full"], UNREAD),
        ("evaluate", [*CLASSIFIER, "attacks=none", "evaluation.eps_curve=[1]"], UNREAD),
        ("evaluate", [*CLASSIFIER, "attacks=none", f"evaluation.surrogate={WEIGHTS}"], UNREAD),
        ("evaluate", [*ALONE, "attack=fgsm", "evaluation.curve_attack=fgsm"], UNREAD),
        ("evaluate", ["threat=text", "attacks=quick", "evaluation.eps_curve=[1]"], UNREAD),
        ("evaluate", ["attacks.sga.image.loss=margin"], "SGA has a loss of its own"),
        ("evaluate", ["attacks.coattack.text.objective=guided"], "CoAttack has a loss of its own"),
        ("evaluate", ["attacks.pgd.early_stop=false"], UNREAD),
        ("purify", ["evaluation.before=true"], UNREAD),
        ("purify", ["attacks=none", "threat.eps=3"], UNREAD),
        ("train-classifier", [*CLASSIFIER, "evaluation.draws=3"], UNREAD),
        ("train-classifier", [*CLASSIFIER, "evaluation.surrogate=x.pt"], UNREAD),
        ("train-classifier", [*CLASSIFIER, "objective=pgd_at", "attack.early_stop=true"], UNREAD),
        ("train-generator", ["evaluation.surrogate=x.pt"], UNREAD),
        ("train-generator", ["evaluation.fresh=3"], UNREAD),
        ("train-generator", ["moments.batches=3"], UNREAD),
        *[("learn-alphas", [f"evaluation.{word}"], UNREAD) for word in ("surrogate=x.pt", "eot=3", "fresh=3")],
        *[("learn-alphas", [word], UNREAD) for word in ("evaluation.access=[static]", "threat.words=2")],
        ("train-mat", [*MAT, "attack.image.loss=drift"], UNREAD),
        ("train-mat", [*MAT, "defense=clean", "threat.eps=1/255"], UNREAD),
        ("train-mat", [*MAT, "defense=image", "candidates=neighbours"], UNREAD),
        ("train-mat", [*MAT, "attack=sga"], "attack is SGA, whose way of attacking both sides"),
        ("train-mat", [*MAT, "attack=retrieval_autoattack"], "Choose attack=mat"),
        ("train-mat", [*MAT, "attack=sep"], "Choose attack=mat"),
    ],
)
def test_words_that_nothing_would_read_are_refused(command: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        loaded(command, *words)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", [*ALONE, "attack=fgsm", "purifier=noise", "evaluation.draws=4", "transfer=true"]),
        ("evaluate", [*CLASSIFIER, "attacks=none", "evaluation.eps_curve=[]", "diagnostics=off"]),
        ("train-mat", [*MAT, "attack=sep", "defense=image"]),
    ],
)
def test_words_that_are_read_are_not(command: str, words: list[str]) -> None:
    loaded(command, *words)


@pytest.mark.parametrize("name", ["worst", "clean", "none", "all"])
def test_an_attack_has_no_name_that_a_table_uses_itself(name: str) -> None:
    """`worst` gave the mean over the wrong rows for the worst case, without a word."""
    with pytest.raises(UserError, match=f"an attack is called '{name}', which stands for something else"):
        loaded("evaluate", *ALONE, "attack=fgsm", f"+attack@attacks.{name}=fgsm")


def test_an_attack_beside_the_suite_does_not_replace_one_of_the_same_name() -> None:
    with pytest.raises(UserError, match=r"attack=pgd has the name .* ~attacks\.pgd"):
        loaded("evaluate", *D, "attacks=standard", "attack=pgd", "attack.steps=3")
    same = loaded("evaluate", *D, "attacks=standard", "attack=pgd", "attack.steps=10")
    assert list(same.evaluation.attacks) == ["pgd", "apgd_ensemble"]


def test_no_two_rows_have_one_label() -> None:
    words = [*ALONE, "attack=fgsm", f"checkpoints={{a: {WEIGHTS}, a+blur: {WEIGHTS}}}"]
    with pytest.raises(UserError, match=r"two models would be called 'a\+blur'"):
        loaded("evaluate", *words, "purifier=blur")
    loaded("evaluate", *words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", [*ALONE, "attack=pgd", "attack.alpha=0.005"]),
        ("attack", [*D, "attack=pgd", "attack.alpha=0.005"]),
        ("evaluate", [*ALONE, "attack=torchattacks"]),
        ("evaluate", [*D, "attacks=none", "attack=pgd", "attack.alpha=0.015", "evaluation.eps_curve=[1,2]"]),
        ("train-classifier", [*D, "objective=pgd_at", "attack.alpha=0.005"]),
        ("train-classifier", [*D, "objective=trades", "objective.step_size=0.005"]),
        ("train-mat", [*MAT, "attack.image.alpha=0.5/255"]),
    ],
)
def test_steps_that_cannot_cross_a_ball_that_is_searched_are_refused(command: str, words: list[str]) -> None:
    with pytest.raises(UserError, match="cannot cross a ball of"):
        loaded(command, *words)


def test_a_radius_that_is_not_run_asks_nothing_of_the_steps() -> None:
    words = [*D, "attacks=standard", "attacks.pgd.alpha=0.01", "evaluation.eps_curve=[1,2]"]
    assert loaded("evaluate", *words, "evaluation.curve_attack=apgd_ensemble").evaluation.curve == "apgd_ensemble"
    with pytest.raises(UserError, match=r"attacks\.pgd: 10 steps of 0\.01 cannot cross a ball of L-inf 51/255"):
        loaded("evaluate", *words, "evaluation.curve_attack=pgd")


@pytest.mark.parametrize("word", ["judges=quick", "judges.pgd.steps=3", "+attack@judges.x=pgd", "~judges.pgd"])
def test_the_former_name_of_a_group_is_answered_with_its_name(word: str) -> None:
    with pytest.raises(UserError, match=r"the group 'judges' is called 'attacks': write \W*(attack@)?attacks"):
        written_out("evaluate", [word])
