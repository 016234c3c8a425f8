"""Success of retrieval attacks, judged from the features of the adversarial images and captions.

Shapes: N images, M captions, D embedding, G gallery images, H gallery captions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.pairs import Adversarial
from robustcli.attacks.core.target import Target
from robustcli.utils.rowwise import cosines

_COSTS = ("queries", "gradients", "zero_gradients", "nan_gradients")


def fooled_queries(target: Target, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) bool: with its own pair attacked, the query ranks a negative first, or level with the
    best positive.

    Of the pair only the side counts as attacked that the threat model lets the attacker edit; all else is clean.

    Raises:
        ValueError: NaN or infinite features.
    """
    gallery, paired, owner = target.gallery, target.paired, target.owner
    if not bool(image_features.isfinite().all()) or not bool(text_features.isfinite().all()):
        raise ValueError("the model gave NaN embeddings: its success under attack cannot be judged")
    images, texts = _attacked_features(target, "image_to_text", image_features, text_features)
    to_text = cosines(images, gallery.text_features)
    valid = torch.nonzero(paired.valid, as_tuple=True)
    paired_rows = paired.table[valid]
    similarity = (images[owner] * texts).sum(1)
    to_text = to_text.index_put((valid[0], gallery.caption_rows[paired_rows]), similarity[paired_rows])
    images, texts = _attacked_features(target, "text_to_image", image_features, text_features)
    similarity = (images[owner] * texts).sum(1)
    to_image = cosines(texts, gallery.image_features)
    to_image = to_image.scatter(1, gallery.image_rows[owner][:, None], similarity[:, None])
    return _misranked(to_text, gallery.image_matches), _misranked(to_image, gallery.caption_matches)


def worst_of(variants: Sequence[Adversarial]) -> Adversarial:
    """Worst case over the variants of an attack, query by query; costs add up.

    A query has the first variant that fools it; without one, images are those of the first variant, captions of the
    last.
    """
    if len(variants) == 1:
        return variants[0]
    by_image = _first_success([one.image_success for one in variants], 0)
    by_caption = _first_success([one.caption_success for one in variants], len(variants) - 1)
    images = torch.stack([one.images for one in variants])
    rows, columns = torch.arange(len(by_image)), torch.arange(len(by_caption))
    return Adversarial(
        images=images[by_image.to(images.device), rows.to(images.device)],
        captions=_chosen([one.captions for one in variants], by_caption),
        norm=torch.stack([one.norm for one in variants])[by_image, rows],
        edits=torch.stack([one.edits for one in variants])[by_caption, columns],
        image_success=torch.stack([one.image_success for one in variants]).any(0),
        caption_success=torch.stack([one.caption_success for one in variants]).any(0),
        image_members=_chosen([one.image_members for one in variants], by_image),
        caption_members=_chosen([one.caption_members for one in variants], by_caption),
        **{name: sum((getattr(one, name) for one in variants[1:]), getattr(variants[0], name)) for name in _COSTS},
    )


def _chosen(texts: Sequence[tuple[str, ...]], which: Tensor) -> tuple[str, ...]:
    """Of each query the text of the variant ``which`` (Q,); none where the variants have none."""
    return tuple(texts[k][row] for row, k in enumerate(which.tolist())) if texts[0] else ()


def _first_success(successes: Sequence[Tensor], otherwise: int) -> Tensor:
    """(Q,) long on the CPU: the first of K successes (Q,) that is True, ``otherwise`` where none is."""
    table = torch.stack(list(successes)).cpu()
    return torch.where(table.any(0), table.long().argmax(0), otherwise)


def _attacked_features(
    target: Target, direction: str, image_features: Tensor, text_features: Tensor
) -> tuple[Tensor, Tensor]:
    edits_image, edits_text = target.threat.sides(direction)
    return (
        image_features if edits_image else target.image_features,
        text_features if edits_text else target.text_features,
    )


def _misranked(similarities: Tensor, matches: Tensor) -> Tensor:
    best_positive = similarities.masked_fill(~matches, -torch.inf).amax(1)
    return similarities.masked_fill(matches, -torch.inf).amax(1) >= best_positive
