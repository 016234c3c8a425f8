"""Threat models: what an attacker may change, as objects that project, sample a start and measure.

Shapes: B batch, C channels, H height, W width; pixels in [0,1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

_SLACK = 1e-6  # relative; what a distance in float64 of float32 pixels may exceed eps by
Eps = int | float | str


def parse_eps(value: Eps, norm: str = "linf", *, node: str = "attack.image", key: str = "eps") -> float:
    """The radius of a ball in units of [0,1] pixels; ``"4/255"`` and ``0.0157`` are both understood, 0 is allowed.

    Args:
        node, key: what the error calls it.

    Raises:
        UserError: not a number, negative, or above 1 for ``norm="linf"``.
    """
    eps = parse_number(key, value, node=node)
    if norm == "linf" and eps > 1:
        hint = f": did you mean {value}/255?" if eps <= 255 else ": give at most 1, such as 4/255."
        raise UserError(f"{node}.{key} is {value}, but pixels are in [0, 1]{hint}")
    return eps


def _fraction(text: str) -> float:
    """``4/255`` and ``0.5/255``: either side of the stroke may be a decimal."""
    above, _, below = text.partition("/")
    return float(Fraction(above) / Fraction(below or "1"))


def parse_number(key: str, value: Eps, *, node: str = "attack.image") -> float:
    """``value`` of ``<node>.<key>`` as a finite float, not negative; else a `UserError`."""
    try:
        number = _fraction(value) if isinstance(value, str) else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{node}.{key} is {value!r}: expected a number or a fraction such as 4/255.") from error
    if not math.isfinite(number) or number < 0:
        raise UserError(f"{node}.{key} is {value}: expected a finite number that is not negative, such as 4/255.")
    return number


def at_least(key: str, value: int, least: int, *, node: str = "attack.image") -> int:
    """``value`` of ``<node>.<key>``, a whole number of ``least`` or more; else a `UserError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{node}.{key} is {value!r}: expected a whole number, {least} or more.")
    return value


def sample_noise(shape: Sequence[int], sample_ids: Sequence[int], *parts: int | str, normal: bool = False) -> Tensor:
    """(B, *shape): uniform in [0,1) or standard normal, each row from a generator of its own, named by ``parts`` and
    its id.
    """
    draw = torch.randn if normal else torch.rand
    rows = [draw(tuple(shape), generator=generator(*parts, sample_id)) for sample_id in sample_ids]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


@dataclass(frozen=True)
class _Ball:
    """A ball around each image, within the box [0,1]."""

    norm: ClassVar[str]
    eps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", parse_eps(self.eps, self.norm))

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """The point of ball and box that is next to ``images``, up to float32 rounding; fast, for the inner loop."""
        raise NotImplementedError

    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        """A uniform draw from the ball, clamped to the box; that of a sample depends on its id and ``parts`` alone."""
        raise NotImplementedError

    def step(self, gradient: Tensor, alpha: float) -> Tensor:
        """The move of length ``alpha`` in this norm that raises a loss with this gradient most."""
        raise NotImplementedError

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        """(B,) float64: how far each image is from the clean one."""
        raise NotImplementedError

    def settle(self, images: Tensor, clean: Tensor) -> Tensor:
        """``project``, then rounded towards ``clean``, so that the norm holds exactly in float64."""
        exact = self.project(images.double(), clean.double())
        moved, base = (exact - clean.double()).abs(), clean.double()
        rounded = exact.to(clean.dtype)
        beyond = (rounded.double() - base).abs() > moved
        return torch.where(beyond, torch.nextafter(rounded, clean), rounded)

    def audit(self, images: Tensor, clean: Tensor) -> Tensor:
        """(B,) float64 distances of what an attack put out.

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


class Linf(_Ball):
    """Each pixel may change by ``eps`` at most, in units of [0,1] pixels; 0 <= eps <= 1."""

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


class L2(_Ball):
    """The Euclidean length of the change is ``eps`` at most, over all pixels of an image; eps >= 0."""

    norm = "l2"

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        delta = images - clean
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_(min=torch.finfo(delta.dtype).tiny)
        shrink: Tensor = (self.eps / length).clamp_(max=1.0)
        return (clean + delta * shrink.view(-1, 1, 1, 1)).clamp_(0.0, 1.0)

    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        way = sample_noise(clean.shape[1:], sample_ids, *parts, normal=True).to(clean)
        radius = sample_noise((1,), sample_ids, *parts, "radius").to(clean) ** (1 / clean[0].numel())
        return self.project(clean + self.step(way, self.eps) * radius.view(-1, 1, 1, 1), clean)

    def step(self, gradient: Tensor, alpha: float) -> Tensor:
        largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / largest.view(-1, 1, 1, 1)  # squares of tiny gradients would underflow
        length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_(min=torch.finfo(gradient.dtype).tiny)
        factor: Tensor = alpha / length
        return scaled * factor.view(-1, 1, 1, 1)

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm((images.double() - clean.double()).flatten(1), dim=1)
        return norm


def ball(norm: str, eps: Eps) -> Linf | L2:
    """The ball of ``norm`` (``linf`` or ``l2``).

    Raises:
        UserError: another norm, or an impossible eps.
    """
    match norm:
        case "linf":
            return Linf(eps)  # type: ignore[arg-type]
        case "l2":
            return L2(eps)  # type: ignore[arg-type]
    raise UserError(f"attack.image.norm is {norm!r}: choose linf or l2.")


@dataclass(frozen=True)
class _Edits:
    """At most ``n`` edits (insert, delete, replace) of a caption, counted on the string that comes out."""

    key: ClassVar[str]
    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise UserError(f"attack.text.{self.key} is {self.n!r}: expected a whole number, 0 or more.")

    def count(self, caption: str, clean: str) -> int:
        """Edits between both."""
        raise NotImplementedError

    def audit(self, captions: Sequence[str], clean: Sequence[str]) -> Tensor:
        """(M,) long: the edits of each caption of the attack's output.

        Raises:
            RuntimeError: more than ``n`` edits, or a caption lost: a fault of the attack.
        """
        if len(captions) != len(clean):
            raise RuntimeError(f"the attack turned {len(clean)} captions into {len(captions)}")
        edits = [self.count(new, old) for new, old in zip(captions, clean, strict=True)]
        worst = max(range(len(edits)), key=edits.__getitem__, default=None)
        if worst is not None and edits[worst] > self.n:
            raise RuntimeError(f"{edits[worst]} edits, {self.n} allowed: {clean[worst]!r} became {captions[worst]!r}")
        return torch.tensor(edits, dtype=torch.long)


class Words(_Edits):
    """At most ``n`` words (split on blanks) may be replaced, put in or left out."""

    key = "max_words"

    def count(self, caption: str, clean: str) -> int:
        return 0 if caption == clean else levenshtein(caption.split(), clean.split())


class Characters(_Edits):
    """At most ``n`` characters may be replaced, put in or left out; two neighbours that change places are two edits."""

    key = "max_characters"

    def count(self, caption: str, clean: str) -> int:
        return 0 if caption == clean else levenshtein(caption, clean)


def levenshtein(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements that turn one sequence into the other."""
    first, second = _without_common_ends(first, second)
    if not first or not second:
        return len(first) + len(second)
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _without_common_ends(first: Sequence[str], second: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    start, shorter = 0, min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    end = 0
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    return first[start : len(first) - end], second[start : len(second) - end]
