"""What an evaluation says it will cost, and that asking changes nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.attacks import PGD, SGA, Attack, SepAttack, SynonymTable, ThreatModel, WordSubstitution
from robustcli.data import Scenes
from robustcli.data.classes import PixelClasses
from robustcli.data.scenes import synonym_table
from robustcli.evaluation import (
    Attacker,
    ClassificationEvaluator,
    Evaluation,
    Group,
    RetrievalEvaluator,
    cost,
    estimate,
    timing,
)
from robustcli.evaluation.aggregate import summarise
from robustcli.models import Classifier, DualEncoder
from robustcli.report.diagnose import cost_of, find_all
from robustcli.utils.seeding import generator

from ..attacks.conftest import SmallNet, attack_of

THREAT = ThreatModel(eps=0.05, words=1)


def classes() -> Classifier:
    return Classifier(SmallNet().eval(), classes=tuple("abcd"), mean=(0.0,) * 3, std=(1.0,) * 3)


def on_classes(attacks: dict[str, Attack], *, radii: tuple[float, ...] = (), **more: Any) -> tuple[Evaluation, Group]:
    pixels = torch.rand(12, 3, 8, 8, generator=generator(3))
    model = classes()
    data = PixelClasses(
        "noise",
        "test",
        pixels=pixels,
        scale=1.0,
        labels=model(pixels).argmax(1),
        classes=tuple("abcd"),
        image_ids=[str(number) for number in range(12)],
        fingerprint="0",
    )
    evaluator = ClassificationEvaluator(data, THREAT, batch_size=6)
    evaluation = Evaluation(evaluator=evaluator, attacks=attacks, threat=THREAT, radii=radii, **more)
    return evaluation, Group(bare=evaluator.entry("m", model))


def on_pairs(scenes: Scenes, model: DualEncoder, attack: Attack) -> tuple[Evaluation, Group]:
    evaluator = RetrievalEvaluator(scenes, THREAT, batch_size=4, limit=8)
    evaluation = Evaluation(evaluator=evaluator, attacks={"it": attack}, threat=THREAT)
    return evaluation, Group(bare=evaluator.entry("m", model))


def words() -> WordSubstitution:
    return WordSubstitution(candidates=SynonymTable({word: list(others) for word, others in synonym_table().items()}))


def test_it_is_images_times_attacks_times_passes() -> None:
    attacks = {"pgd": PGD(steps=4, early_stop=False), "one": PGD(steps=1, early_stop=False)}
    found = estimate(*_asked(on_classes(attacks, radii=(0.1,), curve=None)))
    # Two radii of each attack; clean, the base class before and after a search, and the verdict are a pass each.
    assert (found.images, found.attacks, found.runs) == (12, 2, 4)
    assert found.passes.forward == 12 * (2 * (4 + 1) + 2 * (1 + 1) + 1 + 4 * (2 + 1))
    assert found.passes.backward == 12 * (2 * 4 + 2 * 1) and not found.passes.at_most
    assert str(found).startswith(
        "12 images x 1 model x 2 attacks in 4 runs, 324 forward and 120 backward passes: about "
    )
    twice = estimate(*_asked(on_classes(attacks, radii=(0.1,), curve=None)), times=2)
    assert twice.passes.forward == 2 * found.passes.forward and twice.models == 2


def test_the_passes_that_are_told_are_those_that_are_made() -> None:
    """Of searches that never stop early: rows that went through the network, and those that a gradient came back to."""
    evaluation, group = on_classes({"pgd": PGD(steps=4, early_stop=False)}, radii=(0.1,), curve=None)
    estimated, network = estimate(evaluation, [group]), group.bare.model.network
    told, made = estimated.passes, [0, 0]
    group.bare.model.randomised = False  # else a few images of each batch are asked twice

    def backward(gradient: Tensor) -> None:
        made[1] += len(gradient)

    def forward(_: Any, images: tuple[Tensor], logits: Tensor) -> None:
        copies = len(images[0]) == 2 and images[0][0].equal(images[0][1])  # a probe of `draws_by_pass`
        made[0] += 0 if copies else len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)

    with network.register_forward_hook(forward):
        records = evaluation.records([group])
    assert made == [told.forward, told.backward] and not told.at_most
    attacked = records[records["attack"] != "clean"]
    assert estimated.by_model["m"].passes == attacked[["queries", "gradients"]].sum().sum()


def test_processes_share_the_attacks_and_not_the_clean_answers() -> None:
    found = estimate(*_asked(on_classes({"pgd": PGD(steps=4)})))
    attacks = found.seconds - found.clean_seconds
    assert 0 < found.clean_seconds < found.seconds and found.shared(1).seconds == pytest.approx(found.seconds)
    assert found.shared(4).seconds == pytest.approx(found.clean_seconds + attacks / 4)


@pytest.mark.parametrize("attack", [PGD(steps=4, early_stop=False), PGD(steps=4)])
def test_diagnostics_take_no_more_passes_than_are_told(attack: PGD) -> None:
    evaluation, group = on_classes({"pgd": attack})
    found, share = estimate(evaluation, [group]), 0.25
    told = cost_of(evaluation, [group], found, extent="auto", share=share)
    assert told is not None and told.at_most and (told.batteries, told.images) == (1, 12)
    records = evaluation.records([group])
    table = summarise(records, resamples=2, seed=0)
    findings = find_all(evaluation, [group], table, records, extent="auto", share=share, shown=False)
    assert 0 < sum(each.passes for each in findings) <= told.passes
    assert told.seconds == pytest.approx(told.passes * found.by_model["m"].pass_seconds)
    assert cost_of(evaluation, [group], found, extent="off", share=share) is None
    whole = cost_of(evaluation, [group], found, extent="full", share=None, times=2)
    assert whole is not None and not whole.at_most and whole.batteries == 2 and whole.images == 24


def _asked(built: tuple[Evaluation, Group]) -> tuple[Evaluation, list[Group]]:
    return built[0], [built[1]]


def test_a_search_that_may_stop_early_is_at_most_and_one_that_cannot_tell_is_named() -> None:
    early = estimate(*_asked(on_classes({"pgd": PGD(steps=4)})))
    assert early.passes.at_most and "at most 108 forward and 48 backward passes: at most 0:00:0" in str(early)
    unknown = estimate(*_asked(on_classes({"pgd": PGD(steps=4), "ta": attack_of("torchattacks")})))
    assert unknown.unknown == ("ta",) and "(without ta, which cannot tell)" in str(unknown)
    transfer = estimate(*_asked(on_classes({"pgd": PGD(steps=4)}, attacker=Attacker(surrogate=classes()))))
    assert not transfer.passes.at_most and transfer.passes.backward == 48


def test_searches_of_captions_are_those_of_all_captions(scenes: Scenes, small_model: DualEncoder) -> None:
    sep = SepAttack(image=PGD(steps=2), text=words())
    evaluation, group = on_pairs(scenes, small_model, sep)
    captions = len(evaluation.evaluator.captions)  # type: ignore[attr-defined]
    found = estimate(evaluation, [group])
    assert found.passes.searches == captions and found.passes.backward == 8 * 2
    assert (
        estimate(*_asked(on_pairs(scenes, small_model, SGA(image=PGD(steps=2), text=words())))).passes.searches
        == 2 * captions
    )
    images = replace(evaluation, threat=ThreatModel(eps=0.05))
    assert not estimate(images, [group]).passes.searches


@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_the_timed_passes_leave_no_trace(kind: str, scenes: Scenes, small_model: DualEncoder) -> None:
    def build() -> tuple[Evaluation, Group]:
        if kind == "classes":
            return on_classes({"pgd": PGD(steps=3, eps=0.1)})
        return on_pairs(scenes, small_model, SepAttack(image=PGD(steps=2), text=words()))

    untouched, group = build()
    expected = untouched.records([group])
    evaluation, group = build()
    state, weights = torch.get_rng_state(), group.bare.model.fingerprint()
    flags = [part.training for part in group.bare.model.network.modules()]
    estimate(evaluation, [group])
    assert torch.equal(torch.get_rng_state(), state) and group.bare.model.fingerprint() == weights
    assert [part.training for part in group.bare.model.network.modules()] == flags
    assert all(weight.grad is None and weight.requires_grad for weight in group.bare.model.network.parameters())
    assert evaluation.records([group]).equals(expected)


def test_the_time_is_that_of_the_timed_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def seconds_of(model: Any, timing_of: Any, part: Any, most: int) -> float:
        asked.append(most)
        part(timing_of(2))
        return [0.5, 2.0][len(asked) - 1]  # a forward pass, then one with its gradient

    monkeypatch.setattr(cost, "seconds_of", seconds_of)
    found = estimate(*_asked(on_classes({"pgd": PGD(steps=4, early_stop=False)})))
    assert found.seconds == 12 * (9 * 0.5 + 4 * 1.5) and asked == [6, 6]
    assert found.affordable(1.0) == int(60 / 10.5) and found.affordable(100) == 12 and found.affordable(0.01) == 0


def test_the_time_of_pairs_has_their_searches_and_encoded_captions(
    scenes: Scenes, small_model: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "seconds_of", lambda *_: 1.0)  # of whatever is done with an image and all its captions
    found = estimate(*_asked(on_pairs(scenes, small_model, SepAttack(image=PGD(steps=2), text=words()))))
    # Three forward passes, a search and the pass that judges it; both sides are encoded for clean row and verdict.
    assert found.seconds == pytest.approx(8 * (3 + 1 + 1 + 2 * 2))


def test_what_is_judged_within_a_budget_is_what_a_limit_of_as_many_images_judges(
    scenes: Scenes, small_model: DualEncoder
) -> None:
    attack = SepAttack(image=PGD(steps=2), text=words())
    evaluation, group = on_pairs(scenes, small_model, attack)
    evaluation.evaluator.shorten(5, "for want of time")
    evaluator = RetrievalEvaluator(scenes, THREAT, batch_size=4, limit=5)
    limited = Evaluation(evaluator=evaluator, attacks={"it": attack}, threat=THREAT)
    assert evaluation.records([group]).equals(limited.records([Group(bare=evaluator.entry("m", small_model))]))


@pytest.mark.parametrize(
    "call, image, timed_on",
    [
        pytest.param(
            0.08, 0.002, [1, 4, 16, 64], id="the call costs more than its images: as many as are attacked at once"
        ),
        pytest.param(0.0, 0.02, [1, 4, 16], id="until a call is long beside the ticks of a clock"),
        pytest.param(0.0, 0.3, [1, 4], id="a large network"),
        pytest.param(0.0, 9.0, [1], id="one that takes seconds"),
    ],
)
def test_a_pass_is_timed_on_enough_images(
    call: float, image: float, timed_on: list[int], small_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, counts = [0.0], []

    def part(count: Any) -> None:
        counts.append(count)
        clock[0] += call + image * count

    monkeypatch.setattr(timing, "_now", lambda device: clock[0])
    seconds = timing.seconds_of(small_model, lambda count: count, part, 64)  # type: ignore[arg-type, return-value]
    assert counts == [1, *timed_on]
    assert seconds == pytest.approx((call + image * timed_on[-1]) / timed_on[-1])
