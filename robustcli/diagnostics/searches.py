"""Searches that see through masked gradients: along the smoothed loss, and through the network behind a defence.

Shapes: B images, R noise draws, C channels, H height, W width, Y classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.oracle import ImageOracle
from robustcli.attacks.core.randomness import sample_noise
from robustcli.attacks.core.restarts import better, lowest
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.numbers import at_least

_MOMENTUM = 0.75  # of the directions of earlier steps, which averages over more noise


@dataclass(frozen=True, kw_only=True)
class SmoothedPGD(ImageAttack):
    """PGD along the gradient of the loss averaged over noise around the iterate; the iterate of highest loss is kept.

    Ripples, jumps and pulses narrower than the noise average out, and what is left is the slope that a step of that
    size meets (Tramer et al. 2020, "On adaptive attacks to adversarial example defenses", on k-winners-take-all).

    Args:
        steps: each costs ``draws`` gradients and a forward pass.
        draws: noises a step.
        noise: radius of the noise as a share of eps.
        norm, eps, loss, early_stop, seed: see `ImageAttack`; no sample leaves early.
    """

    loss: str = "margin"
    steps: int = 20
    draws: int = 8
    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("steps", self.steps, 1)
        at_least("draws", self.draws, 1)

    def ascend(
        self,
        oracle: ImageOracle,
        images: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        start: Tensor | None,
    ) -> Tensor:
        ball, rows = threat.ball, torch.arange(len(images), device=images.device)
        x_adv = images if start is None else ball.project(start, images)
        best, best_loss, direction = images.clone(), lowest(images), torch.zeros_like(images)
        for step in range(self.steps):
            gradient = self._smoothed_gradient(oracle, x_adv, rows, sample_ids, threat, step)
            largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            direction = _MOMENTUM * direction + gradient / largest.view(-1, 1, 1, 1)
            # From eps, which reaches the boundary of the ball at once, down to a tenth of it.
            step_size = ball.eps * max(1 - step / self.steps, 0.1)
            x_adv = ball.project(x_adv + ball.step(direction, step_size), images)
            best, best_loss = better(x_adv, oracle.loss(x_adv, rows).double(), best, best_loss)
        return best

    def _smoothed_gradient(
        self,
        oracle: ImageOracle,
        x_adv: Tensor,
        rows: Tensor,
        sample_ids: Sequence[int],
        threat: ThreatModel,
        step: int,
    ) -> Tensor:
        """(B,C,H,W): mean of R gradients, of one pass."""
        shape, radius = x_adv.shape[1:], self.noise * threat.ball.eps
        drawn = [
            sample_noise(shape, sample_ids, self.seed, "smoothed", step, n, normal=True) for n in range(self.draws)
        ]
        noisy = torch.cat([(x_adv + threat.ball.step(noise.to(x_adv), radius)).clamp(0, 1) for noise in drawn])
        counter = QueryCounter.of(len(noisy))
        wide = torch.arange(len(noisy), device=rows.device)
        _, gradients = oracle.repeated(rows, counter).gradient(noisy, wide)
        for part in wide.view(self.draws, -1):
            oracle.counter.add(counter.part(part), rows)
        return gradients.view(self.draws, *x_adv.shape).mean(0)


class StraightThrough(nn.Module):
    """The network inside a defence, evaluated where the defence evaluates it, with the identity in place of the
    gradient of all that stands before it (BPDA) and nothing of what follows; the mean over its evaluations.

    Args:
        model: images (B,C,H,W) -> logits (B,Y).
        inner: the module of it that `inner_network` gives.
    """

    def __init__(self, model: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.model, self.inner = model, inner

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        inputs = inner_inputs(self.model, self.inner, images)
        return torch.stack([self.inner(_straight_through(images, each)) for each in inputs]).mean(0)


def inner_network(model: nn.Module, images: Tensor) -> nn.Module | None:
    """The innermost module of ``model`` that gives (B,Y) answers for images (B,C,H,W), as the model does; None where
    that is the model itself.
    """
    fits: dict[nn.Module, bool] = {}

    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        fit = bool(arguments) and isinstance(output, Tensor) and output.shape == expected.shape
        fits[module] = fits.get(module, True) and fit and _like(arguments[0], images)

    with torch.no_grad():
        expected = model(images)
        handles = [module.register_forward_hook(record) for module in model.modules()]
        try:
            model(images)
        finally:
            for handle in handles:
                handle.remove()
    fitting = [module for module in model.modules() if module is not model and fits.get(module, False)]
    return fitting[-1] if fitting else None  # modules are listed from the outermost to the innermost


def inner_inputs(model: nn.Module, inner: nn.Module, images: Tensor) -> list[Tensor]:
    """Inputs (B,C,H,W) of ``inner`` in a forward pass of ``model``, one a call."""
    inputs: list[Tensor] = []
    handle = inner.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    try:
        with torch.no_grad():
            model(images.detach())
    finally:
        handle.remove()
    return inputs


def _straight_through(images: Tensor, inner_input: Tensor) -> Tensor:
    """The value of ``inner_input`` with the gradient of ``images``, resized where the sizes differ."""
    if images.shape[-2:] != inner_input.shape[-2:]:
        images = F.interpolate(images, inner_input.shape[-2:], mode="bilinear", align_corners=False)
    return inner_input + images - images.detach()


def _like(value: Any, images: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[:2] == images.shape[:2]
