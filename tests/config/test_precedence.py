"""A typed group or key against a protocol or an experiment: it wins, or the two are refused together."""

from pathlib import Path

import pytest

from robustcli.config.precedence import refuse_overruled
from robustcli.utils.errors import UserError


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("purify", ["protocol=paper", "threat=image"], "protocol=paper sets threat.norm to l2, which is not what"),
        ("purify", ["threat=image", "protocol=paper_cars"], "sets threat.norm to l2"),
        ("purify", ["protocol=smoke", "evaluation=default"], "sets evaluation.eps_curve to []"),
        ("purify", ["protocol=smoke", "attacks=standard"], "give the value itself, attacks.pgd.steps=VALUE"),
        ("purify", ["protocol=none,smoke", "evaluation=default"], "protocol=smoke sets evaluation.eps_curve"),
        ("purify", ["experiment=purify/celeba64_identities", "purifier=blur"], "sets purifier."),
        ("purify", ["experiment=purify/celeba64_identities", "threat=image"], "sets threat.norm to l2"),
        ("train-mat", ["experiment=train_mat/tiny_clean", "trainer=smoke"], "sets trainer.max_steps to 2000"),
        ("train-mat", ["experiment=train_mat/sweep", "evaluation=smoke"], "sets evaluation.before to False"),
    ],
)
def test_a_typed_group_is_not_changed_in_silence(command: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_overruled(command, words)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("purify", ["protocol=paper", "threat=l2"]),
        ("purify", ["protocol=paper", "threat=image", "threat.norm=linf"]),
        ("purify", ["protocol=smoke", "evaluation=default", "evaluation.eps_curve=[1]", "evaluation.fresh=3"]),
        ("purify", ["protocol=smoke", "~attacks.cw", "evaluation=quick", "evaluation.fresh=4"]),
        ("purify", ["experiment=purify/celeba64_identities", "protocol=none"]),
        ("purify", ["protocol=paper_cars"]),
        ("train-mat", ["experiment=train_mat/tiny_clean", "dataset=scenes", "trainer.max_steps=3"]),
    ],
)
def test_typed_values_and_groups_that_agree_are_left_alone(command: str, words: list[str]) -> None:
    refuse_overruled(command, words)


def test_an_experiment_does_not_change_a_typed_protocol(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    mine = "# @package _global_\n# Mine.\nevaluation: {fresh: 5}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(mine)
    argv = ["--config-dir", str(tmp_path), "experiment=mine", "protocol=smoke"]
    with pytest.raises(UserError, match=r"experiment=mine sets evaluation\.fresh to 5, .* what protocol=smoke says"):
        refuse_overruled("purify", argv)
