"""Zoo of the diagnostics: planted defences do not pass as ok, and honest networks do; `make zoo` has all of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustcli.attacks import PGD, Surrogate, ThreatModel
from robustcli.attacks.core.frozen import frozen
from robustcli.diagnostics import CHECKS, NOT_RUN, OK, SUSPECT, ConfigKeys, Judgement, diagnose, verdict
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.moves import moves
from robustcli.diagnostics.searches import SmoothedPGD, StraightThrough, inner_inputs, inner_network
from tests.diagnostics.zoo import planted
from tests.diagnostics.zoo.members import HONEST, PLANTED, THREAT, bare, sample_images

FEW = 32
PLANTED_CHECKS = {
    "no graph": "gradients",
    "rippled loss": "finite differences",
    "pulsed gradients": "finite differences",
    "flipped gradient": "finite differences",
    "noise for a gradient": "finite differences",
    "counter of queries": "finite differences",
    "quantised cosines (JPEG)": "straight through",
    "detector that remembers, faint slope": "moved images",
    "batch norm of the batch": "isolation",
}


@pytest.mark.parametrize("name", PLANTED_CHECKS)
def test_a_planted_defence_is_suspect_by_its_check(name: str) -> None:
    member = PLANTED[name]
    context = CheckContext(member.subject(FEW), member.attack, sources={}, queries=20, keys=ConfigKeys())
    judgement = CHECKS[PLANTED_CHECKS[name]](context)
    assert isinstance(judgement, Judgement) and judgement.suspect
    assert judgement.advice
    if name == "no graph":
        assert "no useful gradient" in judgement.advice, "the margin has no gradient either"


def test_a_planted_defence_is_suspect_and_an_honest_network_is_not() -> None:
    planted_one = PLANTED["flipped gradient"]
    assert verdict(diagnose(planted_one.subject(FEW), planted_one.attack, queries=20)) == SUSPECT
    member = replace(HONEST["shipped classifier, 16/255"], attack=PGD(steps=20, loss="margin", restarts=3))
    findings = diagnose(member.subject(FEW), member.attack, queries=50)
    assert {finding.check: finding.measured for finding in findings if finding.status == SUSPECT} == {}
    assert verdict(findings) == OK
    ran = {finding.check for finding in findings if finding.status != NOT_RUN}
    assert ran >= {"finite differences", "isolation", "more restarts", "smoothed gradients", "moved images"}


def test_smoothed_gradients_see_through_ripples() -> None:
    images, labels = sample_images()
    model = planted.InputStep(bare(), planted.rippled).eval()
    plain, unsmoothed, smoothed = (
        int(attack(model, images[:FEW], labels[:FEW], THREAT).success.sum())
        for attack in (PGD(steps=20, loss="margin"), SmoothedPGD(noise=0.0), SmoothedPGD())
    )
    assert smoothed > 2 * max(plain, unsmoothed)


def test_smoothed_search_of_a_linear_model_reaches_the_corner() -> None:
    weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 3.0, -4.0]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = weights, torch.tensor([5.0, 0.0])
    images, threat = torch.full((1, 1, 2, 2), 0.5), ThreatModel(eps="8/255")
    found = SmoothedPGD(steps=5)(model, images, torch.tensor([0]), threat).images
    assert torch.allclose(found - images, 8 / 255 * weights[1].sign().view(1, 1, 2, 2))


def test_the_network_inside_a_defence_is_seen_where_the_defence_calls_it() -> None:
    images, labels = sample_images()
    model = planted.InputStep(bare(), planted.resized).eval()
    with frozen(model):
        inner = inner_network(model, images[:4])
        assert inner is model.network.network, "the innermost: what stands before it is the defence"
        (seen,) = inner_inputs(model, inner, images[:4])
        through = StraightThrough(model, inner)
        assert torch.allclose(through(images[:4]), model(images[:4]), atol=1e-5)
    assert seen.shape == images[:4].shape
    found = Surrogate(PGD(steps=10), through)(model, images, labels, THREAT)
    assert found.success.double().mean() > 0.5  # without it no image falls: the gradient is zero
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert inner_network(flat, images[:4]) is None


def test_moves_stay_in_the_box_and_mix_within_the_class() -> None:
    images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 0, 0, 0, 1, 2])
    candidates = moves(images, labels, images, labels)
    assert all(each.shape == images.shape and each.min() >= 0 and each.max() <= 1 for each in candidates)
    assert torch.equal(candidates[0][..., 1:], images[..., :-1])
    means = [(images[0] + images[other]) / 2 for other in (1, 2, 3)]
    for mixed in candidates[-3:]:
        assert any(torch.allclose(mixed[0], mean) for mean in means)
        assert torch.equal(mixed[5], candidates[0][5])  # nothing else of its class is there
