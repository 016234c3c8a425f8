"""Alphas by what each latent tells of the class: a lower bound of its mutual information, from linear probes.

For any classifier q of the latent, I(class; latent) >= H(class) - E[-ln q(class | latent)] (Barber and Agakov 2003;
Poole et al. 2019, "On variational bounds of mutual information", equation 2). Here q is a logistic regression, tested
on images that it was not trained on, so that it can only tell too little, but for the chance of these images.

A latent that is drawn anew is drawn given the coarser ones, so that what they tell is not lost. What is lost is
I(class; latent | coarser) = I(class; latents up to it) - I(class; latents before it), the chain rule; as a difference
of two bounds it is an estimate and no bound.

Shapes: N images, K classes, P components, L latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # of the squared weights; strong ones for latents that tell nothing
_TESTED = 5  # one image of so many of a training part chooses the penalty
_STEPS = 100  # of L-BFGS, which needs a quarter of them


@dataclass(frozen=True, kw_only=True)
class Information:
    """What each latent tells of the class, coarse to fine; L long, in nats.

    Attributes:
        mean: of the class, by itself or beyond what the coarser ones tell; below 0 where a probe does worse than
            without the latent.
        low, high: 95 % interval over images, by the normal distribution; it does not hold the chance of the training.
        entropy: of the class among the images, the most that can be told.
    """

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    entropy: float

    @property
    def alphas(self) -> tuple[float, ...]:
        """``1 - I_l / max I``: 0 for the latent that tells most, 1 for one that tells nothing.

        Raises:
            UserError: no latent tells anything.
        """
        most = max(self.mean)
        if most <= 0:
            raise UserError(
                "no latent tells anything of the class by a linear probe, so that there is nothing to keep: give more "
                "images (alphas.images), or search for the alphas (alphas=search)."
            )
        return tuple(1.0 - min(max(value, 0.0) / most, 1.0) for value in self.mean)

    def table(self) -> pd.DataFrame:
        """One row a latent: ``latent`` from 1, ``nats``, ``low``, ``high``, ``entropy`` and ``alpha``."""
        columns = {"nats": self.mean, "low": self.low, "high": self.high, "alpha": self.alphas}
        return pd.DataFrame({"latent": range(1, len(self.mean) + 1), **columns, "entropy": self.entropy})

    @classmethod
    def of(cls, table: pd.DataFrame) -> Self:
        """The information of a `table`."""
        mean, low, high = (tuple(map(float, table[name])) for name in ("nats", "low", "high"))
        return cls(mean=mean, low=low, high=high, entropy=float(table["entropy"].iloc[0]))


def latent_information(
    latents: Sequence[Tensor],
    labels: Tensor,
    *,
    folds: int,
    components: int,
    seed: int,
    given: str = "coarser",
    on_latent: Callable[[float], None] = lambda mean: None,
) -> Information:
    """The information of each latent, by cross-validated probes.

    Args:
        latents: L tensors (N, ...), coarse to fine.
        labels: (N,) long.
        folds, components, given: see `InformativeAlphas`.
        seed: of the folds.
        on_latent: called with the information of each latent.

    Raises:
        UserError: images of one class alone, or fewer than four images a fold.
    """
    counts = torch.bincount(labels)
    present = counts > 0
    if int(present.sum()) < 2 or len(labels) < 4 * folds:  # a probe parts its images once more, for its penalty
        known_of = f"{len(labels)} images of {int(present.sum())} classes"
        raise UserError(f"{known_of} tell nothing of what latents know: raise alphas.images.")
    # ln of the share of its class: the mean of its negative is the entropy.
    share = (counts[labels].double() / len(labels)).log()
    own = (present.cumsum(0) - 1)[labels]  # classes that occur, counted from 0
    part = torch.randperm(len(labels), generator=generator(seed, "folds of probes")) % folds
    means, halves, before, seen = [], [], share, list[Tensor]()
    for latent in latents:
        shown = _components(latent.flatten(1).double().cpu(), components)
        seen = [*seen, shown] if given == "coarser" else [shown]
        scores = _tested(torch.cat(seen, dim=1), own, part)
        told = scores - before
        before = scores if given == "coarser" else share
        means.append(float(told.mean()))
        halves.append(1.96 * float(told.std()) / len(told) ** 0.5)
        on_latent(means[-1])
    low, high = (tuple(m + sign * h for m, h in zip(means, halves, strict=True)) for sign in (-1, 1))
    return Information(mean=tuple(means), low=low, high=high, entropy=-float(share.mean()))


def _components(values: Tensor, count: int) -> Tensor:
    """(N,P): the first principal components, in units of the standard deviation of the first; they know no class."""
    shown = values - values.mean(0)
    if shown.shape[1] <= len(shown):
        powers, axes = torch.linalg.eigh(shown.T @ shown)
        found = shown @ axes[:, -count:]
    else:  # of a latent of more numbers than images the Gram matrix is the smaller one, with the same eigenvalues
        powers, sides = torch.linalg.eigh(shown @ shown.T)
        found = sides[:, -count:] * powers[-count:].clamp(min=0).sqrt()
    scaled: Tensor = found / (float(powers[-1]) / len(shown) + 1e-12) ** 0.5  # eigenvalues ascend
    return scaled


def _tested(values: Tensor, labels: Tensor, part: Tensor) -> Tensor:
    """(N,) ln q(class | values) of each image, by probes of the other parts."""
    told, classes = torch.empty(len(labels), dtype=torch.float64), int(labels.max()) + 1
    for fold in range(int(part.max()) + 1):
        tested = part == fold
        shown, own = values[~tested], labels[~tested]
        # The penalty is chosen within the training part: on the tested one it would flatter.
        inner = torch.arange(len(own)) % _TESTED == 0
        losses = []
        for penalty in _PENALTIES:
            probe = _probe(shown[~inner], own[~inner], classes, penalty)
            losses.append(-float(_scores(probe, shown[inner], own[inner]).mean()))
        probe = _probe(shown, own, classes, _PENALTIES[losses.index(min(losses))])
        told[tested] = _scores(probe, values[tested], labels[tested])
    return told


def _probe(values: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """(P+1,K): weights and, last, biases of the logistic regression with so much of a penalty on the weights."""
    from scipy.optimize import minimize

    shown, truth = values.numpy(), F.one_hot(labels, classes).double().numpy()
    shape = (shown.shape[1] + 1, classes)

    def loss(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(shape)
        logits = shown @ weights[:-1] + weights[-1]
        logits -= logits.max(1, keepdims=True)
        odds = np.exp(logits)
        total = odds.sum(1, keepdims=True)
        value = -((logits - np.log(total)) * truth).sum() / len(shown) + 0.5 * penalty * (weights[:-1] ** 2).sum()
        slope = (odds / total - truth) / len(shown)
        gradient = np.vstack([shown.T @ slope + penalty * weights[:-1], slope.sum(0)])
        return float(value), gradient.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    return torch.from_numpy(found.x.reshape(shape))


def _scores(probe: Tensor, values: Tensor, labels: Tensor) -> Tensor:
    """(N,) ln q of the labels."""
    return -F.cross_entropy(values @ probe[:-1] + probe[-1], labels, reduction="none")
