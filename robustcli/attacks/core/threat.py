"""Threat model of an attacker: bounds on images and captions, and the edited side, given with the call of an attack.

Shapes: B images, C channels, H height, W width, M captions; pixels in [0,1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from robustcli.attacks.core.balls import Ball, ball
from robustcli.attacks.core.edit_distance import Characters, EditBudget, Words
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, one_of

EDITS = ("query", "item", "both", "all")


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Bound on the perturbation of an image and of a caption, and the side of a query that is edited.

    It holds no search: a curve over eps calls the same attack with several threat models.

    Args:
        norm: ``linf`` or ``l2``, of the perturbation of an image.
        eps: radius in units of [0,1] pixels, such as ``"4/255"``; 0: images stay clean; None: no bound, for
            minimum-norm attacks.
        words: words of a caption that may be replaced, inserted or deleted.
        characters: the same of characters; words or characters, not both.
        edits: the side of a pair that is edited when a query of it is judged: the ``query`` (the other side stays
            clean), the ``item``, its own entry in the gallery (the query stays clean), ``both``, or ``all`` pairs at
            once, which are then ranked among each other.

    Raises:
        UserError: an impossible value.
    """

    norm: str = "linf"
    eps: Number | None = "4/255"
    words: int = 0
    characters: int = 0
    edits: str = "all"

    def __post_init__(self) -> None:
        radius = ball(self.norm, self.eps).eps  # also with eps None, so that an unknown norm is an error
        object.__setattr__(self, "eps", None if self.eps is None else radius)
        one_of("edits", self.edits, EDITS, node="threat")
        Words(self.words), Characters(self.characters)
        if self.words and self.characters:
            raise UserError(
                f"threat.words is {self.words} and threat.characters {self.characters}: edits are counted in one of "
                "both, set the other to 0."
            )

    @cached_property
    def ball(self) -> Ball:
        """Ball of the images around each clean one; without a bound its eps is infinite."""
        return ball(self.norm, self.eps)

    @property
    def radius(self) -> float | None:
        """``eps`` as a number; None without a bound."""
        return None if self.eps is None else float(self.eps)

    @cached_property
    def text(self) -> EditBudget:
        """Edit budget of a caption."""
        return Characters(self.characters) if self.characters else Words(self.words)

    @property
    def moves_images(self) -> bool:
        """True if images may change at all."""
        return self.radius is None or self.radius > 0

    @property
    def moves_texts(self) -> bool:
        """True if captions may change at all."""
        return self.text.n > 0

    def at(self, eps: Number | None) -> "ThreatModel":
        """The same threat model with another radius."""
        return replace(self, eps=eps)

    def sides(self, direction: str) -> tuple[bool, bool]:
        """Two bools: image and caption of a pair may be edited when a query of ``direction`` (``image_to_text`` or
        ``text_to_image``) is judged.
        """
        is_image = direction == "image_to_text"
        return self.edits != ("item" if is_image else "query"), self.edits != ("query" if is_image else "item")

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """Projection of images (B,C,H,W) onto ball and box; see `Ball.project`."""
        return self.ball.project(images, clean)

    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        """Uniform draw from the balls around ``clean`` (B,C,H,W); see `Ball.random_start`."""
        return self.ball.random_start(clean, sample_ids, *parts)

    def audit(self, images: Tensor, clean: Tensor) -> Tensor:
        """(B,) float64: norm of the perturbation of each image.

        Raises:
            RuntimeError: a NaN, a pixel out of [0,1], or a norm beyond eps: a fault of the attack.
        """
        return self.ball.audit(images, clean)

    def audit_captions(self, captions: Sequence[str], clean: Sequence[str]) -> Tensor:
        """(M,) long: number of edits of each caption.

        Raises:
            RuntimeError: more edits than are allowed, or a caption lost: a fault of the attack.
        """
        return self.text.audit(captions, clean)

    def __str__(self) -> str:
        image = "images as they are" if self.eps == 0 else f"{NORMS[self.norm]} {shown(self.eps, self.norm)}"
        unit = self.text.key if self.text.n != 1 else self.text.key.removesuffix("s")
        return f"{image}, {self.text.n} {unit}" if self.text.n else image


NORMS = {"linf": "L-inf", "l2": "L2"}


def shown(eps: Number | None, norm: str = "linf") -> str:
    """Text of a radius: ``4/255`` for L-inf where it is a multiple of a quarter of 1/255, else like ``0.5``; None:
    ``any``.
    """
    if eps is None:
        return "any"
    quarters = float(eps) * 255 * 4
    if norm == "linf" and abs(quarters) > 0 and abs(quarters - round(quarters)) < 1e-6:
        return f"{round(quarters) / 4:g}/255"
    return f"{float(eps):.6g}"
