"""EOT: the average over draws, its gradient in chunks, and attacks on models that draw.

Shapes: B images, R draws, Y classes, N images of the pairs.
"""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import (
    EOT,
    FAB,
    PGD,
    AveragedClassifier,
    AveragedEncoder,
    ClassifierAttack,
    Pairs,
    RetrievalEOT,
    SepAttack,
    ThreatModel,
    judge_on_draws,
)
from robustcli.attacks.adaptive.averaging import draws_by_pass
from robustcli.metrics import label_ranks
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import SmallNet, ToyDual


class Noisy(nn.Module):
    """A network behind Gaussian noise: of each image, or (``together``) one draw for the whole pass."""

    def __init__(self, sigma: float = 0.2, together: bool = False) -> None:
        super().__init__()
        self.net, self.sigma, self.together = SmallNet().eval(), sigma, together
        self.passes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.passes.append(len(images))
        noise = torch.randn_like(images[:1] if self.together else images)
        return self.net(images + self.sigma * noise)  # type: ignore[no-any-return]


class NoisyDual(ToyDual):
    """Noise before the image tower, clamped to the box."""

    def encode_image(self, images: Tensor) -> Tensor:
        return super().encode_image((images + 0.05 * torch.randn_like(images)).clamp(0, 1))


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(6, 3, 8, 8, generator=generator(7, "images"))


def _value_and_gradient(model: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    images = images.clone().requires_grad_(True)
    logits = model(images)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long)), images)
    return logits.detach(), gradient


@pytest.mark.parametrize("reduce", ["logits", "probabilities"])
@pytest.mark.parametrize("chunk", [1, 4, 7, 29, 30, 100])
def test_chunks_change_neither_the_average_nor_its_gradient(images: Tensor, chunk: int, reduce: str) -> None:
    model = Noisy()
    whole = _value_and_gradient(AveragedClassifier(model, 5, reduce=reduce), images)
    parts = _value_and_gradient(AveragedClassifier(model, 5, chunk=chunk, reduce=reduce), images)
    assert max(model.passes[1:]) <= chunk
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert whole[1].abs().amin(dim=0).max() > 0


def test_chunks_bound_the_activations_that_are_alive(images: Tensor) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = [0]

    def model(images: Tensor) -> Tensor:
        kept = images.flatten(1) ** 2  # the square below keeps it for the backward pass
        alive.append(weakref.ref(kept))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return (kept**2)[:, :4]

    _value_and_gradient(AveragedClassifier(model, 10), images)
    alive.clear()
    _value_and_gradient(AveragedClassifier(model, 10, chunk=6), images)
    assert len(alive) == 20  # each of ten chunks once, and once more for its gradient
    assert most[0] <= 2


def test_the_average_is_that_of_the_draws(images: Tensor) -> None:
    model = Noisy()
    torch.manual_seed(0)
    draws = model(images.repeat(5, 1, 1, 1)).view(5, 6, 4)
    for reduce, expected in (("logits", draws.mean(0)), ("probabilities", draws.softmax(-1).mean(0).log())):
        torch.manual_seed(0)
        assert torch.allclose(AveragedClassifier(model, 5, reduce=reduce)(images), expected, atol=1e-6)


def test_a_model_that_draws_once_a_pass_gets_a_pass_for_each_draw(images: Tensor) -> None:
    by_pass, by_image = Noisy(together=True), Noisy()
    assert draws_by_pass(by_pass, images) and not draws_by_pass(by_image, images)
    assert not draws_by_pass(SmallNet().eval(), images)
    labels = torch.zeros(6, dtype=torch.long)
    for model, expected in ((by_pass, [6] * 8), (by_image, [48])):
        model.passes.clear()
        EOT(PGD(steps=1, keep="last"), draws=8)(model, images, labels)
        passes = [size for size in model.passes if size > 2][3:-1]  # without the probes and the judging
        assert passes == expected


@pytest.mark.parametrize("apart", [True, False])
def test_draws_apart_never_share_a_pass(images: Tensor, apart: bool) -> None:
    seen: list[Tensor] = []

    def model(images: Tensor) -> Tensor:
        seen.append(images[:, 0, 0, 0])
        return images.flatten(1)

    found = AveragedClassifier(model, 3, chunk=4, apart=apart)(images)
    assert torch.allclose(found, images.flatten(1))
    assert [len(part) for part in seen] == ([4, 2] * 3 if apart else [4, 4, 4, 4, 2])
    assert all(len(part.unique()) == len(part) for part in seen)


def test_on_a_fixed_model_eot_is_the_attack_itself(images: Tensor) -> None:
    net = SmallNet().eval()
    labels = net(images).argmax(1)
    attacks: list[ClassifierAttack] = [PGD(eps=0.05), PGD(norm="l2", eps=0.5, steps=4), FAB(norm="l2", steps=5)]
    for attack in attacks:
        plain, averaged = attack(net, images, labels), EOT(attack, draws=3, chunk=4)(net, images, labels)
        assert torch.equal(plain.success, averaged.success)
        assert torch.allclose(plain.norm, averaged.norm, rtol=1e-3)
        assert torch.allclose(plain.images, averaged.images, atol=1e-4)
        assert torch.equal(3 * plain.queries, averaged.queries) and torch.equal(3 * plain.gradients, averaged.gradients)


def test_the_same_call_gives_the_same_result_and_leaves_everything_as_it_was(images: Tensor) -> None:
    model = Noisy().train()
    labels, state = model.net(images).argmax(1), torch.get_rng_state()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attack = EOT(PGD(eps=0.05, steps=3), draws=4, chunk=5)
    first, second = attack(model, images, labels), attack(model, images, labels)
    assert torch.equal(first.images, second.images) and torch.equal(first.success, second.success)
    assert torch.equal(state, torch.get_rng_state())
    assert all(part.training for part in model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    assert (first.norm <= 0.05 * (1 + 1e-6)).all()


def drawn_slopes(images: Tensor) -> Tensor:
    """Two classes by a plane whose slopes are drawn anew for each image, so that one gradient is mostly noise."""
    flat = images.flatten(1) - 0.5
    slopes = 1 + 4 * torch.randn_like(flat)
    score = (slopes * flat).sum(1)
    return torch.stack([-score, score], 1)


def test_eot_breaks_what_a_single_draw_does_not() -> None:
    images = 0.51 + 0.02 * torch.rand(64, 3, 8, 8, generator=generator(8))
    labels = torch.ones(64, dtype=torch.long)
    floor = judge_on_draws(drawn_slopes, images, labels, draws=50).summary()["mean"]
    attack = PGD(eps=0.04, steps=3, random_start=False, keep="last")
    left = [
        judge_on_draws(drawn_slopes, found.images, labels, draws=50).summary()["mean"]
        for found in (EOT(attack, draws=draws)(drawn_slopes, images, labels) for draws in (1, 4, 32))
    ]
    assert floor > 0.9 and floor > left[0] + 0.1 and left[0] > left[1] + 0.1 and left[1] > left[2] + 0.1


class Scripted(nn.Module):
    """Says what it is told, one column of the script for each image, a row for each pass over the images."""

    def __init__(self, script: Tensor) -> None:
        super().__init__()
        self.register_buffer("script", script)

    def forward(self, images: Tensor) -> Tensor:
        places = (images[:, 0, 0, 0] * 10).round().long()
        rows = torch.zeros_like(places)
        for place in places.unique().tolist():
            rows[places == place] = torch.arange(int((places == place).sum()))
        return F.one_hot(self.script[rows, places], 3).float()


def test_fresh_draws_are_summed_up_as_mean_worst_and_majority() -> None:
    script = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 2, 1], [0, 1, 0, 1]])
    images = (torch.arange(4.0) / 10).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    found = judge_on_draws(Scripted(script), images, torch.zeros(4, dtype=torch.long), draws=4)
    assert torch.equal(found.predictions, script)
    assert found.mean().tolist() == [1.0, 0.75, 0.5, 0.0]
    assert found.worst().tolist() == [True, False, False, False]
    assert found.majority().tolist() == [True, True, True, False]
    assert found.summary() == {"mean": 0.5625, "worst": 0.25, "majority": 0.75}


def test_fresh_draws_tell_the_rank_of_the_label_and_what_is_answered() -> None:
    """The median rank, the higher one of two; the class that most draws give."""
    script = torch.tensor([[0, 1], [0, 2], [1, 2], [1, 2], [1, 0]])  # draws, images
    images = (torch.arange(2.0) / 10).view(2, 1, 1, 1).expand(2, 1, 2, 2).contiguous()
    labels = torch.tensor([1, 0])
    found = judge_on_draws(Scripted(script), images, labels, draws=5)
    one_hot = F.one_hot(script, 3).float()
    assert torch.equal(found.ranks, torch.stack([label_ranks(answer, labels) for answer in one_hot]))
    assert torch.equal(found.ranks == 1, found.right)
    assert found.rank().tolist() == [1, int(found.ranks[0, 1])] and found.ranks[0, 1] > 1
    assert found.answer().tolist() == [1, 2]
    even = judge_on_draws(Scripted(script[:4]), images, labels, draws=4)
    assert even.rank().tolist() == [int(even.ranks[:, 0].max()), int(even.ranks[:, 1].max())]


def test_a_tied_vote_counts_against_the_model() -> None:
    images = torch.zeros(1, 1, 2, 2)
    found = judge_on_draws(Scripted(torch.tensor([[0], [1]])), images, torch.zeros(1, dtype=torch.long), draws=2)
    assert found.majority().tolist() == [False] and found.mean().tolist() == [0.5]


def test_fresh_draws_depend_on_the_seed_alone_and_leave_the_generators(images: Tensor) -> None:
    model, labels = Noisy(1.0), torch.zeros(6, dtype=torch.long)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = judge_on_draws(model, images, labels, draws=30, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    again = judge_on_draws(model, images, labels, draws=30, seed=1, chunk=13)
    other = judge_on_draws(model, images, labels, draws=30, seed=2)
    assert torch.equal(first.predictions, again.predictions)
    assert not torch.equal(first.predictions, other.predictions)


class Noted(nn.Module):
    """A classifier that notes what it draws."""

    randomised = True

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        draws = torch.rand(len(images), 2)
        self.drawn += draws.flatten().tolist()
        return draws + images.mean((1, 2, 3))[:, None]


def test_fresh_draws_are_none_of_the_attack_s(images: Tensor) -> None:
    model, labels = Noted(), torch.zeros(len(images), dtype=torch.long)
    PGD(steps=2, seed=5)(model, images, labels)
    attacked, model.drawn = set(model.drawn), []
    judge_on_draws(model, images, labels, draws=4, seed=5)
    assert attacked and model.drawn and attacked.isdisjoint(model.drawn)


def test_a_retrieval_attack_sees_the_averaged_embedding(model: ToyDual, pairs: Pairs) -> None:
    attack = SepAttack(image=PGD(eps=0.02, steps=4, loss="own_pair"))
    plain, averaged = attack(model, pairs), RetrievalEOT(attack, draws=3, chunk=20)(model, pairs)
    assert torch.allclose(plain.images, averaged.images, atol=1e-6)
    assert torch.equal(3 * plain.queries, averaged.queries) and torch.equal(3 * plain.gradients, averaged.gradients)


def test_a_dual_encoder_that_draws_is_attacked_better_by_its_average(pairs: Pairs) -> None:
    model = NoisyDual().eval()
    features = AveragedEncoder(model, 5).encode_image(pairs.images)
    assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-5)
    attack = SepAttack(image=PGD(eps=0.01, steps=8, loss="own_pair", random_start=False, keep="last"))
    texts = model.encode_text(model.tokenize(pairs.captions))

    def similarity(found: Tensor) -> float:
        torch.manual_seed(9)
        averaged = AveragedEncoder(model, 50).encode_image(found)
        return (averaged[pairs.owner] * texts).sum(1).mean().item()

    state = torch.get_rng_state()
    one, many = (RetrievalEOT(attack, draws=draws)(model, pairs).images for draws in (1, 32))
    assert torch.equal(state, torch.get_rng_state())
    assert similarity(many) < similarity(one) < similarity(pairs.images)
    assert torch.equal(many, RetrievalEOT(attack, draws=32)(model, pairs).images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "evaluation.eot.draws is 0"),
        ({"chunk": 0}, "evaluation.eot.chunk is 0"),
        ({"reduce": "x"}, "reduce"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EOT(PGD(), **settings)


def test_the_hyper_parameters_show() -> None:
    attack = EOT(PGD(eps=0.1), draws=7)
    assert "draws=7" in repr(attack) and "PGD(" in repr(attack)
    assert attack.replace(draws=3).draws == 3
    assert attack.threat == PGD(eps=0.1).threat == ThreatModel(eps=0.1)
