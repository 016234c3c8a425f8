"""Losses against their definitions, written out plainly.

Shapes: N images, M captions, G gallery images, H gallery captions, D embedding.
"""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from robustcli.attacks import Gallery, Pairs
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.gallery_losses import DIRECTIONS, caption_over_gallery, image_over_gallery, query_loss
from robustcli.attacks.core.losses import (
    IMAGE_LOSSES,
    TEXT_LOSSES,
    PairedCaptions,
    Target,
    image_objective,
    text_objective,
)
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.success import fooled_queries
from robustcli.utils import rowwise
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from ..conftest import ToyDual, make_pairs


def _target(model: ToyDual, captions_each: tuple[int, ...] = (1, 3, 2, 1)) -> Target:
    pairs = make_pairs(model, captions_each)
    relevance = pairs.matches().clone()
    relevance[0, 3] = relevance[2, 0] = True  # captions that are true of a second image
    return Target(model, Pairs(**{**vars(pairs), "relevance": relevance}), None)


def _features(n: int, like: Tensor, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, like.shape[1], generator=generator(seed)), dim=1)


@pytest.mark.parametrize("attacked", [False, True])
def test_the_gallery_loss_is_the_cross_entropy_of_both_directions(model: ToyDual, attacked: bool) -> None:
    target = _target(model)
    pairs, scale = target.pairs, model.logit_scale.detach()
    moved = (pairs.images + 0.02).clamp(0, 1)
    texts = _features(len(pairs.captions), target.text_features, 1) if attacked else None
    losses = image_objective("cross_entropy", target, texts)(moved, torch.arange(4)).detach()
    images = model.encode_image(moved).detach()
    for i in range(4):
        own = torch.nonzero(pairs.owner == i).flatten()
        captions = target.text_features.clone()
        if texts is not None:
            captions[own] = texts[own]
        exponents = (scale * captions @ images[i]).exp()
        expected = -(exponents[pairs.matches()[i]].sum() / exponents.sum()).log()
        gallery = target.image_features.clone()
        gallery[i] = images[i]
        for j in own.tolist():
            shares = (scale * gallery @ captions[j]).softmax(0)
            expected = expected - shares[pairs.matches()[:, j]].sum().log() / len(own)
        assert losses[i] == pytest.approx(float(expected), abs=1e-4)


def test_the_gallery_loss_reads_a_gallery_that_is_larger_than_the_chunk(model: ToyDual) -> None:
    whole = make_pairs(model)
    gallery = Gallery.of(model, whole)
    rows, own = torch.tensor([3, 9]), torch.tensor([18, 6, 19, 7])
    chunk = Pairs(
        images=whole.images[rows],
        captions=tuple(whole.captions[j] for j in own),
        owner=torch.tensor([1, 0, 1, 0]),
        image_ids=whole.image_ids[rows],
        caption_ids=whole.caption_ids[own],
    )
    part = Gallery(
        image_features=gallery.image_features,
        text_features=gallery.text_features,
        image_matches=gallery.image_matches[rows],
        caption_matches=gallery.caption_matches[own],
        image_rows=rows,
        caption_rows=own,
    )
    moved = (whole.images * 0.98).clamp(0, 1)
    for loss in ("cross_entropy", "margin", "dlr", "own_pair", "drift"):
        of_whole = image_objective(loss, Target(model, whole, gallery))(moved[rows], rows)
        of_chunk = image_objective(loss, Target(model, chunk, part))(moved[rows], torch.arange(2))
        assert of_chunk.tolist() == pytest.approx(of_whole.tolist(), abs=1e-5)
    features = _features(4, gallery.text_features, 2)
    for loss in TEXT_LOSSES:
        whole_loss = text_objective(loss, Target(model, whole, gallery))(features, own)
        chunk_loss = text_objective(loss, Target(model, chunk, part))(features, torch.arange(4))
        assert chunk_loss.tolist() == pytest.approx(whole_loss.tolist(), abs=1e-5)


def test_the_image_losses_without_a_gallery_are_what_they_say(model: ToyDual) -> None:
    """``own_pair`` rises as the mean cosine to the paired captions falls, ``drift`` with the distance from clean."""
    target, rows = _target(model), torch.tensor([2, 0, 1])
    moved = (target.pairs.images[rows] + 0.02).clamp(0, 1)
    features, texts = model.encode_image(moved).detach(), _features(7, target.text_features, 5)
    for attacked in (None, texts):
        captions = target.text_features if attacked is None else attacked
        cosines = [(captions[target.owner == row] @ features[k]).mean() for k, row in enumerate(rows.tolist())]
        losses = image_objective("own_pair", target, attacked)(moved, rows)
        assert losses.tolist() == pytest.approx([-float(cosine) for cosine in cosines], abs=1e-6)
    new, clean = features.double().softmax(1), target.image_features[rows].double().softmax(1)
    expected = (new * (new / clean).log()).sum(1)
    assert image_objective("drift", target)(moved, rows).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_infonce_is_the_loss_of_the_batch_with_other_true_pairs_left_out(model: ToyDual) -> None:
    target = _target(model, (1, 1, 1, 1))
    pairs = target.pairs
    losses = image_objective("infonce", target)(pairs.images, torch.arange(4))
    logits = model.logit_scale.detach() * model.encode_image(pairs.images).detach() @ target.text_features.T
    logits = logits.masked_fill(pairs.matches() & ~torch.eye(4, dtype=torch.bool), -torch.inf)
    rows, arange = torch.nn.functional.cross_entropy, torch.arange(4)
    expected = (rows(logits, arange, reduction="none") + rows(logits.T, arange, reduction="none")) / 2
    assert losses.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="whole batch"):
        image_objective("infonce", target)(pairs.images[:2], torch.arange(2))


@pytest.mark.parametrize("loss", IMAGE_LOSSES)
def test_a_gallery_without_a_false_or_without_a_second_true_item_gives_sound_gradients(
    model: ToyDual, loss: str
) -> None:
    pairs = make_pairs(model, (1, 2, 0))
    for relevance in (torch.ones(3, 3, dtype=torch.bool), None):
        target = Target(model, Pairs(**{**vars(pairs), "relevance": relevance}), None)
        counter = QueryCounter.of(3)
        moved = (pairs.images + 0.01).clamp(0, 1)
        values, gradient = ImageOracle(image_objective(loss, target), counter).gradient(moved, torch.arange(3))
        assert values.isfinite().all()
        assert gradient.isfinite().all()
        assert counter.nan_gradients.sum() == 0


def test_the_text_losses_are_what_they_say(model: ToyDual) -> None:
    target = _target(model)
    rows = torch.tensor([4, 0, 4])
    features = _features(3, target.text_features, 3)
    own = target.image_features[target.owner[rows]]
    assert text_objective("guided", target)(features, rows).tolist() == pytest.approx(
        (-(features * own).sum(1)).tolist()
    )
    clean, new = target.text_features[rows].double().softmax(1), features.double().softmax(1)
    drift = (clean * (clean / new).log()).sum(1)
    assert text_objective("drift", target)(features, rows).tolist() == pytest.approx(drift.tolist(), rel=1e-6)
    attacked = _features(4, target.image_features, 4)
    for images in (None, attacked):
        losses = text_objective("cross_entropy", target, images)(features, rows)
        for k, j in enumerate(rows.tolist()):
            gallery = target.image_features.clone()
            if images is not None:
                gallery[target.owner[j]] = images[target.owner[j]]
            shares = (model.logit_scale.detach() * gallery @ features[k]).softmax(0)
            assert losses[k] == pytest.approx(float(-shares[target.pairs.matches()[:, j]].sum().log()), abs=1e-5)


def test_the_targeted_loss_is_the_cosine_to_the_closest_of_three_false_images(model: ToyDual) -> None:
    """The draw in full: of the false images of a caption, by the seed and its id, in whatever batch it stands."""
    target = _target(model, (1, 3, 2, 1, 1, 1))
    ids, matches = target.pairs.caption_ids.tolist(), target.pairs.matches()
    rows, features = torch.tensor([4, 0, 4, 8]), _features(4, target.text_features, 3)
    losses, drawn = text_objective("targeted", target, seed=7)(features, rows), set[tuple[int, ...]]()
    for k, j in enumerate(rows.tolist()):
        false = torch.nonzero(~matches[:, j]).flatten()
        chosen = false[torch.randperm(len(false), generator=generator(7, "targets", ids[j]))[:3]]
        drawn.add(tuple(sorted(chosen.tolist())))
        best = max(float(target.image_features[i].double() @ features[k].double()) for i in chosen)
        assert float(losses[k]) == pytest.approx(best, abs=1e-6)
    assert len(drawn) > 1
    assert not torch.equal(text_objective("targeted", target, seed=8)(features, rows), losses)


def test_the_targeted_loss_of_a_caption_with_fewer_false_images_than_targets(model: ToyDual) -> None:
    """Those that there are; and where it is true of all, nothing is to be gained, and no gradient is a NaN."""
    pairs = make_pairs(model, (1, 1, 1))
    relevance = pairs.matches().clone()
    relevance[:, 1] = True
    target = Target(model, Pairs(**{**vars(pairs), "relevance": relevance}), None)
    features = _features(3, target.text_features, 3).requires_grad_()
    losses = text_objective("targeted", target)(features, torch.arange(3))
    cosines = target.image_features @ features[0].detach()
    assert float(losses[0].detach()) == pytest.approx(float(cosines[1:].max()), abs=1e-6)
    assert losses[1] == 0
    (gradient,) = torch.autograd.grad(losses.sum(), features)
    assert gradient.isfinite().all() and gradient[0].any() and not gradient[1].any()


def _margin(similarities: Tensor, true: Tensor, loss: str) -> float:
    best_true = float(similarities[true].max())
    false = sorted(similarities[~true].tolist(), reverse=True)
    if loss == "margin":
        return false[0] - best_true
    ordered = sorted([best_true, *false[:3]], reverse=True)
    return (false[0] - best_true) / (ordered[0] - ordered[2])


@pytest.mark.parametrize("loss", ["margin", "dlr"])
@pytest.mark.parametrize("wordings", [0, 1, 3])
def test_margins_over_the_gallery_know_all_that_is_true(model: ToyDual, loss: str, wordings: int) -> None:
    target = _target(model, (1, 3, 2, 1, 2))
    pairs, matches = target.pairs, target.pairs.matches()
    clean = target.text_features[:, None]
    texts = torch.stack([_features(9, target.text_features, k) for k in range(wordings)], dim=1) if wordings else clean
    moved = (pairs.images + 0.02).clamp(0, 1)
    images = model.encode_image(moved).detach()
    both = image_over_gallery(loss, target, texts if wordings else None)(moved, torch.arange(5))
    parts = [image_over_gallery(loss, target, texts, (name,))(moved, torch.arange(5)).detach() for name in DIRECTIONS]
    assert both.tolist() == pytest.approx((parts[0] + parts[1]).tolist(), abs=1e-4)
    for i in range(5):
        own = torch.nonzero(pairs.owner == i).flatten().tolist()
        similarities = clean[:, 0] @ images[i]
        for j in own:
            similarities[j] = (texts[j] @ images[i]).min()
        assert float(parts[0][i]) == pytest.approx(_margin(similarities, matches[i], loss), rel=1e-4, abs=1e-5)
        worst = []
        for j in own:
            gallery = target.image_features.clone()
            gallery[i] = images[i]
            worst.append(max(_margin(gallery @ text, matches[:, j], loss) for text in texts[j]))
        assert float(parts[1][i]) == pytest.approx(sum(worst) / len(own), rel=1e-4, abs=1e-5)


def test_a_tie_is_a_margin_of_nothing_and_the_ratio_does_not_change_with_the_scale() -> None:
    similarities = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.3, 0.6, 0.4, 0.1]])
    true, scale = torch.tensor([[True, False, True, False], [True, False, False, True]]), torch.tensor(10.0)
    assert query_loss("margin", similarities, true, scale).tolist() == pytest.approx([0.0, 0.3])
    assert query_loss("dlr", similarities, true, scale).tolist() == pytest.approx([0.0, 1.0])
    assert query_loss("dlr", similarities / 7, true, scale).tolist() == pytest.approx([0.0, 1.0])


def test_the_text_margin_counts_every_true_image(model: ToyDual) -> None:
    target = _target(model)
    rows, features = torch.tensor([3, 0, 3]), _features(3, target.text_features, 3)
    attacked = _features(4, target.image_features, 4)
    for images in (None, attacked):
        losses = text_objective("margin", target, images)(features, rows)
        for k, j in enumerate(rows.tolist()):
            gallery = target.image_features.clone()
            if images is not None:
                gallery[target.owner[j]] = images[target.owner[j]]
            assert float(losses[k]) == pytest.approx(
                _margin(gallery @ features[k], target.pairs.matches()[:, j], "margin"), abs=1e-5
            )


def test_own_captions_are_found_in_any_order() -> None:
    own = PairedCaptions.of(torch.tensor([2, 0, 2, 0, 2]), 4)
    assert own.table.tolist() == [[1, 3, 0], [0, 0, 0], [0, 2, 4], [0, 0, 0]]
    assert own.valid.sum(1).tolist() == [2, 0, 3, 0]
    values = torch.tensor([[1.0, 3.0, 100.0], [1.0, 2.0, 6.0], [9.0, 9.0, 9.0]])
    assert own.mean(values, torch.tensor([0, 2, 1])).tolist() == [2.0, 3.0, 0.0]
    assert own.last(torch.tensor([0, 2, 1])).tolist() == [[False, True, False], [False, False, True], [False] * 3]


def test_an_unknown_loss_names_the_known_ones(model: ToyDual) -> None:
    with pytest.raises(UserError, match=r"attack\.loss is 'own': choose one of cross_entropy, margin, dlr, own_pair"):
        image_objective("own", _target(model))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_a_gallery_that_is_read_in_parts_gives_the_same_losses_and_verdicts(model: ToyDual, loss: str) -> None:
    target = _target(model, (1, 3, 2, 1) * 6)
    images, rows = (target.pairs.images + 0.02).clamp(0, 1), torch.arange(24)
    texts = _features(len(target.owner), target.text_features, 1)
    candidates = torch.stack([target.text_features, texts], 1)

    def results() -> list[Tensor]:
        moved = images.clone().requires_grad_()
        of_images = image_objective(loss, target, candidates)(moved, rows)
        edited = texts.clone().requires_grad_()
        of_texts = caption_over_gallery(loss, target, target.image_features[target.owner])(edited, target.owner * 0)
        gradients = torch.autograd.grad(of_images.sum() + of_texts.sum(), (moved, edited))
        return [of_images, of_texts, *gradients, *fooled_queries(target, model.encode_image(images), texts)]

    whole = results()
    with patch.object(rowwise, "AT_ONCE", 1):
        parts = results()
    for number, (one, other) in enumerate(zip(whole, parts, strict=True)):
        if number == 2:  # a gradient by the pixels, whose terms are summed in another order
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max()))
        else:
            assert torch.equal(one, other)
