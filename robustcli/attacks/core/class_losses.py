"""Losses of a classifier that attacks maximise, per sample, of logits (B,Y) and labels (B,).

Shapes: B samples asked for, N samples, Y classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks.core.oracle import ImageObjective, ObjectiveValue
from robustcli.utils.errors import UserError

_SPANS, _SPAN = (1.0, 100.0), 20.0  # of logits as they are, and of those that are scaled
_SATURATION = 8.0  # log-odds in favour of the label from which on float32 loses cross-entropy and its gradient
LogitLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B,Y), labels (B,) -> (B,)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label, which never saturates: see `unsaturated`."""
    label_logit = logits.gather(1, labels[:, None]).squeeze(1)
    log_odds = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1) - label_logit
    return unsaturated(F.cross_entropy(logits, labels, reduction="none"), log_odds)


def unsaturated(cross_entropy: Tensor, log_odds: Tensor) -> Tensor:
    """A cross-entropy (...), ``softplus(log_odds)``, on whose flat part its tangent at log-odds of -8 goes on.

    Float32 knows no cross-entropy below 1e-7 and no gradient below 1e-45, so that a network of large logits would stop
    every search. The tangent keeps the order of the losses and the direction of the gradient.

    Args:
        log_odds: (...) log of the probability of all wrong answers over that of the right one.
    """
    edge = log_odds.new_tensor(-_SATURATION)
    tangent = F.softplus(edge) + edge.sigmoid() * (log_odds - edge)
    return torch.where(log_odds < edge, tangent, cross_entropy)


def log_odds_of(losses: Tensor) -> Tensor:
    """Log-odds of the error of cross-entropies that are `unsaturated`, which is undone here."""
    edge = losses.new_tensor(-_SATURATION)
    least = F.softplus(edge)
    usual = losses.clamp(min=least)
    return torch.where(
        losses < least, edge + (losses - least) / edge.sigmoid(), usual + torch.log(-torch.expm1(-usual))
    )


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


class LogitScale:
    """Factor of the logits of each row that cross-entropy reads, set by the first pass of the row and kept.

    It is 1 for logits that span 1 to 100, else such that they span 20. Cross-entropy of a smaller span pulls towards
    all wrong classes alike, of a larger one towards the nearest alone, and both are weak: the verdict on a network must
    not depend on a factor in front of its logits.

    Args:
        labels: (N,) of all rows.
    """

    def __init__(self, labels: Tensor) -> None:
        self._factors = torch.zeros(len(labels), device=labels.device)

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Logits (B,Y) of rows (B,), scaled."""
        factors = self._factors[rows]
        if bool((factors == 0).any()):
            span = (logits.detach().amax(1) - logits.detach().amin(1)).to(factors)
            outside = (span > 0) & ((span < _SPANS[0]) | (span > _SPANS[1]))
            factors = torch.where(factors > 0, factors, torch.where(outside, _SPAN / span, 1.0))
            self._factors[rows] = factors
        return logits * factors.to(logits)[:, None]


def class_objective(
    loss: str, model: Callable[[Tensor], Tensor], labels: Tensor, *, report_fooled: bool = True
) -> ImageObjective:
    """The loss called ``loss`` of a classifier's logits as an objective of images (B,C,H,W) and rows (B,).

    Args:
        labels: (N,) long, of all rows.
        report_fooled: give also (B,) bool, True for each image that is misclassified: the stop signal of a search.

    Raises:
        UserError: a loss that classifiers do not have.
    """
    if loss not in LOGIT_LOSSES:
        raise UserError(f"attack.loss is {loss!r}: on a classifier choose one of {', '.join(LOGIT_LOSSES)}.")
    logit_loss, scaled = LOGIT_LOSSES[loss], LogitScale(labels)

    def objective(images: Tensor, rows: Tensor) -> ObjectiveValue:
        logits, labels_of_rows = model(images), labels[rows]
        value = logit_loss(scaled(logits, rows) if loss == "cross_entropy" else logits, labels_of_rows)
        return (value, logits.detach().argmax(1) != labels_of_rows) if report_fooled else value

    return objective
