"""Budgets of judges, and models that cannot read the captions."""

from functools import partial
from typing import Any

import pytest

from robustcli.attacks import PGD, RetrievalAttack, SynonymTable, WordSubstitution
from robustcli.builders.attacks import build_attack, build_judges
from robustcli.builders.models import build_model
from robustcli.config.errors import compose
from robustcli.data import Scenes
from robustcli.models import DualEncoder, save_weights
from robustcli.utils.errors import UserError

NO_WORDS = SynonymTable({})


def _build(candidates: SynonymTable, config: Any, **settings: Any) -> RetrievalAttack:
    return build_attack(config, candidates, **settings)


def judges(*overrides: str) -> Any:
    composed = compose("evaluate", list(overrides))
    return build_judges(composed.judges, composed.attack, partial(_build, NO_WORDS), seed=0)


def test_every_judge_takes_the_budget_of_the_run() -> None:
    found = judges("attack.image.eps=2/255", "attack.text.max_words=3", "attack.image.norm=l2")
    images = [attack.image for attack in found.values() if attack.image is not None]
    texts = [attack.text for attack in found.values() if attack.text is not None]
    assert len(images) == 5 and len(texts) == 5
    assert all(isinstance(part, PGD) and part.eps == pytest.approx(2 / 255) and part.norm == "l2" for part in images)
    assert all(isinstance(part, WordSubstitution) and part.max_words == 3 for part in texts)


def test_judges_beyond_the_budget_are_left_out() -> None:
    """`attack=pgd` allows no edit of a caption: a table under it must not hold one."""
    assert set(judges("attack=pgd")) == {"pgd"}
    with pytest.raises(UserError, match="none of the judges"):
        judges("attack=words", "judges=quick", "~judges.words")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judges.pgd.image.eps=16/255", r"set attack\.image\.eps"),
        ("judges.sep.text.max_words=2", r"attack\.text\.max_words"),
    ],
)
def test_a_budget_of_a_judge_s_own_is_refused_not_ignored(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        judges(override)


def test_steps_that_cannot_cross_the_ball_are_refused() -> None:
    judges("judges.pgd.image.alpha=0.5/255")
    with pytest.raises(UserError, match="cannot cross"):
        judges("judges.pgd.image.alpha=0.25/255")


def test_a_model_that_does_not_know_the_words_is_refused(
    small_model: DualEncoder, scenes: Scenes, tmp_path: Any
) -> None:
    save_weights(small_model, tmp_path / "w.safetensors")
    config = compose("evaluate", []).model
    sizes = {"width": 32, "layers": 2, "text_width": 32, "text_layers": 1}
    config = type(config)({**config, **sizes, "checkpoint": str(tmp_path / "w.safetensors")})
    build_model(config, None, scenes, seed=0)
    scenes.captions = ["two dogs chase one another across the snow"] * 10
    with pytest.raises(UserError, match="does not know"):
        build_model(config, None, scenes, seed=0)
