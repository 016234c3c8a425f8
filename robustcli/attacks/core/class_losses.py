"""Losses of a classifier that attacks maximise, per sample, of logits (B,Y) and labels (B,).

Shapes: B samples asked for, N samples, Y classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.oracle import ImageObjective, ObjectiveValue
from robustcli.utils.errors import UserError

LogitLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B,Y), labels (B,) -> (B,)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Highest wrong logit minus that of the label: above 0 where the sample is fooled (Carlini and Wagner 2017)."""
    label_logit = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - label_logit


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

    It takes four classes. Of three the ratio would be -1 wherever the target is the lowest, without a gradient, so with
    fewer than four the logit of the target minus that of the label is given.
    """
    label_logit, target_logit = (logits.gather(1, each[:, None]).squeeze(1) for each in (labels, targets))
    if logits.shape[1] < 4:
        return target_logit - label_logit
    ordered = logits.sort(dim=1, descending=True).values
    reference = 0.5 * (ordered[:, 2] + ordered[:, 3])
    return (target_logit - label_logit) / (ordered[:, 0] - reference + 1e-12)


LOGIT_LOSSES: Mapping[str, LogitLoss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def class_objective(
    loss: str, model: Callable[[Tensor], Tensor], labels: Tensor, *, report_fooled: bool = True
) -> ImageObjective:
    """The loss called ``loss`` of a classifier's logits; see `logit_objective`.

    Raises:
        UserError: a loss that classifiers do not have.
    """
    if loss not in LOGIT_LOSSES:
        raise UserError(f"attack.loss is {loss!r}: on a classifier choose one of {', '.join(LOGIT_LOSSES)}.")
    return logit_objective(LOGIT_LOSSES[loss], model, labels, report_fooled=report_fooled)


def logit_objective(
    loss: LogitLoss, model: Callable[[Tensor], Tensor], labels: Tensor, *, report_fooled: bool = True
) -> ImageObjective:
    """A loss of logits and labels as an objective of images (B,C,H,W) and rows (B,).

    Args:
        labels: (N,) long, of all rows.
        report_fooled: give also (B,) bool, True for each image that is misclassified: the stop signal of a search.
    """

    def objective(images: Tensor, rows: Tensor) -> ObjectiveValue:
        logits, labels_of_rows = model(images), labels[rows]
        value = loss(logits, labels_of_rows)
        return (value, logits.detach().argmax(1) != labels_of_rows) if report_fooled else value

    return objective
