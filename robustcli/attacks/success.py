"""Whether a query was led astray, judged from the features of what an attack put out.

Shapes: N images, M captions, D embedding, G gallery images, H gallery captions.
"""

import torch
from torch import Tensor

from robustcli.attacks.losses import Target


def judge(target: Target, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) bool: a query with its own pair attacked no longer ranks something true first."""
    gallery, own, owner = target.gallery, target.own, target.owner
    if not bool(image_features.isfinite().all()) or not bool(text_features.isfinite().all()):
        raise ValueError("the model gave NaN embeddings: its success under attack cannot be judged")
    similarity = (image_features[owner] * text_features).sum(1)
    to_text = image_features @ gallery.text_features.T
    places = torch.nonzero(own.valid, as_tuple=True)
    captions = own.table[places]
    to_text = to_text.index_put((places[0], gallery.caption_rows[captions]), similarity[captions])
    to_image = text_features @ gallery.image_features.T
    to_image = to_image.scatter(1, gallery.image_rows[owner][:, None], similarity[:, None])
    return _lost(to_text, gallery.image_matches), _lost(to_image, gallery.caption_matches)


def _lost(similarities: Tensor, matches: Tensor) -> Tensor:
    best_true = similarities.masked_fill(~matches, -torch.inf).amax(1)
    return similarities.masked_fill(matches, -torch.inf).amax(1) >= best_true
