"""Proposals of the search for alphas, the front, and the accuracy that it maximises."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustcli.attacks import ThreatModel
from robustcli.attacks.adaptive.surrogate import correct_on
from robustcli.data import Digits
from robustcli.defenses import PurifiedClassifier, Purifier
from robustcli.defenses.purification.alpha_images import AdversarialImages, attack_reconstruction
from robustcli.defenses.purification.alpha_search import (
    AlphaEvaluator,
    AlphaSearch,
    Trial,
    check_objectives,
    starting_points,
)
from robustcli.models import Classifier, load
from robustcli.utils.errors import UserError

from ...two_latents import TwoLatents

GOAL = (0.2, 0.7, 0.9)
UNIT = ThreatModel(norm="l2", eps=1.0)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    found = load("digits")
    assert isinstance(found, Classifier)
    return found


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(split="test")


def defended(classifier: Classifier, alphas: str = "none") -> PurifiedClassifier:
    return PurifiedClassifier(classifier, Purifier(TwoLatents(), alphas=alphas, attenuation=0.8), draws=3)


def scored(alphas: Sequence[float], objectives: int) -> tuple[float, ...]:
    """Highest at `GOAL`; the second objective is highest where nothing is drawn."""
    near = 1 - sum((a - b) ** 2 for a, b in zip(alphas, GOAL, strict=True)) / 3
    return (near, 1 - sum(alphas) / 3)[:objectives]


def searched(trials: int, told: Sequence[Trial] = (), *, objectives: int = 1, sampler: str = "gp") -> AlphaSearch:
    search = AlphaSearch(3, objectives=objectives, sampler=sampler, seed=4)
    for trial in told:
        search.tell(trial)
    while len(search.trials) < trials:
        origin, alphas = search.propose()
        search.tell(Trial(origin, alphas, scored(alphas, objectives)))
    return search


def test_the_papers_starting_points_in_its_order() -> None:
    points = starting_points(4)
    assert list(points) == ["cosine", "linear", "half", "1 - linear", "1 - cosine"]
    assert points["linear"] == (0.25, 0.5, 0.75, 1.0) and points["1 - linear"] == (0.75, 0.5, 0.25, 0.0)
    assert points["half"] == (0.5,) * 4 and points["1 - cosine"][-1] == 0.0
    first = searched(5)
    assert [trial.origin for trial in first.trials] == list(points)
    assert searched(2, sampler="random").trials[0].origin == "random"


@pytest.mark.parametrize(("sampler", "trials"), [("gp", 12), ("tpe", 40)])
def test_it_finds_more_than_the_starting_points(sampler: str, trials: int) -> None:
    search = searched(trials, sampler=sampler)
    best = search.trials[search.best()]
    assert best.origin == sampler and best.values[0] > max(trial.values[0] for trial in search.trials[:5])
    assert sampler == "tpe" or best.values[0] > 0.99


@pytest.mark.parametrize(("sampler", "objectives"), [("gp", 1), ("gp", 2), ("tpe", 1), ("tpe", 2), ("random", 1)])
def test_what_was_stopped_goes_on_in_the_same_way(sampler: str, objectives: int) -> None:
    whole = searched(9, sampler=sampler, objectives=objectives)
    again = searched(9, whole.trials[:6], sampler=sampler, objectives=objectives)
    assert again.trials == whole.trials
    assert all(0 <= alpha <= 1 for trial in whole.trials for alpha in trial.alphas)
    assert len({trial.alphas for trial in whole.trials}) == 9


def test_a_proposal_stands_until_it_is_answered_and_follows_the_seed() -> None:
    search = searched(6)
    assert search.propose() == search.propose()
    other = AlphaSearch(3, sampler="random", seed=5)
    assert other.propose() != AlphaSearch(3, sampler="random", seed=4).propose()


def test_the_front_and_its_chosen_point() -> None:
    search = AlphaSearch(1, objectives=2, sampler="random")
    for values in ((0.5, 0.9), (0.9, 0.5), (0.4, 0.9), (0.9, 0.5), (0.7, 0.8)):
        search.tell(Trial("random", (0.5,), values))
    assert search.front() == [0, 1, 4] and search.best() == 4


@pytest.mark.parametrize("names", [[], ["clean", "clean"], ["robust"]])
def test_objectives_that_make_no_sense(names: list[str]) -> None:
    with pytest.raises(UserError, match="objectives is"):
        check_objectives(names)


def test_kept_are_images_that_were_right_before_and_are_wrong_after(classifier: Classifier, digits: Digits) -> None:
    defence = defended(classifier)
    found = attack_reconstruction(defence, digits, UNIT, count=10, batch_size=40, seed=0)
    clean, labels = digits.images(found.rows), digits.labels[found.rows]
    assert len(found.rows) == len(found.images) == len(found.clean) == 10
    assert bool(correct_on(defence, clean, labels).all()) and not bool(correct_on(defence, found.images, labels).any())
    moved = (found.images - clean).abs()
    assert bool((moved.flatten(1).norm(dim=1) <= 1.0).all())
    for image, change in zip(found.images, moved, strict=True):
        free = change[(image > 0) & (image < 1) & (change > 0)]
        assert torch.allclose(free, free[0], atol=1e-5), "every pixel that has a gradient moves by the same amount"


def test_the_images_depend_on_the_seed_and_not_on_the_batch(classifier: Classifier, digits: Digits) -> None:
    def rows(seed: int, batch_size: int) -> list[int]:
        found = attack_reconstruction(
            defended(classifier), digits, UNIT, count=5, batch_size=batch_size, seed=seed, limit=80
        )
        assert found.attacked <= 80
        return found.rows.tolist()

    assert rows(0, 16) == rows(0, 80) and rows(0, 16) != rows(1, 16)


def test_they_are_stored_without_loss(tmp_path: Path) -> None:
    images = torch.rand(2, 1, 8, 8)
    stored = AdversarialImages(images, torch.tensor([3, 1]), torch.tensor([5]), attacked=9, clean_correct=8)
    stored.save(tmp_path / "images.safetensors")
    again = AdversarialImages.load(tmp_path / "images.safetensors")
    assert torch.equal(again.images, images) and again.rows.tolist() == [3, 1] and again.clean.tolist() == [5]
    assert (again.attacked, again.clean_correct) == (9, 8)
    assert load_file(tmp_path / "images.safetensors")["images"].dtype is torch.float32


def test_the_verdict_is_that_of_the_purified_classifier(classifier: Classifier, digits: Digits) -> None:
    rows = torch.arange(80)
    images, labels = digits.images(rows), digits.labels[rows]
    evaluator = AlphaEvaluator(defended(classifier), draws=3, memory=None, batch_size=30, seed=7)
    purifier = Purifier(TwoLatents(), alphas=[0.9, 1.0], attenuation=0.8)
    torch.manual_seed(7)
    seed = int(torch.randint(1 << 62, ()))
    noise = [purifier.named_noise(rows.tolist(), images, seed=seed, draw=draw) for draw in range(3)]
    with torch.no_grad():
        logits = [classifier(purifier(images, each)) for each in noise]
    expected = torch.stack(logits).mean(0).argmax(1) == labels
    assert torch.equal(evaluator.correct([0.9, 1.0], images, labels, rows), expected)
    assert not torch.equal(logits[0].argmax(1) == labels, expected), "one draw would have done"


def test_a_verdict_depends_neither_on_batch_nor_order_nor_memory(classifier: Classifier, digits: Digits) -> None:
    rows = torch.arange(40)
    images, labels = digits.images(rows), digits.labels[rows]

    def right(order: torch.Tensor, batch_size: int, memory: float | None) -> torch.Tensor:
        evaluator = AlphaEvaluator(defended(classifier), draws=4, memory=memory, batch_size=batch_size, seed=1)
        found = evaluator.correct([1.0, 1.0], images[order], labels[order], rows[order])
        return found[order.argsort()]

    whole = right(rows, 40, None)
    assert 0 < int(whole.sum()) < 40
    assert torch.equal(right(rows.flip(0), 7, 0.00001), whole)


def test_the_classifier_and_the_global_draws_are_left_as_they_were(classifier: Classifier, digits: Digits) -> None:
    evaluator = AlphaEvaluator(defended(classifier), draws=2, memory=0.01, batch_size=4, seed=1)
    state, wanted = torch.get_rng_state(), [weight.requires_grad for weight in classifier.parameters()]
    rows = torch.arange(4)
    evaluator.correct("linear", digits.images(rows), digits.labels[rows], rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert [weight.requires_grad for weight in classifier.parameters()] == wanted
