"""Transfer matrices: how often what misleads one model misleads another.

Shapes: B images, N images and M captions of the pairs.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks.adaptive.surrogate import right_on, transferable
from robustcli.attacks.core.base import Classifier, ClassifierAttack
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.pairs import DualEncoderLike, Pairs, check_images
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.success import judge
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel

_DIRECTIONS = ("image_to_text", "text_to_image")


def transfer_matrix(
    attack: ClassifierAttack,
    models: Mapping[str, Classifier],
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel | None = None,
    *,
    sample_ids: Tensor | None = None,
) -> pd.DataFrame:
    """One row for each pair of models, ``source`` and ``target`` by name; each source is attacked once, as by
    `Surrogate`, and the result is judged on every target, the source itself among them.

    Returns:
        ``samples``: the images that source and target both classify right, the denominator; ``successes``: those of
        them that the target gets wrong when attacked; ``success_rate``: their share, NaN of no image. A table of two
        dimensions is ``.pivot(index="source", columns="target", values="success_rate")``.

    Args:
        models: images (B,C,H,W) in [0,1] -> logits (B,Y), all of the same classes.
        labels, threat, sample_ids: see `ClassifierAttack`.
    """
    check_images(images)
    ids, labels = torch.arange(len(images)) if sample_ids is None else sample_ids, labels.to(images.device)
    right = {name: right_on(model, images, labels) for name, model in models.items()}
    rows = []
    for source, model in models.items():
        found, _ = transferable(attack, model, images, labels, ids, threat or attack.threat)
        within = threat or attack.threat
        (within.at(None) if attack.minimum_norm else within).audit(found, images)
        for target, judged in models.items():
            rows.append(_row(source, target, right[source] & right[target], ~right_on(judged, found, labels)))
    return pd.DataFrame(rows)


def retrieval_transfer_matrix(
    attack: RetrievalAttack,
    models: Mapping[str, DualEncoderLike],
    pairs: Pairs,
    threat: ThreatModel | None = None,
) -> pd.DataFrame:
    """`transfer_matrix` for dual encoders: a row for each source, target and ``direction``, over the queries that both
    rank right; the pairs themselves are the gallery. A query counts as misled where any variant of the attack misleads
    it on the target.
    """
    clean = {name: _misled(model, pairs, pairs.images, pairs.captions) for name, model in models.items()}
    rows = []
    for source, model in models.items():
        variants = attack.variants(model, pairs, threat=threat).values()
        for target, judged in models.items():
            found = [_misled(judged, pairs, one.images, one.captions) for one in variants]
            for number, direction in enumerate(_DIRECTIONS):
                both = ~clean[source][number] & ~clean[target][number]
                fooled = torch.stack([one[number] for one in found]).any(0)
                rows.append({"direction": direction, **_row(source, target, both, fooled)})
    return pd.DataFrame(rows)


def _row(source: str, target: str, both: Tensor, fooled: Tensor) -> dict[str, Any]:
    samples, successes = int(both.sum()), int((both & fooled).sum())
    rate = successes / samples if samples else float("nan")
    return {"source": source, "target": target, "samples": samples, "successes": successes, "success_rate": rate}


def _misled(model: DualEncoderLike, pairs: Pairs, images: Tensor, captions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) bool on the CPU: what ``model`` does not rank right; a query has its own pair replaced."""
    with frozen(model), torch.no_grad():
        target = Target(model, pairs, None)
        found = judge(target, model.encode_image(images), target.encode_text(captions))
    return found[0].cpu(), found[1].cpu()
