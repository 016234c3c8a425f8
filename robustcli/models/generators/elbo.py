"""Objective of an NVAE: the evidence lower bound, its KL balanced over latents, and regularisation of the weights.

Shapes: B batch, C channels, H height, W width; L latents, coarse to fine; O channels out, K entries of a kernel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.generators.layers import NormedConv2d
from robustcli.models.generators.nvae import NVAE
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

_FLOOR = 0.01  # nats, so that a collapsed latent keeps a little of the balance


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """The negative evidence lower bound of a batch, its KL weighted, in bits a dimension, plus regularisation.

    Args:
        beta: weight of the KL at the end; 1 is the evidence lower bound, less gives sharper reconstructions and a
            prior that fits them worse (Higgins et al. 2017).
        warmup: batches in which the weight rises from 0 to ``beta``.
        balance: while it rises, a latent's KL is weighed by its size and its KL, so that none is switched off for good
            (Vahdat and Kautz, arXiv 2007.03898, appendix A).
        spectral: weight of the sum of the largest singular values of the convolutions (section 3.2).
        batch_norm: weight of the sum of the largest gains of the batch norms.
        iterations: of the power iteration, from a start that the step's seed names: the state of a training stays its
            weights. Too few give a value that is too low.
    """

    beta: float = 1.0
    warmup: int = 0
    balance: bool = True
    spectral: float = 0.0
    batch_norm: float = 0.0
    iterations: int = 4

    def __post_init__(self) -> None:
        for key in ("beta", "warmup", "spectral", "batch_norm"):
            if not getattr(self, key) >= 0:
                raise UserError(f"objective.{key} is {getattr(self, key)}: expected at least 0.")
        if self.iterations < 1:
            raise UserError(f"objective.iterations is {self.iterations}: expected at least 1.")

    def loss(self, model: NVAE, images: Tensor, *, number: int, seed: int) -> Tensor:
        """The loss, a scalar in bits a dimension (before regularisation), with gradients to the weights of ``model``.

        Args:
            images: (B,C,H,W) in [0,1].
            number: of the batch in the run, for the warm-up.
            seed: names the draws.
        """
        nll, kl = self.terms(model, images, seed=seed)
        weight = self.beta * min(1.0, number / self.warmup) if self.warmup else self.beta
        loss = (nll.mean() + weight * self._weighed(kl, model, balanced=weight < self.beta)) / bits(model)
        if self.spectral:
            loss = loss + self.spectral * spectral_norms(model, iterations=self.iterations, seed=seed)
        if self.batch_norm:
            loss = loss + self.batch_norm * largest_gains(model)
        return loss

    def terms(self, model: NVAE, images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood (B,) and KL (B,L) in nats."""
        return bound(model, images, seed=seed)

    def _weighed(self, kl: Tensor, model: NVAE, *, balanced: bool) -> Tensor:
        """The KL in nats, summed over latents; weights of the balance have the mean 1."""
        each = kl.mean(0)
        if not (self.balance and balanced):
            return each.sum()
        sizes = each.new_tensor([math.prod(shape) for shape in model.latent_shapes])
        # Detached: the weights balance the gradients of the KL terms and are no part of the objective.
        weights = sizes * (each.detach().abs() + _FLOOR)
        return (each * weights / weights.mean()).sum()


def bound(model: NVAE, images: Tensor, *, seed: int, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (B,) and KL (B,L) in nats, from one draw of the posterior, which ``seed`` names.

    Args:
        images: (B,C,H,W) in [0,1].
        seen: images of which the posterior is, such as noisy ones; None: those very images.
    """
    source = generator(seed, "posterior")
    noise = [torch.randn((len(images), *shape), generator=source) for shape in model.latent_shapes]
    inference = model.infer(images if seen is None else seen, [each.to(images) for each in noise])
    log_prob = model.mixture(inference.parameters).log_prob(2.0 * images - 1.0)
    return -log_prob.sum((1, 2)), inference.kl


def bits(model: NVAE) -> float:
    """Nats of an image at one bit a dimension, C H W ln 2: the divisor from nats to bits a dimension."""
    return math.prod(model.resolution) * math.log(2.0)


def spectral_norms(model: nn.Module, *, iterations: int, seed: int) -> Tensor:
    """The sum of the largest singular values of all convolutions, as matrices (O,K); those of a shape go together."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for weight in _kernels(model):
        by_shape.setdefault(weight.shape, []).append(weight)
    total = next(model.parameters()).new_zeros(())
    for shape, found in by_shape.items():
        weights = torch.stack(found)
        start = torch.randn(len(found), shape[1], 1, generator=generator(seed, "spectral", *shape)).to(weights)
        total = total + _largest_singular(weights, start, iterations).sum()
    return total


def largest_gains(model: nn.Module) -> Tensor:
    """Sum over batch norms of the largest gain, in absolute value."""
    return torch.stack([norm.weight.abs().max() for norm in norms(model)]).sum()


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """The batch norms of a network."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def _kernels(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, NormedConv2d | nn.Conv2d):
            yield module.weight.flatten(1)


def _largest_singular(weights: Tensor, right: Tensor, iterations: int) -> Tensor:
    # Without a graph: at the singular vectors the gradient of u^T W v by W is that of the singular value.
    with torch.no_grad():
        for _ in range(iterations):
            left = F.normalize(weights @ right, dim=1)
            right = F.normalize(weights.transpose(1, 2) @ left, dim=1)
    return (left.transpose(1, 2) @ weights @ right).flatten()
