"""Fooled queries, against a ranking written out plainly.

Shapes: N images, M captions.
"""

import pytest
import torch
from torch import Tensor

from robustcli.attacks import Adversarial, Gallery, Pairs, ThreatModel
from robustcli.attacks.core.success import fooled_queries, worst_of
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import EDITS
from robustcli.utils.seeding import generator

from ..conftest import ToyDual, make_pairs


def _near(features: Tensor, seed: int) -> Tensor:
    noise = 0.2 * torch.randn(features.shape, generator=generator(seed))
    return torch.nn.functional.normalize(features + noise, dim=1)


@pytest.mark.parametrize("edits", EDITS)
def test_only_what_the_attacker_may_edit_counts_as_attacked(model: ToyDual, edits: str) -> None:
    pairs = make_pairs(model, (1, 3, 2, 0, 2, 2))
    matches = pairs.matches().clone()
    matches[0, 3] = matches[2, 0] = True
    pairs = Pairs(**{**vars(pairs), "relevance": matches})
    gallery = Gallery.of(model, pairs)
    target = Target(model, pairs, gallery, ThreatModel(edits=edits))
    images, texts = _near(gallery.image_features, 1), _near(gallery.text_features, 2)
    image_success, caption_success = fooled_queries(target, images, texts)
    for i in range(6):
        captions, own = gallery.text_features.clone(), pairs.owner == i
        if edits != "query":
            captions[own] = texts[own]
        scores = captions @ (gallery.image_features[i] if edits == "item" else images[i])
        assert image_success[i] == (not matches[i, scores.argmax()])
    for j, i in enumerate(pairs.owner.tolist()):
        items = gallery.image_features.clone()
        if edits != "query":
            items[i] = images[i]
        scores = items @ (gallery.text_features[j] if edits == "item" else texts[j])
        assert caption_success[j] == (not matches[scores.argmax(), j])
    assert 0 < torch.cat([image_success, caption_success]).float().mean() < 1


def _variant(level: float, image_success: list[bool], caption_success: list[bool]) -> Adversarial:
    n, m = len(image_success), len(caption_success)
    costs = {
        name: torch.ones(n, dtype=torch.long) for name in ("queries", "gradients", "zero_gradients", "nan_gradients")
    }
    return Adversarial(
        images=torch.full((n, 1, 1, 1), level),
        captions=tuple(f"{level} {j}" for j in range(m)),
        norm=torch.full((n,), level, dtype=torch.float64),
        edits=torch.full((m,), int(10 * level)),
        image_success=torch.tensor(image_success),
        caption_success=torch.tensor(caption_success),
        **costs,
    )


def test_each_query_has_the_first_variant_that_fools_it() -> None:
    """Where none does, the image is that of the first variant and the caption that of the last."""
    first = _variant(0.1, [False, True, False], [False, False])
    second = _variant(0.2, [True, True, False], [False, True])
    third = _variant(0.3, [True, False, False], [False, True])
    worst = worst_of([first, second, third])
    assert worst.image_success.tolist() == [True, True, False] and worst.caption_success.tolist() == [False, True]
    assert worst.images.flatten().tolist() == pytest.approx([0.2, 0.1, 0.1]) == worst.norm.tolist()
    assert worst.captions == ("0.3 0", "0.2 1") and worst.edits.tolist() == [3, 2]
    assert worst.queries.tolist() == worst.gradients.tolist() == [3, 3, 3]
