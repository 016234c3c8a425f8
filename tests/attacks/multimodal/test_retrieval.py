"""The contract of every attack on a dual encoder, and what is particular to each; an attack joins with its row in
`ATTACKS`.

Shapes: N images, M captions, C channels, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from robustcli.attacks import (
    ATTACKS,
    PGD,
    SGA,
    Adversarial,
    CoAttack,
    Gallery,
    ImageAttack,
    Pairs,
    RetrievalAttack,
    SepAttack,
    SequentialAttack,
    TextAttack,
    ThreatModel,
)
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.losses import Target, divergence, image_objective
from robustcli.attacks.multimodal.sga import _noise_by_image
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import ToyDual, attack_of, make_pairs, names_of, text_attack, words

BOTH, OF_TEXT, OF_IMAGES = (names_of(kind) for kind in (RetrievalAttack, TextAttack, ImageAttack))
NAMES = sorted([*BOTH, *OF_TEXT, "pgd"])  # searches of one side stand alone; of images see below


def build(
    name: str, image: ImageAttack | None = None, text: TextAttack | None = None, **settings: object
) -> RetrievalAttack:
    if name in OF_TEXT:
        return SepAttack(text=text or text_attack(name), **settings)  # type: ignore[arg-type]
    if name in OF_IMAGES:
        return SepAttack(image=image or attack_of(name, steps=3), **settings)  # type: ignore[arg-type]
    found: RetrievalAttack = ATTACKS[name](image=image or PGD(steps=3), text=text or words(), **settings)  # type: ignore[assignment]
    return found


def part_of(pairs: Pairs, gallery: Gallery, rows: Sequence[int]) -> tuple[Pairs, Gallery]:
    """Some of the images with their captions, before the same gallery."""
    images = torch.tensor(rows)
    own = torch.cat([torch.nonzero(pairs.owner == i).flatten() for i in images])
    place = torch.full((len(pairs.images),), -1).index_put((images,), torch.arange(len(images)))
    chunk = Pairs(
        images=pairs.images[images],
        captions=tuple(pairs.captions[j] for j in own),
        owner=place[pairs.owner[own]],
        image_ids=pairs.image_ids[images],
        caption_ids=pairs.caption_ids[own],
    )
    return chunk, replace(
        gallery,
        image_matches=gallery.image_matches[images],
        caption_matches=gallery.caption_matches[own],
        image_rows=images,
        caption_rows=own,
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_keeps_its_budget_and_what_it_does_not_attack(model: ToyDual, name: str, norm: str) -> None:
    pairs = make_pairs(model, (1, 3, 0, 2, 1))
    before = pairs.images.clone()
    image = PGD(norm=norm, eps=0.1, steps=2)
    result = build(name, image)(model, pairs)
    assert torch.equal(pairs.images, before)
    assert image.threat.audit(result.images, pairs.images).tolist() == result.norm.tolist()
    edits = text_attack(name).threat if name in OF_TEXT else ThreatModel(words=1)
    assert edits.audit_captions(result.captions, pairs.captions).tolist() == result.edits.tolist()
    assert torch.equal(result.images, before) == (name in OF_TEXT)
    assert (result.captions == pairs.captions) == (name == "pgd")
    assert (result.queries[[0, 1, 3, 4]] > 0).all()
    assert (result.gradients > 0).any() == (name not in OF_TEXT or name == "hotflip")
    images, captions = build(name, image).perturb(model, pairs)
    assert torch.equal(images, result.images)
    assert captions == result.captions


@pytest.mark.parametrize("name", NAMES)
def test_without_a_budget_nothing_changes(model: ToyDual, pairs: Pairs, name: str) -> None:
    result = build(name, PGD(eps=0), words(max_words=0))(model, pairs)
    assert torch.equal(result.images, pairs.images)
    assert result.captions == pairs.captions
    assert not result.image_success.any()
    assert not result.caption_success.any()


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(model: ToyDual, pairs: Pairs, name: str) -> None:
    gallery, attack = Gallery.of(model, pairs), build(name)
    whole = attack(model, pairs, gallery)
    rows = [9, 2, 5]
    chunk = attack(model, *part_of(pairs, gallery, rows))
    assert ((chunk.images - whole.images[rows]).abs() > 1e-6).float().mean() < 0.01  # but for rounding
    own = [j for i in rows for j in torch.nonzero(pairs.owner == i).flatten().tolist()]
    assert list(chunk.captions) == [whole.captions[j] for j in own]
    assert torch.equal(chunk.image_success, whole.image_success[rows])
    assert torch.equal(chunk.caption_success, whole.caption_success[own])
    assert torch.equal(attack(model, pairs, gallery).images, whole.images)
    if name not in OF_TEXT:
        other = replace(pairs, image_ids=pairs.image_ids + 1)
        assert not torch.equal(attack(model, other, gallery).images, whole.images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_search_of_images_is_an_attack_on_pairs(model: ToyDual, pairs: Pairs, name: str, norm: str) -> None:
    attack, gallery = SepAttack(image=attack_of(name, loss="cross_entropy")), Gallery.of(model, pairs)
    threat = ThreatModel(norm=norm, eps=0.03 if norm == "linf" else 0.3, words=1)
    whole = attack(model, pairs, gallery, threat)
    assert threat.audit(whole.images, pairs.images).tolist() == whole.norm.tolist()
    assert (whole.norm > 0).all() and whole.captions == pairs.captions
    noise = SepAttack(image=PGD(steps=0))(model, pairs, gallery, threat)
    assert whole.image_success.sum() > noise.image_success.sum()
    rows = [9, 2, 5]
    chunk = attack(model, *part_of(pairs, gallery, rows), threat)
    assert (chunk.images - whole.images[rows]).abs().max() < 1e-4
    assert torch.equal(chunk.image_success, whole.image_success[rows])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_model_or_generators_is_changed(pairs: Pairs, name: str) -> None:
    model = ToyDual().train()
    model.norm.eval()
    model.scale.requires_grad_(False)
    model.text.weight.grad = gradient = torch.ones(24, 12)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    pending = model.encode_image(pairs.images).sum()  # a graph that the caller goes on with
    build(name)(model, pairs)
    assert model.training
    assert not model.norm.training
    assert [key for key, weight in model.named_parameters() if not weight.requires_grad] == ["scale"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.text.weight.grad is gradient
    assert model.image.weight.grad is None
    pending.backward()
    assert model.image.weight.grad is not None
    torch.set_rng_state(state)


def _recall(result: Adversarial) -> float:
    return float(1 - torch.cat([result.image_success, result.caption_success]).float().mean())


@pytest.mark.parametrize("name", ["pgd", "sep", "mat", "coattack", "sga"])
def test_unbounded_eps_leaves_no_image_its_captions(model: ToyDual, pairs: Pairs, name: str) -> None:
    image = PGD(eps=1.0, steps=30, alpha=0.1)
    result = build(name, image)(model, pairs)
    assert result.image_success.float().mean() > (0.9 if name == "coattack" else 0.99)


def test_both_sides_are_stronger_than_either_and_the_order_of_strength_holds(model: ToyDual) -> None:
    pairs = make_pairs(model)
    assert not SepAttack(text=words(max_words=0))(model, pairs).image_success.any()  # ranked perfectly when clean
    recall = {name: _recall(build(name, PGD(eps="4/255"))(model, pairs)) for name in NAMES}
    noise = _recall(SepAttack(image=PGD(eps="4/255", steps=0))(model, pairs))
    one = _recall(SepAttack(image=PGD(eps="4/255", steps=1))(model, pairs))
    assert noise > one > recall["pgd"] > recall["sep"] >= recall["mat"]
    assert recall["words"] > max(recall["sep"], recall["coattack"], recall["sga"])


@pytest.mark.parametrize("name", NAMES)
def test_more_budget_is_never_weaker(model: ToyDual, pairs: Pairs, name: str) -> None:
    by_eps = [_recall(build(name, PGD(eps=eps, steps=6))(model, pairs)) for eps in (0, "3/255", "12/255")]
    if name not in OF_TEXT:
        assert all(more <= less + 0.05 for less, more in pairwise(by_eps))  # the start differs from eps to eps
        assert by_eps[-1] < by_eps[0] - 0.3
    by_words = [_recall(build(name, PGD(eps="2/255"), words(max_words=n))(model, pairs)) for n in (0, 1, 2)]
    if name != "pgd":
        assert by_words[2] < by_words[0]


def test_a_loss_over_the_gallery_costs_more_recall_than_the_own_pair(model: ToyDual) -> None:
    pairs = make_pairs(model)
    recalls = {
        loss: _recall(SepAttack(image=PGD(eps="4/255", loss=loss))(model, pairs))
        for loss in ("cross_entropy", "own_pair")
    }
    assert recalls["cross_entropy"] < recalls["own_pair"] - 0.15


def test_success_is_the_rank_of_what_came_out_with_ties_against_the_query(model: ToyDual) -> None:
    pairs = make_pairs(model, (1, 2, 1))
    result = build("mat", PGD(eps="8/255", steps=5))(model, pairs)
    with torch.no_grad():
        images, texts = model.encode_image(result.images), model.encode_text(model.tokenize(result.captions))
        clean = Gallery.of(model, pairs)
    for i in range(3):
        captions = clean.text_features.clone()
        captions[pairs.owner == i] = texts[pairs.owner == i]
        assert result.image_success[i] == (pairs.owner[(captions @ images[i]).argmax()] != i)
    for j, i in enumerate(pairs.owner.tolist()):
        gallery = clean.image_features.clone()
        gallery[i] = images[i]
        assert result.caption_success[j] == ((gallery @ texts[j]).argmax() != i)
    model.image.weight.data.zero_()  # a constant encoder finds nothing
    assert build("words")(model, pairs).caption_success.all()
    model.image.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        build("words")(model, pairs)


def test_an_attack_that_cheats_is_caught(model: ToyDual, pairs: Pairs) -> None:
    class Cheat(SepAttack):
        def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
            return 1 - target.pairs.images, target.pairs.captions

    class Writer(SepAttack):
        def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
            return target.pairs.images, tuple("quite another caption" for _ in target.pairs.captions)

    with pytest.raises(RuntimeError, match="eps is"):
        Cheat(image=PGD()).perturb(model, pairs)
    for text in (None, words()):
        with pytest.raises(RuntimeError, match="edits"):
            Writer(image=PGD(), text=text).perturb(model, pairs)
    with pytest.raises(UserError, match="both null"):
        SepAttack()


def test_the_image_meets_the_attacked_captions_in_sequence_and_the_clean_ones_apart(
    model: ToyDual, pairs: Pairs
) -> None:
    sep, mat = (build(name, PGD(steps=2, loss="own_pair")).perturb(model, pairs) for name in ("sep", "mat"))
    assert sep[1] == mat[1]
    alone = build("pgd", PGD(steps=2, loss="own_pair")).perturb(model, pairs)[0]
    assert torch.equal(sep[0], alone)
    captions_as_given = replace(pairs, captions=mat[1])
    assert torch.equal(build("pgd", PGD(steps=2, loss="own_pair")).perturb(model, captions_as_given)[0], mat[0])
    assert not torch.equal(mat[0], alone)


def test_training_s_loss_moves_a_batch_as_a_whole(model: ToyDual, pairs: Pairs) -> None:
    attack = SequentialAttack(image=PGD(steps=1, loss="infonce"), text=words(search="hotflip", top_k=0))
    result = attack(model, pairs)
    clean = Target(model, pairs, None)
    objective = image_objective("infonce", clean)
    rows = torch.arange(len(pairs.images))
    assert objective(result.images, rows).sum() > objective(pairs.images, rows).sum() + 1


def test_the_co_attack_raises_both_divergences_from_a_one_sided_start(model: ToyDual, pairs: Pairs) -> None:
    target = Target(model, pairs, None)
    start = build("coattack", PGD(steps=0)).perturb(model, pairs)[0]
    assert (start >= pairs.images - 1e-7).all()
    assert (start - pairs.images).mean() > 1 / 255
    captions = build("coattack").perturb(model, pairs)[1]
    features = target.encode_text(captions)
    for caption in ("last", "all"):
        attack = CoAttack(image=PGD(steps=5), text=words(), caption=caption)
        objective = attack.image_objective(target, features)
        rows = torch.arange(16)
        found = attack.perturb(model, pairs)[0]
        assert (objective(found, rows) > objective(start, rows)).all()
    images = model.encode_image(found).detach()
    last = features.view(16, 2, -1)[:, 1]
    expected = divergence(images, target.image_features) + 3 * divergence(images, last)
    assert torch.allclose(CoAttack(image=PGD()).image_objective(target, features)(found, rows), expected, rtol=1e-4)
    with pytest.raises(UserError, match="last, all"):
        CoAttack(image=PGD(), caption="first")


def _zeros(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(len(rows), *shape)


def test_sga_lowers_the_cosines_to_all_captions_over_all_scales(model: ToyDual, pairs: Pairs) -> None:
    target = Target(model, pairs, None)
    attack = SGA(image=PGD(steps=5), text=words(), noise=_zeros)
    objective = attack.image_objective(target, target.text_features)
    rows = torch.arange(16)
    copies = [pairs.images, *attack.scaled(pairs.images, lambda shape: _zeros(rows, shape))]
    own = target.text_features.view(16, 2, -1).sum(1)
    expected = -torch.stack([(model.encode_image(copy) * own).sum(1) for copy in copies]).sum(0)
    assert len(copies) == 5
    assert torch.allclose(objective(pairs.images, rows), expected, atol=1e-5)
    found = SGA(image=PGD(steps=5), noise=_zeros).perturb(model, pairs)[0]
    assert (objective(found, rows) > objective(pairs.images, rows)).all()


def test_sga_s_noise_is_each_image_s_own_and_new_each_time() -> None:
    noise, again = _noise_by_image([7, 8], 0), _noise_by_image([8], 0)
    first, second = noise(torch.tensor([0, 1]), (4, 2)), noise(torch.tensor([1]), (4, 2))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(again(torch.tensor([0]), (4, 2))[0], first[1])
    assert torch.equal(again(torch.tensor([0]), (4, 2)), second)
    assert not torch.equal(second[0], first[1])


def test_sga_s_copies_are_noisy_resized_and_in_range() -> None:
    attack, images = SGA(image=PGD()), torch.rand(2, 3, 8, 8, generator=generator(0)).round()
    noise = torch.randn(2, 4, 3, 8, 8, generator=generator(1))
    copies = attack.scaled(images, lambda shape: noise)
    assert [copy.shape for copy in copies] == [images.shape] * 4
    assert all(copy.min() >= 0 and copy.max() <= 1 for copy in copies)
    flat = torch.full((2, 3, 8, 8), 0.5)
    assert all(torch.allclose(copy, flat, atol=1e-6) for copy in attack.scaled(flat, lambda shape: 0 * noise))
    assert 0.02 < (attack.scaled(flat, lambda shape: noise)[3] - flat).std() < 0.08
    half = attack.scaled(images, lambda shape: 0 * noise)[0]
    assert (half - images).abs().mean() > 0.1  # detail is lost on the way


def test_sga_s_second_text_attack_starts_clean_and_looks_at_the_attacked_image(model: ToyDual, pairs: Pairs) -> None:
    image = PGD(eps="64/255", steps=6)
    result = SGA(image=image, text=words())(model, pairs)
    assert result.edits.max() == 1
    with torch.no_grad():
        features = model.encode_image(result.images)
    again = SepAttack(text=words())
    moved = replace(Gallery.of(model, pairs), image_features=features)
    assert result.captions == again.perturb(model, pairs, moved)[1]
    assert result.captions != again.perturb(model, pairs)[1]


def _spoilt(fault: str) -> Callable[[], PGD]:
    settings = {"zero steps": {"steps": 0, "random_start": False}, "sound": {}}.get(fault, {})

    class Spoilt(PGD):
        def maximise(self, objective, *given, **rest):  # type: ignore[no-untyped-def]
            sign = {"sign flipped": -1.0, "gradient zeroed": 0.0}.get(fault, 1.0)
            return super().maximise(lambda x, rows: sign * objective(x, rows), *given, **rest)

    return lambda: Spoilt(eps="12/255", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pgd", "mat", "sga"])
def test_the_strength_check_notices_a_broken_attack(model: ToyDual, pairs: Pairs, name: str) -> None:
    def lost(fault: str) -> float:
        return float(build(name, _spoilt(fault)(), words(max_words=0))(model, pairs).image_success.float().mean())

    assert lost("sound") > 0.8
    assert max(lost(fault) for fault in ("sign flipped", "zero steps", "gradient zeroed")) < 0.15


def test_pairs_refuse_what_does_not_fit(pairs: Pairs) -> None:
    for changed in (
        {"images": pairs.images * 2},
        {"owner": pairs.owner + 1},
        {"owner": pairs.owner[:-1]},
        {"image_ids": pairs.image_ids[:3]},
        {"relevance": torch.ones(2, 2, dtype=torch.bool)},
    ):
        with pytest.raises(ValueError, match=r"images|owner|image_ids|relevance"):
            replace(pairs, **changed)  # type: ignore[arg-type]


def test_every_attack_shows_its_settings(model: ToyDual) -> None:
    for name in NAMES:
        attack = build(name, seed=5)
        assert repr(attack).startswith(f"{type(attack).__name__}(seed=5, image={attack.image!r}, text={attack.text!r}")
