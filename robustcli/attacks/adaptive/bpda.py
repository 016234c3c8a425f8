"""Backward pass differentiable approximation (Athalye et al. 2018, "Obfuscated gradients give a false sense of
security"): a step of a defence without a useful gradient lends that of another.

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks.adaptive.averaging import EncoderWrapper
from robustcli.attacks.core.pairs import DualEncoderLike

Step = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> images (B,C,H,W), in [0,1] both


class BPDA(nn.Module):
    """``forward_step`` forward, bit for bit; backward the gradient of ``backward``.

    Args:
        forward_step: the step as it is, such as a quantisation or a JPEG; it runs without gradients.
        backward: a differentiable stand-in of the same output shape, recomputed at the step's own input; None: the
            identity (straight through), for steps that give back about what they got.

    Raises:
        ValueError: in the backward pass, a stand-in whose shape is not that of the step.
    """

    def __init__(self, forward_step: Step, backward: Step | None = None) -> None:
        super().__init__()
        self.forward_step, self.backward = forward_step, backward

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> what ``forward_step`` makes of it."""
        found: Tensor = _Approximated.apply(images, self.forward_step, self.backward)
        return found


class _Approximated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, forward_step: Step, backward: Step | None) -> Tensor:
        ctx.save_for_backward(images)
        ctx.approximation = backward
        found = forward_step(images.detach())
        return found.clone() if found.data_ptr() == images.data_ptr() else found  # a view is no output of a Function

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (images,) = ctx.saved_tensors
        images = images.detach().requires_grad_(True)
        with torch.enable_grad():
            found = images if ctx.approximation is None else ctx.approximation(images)
        if found.shape != gradient.shape:
            raise ValueError(
                f"BPDA: the step gave {tuple(gradient.shape)}, its stand-in {tuple(found.shape)}: give a backward step "
                "of the same shape"
            )
        return torch.autograd.grad(found, images, gradient)[0], None, None


class Preprocessed(nn.Module):
    """A classifier behind the steps of a defence, in their order.

    ``Preprocessed(model, quantise)`` is the defence, ``Preprocessed(model, BPDA(quantise))`` what an attack on it
    needs; their logits are equal.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y).
        steps: images -> images, `BPDA` or any other.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], *steps: Step) -> None:
        super().__init__()
        self.model, self.steps = model, _kept(steps)

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        return self.model(_through(self.steps, images))


class PreprocessedEncoder(EncoderWrapper):
    """`Preprocessed` for a dual encoder, whose images go through the steps."""

    def __init__(self, model: DualEncoderLike, *steps: Step) -> None:
        super().__init__(model)
        self.steps = _kept(steps)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) of unit norm."""
        return self.model.encode_image(_through(self.steps, images))


class _Call(nn.Module):
    """A function as a module, so that modules and functions can stand in one list."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _kept(steps: Sequence[Step]) -> nn.ModuleList:
    return nn.ModuleList(step if isinstance(step, nn.Module) else _Call(step) for step in steps)


def _through(steps: nn.ModuleList, images: Tensor) -> Tensor:
    for step in steps:
        images = step(images)
    return images
