"""The threat model: what it refuses, and that it measures by its ball and its count of edits.

Shapes: B images, C channels, H height, W width.
"""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from robustcli.attacks import L2, Characters, Linf, ThreatModel, Words
from robustcli.attacks.core.threat import EDITS
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"norm": "l1"}, r"threat\.norm is 'l1': choose linf or l2"),
        ({"norm": "l1", "eps": None}, r"threat\.norm is 'l1': choose linf or l2"),
        ({"eps": 4}, r"threat\.eps is 4, but pixels are in \[0, 1\]: did you mean 4/255"),
        ({"eps": "four"}, r"threat\.eps is 'four': expected a number or a fraction such as 4/255"),
        ({"eps": -0.1}, r"threat\.eps is -0\.1: expected a finite number that is not negative"),
        ({"eps": float("inf")}, r"threat\.eps is inf: expected a finite number"),
        ({"norm": "l2", "eps": "x"}, r"threat\.eps is 'x'"),
        ({"words": -1}, r"threat\.words is -1: expected a whole number, 0 or more"),
        ({"words": 1.5}, r"threat\.words is 1\.5"),
        ({"words": True}, r"threat\.words is True"),
        ({"characters": "two"}, r"threat\.characters is 'two': expected a whole number"),
        ({"words": 1, "characters": 2}, r"threat\.words is 1 and threat\.characters 2: .* set the other to 0"),
        ({"edits": "me"}, r"threat\.edits is 'me': choose one of query, item, both, all"),
    ],
)
def test_an_impossible_value_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ThreatModel(**settings)


def test_eps_is_a_number_however_it_was_written() -> None:
    assert ThreatModel(eps="4/255") == ThreatModel(eps=4 / 255) == ThreatModel()
    assert ThreatModel(norm="l2", eps="1/2").radius == 0.5
    assert ThreatModel(norm="l2", eps=3).ball == L2(3.0)
    assert ThreatModel(eps="0.1").ball == Linf(0.1)
    with pytest.raises(FrozenInstanceError):
        ThreatModel().eps = 0.5  # type: ignore[misc]


def test_no_eps_is_any_change() -> None:
    free = ThreatModel(norm="l2", eps=None)
    assert free.eps is None and free.radius is None
    assert free.ball == L2(None)  # type: ignore[arg-type]
    assert free.ball.eps == torch.inf
    assert free.moves_images and not free.moves_texts
    clean = torch.rand(2, 3, 4, 4, generator=generator(0))
    assert free.audit(1 - clean, clean).tolist() == L2(999.0).distance(1 - clean, clean).tolist()


def test_the_same_at_another_eps() -> None:
    threat = ThreatModel(norm="l2", eps=1.0, words=2, edits="query")
    assert threat.at("1/2") == ThreatModel(norm="l2", eps=0.5, words=2, edits="query")
    assert threat.at(None).radius is None
    assert threat.at(0).moves_images is False
    assert threat.radius == 1.0
    with pytest.raises(UserError, match=r"threat\.eps is -1"):
        threat.at(-1)


def test_who_edits_which_side_of_a_query() -> None:
    """Image and caption, of an image that asks for captions and of a caption that asks for images."""
    sides = {
        edits: tuple(ThreatModel(edits=edits).sides(d) for d in ("image_to_text", "text_to_image")) for edits in EDITS
    }
    assert sides == {
        "query": ((True, False), (False, True)),
        "item": ((False, True), (True, False)),
        "both": ((True, True), (True, True)),
        "all": ((True, True), (True, True)),
    }


def test_what_may_move() -> None:
    moves = {
        name: (threat.moves_images, threat.moves_texts, threat.text)
        for name, threat in {
            "image": ThreatModel(),
            "words": ThreatModel(eps=0, words=2),
            "characters": ThreatModel(eps=0, characters=3),
            "both": ThreatModel(words=1),
            "nothing": ThreatModel(eps=0),
        }.items()
    }
    assert moves == {
        "image": (True, False, Words(0)),
        "words": (False, True, Words(2)),
        "characters": (False, True, Characters(3)),
        "both": (True, True, Words(1)),
        "nothing": (False, False, Words(0)),
    }


@pytest.mark.parametrize(
    ("threat", "shown"),
    [
        (ThreatModel(), "L-inf 4/255"),
        (ThreatModel(eps="0.5/255"), "L-inf 0.5/255"),
        (ThreatModel(eps=0.03), "L-inf 0.03"),
        (ThreatModel(norm="l2", eps=4 / 255), "L2 0.0156863"),
        (ThreatModel(norm="l2", eps=1), "L2 1"),
        (ThreatModel(norm="l2", eps=None), "L2 any"),
        (ThreatModel(eps=0), "images as they are"),
        (ThreatModel(eps=0, words=1), "images as they are, 1 word"),
        (ThreatModel(eps=0, characters=2), "images as they are, 2 characters"),
        (ThreatModel(eps="8/255", words=2), "L-inf 8/255, 2 words"),
        (ThreatModel(characters=1), "L-inf 4/255, 1 character"),
    ],
)
def test_it_reads_as_one_writes_it(threat: ThreatModel, shown: str) -> None:
    assert str(threat) == shown


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_are_measured_by_its_ball(norm: str) -> None:
    threat, clean = ThreatModel(norm=norm, eps=0.1), torch.rand(3, 3, 5, 4, generator=generator(1))
    ball = {"linf": Linf, "l2": L2}[norm](0.1)
    moved = clean + 0.3 * torch.randn(clean.shape, generator=generator(2))
    assert torch.equal(threat.project(moved, clean), ball.project(moved, clean))
    assert torch.equal(threat.random_start(clean, [4, 5, 6], 7, "x"), ball.random_start(clean, [4, 5, 6], 7, "x"))
    settled = ball.settle(moved, clean)
    assert torch.equal(threat.audit(settled, clean), ball.distance(settled, clean))
    for bad in (moved.clamp(0, 1), clean * torch.nan, clean[:, :2]):
        with pytest.raises(RuntimeError):
            threat.audit(bad, clean)


def test_captions_are_counted_in_its_unit() -> None:
    clean, edited = ["a red cat", "a dog"], ["a big cat", "a dog"]
    assert ThreatModel(words=1).audit_captions(edited, clean).tolist() == [1, 0]
    assert ThreatModel(characters=3).audit_captions(edited, clean).tolist() == [3, 0]
    for tight in (ThreatModel(), ThreatModel(characters=2)):
        with pytest.raises(RuntimeError, match=r"edits, \d allowed: 'a red cat' became 'a big cat'"):
            tight.audit_captions(edited, clean)
    with pytest.raises(RuntimeError, match="2 captions into 1"):
        ThreatModel(words=1).audit_captions(edited[:1], clean)
