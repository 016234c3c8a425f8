"""One threat model for all attacks: what fits to it is built, what has a budget of its own is refused."""

from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from robustcli.attacks import ATTACKS, PGD, RetrievalAttack, SynonymTable, ThreatModel, WordSubstitution
from robustcli.builders.attacks import BuiltAttack, build_attack, build_suite, build_threat, check_reach
from robustcli.config import groups as config_groups
from robustcli.config.compose import compose
from robustcli.diagnostics import ConfigKeys
from robustcli.utils.errors import UserError

NO_WORDS = SynonymTable({})


def suite(*overrides: str, captions: bool = True) -> dict[str, BuiltAttack]:
    composed = compose("evaluate", list(overrides))
    threat = build_threat(composed.threat)
    return build_suite(composed.attacks, threat, captions=captions, candidates=lambda: NO_WORDS, seed=0)


def built(node: dict[str, Any], *overrides: str, captions: bool = True) -> BuiltAttack:
    threat = build_threat(compose("evaluate", list(overrides)).threat)
    return build_attack(
        OmegaConf.create(node), threat, captions=captions, candidates=lambda: NO_WORDS, seed=3, key="attack"
    )


def test_a_suite_holds_searches_and_the_threat_model_comes_with_the_call() -> None:
    found = suite("threat.eps=2/255", "threat.words=3", "threat.norm=l2")
    parts = [each.attack for each in found.values()]
    assert all(isinstance(attack, RetrievalAttack) for attack in parts) and len(parts) == 6
    images = [attack.image for attack in parts if attack.image is not None]  # type: ignore[attr-defined]
    texts = [attack.text for attack in parts if attack.text is not None]  # type: ignore[attr-defined]
    assert all(isinstance(part, PGD) for part in images) and len(images) == 5
    assert all(isinstance(part, WordSubstitution) and part.candidates is NO_WORDS for part in texts)


def test_attacks_that_edit_what_the_threat_model_leaves_alone_are_no_part_of_the_suite() -> None:
    """`threat=image` allows no edit of a caption: a table under it must not hold one."""
    assert set(suite("threat=image")) == {"pgd"}
    assert set(suite("threat=text")) == {"words"}
    assert set(suite("threat=image", captions=False)) == {"pgd", "apgd_ensemble"}
    with pytest.raises(UserError, match="none of the attacks words keeps to the threat model"):
        suite("threat=image", "attacks=quick", "~attacks.pgd", "~attacks.sep")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+attacks.pgd.eps=16/255", r"attacks\.pgd\.eps is 16/255.*set threat\.eps=16/255 instead"),
        ("+attacks.sep.image.norm=l2", r"attacks\.sep\.image\.norm.*threat\.norm=l2"),
        ("+attacks.sep.text.max_words=2", r"attacks\.sep\.text\.max_words.*threat\.words=2"),
    ],
)
def test_a_budget_of_an_attack_s_own_is_refused_not_ignored(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        suite(override)


def test_torchattacks_takes_the_radius_of_the_threat_model() -> None:
    node = {"_target_": "robustcli.attacks.TorchAttack", "name": "PGD", "params": {"eps": "64/255"}}
    with pytest.raises(UserError, match=r"attack\.params\.eps is 64/255.*threat\.eps=64/255"):
        built(node, captions=False)
    fits = built({**node, "params": {"steps": 3}}, captions=False)
    assert fits.attack.params == {"steps": 3}  # type: ignore[attr-defined]


def test_a_flat_attack_is_an_attack_on_pairs_with_the_other_side_clean() -> None:
    node = {"_target_": "robustcli.attacks.PGD", "steps": 7}
    attack, keys = (found := built(node)).attack, found.keys
    assert isinstance(attack, RetrievalAttack) and attack.text is None and keys == ConfigKeys()
    assert isinstance(attack.image, PGD) and attack.image.steps == 7 and attack.image.seed == 3
    assert isinstance(built(node, captions=False).attack, PGD)


@pytest.mark.parametrize(
    ("target", "overrides", "captions", "said"),
    [
        ("WordSubstitution", [], False, "edits captions, but the data set has classes"),
        ("DeepFool", [], True, "needs a classifier"),
        ("PGD", ["threat=text"], True, "leaves them as they are: choose threat=image"),
        ("WordSubstitution", ["threat=image"], True, "choose threat=text"),
        ("CharacterEdits", [], True, "choose threat=characters"),
        ("PGD", ["threat=smallest"], False, "needs a radius"),
        ("CW", [], False, "is for l2"),
    ],
)
def test_an_attack_that_cannot_serve_data_or_threat_model_is_refused(
    target: str, overrides: list[str], captions: bool, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        built({"_target_": f"robustcli.attacks.{target}"}, *overrides, captions=captions)


TORCH_PGD = {"_target_": "robustcli.attacks.TorchAttack", "name": "PGD"}


@pytest.mark.parametrize(
    ("node", "eps", "remedy"),
    [
        ({"_target_": "robustcli.attacks.PGD", "alpha": "0.5/255"}, "5/255", None),
        ({"_target_": "robustcli.attacks.PGD", "alpha": "0.5/255"}, "6/255", "attack.alpha=null"),
        (TORCH_PGD, "20/255", None),  # 10 steps of 2/255
        (TORCH_PGD, "0.1", "++attack.params.alpha=0.025"),
        ({**TORCH_PGD, "params": {"steps": 13}}, "0.1", None),
        ({**TORCH_PGD, "name": "FFGSM"}, "0.1", "++attack.params.alpha=0.25"),  # one step of 10/255
        ({**TORCH_PGD, "name": "APGD"}, "0.5", None),  # it sets its own steps
    ],
)
def test_steps_that_cannot_cross_the_ball_are_refused(node: dict[str, Any], eps: str, remedy: str | None) -> None:
    found, threat = built(node, f"threat.eps={eps}", captions=False), ThreatModel(eps=eps)
    if remedy is None:
        check_reach(found, [threat])
        return
    with pytest.raises(UserError, match=r"cannot cross a ball") as refused:
        check_reach(found, [ThreatModel(eps=0), threat])
    assert remedy in str(refused.value)


def test_the_image_part_of_an_attack_on_pairs_must_cross_the_ball_too() -> None:
    node = {"_target_": "robustcli.attacks.SGA", "image": {"_target_": "robustcli.attacks.PGD", "alpha": "0.1/255"}}
    with pytest.raises(UserError, match=r"attack\.image: 10 steps of 0\.0003922 .* set attack\.image\.alpha=null"):
        check_reach(built(node), [ThreatModel(eps="4/255")])


def test_words_are_asked_for_only_where_an_attack_uses_them() -> None:
    def missing() -> SynonymTable:
        raise AssertionError("nobody edits words here")

    composed = compose("evaluate", ["threat=image"])
    build_suite(composed.attacks, build_threat(composed.threat), captions=True, candidates=missing, seed=0)


def test_the_registry_and_the_choices_of_attack_are_one_list() -> None:
    """A class without a YAML cannot be chosen, and one without a row is under no contract."""
    chosen = config_groups.groups()["attack"]
    assert sorted(ATTACKS) == chosen
    for name in chosen:
        node = compose("attack", [f"attack={name}"]).attack
        family = getattr(ATTACKS[name], "func", ATTACKS[name])
        assert get_object(node["_target_"]) is family, name


@pytest.mark.parametrize("word", ["attacks.sep=inf", "attacks.sep=null", "attacks.sep._target_=null"])
def test_what_is_no_node_is_no_attack(word: str) -> None:
    with pytest.raises(UserError, match=r"attacks\.sep is .*, but must be an attack: choose one of"):
        suite(word)
