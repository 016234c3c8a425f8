"""Evaluation of a randomised model on fresh draws, which no attack has seen.

Shapes: R draws, B images, Y classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.adaptive.averaging import Draws, draws_by_pass, evaluate_draws
from robustcli.attacks.core.base import Classifier
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.pairs import check_images
from robustcli.metrics import label_ranks
from robustcli.utils.numbers import at_least
from robustcli.utils.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class DrawnAnswers:
    """R answers of a model for B images; all fields on the CPU.

    Clean images that are judged the same way give the floor: the share that the draws alone misclassify.

    Args:
        predictions, ranks: (R,B) long, the class of highest logit and the rank of the label.
        labels: (B,) long.
        classes: Y.
    """

    predictions: Tensor
    ranks: Tensor
    labels: Tensor
    classes: int

    @property
    def right(self) -> Tensor:
        """(R,B) bool: the answer is correct."""
        return self.predictions == self.labels

    def mean(self) -> Tensor:
        """(B,) float64: share of the draws that are correct, an estimate of the probability that the next one is."""
        return self.right.double().mean(0)

    def worst(self) -> Tensor:
        """(B,) bool: every draw is correct, as it must be where an attacker may try R times."""
        return self.right.all(0)

    def majority(self) -> Tensor:
        """(B,) bool: the label has more draws than any other class; a tie counts against the model."""
        votes = F.one_hot(self.predictions, self.classes).sum(0)
        label_votes = votes.gather(1, self.labels[:, None])
        return label_votes.squeeze(1) > votes.scatter(1, self.labels[:, None], -1).amax(1)

    def rank(self) -> Tensor:
        """(B,) long: the median rank of the label, the higher one of two."""
        return self.ranks.sort(0).values[len(self.ranks) // 2]

    def answer(self) -> Tensor:
        """(B,) long: the most frequent class."""
        return self.predictions.mode(0).values

    def summary(self) -> dict[str, float]:
        """Accuracies ``mean``, ``worst`` and ``majority``, each over the B images; NaN without an image."""
        values = {"mean": self.mean(), "worst": self.worst(), "majority": self.majority()}
        return {name: float(value.double().mean()) for name, value in values.items()}


def judge_on_draws(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    draws: int = 20,
    seed: int = 0,
    chunk: int | None = None,
    names: Sequence[int] | None = None,
) -> DrawnAnswers:
    """Classify each image ``draws`` times.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it was, if it is a module.
        labels: (B,) long.
        seed: of the draws, which are none of an attack's; the same draws for the same shape of ``images``.
        chunk: images of a forward pass at most; None: all draws of all images in one.
        names: of the B images: a model with `Draws` then gives an image the same draws in any batch.

    Raises:
        ValueError: images out of range, or NaN logits.
    """
    check_images(images)
    count = at_least("draws", draws, 1, node="evaluation")
    with frozen(model), torch.no_grad():
        torch.manual_seed(derive_seed(seed, "fresh draws"))
        if names is not None and isinstance(model, Draws):
            logits = model.answers(images, count, names)
        else:
            logits = evaluate_draws(model, images, count, chunk=chunk, apart=draws_by_pass(model, images))
    if not bool(logits.isfinite().all()):
        raise ValueError("the model gave NaN or infinite logits: it cannot be judged")
    truth = labels.to(logits.device)
    return DrawnAnswers(
        predictions=logits.argmax(-1).cpu(),
        ranks=torch.stack([label_ranks(answer, truth) for answer in logits]),
        labels=labels.cpu(),
        classes=logits.shape[-1],
    )
