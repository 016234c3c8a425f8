"""Whether a query was led astray, judged from the features of what an attack put out.

Shapes: N images, M captions, D embedding, G gallery images, H gallery captions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.pairs import Adversarial
from robustcli.attacks.core.target import Target

_COSTS = ("queries", "gradients", "zero_gradients", "nan_gradients")


def judge(target: Target, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) bool: a query with its own pair attacked no longer ranks something true first.

    Of the pair only that is taken as attacked which the threat model lets the attacker edit; all else counts clean.
    """
    gallery, own, owner = target.gallery, target.own, target.owner
    if not bool(image_features.isfinite().all()) or not bool(text_features.isfinite().all()):
        raise ValueError("the model gave NaN embeddings: its success under attack cannot be judged")
    images, texts = _as_judged(target, "image_to_text", image_features, text_features)
    to_text = images @ gallery.text_features.T
    places = torch.nonzero(own.valid, as_tuple=True)
    captions = own.table[places]
    similarity = (images[owner] * texts).sum(1)
    to_text = to_text.index_put((places[0], gallery.caption_rows[captions]), similarity[captions])
    images, texts = _as_judged(target, "text_to_image", image_features, text_features)
    similarity = (images[owner] * texts).sum(1)
    to_image = texts @ gallery.image_features.T
    to_image = to_image.scatter(1, gallery.image_rows[owner][:, None], similarity[:, None])
    return _lost(to_text, gallery.image_matches), _lost(to_image, gallery.caption_matches)


def worst_of(variants: Sequence[Adversarial]) -> Adversarial:
    """Each query under the first variant that is a success; without one, images are of the first, captions of the
    last. A query is a success where any variant is, and the costs add up.
    """
    if len(variants) == 1:
        return variants[0]
    by_image = _first_success([one.image_success for one in variants], 0)
    by_caption = _first_success([one.caption_success for one in variants], len(variants) - 1)
    images = torch.stack([one.images for one in variants])
    rows, columns = torch.arange(len(by_image)), torch.arange(len(by_caption))
    return Adversarial(
        images=images[by_image.to(images.device), rows.to(images.device)],
        captions=tuple(variants[k].captions[j] for j, k in enumerate(by_caption.tolist())),
        norm=torch.stack([one.norm for one in variants])[by_image, rows],
        edits=torch.stack([one.edits for one in variants])[by_caption, columns],
        image_success=torch.stack([one.image_success for one in variants]).any(0),
        caption_success=torch.stack([one.caption_success for one in variants]).any(0),
        **{name: sum((getattr(one, name) for one in variants[1:]), getattr(variants[0], name)) for name in _COSTS},
    )


def _first_success(successes: Sequence[Tensor], otherwise: int) -> Tensor:
    """(K)(Q,) bool -> (Q,) long on the CPU."""
    table = torch.stack(list(successes)).cpu()
    return torch.where(table.any(0), table.long().argmax(0), otherwise)


def _as_judged(target: Target, direction: str, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    image_moves, text_moves = target.threat.sides(direction)
    return (
        image_features if image_moves else target.image_features,
        text_features if text_moves else target.text_features,
    )


def _lost(similarities: Tensor, matches: Tensor) -> Tensor:
    best_true = similarities.masked_fill(~matches, -torch.inf).amax(1)
    return similarities.masked_fill(matches, -torch.inf).amax(1) >= best_true
