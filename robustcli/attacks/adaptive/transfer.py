"""Transfer matrices: success rates of attacks that are computed on each model and judged on every other.

Shapes: B images, N images and M captions of the pairs.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks.adaptive.surrogate import attack_for_transfer, correct_on
from robustcli.attacks.core.base import Classifier, ClassifierAttack
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.pairs import DualEncoderLike, Pairs, check_images
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.success import fooled_queries
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
        ``samples``: the images that source and target both classify correctly, the denominator; ``successes``: those of
        them that the target misclassifies when attacked; ``success_rate``: their share, NaN of no image. A table of two
        dimensions is ``.pivot(index="source", columns="target", values="success_rate")``.

    Args:
        models: images (B,C,H,W) in [0,1] -> logits (B,Y), all of the same classes.
        labels, threat, sample_ids: see `ClassifierAttack`.
    """
    check_images(images)
    ids, labels = torch.arange(len(images)) if sample_ids is None else sample_ids, labels.to(images.device)
    correct = {name: correct_on(model, images, labels) for name, model in models.items()}
    rows = []
    for source, model in models.items():
        x_adv, _ = attack_for_transfer(attack, model, images, labels, ids, threat or attack.threat)
        within = threat or attack.threat
        (within.at(None) if attack.minimum_norm else within).audit(x_adv, images)
        for target, other in models.items():
            rows.append(_row(source, target, correct[source] & correct[target], ~correct_on(other, x_adv, labels)))
    return pd.DataFrame(rows)


def retrieval_transfer_matrix(
    attack: RetrievalAttack,
    models: Mapping[str, DualEncoderLike],
    pairs: Pairs,
    threat: ThreatModel | None = None,
) -> pd.DataFrame:
    """`transfer_matrix` for dual encoders: a row for each source, target and ``direction``, over the queries that both
    rank correctly; the pairs themselves are the gallery. A query counts as fooled where any variant of the attack fools
    it on the target.
    """
    clean = {name: _fooled_on(model, pairs, pairs.images, pairs.captions) for name, model in models.items()}
    rows = []
    for source, model in models.items():
        variants = attack.variants(model, pairs, threat=threat).values()
        for target, other in models.items():
            fooled_by_variant = [_fooled_on(other, pairs, one.images, one.captions) for one in variants]
            for number, direction in enumerate(_DIRECTIONS):
                both_correct = ~clean[source][number] & ~clean[target][number]
                fooled = torch.stack([one[number] for one in fooled_by_variant]).any(0)
                rows.append({"direction": direction, **_row(source, target, both_correct, fooled)})
    return pd.DataFrame(rows)


def _row(source: str, target: str, both_correct: Tensor, fooled: Tensor) -> dict[str, Any]:
    samples, successes = int(both_correct.sum()), int((both_correct & fooled).sum())
    rate = successes / samples if samples else float("nan")
    return {"source": source, "target": target, "samples": samples, "successes": successes, "success_rate": rate}


def _fooled_on(
    model: DualEncoderLike, pairs: Pairs, images: Tensor, captions: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) bool on the CPU: ``model`` ranks the query wrongly, its own pair replaced by ``images``,
    ``captions``.
    """
    with frozen(model), torch.no_grad():
        target = Target(model, pairs, None)
        fooled = fooled_queries(target, model.encode_image(images), target.encode_text(captions))
    return fooled[0].cpu(), fooled[1].cpu()
