"""Robust training objectives of classifiers: the authors' figures, what is attacked, and what is left as it was."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import PGD, ClassifierAttack, DeepFool, ThreatModel
from robustcli.attacks.core.balls import L2, Linf
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.data.sampling import ClassBatch
from robustcli.defenses import TRADES, ClassObjective, PGDAdversarialTraining, Standard
from robustcli.defenses.objectives.trades import trades_loss
from robustcli.models import Classifier
from robustcli.utils.errors import UserError

THREAT = ThreatModel(norm="linf", eps="8/255")
FIXTURES = Path(__file__).resolve().parents[4] / "shared" / "fixtures"


class Small(nn.Module):
    """The network of the fixture, in the order of its draws; it notes the mode of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn_norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(128, 4)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        features: Tensor = F.adaptive_avg_pool2d(F.relu(self.bn_norm(self.c1(images))), 4)
        found: Tensor = self.fc(features.flatten(1))
        return found


@torch.no_grad()
def filled(network: nn.Module) -> None:
    """The weights of the fixture, drawn by their names."""
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith("running_var"):
            value.copy_(0.5 + drawn.abs())
        elif value.ndim <= 1:
            value.copy_(0.1 * drawn + (name == "bn_norm.weight"))
        else:
            value.copy_(drawn / value[0].numel() ** 0.5)


def classifier(network: nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network or Small(), classes=4, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.fixture
def batch() -> tuple[Tensor, ClassBatch]:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return images, ClassBatch(torch.arange(10, 16), torch.tensor([0, 1, 2, 3, 0, 1]))


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"the parity fixtures are not at {FIXTURES}")
@pytest.mark.parametrize("name", ["l_2", "l_inf"])
def test_trades_is_that_of_the_authors(name: str) -> None:
    """Loss and gradient after 16 steps; the authors draw a start of the images first, which L2 then replaces."""
    stored = torch.load(FIXTURES / "trades_ref.pt", weights_only=True)
    network = Small()
    filled(network)
    model = classifier(network).train()
    budget = L2(2.0) if name == "l_2" else Linf(0.031)
    objective = TRADES(beta=1.5, steps=16, step_size=None if name == "l_2" else 0.003)
    torch.manual_seed(4)
    if name == "l_2":
        torch.randn(stored["x"].shape)
    found = objective.adversarial(model, budget, stored["x"], lambda: torch.randn(stored["x"].shape))
    loss = trades_loss(model, stored["x"], found, stored["y"], beta=1.5)
    loss.backward()
    assert network.c1.weight.grad is not None
    norm = network.c1.weight.grad.norm()
    assert (loss.item(), norm.item()) == pytest.approx(stored[name], abs=1e-5)


def test_the_loss_of_trades_is_that_of_its_equation(batch: tuple[Tensor, ClassBatch]) -> None:
    images, labels = batch[0], batch[1].labels
    model, moved = (
        classifier(),
        (batch[0] + 0.1 * torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(5)).sign()).clamp(0, 1),
    )
    clean, hostile = model(images).softmax(1), model(moved).softmax(1)
    divergence = (clean * (clean / hostile).log()).sum(1).mean()
    accuracy = -clean.gather(1, labels[:, None]).log().mean()
    assert divergence > 1e-4
    for beta in (0.0, 6.0):
        assert trades_loss(model, images, moved, labels, beta=beta).item() == pytest.approx(
            (accuracy + beta * divergence).item(), rel=1e-4
        )


@pytest.mark.parametrize("budget", [L2(1.5), Linf(8 / 255)], ids=["l2", "linf"])
def test_trades_moves_every_image_within_ball_and_box(budget: L2 | Linf, batch: tuple[Tensor, ClassBatch]) -> None:
    images, model = batch[0], classifier()
    found = TRADES(steps=8).adversarial(model, budget, images, lambda: torch.randn(images.shape))
    assert found.min() >= 0 and found.max() <= 1
    length = budget.distance(found, images)
    assert (length <= budget.eps * (1 + 1e-6)).all() and (length > 0.5 * budget.eps).all()
    target = F.softmax(model(images), 1)
    noise = budget.project(images + 0.5 * torch.randn(images.shape), images)
    reached, drawn = (F.kl_div(F.log_softmax(model(each), 1), target, reduction="sum") for each in (found, noise))
    assert reached > 3 * drawn


def test_a_zero_gradient_takes_a_drawn_step(batch: tuple[Tensor, ClassBatch]) -> None:
    class Flat(Small):
        def forward(self, images: Tensor) -> Tensor:
            return 0 * super().forward(images)

    images = batch[0]
    found = TRADES(steps=4).adversarial(classifier(Flat()), L2(1.0), images, lambda: torch.randn(images.shape))
    assert torch.isfinite(found).all() and (L2(1.0).distance(found, images) > 0.3).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_trades_draw_is_the_samples_own(norm: str, batch: tuple[Tensor, ClassBatch]) -> None:
    images, labelled = batch
    threat, seen = ThreatModel(norm=norm, eps=0.1), []
    for rows in (torch.arange(6), torch.tensor([4, 2])):
        model = classifier()  # in eval mode: batch norms would mix the samples of the loss
        model.network.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach()))
        part = ClassBatch(labelled.image_ids[rows], labelled.labels[rows])
        TRADES(steps=2).loss(model, None, threat, images[rows], part, seed=3)
    whole, two = seen[4], seen[9]  # target, two steps, clean, moved
    assert torch.allclose(whole[[4, 2]], two, atol=1e-5) and not torch.allclose(whole[0], whole[1])


@pytest.mark.parametrize(
    ("objective", "modes"),
    [
        (Standard(), [True]),
        (TRADES(steps=2), [False, False, False, True, True]),
        (PGDAdversarialTraining(), [False, False, True]),
        (PGDAdversarialTraining(attack_mode="train"), [True, True, True]),
    ],
)
def test_the_search_has_its_mode_and_leaves_the_model_in_train_mode(
    objective: ClassObjective, modes: list[bool], batch: tuple[Tensor, ClassBatch]
) -> None:
    network = Small()
    model = classifier(network).train()
    attack = PGD(steps=2, keep="last") if objective.takes_attack else None
    objective.loss(model, attack, THREAT, batch[0], batch[1], seed=1).backward()
    assert network.modes == modes and network.training
    assert all(weight.grad is not None and weight.requires_grad for weight in model.parameters())
    assert int(network.bn_norm.num_batches_tracked) == (2 if objective.name == "trades" else 1), (
        "the search's are undone"
    )


def test_adversarial_training_attacks_every_image_to_the_last_step(batch: tuple[Tensor, ClassBatch]) -> None:
    """Also those that are classified wrongly to begin with, or fooled on the way."""
    images, labelled = batch
    model, seen = classifier(), []
    labels = (model(images).argmax(1) + torch.tensor([0, 1, 0, 1, 0, 1])) % 4  # each second one is wrong
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    attack, threat = PGD(steps=6, keep="last", early_stop=True), ThreatModel(norm="linf", eps="32/255")
    loss = PGDAdversarialTraining().loss(model, attack, threat, images, replace(labelled, labels=labels), seed=2)
    moved = (seen[-1] - seen[0]).flatten(1).abs().amax(1)
    assert [len(each) for each in seen] == [6] * 7 and (moved > 0).all()
    assert loss > F.cross_entropy(model(images), labels)
    again = PGDAdversarialTraining().loss(model, attack, threat, images, replace(labelled, labels=labels), seed=2)
    other = PGDAdversarialTraining().loss(model, attack, threat, images, replace(labelled, labels=labels), seed=3)
    assert torch.equal(loss, again) and not torch.equal(loss, other)


@pytest.mark.parametrize("threat", [THREAT, ThreatModel(norm="l2", eps=0.5)], ids=["linf", "l2"])
def test_adversarial_training_sees_no_image_beyond_the_budget(
    threat: ThreatModel, batch: tuple[Tensor, ClassBatch]
) -> None:
    class Far(ClassifierAttack):
        """A search of its own, as one of another library has."""

        def search(self, oracle: LogitOracle, images: Tensor, *rest: object) -> Tensor:
            return 1 - images

    images, labelled = batch
    model, seen = classifier(), list[Tensor]()
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    PGDAdversarialTraining().loss(model, Far(), threat, images, labelled, seed=2)
    norm = threat.ball.distance((seen[-1] + 1) / 2, images)  # the network is given (image - 0.5) / 0.5
    assert norm.tolist() == pytest.approx([threat.ball.eps] * 6, rel=1e-4)


@pytest.mark.parametrize("objective", [TRADES(), PGDAdversarialTraining()])
def test_an_attack_without_a_budget_is_refused(objective: ClassObjective) -> None:
    with pytest.raises(UserError, match=f"objective={objective.name} trains within.*DeepFool looks for the smallest"):
        objective.check(DeepFool(), THREAT)
    for eps, told in ((0, "0"), (None, "null")):
        with pytest.raises(UserError, match=rf"trains within threat\.eps, which is {told}: give it"):
            objective.check(PGD(), ThreatModel(norm="linf", eps=eps))
    objective.check(PGD(), THREAT)
    Standard().check(None, ThreatModel(norm="linf", eps=None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TRADES(beta=-1), "objective.beta is -1"),
        (lambda: TRADES(steps=0), "objective.steps is 0"),
        (lambda: TRADES(step_size="a"), "objective.step_size is 'a'"),
        (lambda: PGDAdversarialTraining(attack_mode="both"), "objective.attack_mode is 'both'"),
        (lambda: PGDAdversarialTraining(label_smoothing=1), "objective.label_smoothing is 1"),
    ],
)
def test_a_value_out_of_range_is_named(make: Callable[[], ClassObjective], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
