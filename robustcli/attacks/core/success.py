"""Success of retrieval attacks, judged from the features of the adversarial images and captions.

Shapes: N images, M captions, D embedding, G gallery images, H gallery captions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.pairs import Adversarial
from robustcli.attacks.core.target import Target
from robustcli.utils.rowwise import cosines, in_parts

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
    to_captions = (images[owner] * texts).sum(1)

    def image_fooled(images: Tensor, rows: Tensor) -> Tensor:
        valid = torch.nonzero(paired.valid[rows], as_tuple=True)
        captions = paired.table[rows][valid]
        places = valid[0], gallery.caption_rows[captions]
        similarities = cosines(images, gallery.text_features).index_put(places, to_captions[captions])
        return _misranked(similarities, gallery.image_matches.matrix(rows))

    by_image = in_parts(
        image_fooled, len(gallery.text_features), images, torch.arange(len(images), device=owner.device)
    )
    images, texts = _attacked_features(target, "text_to_image", image_features, text_features)
    to_images = (images[owner] * texts).sum(1, keepdim=True)

    def caption_fooled(texts: Tensor, rows: Tensor) -> Tensor:
        places = gallery.image_rows[owner[rows]][:, None]
        similarities = cosines(texts, gallery.image_features).scatter(1, places, to_images[rows])
        return _misranked(similarities, gallery.caption_matches.matrix(rows))

    rows = torch.arange(len(texts), device=owner.device)
    return by_image, in_parts(caption_fooled, len(gallery.image_features), texts, rows)


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
