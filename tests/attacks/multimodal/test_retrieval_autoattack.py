"""The ensemble: never weaker than a member, stronger than the field's attack, and within what the attacker may edit.

Shapes: N images, M captions.
"""

from typing import ClassVar

import pytest
import torch

from robustcli.attacks import APGD, PGD, SGA, Adversarial, Gallery, Pairs, RetrievalAutoAttack, SepAttack, ThreatModel
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.losses import text_objective
from robustcli.attacks.core.success import worst_of
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import EDITS
from robustcli.attacks.multimodal.worst_queries import (
    MARGIN_TOLERANCE,
    WorstCaptionQueries,
    WorstImageQueries,
    WorstQueries,
)
from robustcli.utils.seeding import derive_seed

from ..conftest import ToyDual, make_pairs, words

EPS = "1.5/255"


def ensemble(**changed: object) -> RetrievalAutoAttack:
    return RetrievalAutoAttack(**{"image": APGD(eps=EPS, steps=4), "text": words(), **changed})  # type: ignore[arg-type]


@pytest.fixture
def pairs(model: ToyDual) -> Pairs:
    return make_pairs(model, (2,) * 12)


def _lost(result: Adversarial) -> float:
    return float(torch.cat([result.image_success, result.caption_success]).float().mean())


def test_no_query_is_better_off_than_under_any_member_or_variant(
    model: ToyDual, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    best: dict[type, torch.Tensor] = {}
    keep = WorstQueries._keep

    def watched(self, rows, images, features, captions, member):  # type: ignore[no-untyped-def]
        margin = self.margins(features, self.target.encode_text(tuple(captions)), rows)
        before = best.setdefault(type(self), torch.full((len(self.margin),), -9.0))
        best[type(self)] = before.index_put((rows,), torch.maximum(before[rows], margin))
        keep(self, rows, images, features, captions, member)

    monkeypatch.setattr(WorstQueries, "_keep", watched)
    variants = ensemble().variants(model, pairs)
    monkeypatch.undo()
    result = worst_of(list(variants.values()))
    assert list(variants) == ["image_to_text", "text_to_image_1", "text_to_image_2"]
    for name, kind in (("image_success", WorstImageQueries), ("caption_success", WorstCaptionQueries)):
        found = getattr(result, name)
        assert torch.equal(found, torch.stack([getattr(each, name) for each in variants.values()]).any(0))
        assert found[best[kind] > MARGIN_TOLERANCE].all()
        assert 0.2 < found.float().mean() < 1
    assert sum(int(each.gradients.sum()) for each in variants.values()) == result.gradients.sum() > 0
    for i in torch.nonzero(result.image_success).flatten().tolist():
        assert any(
            each.image_success[i] and torch.equal(each.images[i], result.images[i]) for each in variants.values()
        )


def test_each_fallen_query_names_the_member_that_its_worst_case_is_from(model: ToyDual, pairs: Pairs) -> None:
    """A member alone, from the clean images, fools the queries that the ensemble credits it with."""
    result, text = ensemble()(model, pairs), ensemble(image=None)(model, pairs)
    for fooled, members in (
        (result.image_success, result.image_members),
        (result.caption_success, result.caption_members),
    ):
        named = {member for member, fell in zip(members, fooled.tolist(), strict=True) if fell}
        assert "" not in named and len(named) > 1
    assert set(text.image_members) | set(text.caption_members) == {"text", ""}
    assert all(text.caption_members[j] for j in torch.nonzero(text.caption_success).flatten().tolist())
    for j, member in enumerate(result.caption_members):
        if member == "":
            assert result.captions[j] == pairs.captions[j]
        if member == "text":
            assert result.captions[j] == text.captions[j]


def test_it_is_never_weaker_than_sga_and_clearly_stronger(model: ToyDual, pairs: Pairs) -> None:
    sga = SGA(image=PGD(eps=EPS, steps=10, loss="own_pair"), text=words())(model, pairs)
    found = ensemble()(model, pairs)
    assert (found.image_success | ~sga.image_success).all()
    assert (found.caption_success | ~sga.caption_success).all()
    assert _lost(found) > _lost(sga) + 0.1


@pytest.mark.parametrize("edits", EDITS)
def test_each_side_is_edited_only_where_the_attacker_may(model: ToyDual, pairs: Pairs, edits: str) -> None:
    variants = ensemble().variants(model, pairs, threat=ThreatModel(eps=EPS, words=1, edits=edits))
    of_images, of_captions = variants["image_to_text"], variants["text_to_image_1"]
    assert (of_images.norm > 0).any() == (edits != "item")
    assert (of_images.edits > 0).any() == (edits != "query")
    assert (of_captions.norm > 0).any() == (edits != "query")
    assert (of_captions.edits > 0).any() == (edits != "item")


def test_where_words_alone_decide_the_search_is_exact(model: ToyDual, pairs: Pairs) -> None:
    clean = Gallery.of(model, pairs)
    target, text = Target(model, pairs, clean), words()
    best = text.maximise(model, text_objective("margin", target), pairs.captions, pairs.caption_ids)
    with torch.no_grad():
        features = model.encode_text(model.tokenize(best))
    expected = text_objective("margin", target)(features, torch.arange(len(best))) >= 0
    query, item = (ThreatModel(eps=EPS, words=1, edits=edits) for edits in ("query", "item"))
    found = ensemble()(model, pairs, clean, query)
    assert torch.equal(found.caption_success, expected)
    apart = SepAttack(text=words(objective="guided"))(model, pairs, clean, item)
    found = ensemble()(model, pairs, clean, item)
    assert torch.equal(found.image_success, apart.image_success)


def test_an_image_of_its_own_for_each_caption_and_joint_words_are_stronger(model: ToyDual, pairs: Pairs) -> None:
    images, texts, both = ensemble(text=None), ensemble(image=None), ensemble()
    lost = [_lost(attack(model, pairs)) for attack in (images, texts, both)]
    assert lost[2] > max(lost[:2]) > 0
    assert texts(model, pairs).norm.max() == 0
    assert images(model, pairs).edits.max() == 0
    shared = SepAttack(image=APGD(eps=EPS, steps=20))(model, pairs)
    assert images(model, pairs).caption_success.float().mean() > shared.caption_success.float().mean()


def test_images_with_few_or_no_captions_are_served(model: ToyDual) -> None:
    pairs = make_pairs(model, (1, 3, 0, 2))
    variants = ensemble(image=APGD(eps="8/255", steps=4)).variants(model, pairs)
    assert len(variants) == 4
    assert torch.equal(variants["text_to_image_1"].images[0], variants["text_to_image_3"].images[0])
    assert torch.equal(variants["text_to_image_3"].images[2], pairs.images[2])


def test_several_true_images_are_known_and_zero_gradients_do_not_come_of_them(model: ToyDual, pairs: Pairs) -> None:
    matches = pairs.matches().clone()
    matches[:12, 0] = True  # nothing that is done to its own image misleads this caption
    pairs = Pairs(**{**vars(pairs), "relevance": matches})
    found = ensemble(text=None)(model, pairs)
    assert not found.caption_success[0]
    assert found.zero_gradients.sum() == 0


def test_what_sga_alone_fools_is_fooled(model: ToyDual, pairs: Pairs) -> None:
    """Without steps of its own the ensemble has no other search of images than SGA's ten."""
    sga = SGA(image=PGD(eps=EPS, steps=10, loss="own_pair"), text=words())(model, pairs)
    result = ensemble(image=APGD(eps=EPS, steps=0))(model, pairs)
    assert (result.image_success | ~sga.image_success).all()
    assert (result.caption_success | ~sga.caption_success).all()


def test_a_target_is_one_negative_against_the_best_positive(model: ToyDual, pairs: Pairs) -> None:
    queries = WorstImageQueries(Target(model, pairs, None), QueryCounter.of(12), image=APGD(), text=None)
    rows, negatives = torch.tensor([3, 0, 7]), queries.hardest_negatives(5)
    with torch.no_grad():
        cosines = model.encode_image(pairs.images) @ model.encode_text(model.tokenize(pairs.captions)).T
        value, fooled = queries.towards(negatives[:, 1])(pairs.images[rows], rows)
    false = cosines.masked_fill(pairs.matches(), -torch.inf)
    assert torch.equal(negatives, false.topk(5).indices)
    best = cosines.masked_fill(~pairs.matches(), -torch.inf).amax(1)
    assert torch.allclose(value, (false.topk(5).values[:, 1] - best)[rows], atol=1e-6)
    assert not fooled.any()


class Recorder(APGD):
    """A search that notes its seed and if it resumes; it puts out ``planted`` images for captions, else clean ones."""

    def maximise(self, objective, images, sample_ids, threat=None, *, start=None, counter=None):  # type: ignore[no-untyped-def]
        of_captions = bool((sample_ids >= 1000).all())
        self.calls.setdefault(of_captions, {})[self.seed] = start is not None
        return self.planted[(sample_ids - 1000) // 2] if of_captions and self.planted is not None else images.clone()

    calls: ClassVar[dict[bool, dict[int, bool]]] = {}
    planted: ClassVar[torch.Tensor | None] = None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Alone: without SGA, which has a search of its own."""
    monkeypatch.setattr(Recorder, "calls", {})
    monkeypatch.setattr(RetrievalAutoAttack, "_sga", lambda *_: None)
    return Recorder(eps="8/255")


def test_every_member_attacks_what_none_before_has_fooled(model: ToyDual, pairs: Pairs, recorder: Recorder) -> None:
    """The last one resumes from the worst image so far."""
    ensemble(image=recorder, text=None)(model, pairs)
    seeds = {name: derive_seed(0, "retrieval_autoattack", name) for name in ("cross-entropy", "margin", "alternate")}
    targets = [derive_seed(0, "retrieval_autoattack", f"target {number}") for number in range(5)]
    once = {seeds["cross-entropy"]: False, seeds["margin"]: False, seeds["alternate"]: True}
    assert recorder.calls == {False: {**once, **dict.fromkeys(targets, False)}, True: once}


def test_an_image_that_was_found_for_a_caption_is_tried_on_its_own_query(
    model: ToyDual, pairs: Pairs, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    strong = SepAttack(image=APGD(eps="8/255", steps=20))(model, pairs)
    monkeypatch.setattr(Recorder, "planted", strong.images)
    of_images = ensemble(image=recorder, text=None).variants(model, pairs)["image_to_text"]
    assert strong.image_success.any() and (of_images.image_success >= strong.image_success).all()
