"""Backward pass differentiable approximation (Athalye et al. 2018, "Obfuscated gradients give a false sense of
security"): a step of a defence without a useful gradient takes that of an approximation.

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
    """Step with an approximate gradient: ``forward_step`` forward, bit for bit, and the gradient of ``backward``.

    A backward pass costs a forward and a backward pass of ``backward``; the identity costs nothing.

    Args:
        forward_step: the step as it is, such as a quantisation or a JPEG; it runs without gradients.
        backward: differentiable approximation of the same output shape, evaluated at the input of the step; None: the
            identity (straight-through), for steps whose output is close to their input.

    Raises:
        ValueError: in the backward pass, an approximation whose output shape is not that of the step.
    """

    def __init__(self, forward_step: Step, backward: Step | None = None) -> None:
        super().__init__()
        self.forward_step, self.backward = forward_step, backward

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> output of ``forward_step``."""
        output: Tensor = _Approximated.apply(images, self.forward_step, self.backward)
        return output


class _Approximated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, forward_step: Step, backward: Step | None) -> Tensor:
        ctx.save_for_backward(images)
        ctx.approximation = backward
        output = forward_step(images.detach())
        # autograd treats an input that a Function gives back as it is in another way than a new tensor.
        return output.clone() if output.data_ptr() == images.data_ptr() else output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (images,) = ctx.saved_tensors
        # The approximation gets a graph of its own: that of the step ended at the detach in the forward pass.
        images = images.detach().requires_grad_(True)
        with torch.enable_grad():
            output = images if ctx.approximation is None else ctx.approximation(images)
        if output.shape != grad_output.shape:
            raise ValueError(
                f"BPDA: the step gave {tuple(grad_output.shape)}, its stand-in {tuple(output.shape)}: give a "
                "backward step of the same shape"
            )
        return torch.autograd.grad(output, images, grad_output)[0], None, None


class Preprocessed(nn.Module):
    """Classifier behind the preprocessing steps of a defence, in their order.

    ``Preprocessed(model, quantise)`` is the defence, ``Preprocessed(model, BPDA(quantise))`` its differentiable form
    for an attack; their logits are equal.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y).
        steps: images -> images, `BPDA` or any other.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], *steps: Step) -> None:
        super().__init__()
        self.model, self.steps = model, _as_modules(steps)

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        return self.model(_apply_all(self.steps, images))


class PreprocessedEncoder(EncoderWrapper):
    """Dual encoder behind preprocessing steps of its images; see `Preprocessed`."""

    def __init__(self, model: DualEncoderLike, *steps: Step) -> None:
        super().__init__(model)
        self.steps = _as_modules(steps)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) of unit norm."""
        return self.model.encode_image(_apply_all(self.steps, images))


class _Call(nn.Module):
    """Module of a function, so that modules and functions can be in one list."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _as_modules(steps: Sequence[Step]) -> nn.ModuleList:
    return nn.ModuleList(step if isinstance(step, nn.Module) else _Call(step) for step in steps)


def _apply_all(steps: nn.ModuleList, images: Tensor) -> Tensor:
    for step in steps:
        images = step(images)
    return images
