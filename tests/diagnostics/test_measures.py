"""What the checks measure, against values reckoned by hand.

Shapes: B images, N images of the sample, K passes, C channels, H height, W width.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import APGD, PGD, SepAttack, ThreatModel
from robustcli.attacks.core.class_losses import margin
from robustcli.diagnostics import ClassifierSubject, RetrievalSubject
from robustcli.diagnostics.advice import ConfigKeys
from robustcli.diagnostics.context import CheckContext
from robustcli.diagnostics.finding import Judgement
from robustcli.diagnostics.landscape import _agreement, isolation
from robustcli.diagnostics.moves import moves
from robustcli.diagnostics.tracing import GradientNorms, LossTrace, TracedClassifier
from robustcli.utils.seeding import generator
from tests.attacks.conftest import LinearClassifier, SmallNet, ToyDual, make_pairs

THREAT = ThreatModel(eps="2/255")
NOTHING, STRONG = PGD(steps=0, random_start=False), APGD(steps=20, loss="margin")


def subject_of(model: nn.Module, threat: ThreatModel = THREAT, count: int = 16) -> ClassifierSubject:
    """The first image is misclassified."""
    images = torch.rand(count, 3, 8, 8, generator=generator(12))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        labels = model(images).argmax(1)
    return ClassifierSubject(model, images, labels.index_put((torch.tensor([0]),), (labels[0] + 1) % 4), threat)


def context_of(subject: ClassifierSubject | RetrievalSubject, attack: Any) -> CheckContext:
    return CheckContext(subject, attack, sources={}, queries=5, keys=ConfigKeys())


def test_an_image_is_moved_by_a_pixel_or_mixed_with_the_nearest_of_its_class() -> None:
    picture = torch.rand(1, 2, 3, 4, generator=generator(1))
    sample = torch.cat([picture, picture + 0.2, picture + 0.5, picture + 0.1, picture + 0.3, 1 - picture])
    labels = torch.tensor([0, 0, 0, 1, 0, 2])
    right, left, down, up, *mixed = moves(picture, labels[:1], sample, labels)
    assert torch.equal(down, picture[..., [0, 0, 1], :]) and torch.equal(up, picture[..., [1, 2, 2], :])
    assert torch.equal(right, picture[..., [0, 0, 1, 2]]) and torch.equal(left, picture[..., [1, 2, 3, 3]])
    for found, by in zip(mixed, (0.1, 0.15, 0.25), strict=True):
        assert torch.allclose(found, picture + by, atol=1e-6)
    right, _, _, _, *mixed = moves(sample[5:], labels[5:], sample, labels)
    assert all(torch.equal(found, right) for found in mixed), "alone in its class"


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_a_gradient_is_measured_in_the_dual_norm(norm: str, order: int) -> None:
    weight, norms = torch.randn(2, 3, generator=generator(2)), GradientNorms(norm)
    model = TracedClassifier(LinearClassifier(weight, 0.0), norms)
    leaf = torch.rand(4, 1, 2, 3).requires_grad_()
    scale = torch.tensor([1.0, 2.0, 0.0, -3.0])
    torch.autograd.grad((scale * model(leaf)[:, 1]).sum(), leaf)
    with torch.no_grad():
        model(leaf)  # without a gradient nothing is recorded
    length = float(weight.flatten().double().norm(p=order))
    assert norms.norms().tolist() == pytest.approx([length, 2 * length, 0.0, 3 * length], rel=1e-6)


def test_a_trace_keeps_the_highest_loss_of_each_image() -> None:
    trace = LossTrace()
    for rows, losses in (([0, 1], [1.0, 5.0]), ([2, 0], [3.0, float("nan")]), ([0, 1, 2], [2.0, 4.0, 3.5])):
        trace.record(torch.tensor(rows), torch.tensor(losses))
    none = -float("inf")
    assert trace.best_so_far().tolist() == [[1.0, 5.0, none], [1.0, 5.0, 3.0], [2.0, 5.0, 3.5]]


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0, -1.0])
def test_the_agreement_of_a_gradient_that_is_off_by_a_factor(factor: float) -> None:
    """Of a straight line, also where the box cuts a difference short: 2 k / (1 + k^2)."""
    weight = torch.randn(1, 4, 4, generator=generator(3))

    def objective(images: Tensor) -> Tensor:
        value = (images * weight).flatten(1).sum(1)
        return factor * value + ((1 - factor) * value).detach()

    points = torch.rand(5, 1, 4, 4, generator=generator(4)).round()  # in the corners
    context: Any = SimpleNamespace(threat=ThreatModel(eps=0.2))
    found = _agreement(context, objective, points, list(range(5)), 0.5)
    assert found.tolist() == pytest.approx([2 * factor / (1 + factor**2)] * 5, abs=1e-4)


class Mixing(SmallNet):
    """Reads the whole batch."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images.mean()


class Tiring(SmallNet):
    """Answers otherwise once it has been asked often enough."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(images) + (0.1 if self.asked > 15 else 0.0)


@pytest.mark.parametrize(
    ("make", "alone", "after"), [(SmallNet, False, False), (Mixing, True, False), (Tiring, False, True)]
)
def test_answers_that_depend_on_others_or_on_the_past_are_counted(
    make: Callable[[], nn.Module], alone: bool, after: bool
) -> None:
    result = isolation(context_of(subject_of(make().eval()), PGD(steps=20)))
    assert isinstance(result, Judgement)
    assert result.suspect == (alone or after)
    assert ("of 8 images 8 are answered otherwise alone" in result.measured) == alone
    assert (" 8 otherwise after the attack" in result.measured) == after


def test_survivors_are_right_when_clean_and_each_new_success_counts_once() -> None:
    subject = subject_of(SmallNet().eval(), ThreatModel(eps="4/255"))
    context, reached = context_of(subject, NOTHING), subject.attacked(STRONG).success
    assert context.survivors.tolist() == [False] + [True] * 15
    fallen = int(reached[1:].sum())
    assert 0 < fallen < 15
    for attacks in ((STRONG, NOTHING), (NOTHING, STRONG), (STRONG, STRONG)):
        more, count, said = context.compared(context.images_of(context.survivors), attacks, "here")
        assert (more, count, said) == (fallen, 15, f"{fallen} of the 15 that are left of 15 fall here")
    few = torch.arange(1, 5)
    more, _, said = context.compared(few, [STRONG], "here")
    assert (
        more == int(reached[few].sum()) and said == f"{more} of the 4 closest of the 15 that are left of 15 fall here"
    )


def test_what_the_attacker_may_not_edit_is_no_survivor() -> None:
    model = ToyDual().eval()
    subject = RetrievalSubject(model, make_pairs(model, (1,) * 8), ThreatModel(eps="2/255", edits="query"))
    assert context_of(subject, SepAttack(image=NOTHING)).survivors.tolist() == [True] * 8 + [False] * 8


def test_what_the_attack_fooled_already_is_not_new() -> None:
    """Of an image whose captions stand, too."""
    model, attack = ToyDual().eval(), SepAttack(image=APGD(steps=10, loss="margin"))
    subject = RetrievalSubject(model, make_pairs(model, (2,) * 16, contrast=0.03), ThreatModel(eps="2/255"))
    context = context_of(subject, attack)
    rows = context.images_of(context.survivors)
    beside = torch.isin(subject.image_of, rows) & context.attackable & ~context.survivors
    assert beside.any()
    assert context.compared(rows, [attack], "again")[0] == 0


@pytest.mark.parametrize(("norm", "radius"), [("linf", 1.0), ("l2", 192**0.5)])
def test_a_ball_that_holds_every_image(norm: str, radius: float) -> None:
    context = context_of(subject_of(SmallNet().eval(), ThreatModel(norm=norm, eps=0.1)), PGD(norm=norm, eps=0.1))
    assert context.eps_of_box == pytest.approx(radius)


def test_an_image_is_moved_where_the_model_minds_least_but_out_of_the_ball() -> None:
    subject = subject_of(SmallNet().eval(), ThreatModel(eps=0.24))
    rows = torch.tensor([3, 1, 7, *range(8, 16)])
    images, labels = subject.images[rows], subject.labels[rows]
    found = subject.moved(rows)
    assert torch.equal(found.labels, labels)
    candidates = moves(images, labels, subject.images, subject.labels)
    nearer = 0
    for i, image in enumerate(found.images):
        losses = [margin(subject.model(each), labels).tolist()[i] for each in candidates]
        far = [k for k, each in enumerate(candidates) if (each[i] - images[i]).abs().amax() > 0.48]
        assert torch.equal(image, candidates[min(far, key=lambda k: losses[k])][i])
        nearer += losses.index(min(losses)) not in far
    assert nearer, "the ball is in nobody's way"


class Lucky(SmallNet):
    """One answer in three is turned round."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.where(torch.rand(len(images), 1) < 1 / 3, -logits, logits)


def test_a_single_draw_fools_nobody() -> None:
    model = Lucky().eval()
    images = torch.rand(32, 3, 8, 8, generator=generator(12))
    subject = ClassifierSubject(model, images, SmallNet().eval()(images).argmax(1), THREAT)
    assert subject.randomised
    assert not subject.attacked(NOTHING).success[subject.attackable("image")].any()
