"""Transfer: attacks that ask one model and are judged on another, and the matrices made of them.

Shapes: B images, N images and M captions of the pairs.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import (
    FAB,
    PGD,
    Gallery,
    ImageAdversarial,
    Pairs,
    RetrievalSurrogate,
    SepAttack,
    Surrogate,
    ThreatModel,
    retrieval_transfer_matrix,
    transfer_matrix,
)
from robustcli.utils.seeding import generator

from ..conftest import SmallNet, ToyDual, words


class Counting(nn.Module):
    """A network near `SmallNet`, that counts its passes."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.net, self.passes, self.graded = SmallNet().eval(), 0, 0
        for number, weight in enumerate(self.net.parameters()):
            weight.data += shift * torch.randn(weight.shape, generator=generator(number, "shift"))

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        self.graded += images.requires_grad
        return self.net(images)  # type: ignore[no-any-return]


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(48, 3, 8, 8, generator=generator(13))


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(1) == labels


def test_the_target_is_asked_by_the_judge_alone(images: Tensor) -> None:
    target, near = Counting(), Counting(0.1)
    labels = target(images).argmax(1)
    target.passes = 0
    found = Surrogate(PGD(eps=0.04), near)(target, images, labels)
    assert (target.passes, target.graded) == (4, 0)  # twice whether it draws, once clean, once attacked
    assert torch.equal(found.queries, torch.full((48,), 11)) and torch.equal(found.gradients, torch.full((48,), 10))
    assert torch.equal(found.success, ~_accuracy(target, found.images, labels))
    assert (found.norm <= 0.04 * (1 + 1e-6)).all()


def test_transfer_is_between_noise_and_the_white_box(images: Tensor) -> None:
    target, near = Counting(), Counting(0.1)
    labels = target(images).argmax(1)

    def rate(found: ImageAdversarial) -> float:
        return float(found.success.float().mean())

    attack = PGD(eps=0.03)
    white, transfer = rate(attack(target, images, labels)), rate(Surrogate(attack, near)(target, images, labels))
    noise = rate(PGD(eps=0.03, steps=0)(target, images, labels))
    assert noise + 0.1 < transfer <= white


def test_the_search_goes_on_beyond_the_boundary_of_the_surrogate(images: Tensor) -> None:
    target, near = Counting(), Counting(0.1)
    labels = target(images).argmax(1)
    attack = PGD(eps=0.06, steps=20, alpha=0.003, random_start=False)
    stopped = attack(near, images, labels).images
    gone_on = Surrogate(attack, near)(target, images, labels)
    assert gone_on.success.sum() > (~_accuracy(target, stopped, labels)).sum()


def test_images_that_the_surrogate_gets_wrong_are_attacked_too(images: Tensor) -> None:
    target, other = Counting(), Counting(0.6)
    labels = target(images).argmax(1)
    assert not _accuracy(other, images, labels).all()
    found = Surrogate(PGD(eps=0.04, random_start=False), other)(target, images, labels)
    assert ((found.images - images).abs().flatten(1).amax(1) > 0.03).all()


def test_a_minimum_norm_attack_keeps_its_meaning(images: Tensor) -> None:
    target, near = Counting(), Counting(0.1)
    labels = target(images).argmax(1)
    found = Surrogate(FAB(norm="l2", steps=10), near)(target, images, labels)
    assert torch.equal(found.norm.isinf(), ~found.success)
    assert 0 < found.success.sum() < 48
    assert (found.gradients.sum() > 0) and target.graded == 0
    radius = found.norm[found.success].median().item()
    within = Surrogate(FAB(norm="l2", steps=10, eps=radius), near)(target, images, labels)
    assert (within.norm[within.success] <= radius).all()


def test_both_models_are_left_as_they_were(images: Tensor) -> None:
    target, near = Counting(), Counting(0.1).train()
    labels = target(images).argmax(1)
    target.train()
    before, state = copy.deepcopy(near.state_dict()), torch.get_rng_state()
    found = Surrogate(PGD(steps=2), near)(target, images, labels)
    assert found.gradients.sum() > 0
    for model in (target, near):
        assert all(part.training for part in model.modules())
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in near.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_the_matrix_counts_over_what_both_models_get_right(images: Tensor) -> None:
    models = {"a": Counting(), "b": Counting(0.1), "c": Counting(0.6)}
    labels = models["a"](images).argmax(1)
    attack = PGD(eps=0.03, steps=4)
    table = transfer_matrix(attack, models, images, labels).set_index(["source", "target"])
    assert len(table) == 9
    for source in models:
        for target in models:
            both = _accuracy(models[source], images, labels) & _accuracy(models[target], images, labels)
            found = Surrogate(attack, models[source])(models[target], images, labels).images
            fooled = both & ~_accuracy(models[target], found, labels)
            row = table.loc[(source, target)]
            assert (row["samples"], row["successes"]) == (int(both.sum()), int(fooled.sum()))
            assert row["success_rate"] == pytest.approx(int(fooled.sum()) / int(both.sum()))
    assert table.loc[("a", "c"), "samples"] < 48
    assert table.loc[("c", "a"), "success_rate"] < table.loc[("a", "a"), "success_rate"]


def test_a_matrix_within_the_threat_model_of_the_call(images: Tensor) -> None:
    models = {"a": Counting(), "b": Counting(0.1)}
    labels, threat = models["a"](images).argmax(1), ThreatModel(norm="l2", eps=0.2)
    given = transfer_matrix(PGD(steps=4), models, images, labels, threat)
    assert given.equals(transfer_matrix(PGD(norm="l2", eps=0.2, steps=4), models, images, labels))
    assert not given.equals(transfer_matrix(PGD(steps=4), models, images, labels))
    smallest = transfer_matrix(FAB(norm="l2", steps=4), models, images, labels, ThreatModel(norm="l2", eps=None))
    assert smallest.equals(transfer_matrix(FAB(norm="l2", steps=4), models, images, labels))


def test_each_source_is_attacked_once(images: Tensor) -> None:
    models = {"a": Counting(), "b": Counting(0.1), "c": Counting(0.2)}
    transfer_matrix(PGD(steps=5, keep="last"), models, images, torch.zeros(48, dtype=torch.long))
    assert [model.graded for model in models.values()] == [5, 5, 5]


def test_a_matrix_of_nothing_that_both_get_right_has_no_rate() -> None:
    images = torch.full((1, 3, 8, 8), 0.5)
    label = 1 - SmallNet().eval()(images).argmax(1).clamp(max=1)
    table = transfer_matrix(PGD(steps=1), {"a": Counting()}, images, label)
    assert table["samples"].tolist() == [0] and table["success_rate"].isna().all()


@pytest.fixture
def other() -> ToyDual:
    """A dual encoder near `ToyDual`."""
    return _shifted(0.2)


def _shifted(share: float) -> ToyDual:
    model = ToyDual().eval()
    for number, weight in enumerate(model.parameters()):
        if weight.ndim:  # the temperature stays
            weight.data += share * weight.data.std() * torch.randn(weight.shape, generator=generator(number, "other"))
    return model


def test_a_retrieval_attack_transfers_and_never_asks_the_target(model: ToyDual, other: ToyDual, pairs: Pairs) -> None:
    attack = SepAttack(image=PGD(eps=0.02, loss="cross_entropy"), text=words())
    white, transfer = attack(model, pairs), RetrievalSurrogate(attack, other)(model, pairs)
    clean = SepAttack(image=PGD(eps=0.02, steps=0))(model, pairs)
    assert clean.image_success.sum() < transfer.image_success.sum() <= white.image_success.sum()
    own = attack(other, pairs)
    assert torch.equal(own.images, transfer.images) and own.captions == transfer.captions
    assert torch.equal(own.queries, transfer.queries)


def test_the_gallery_of_the_surrogate_can_be_given(model: ToyDual, other: ToyDual, pairs: Pairs) -> None:
    given = []

    def gallery(pairs: Pairs) -> Gallery:
        given.append(Gallery.of(other, pairs))
        return given[-1]

    attack = SepAttack(image=PGD(eps=0.02))
    found = RetrievalSurrogate(attack, other, gallery=gallery)(model, pairs)
    assert len(given) == 1
    assert torch.equal(found.images, RetrievalSurrogate(attack, other)(model, pairs).images)


def test_a_matrix_of_dual_encoders(model: ToyDual, other: ToyDual, pairs: Pairs) -> None:
    attack = SepAttack(image=PGD(eps=0.02), text=words())
    far = _shifted(1.5)
    table = retrieval_transfer_matrix(attack, {"a": model, "b": other, "c": far}, pairs)
    assert len(table) == 18
    rows = table.set_index(["source", "target", "direction"])
    white = attack(model, pairs)
    assert rows.loc[("a", "a", "image_to_text"), "samples"] == 16
    assert rows.loc[("a", "a", "image_to_text"), "successes"] == int(white.image_success.sum())
    assert rows.loc[("a", "a", "text_to_image"), "successes"] == int(white.caption_success.sum())
    far_right = ~SepAttack(image=PGD(eps=0))(far, pairs).caption_success
    assert 0 < int(far_right.sum()) < len(far_right)
    assert rows.loc[("a", "c", "text_to_image"), "samples"] == int(far_right.sum())
    assert rows.loc[("c", "a", "text_to_image"), "samples"] == int(far_right.sum())
    threat = ThreatModel(eps=0.01, words=1)
    given = retrieval_transfer_matrix(attack, {"a": model}, pairs, threat)["successes"]
    own = attack(model, pairs, threat=threat)
    assert given.tolist() == [int(own.image_success.sum()), int(own.caption_success.sum())]
    assert given.sum() < int(white.image_success.sum() + white.caption_success.sum())
    rates = rows["success_rate"]
    assert 0 < rates["b", "a", "image_to_text"] <= rates["a", "a", "image_to_text"]
