"""Norm balls around images, cut by the box [0,1]: projection, uniform start, steepest step, distance and audit.

Shapes: B batch, C channels, H height, W width; pixels in [0,1].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustcli.attacks.core.randomness import sample_noise
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, parse_number

_SLACK = 1e-6  # relative; by what a float64 distance of float32 pixels may exceed eps


def parse_eps(value: Number, norm: str = "linf", *, node: str = "threat", key: str = "eps") -> float:
    """The radius of a ball in units of [0,1] pixels; ``"4/255"`` and ``0.0157`` are both understood, 0 is allowed.

    Args:
        node, key: its name in the error.

    Raises:
        UserError: not a number, negative, or above 1 for ``norm="linf"``.
    """
    eps = parse_number(key, value, node=node)
    if norm == "linf" and eps > 1:
        hint = f": did you mean {value}/255?" if eps <= 255 else ": give at most 1, such as 4/255."
        raise UserError(f"{node}.{key} is {value}, but pixels are in [0, 1]{hint}")
    return eps


@dataclass(frozen=True)
class Ball(ABC):
    """A ball of one norm around each image, cut by the box [0,1].

    Args:
        eps: radius in units of [0,1] pixels, such as ``"4/255"``; None: no bound but the box.

    Raises:
        UserError: an impossible radius.
    """

    norm: ClassVar[str]
    eps: float

    def __post_init__(self) -> None:
        eps: Number | None = self.eps
        object.__setattr__(self, "eps", math.inf if eps is None else parse_eps(eps, self.norm))

    @abstractmethod
    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """Projection onto ball and box, up to float32 rounding; fast, for the inner loop."""

    @abstractmethod
    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        """A uniform draw from the ball, clamped to the box; that of a sample depends on its id and ``parts`` alone."""

    @abstractmethod
    def step(self, gradient: Tensor, alpha: float) -> Tensor:
        """Steepest ascent step: the move of length ``alpha`` in this norm that raises a loss of this gradient most."""

    @abstractmethod
    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        """(B,) float64: norm of the perturbation of each image."""

    def settle(self, images: Tensor, clean: Tensor) -> Tensor:
        """Exact projection: computed in float64 and rounded towards ``clean``, so that the norm holds exactly."""
        projected = self.project(images.double(), clean.double())
        delta, origin = (projected - clean.double()).abs(), clean.double()
        rounded = projected.to(clean.dtype)
        beyond = (rounded.double() - origin).abs() > delta
        return torch.where(beyond, torch.nextafter(rounded, clean), rounded)

    def audit(self, images: Tensor, clean: Tensor) -> Tensor:
        """(B,) float64: norms of the perturbations of an attack's output, which has to be in ball and box.

        Raises:
            RuntimeError: a NaN, a pixel out of [0,1] or a norm beyond ``eps (1 + 1e-6)``: a fault of the attack.
        """
        if images.shape != clean.shape or images.dtype != clean.dtype:
            raise RuntimeError(
                f"the attack turned {clean.dtype} {tuple(clean.shape)} into {images.dtype} {tuple(images.shape)}"
            )
        if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):  # a NaN fails both
            raise RuntimeError("the attack left [0, 1] or made a NaN")
        norm = self.distance(images, clean)
        if bool((norm > self.eps * (1 + _SLACK)).any()):
            raise RuntimeError(f"the attack moved an image by {float(norm.max()):.8g}, but eps is {self.eps:.8g}")
        return norm


class Linf(Ball):
    """L-inf ball: each pixel changes by ``eps`` at most, in units of [0,1] pixels; 0 <= eps <= 1."""

    norm = "linf"

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        return torch.clamp(images, (clean - self.eps).clamp_(min=0.0), (clean + self.eps).clamp_(max=1.0))

    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        noise = sample_noise(clean.shape[1:], sample_ids, *parts).to(clean)
        return self.project(clean + (2 * noise - 1) * self.eps, clean)

    def step(self, gradient: Tensor, alpha: float) -> Tensor:
        return alpha * gradient.sign()

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        norm: Tensor = (images.double() - clean.double()).abs().flatten(1).amax(1)
        return norm


class L2(Ball):
    """L2 ball: the perturbation of an image has a Euclidean length of ``eps`` at most; eps >= 0.

    The projection is onto the ball and then onto the box, which cannot leave the ball again; their intersection may
    hold a nearer point.
    """

    norm = "l2"

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        delta = images - clean
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_(min=torch.finfo(delta.dtype).tiny)
        shrink: Tensor = (self.eps / length).clamp_(max=1.0)
        return (clean + delta * shrink.view(-1, 1, 1, 1)).clamp_(0.0, 1.0)

    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        # Uniform in the ball: a Gaussian direction, and a radius of eps u^(1/d) in d dimensions.
        direction = sample_noise(clean.shape[1:], sample_ids, *parts, normal=True).to(clean)
        radius = sample_noise((1,), sample_ids, *parts, "radius").to(clean) ** (1 / clean[0].numel())
        return self.project(clean + self.step(direction, self.eps) * radius.view(-1, 1, 1, 1), clean)

    def step(self, gradient: Tensor, alpha: float) -> Tensor:
        largest = gradient.flatten(1).abs().amax(1)
        scale = torch.where(largest > 0, largest, 1.0).view(-1, 1, 1, 1)
        direction = gradient / scale  # squares of tiny gradients would underflow
        # 1 or more but for a gradient of zeros, whose step is 0: alpha over a tiny length would be infinite.
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_(min=1.0)
        factor: Tensor = alpha / length
        return direction * factor.view(-1, 1, 1, 1)

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm((images.double() - clean.double()).flatten(1), dim=1)
        return norm


def ball(norm: str, eps: Number | None) -> Ball:
    """The ball of ``norm`` (``linf`` or ``l2``).

    Raises:
        UserError: another norm, or an impossible eps.
    """
    match norm:
        case "linf":
            return Linf(eps)  # type: ignore[arg-type]
        case "l2":
            return L2(eps)  # type: ignore[arg-type]
    raise UserError(f"threat.norm is {norm!r}: choose linf or l2.")
