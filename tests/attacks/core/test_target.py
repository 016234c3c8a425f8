"""Target of an attack: part of the pairs before the whole gallery, under the same threat model.

Shapes: N images, M captions.
"""

import torch

from robustcli.attacks import ThreatModel
from robustcli.attacks.core.target import Target

from ..conftest import ToyDual, make_pairs


def test_a_part_keeps_its_captions_its_gallery_and_the_threat_model(model: ToyDual) -> None:
    pairs, threat = make_pairs(model, (1, 3, 0, 2)), ThreatModel(norm="l2", eps=0.5, words=2, edits="item")
    target = Target(model, pairs, None, threat)
    part, captions = target.part(torch.tensor([3, 1]))
    assert part.threat is threat and part.encoder is target.encoder
    assert captions.tolist() == [1, 2, 3, 4, 5]
    assert part.pairs.captions == pairs.captions[1:] and part.owner.tolist() == [1, 1, 1, 0, 0]
    assert torch.equal(part.pairs.images, pairs.images[[3, 1]])
    assert part.pairs.image_ids.tolist() == [103, 101] and part.pairs.caption_ids.tolist() == [
        1001,
        1002,
        1003,
        1004,
        1005,
    ]
    assert torch.equal(part.gallery.image_features, target.gallery.image_features)
    assert torch.equal(part.image_features, target.image_features[[3, 1]])
    assert torch.equal(part.text_features, target.text_features[1:])


def test_without_a_threat_model_it_is_the_default(model: ToyDual) -> None:
    assert Target(model, make_pairs(model, (1, 1)), None).threat == ThreatModel()
