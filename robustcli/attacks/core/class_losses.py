"""What an attack on a classifier raises, all per sample, of the logits (B,Y) and the labels (B,).

Shapes: B samples asked for, N samples, Y classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.oracle import Evaluated, ImageObjective
from robustcli.utils.errors import UserError

LogitLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B,Y), labels (B,) -> (B,)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Highest wrong logit minus that of the label: above 0 where the sample is fooled (Carlini and Wagner 2017)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, equation 6): the margin over the spread of the highest three.

    It does not change with the scale of the logits, which makes cross-entropy vanish. Of two classes the ratio would be
    -1 or 1 wherever one stands, so the margin itself is given.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2]
    return margin(logits, labels) / (spread + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """DLR towards the class ``targets`` (B,) (Croce and Hein 2020, equation 7).

    Of three classes the lowest stands in for the fourth; of two the margin itself is given, see `dlr`.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    ordered = logits.sort(dim=1, descending=True).values
    last = logits.shape[1] - 1
    low = 0.5 * (ordered[:, 2] + ordered[:, min(3, last)])
    own, towards = (logits.gather(1, each[:, None]).squeeze(1) for each in (labels, targets))
    return (towards - own) / (ordered[:, 0] - low + 1e-12)


LOGIT_LOSSES: Mapping[str, LogitLoss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def class_objective(
    loss: str, model: Callable[[Tensor], Tensor], labels: Tensor, *, tell: bool = True
) -> ImageObjective:
    """The loss called ``loss`` of the classifier's logits; with ``tell`` also whether each sample is fooled already."""
    if loss not in LOGIT_LOSSES:
        raise UserError(f"attack.loss is {loss!r}: on a classifier choose one of {', '.join(LOGIT_LOSSES)}.")
    return logit_objective(LOGIT_LOSSES[loss], model, labels, tell=tell)


def logit_objective(
    loss: LogitLoss, model: Callable[[Tensor], Tensor], labels: Tensor, *, tell: bool = True
) -> ImageObjective:
    """Any loss of logits and labels as an objective of images and rows."""

    def objective(images: Tensor, rows: Tensor) -> Evaluated:
        logits, own = model(images), labels[rows]
        value = loss(logits, own)
        return (value, logits.detach().argmax(1) != own) if tell else value

    return objective
