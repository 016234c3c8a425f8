"""The threat model: what an attacker may change, as one object that is given with the call of an attack.

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
    """A bound on the change of an image and of a caption, and who may edit which side of a query.

    It holds no search: the same attack is called with several of them for a curve over eps.

    Args:
        norm: ``linf`` or ``l2``, in which the change of an image is measured.
        eps: its largest size in units of [0,1] pixels, such as ``"4/255"``; 0: images stay; None: no bound, and the
            smallest change is looked for.
        words: words of a caption that may be replaced, put in or left out.
        characters: the same for characters; words or characters, not both.
        edits: what of a pair is edited when a query of it is judged: the ``query`` (the other side stays clean), the
            ``item``, its own entry in the gallery (the query stays clean), ``both``, or ``all`` pairs at once, which
            are then ranked among each other.

    Raises:
        UserError: an impossible value.
    """

    norm: str = "linf"
    eps: Number | None = "4/255"
    words: int = 0
    characters: int = 0
    edits: str = "all"

    def __post_init__(self) -> None:
        radius = ball(self.norm, self.eps).eps  # also of None, which tells an unknown norm
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
        """What an image may become."""
        return ball(self.norm, self.eps)

    @property
    def radius(self) -> float | None:
        """``eps`` as a number."""
        return None if self.eps is None else float(self.eps)

    @cached_property
    def text(self) -> EditBudget:
        """What a caption may become."""
        return Characters(self.characters) if self.characters else Words(self.words)

    @property
    def moves_images(self) -> bool:
        """Whether images may change at all."""
        return self.radius is None or self.radius > 0

    @property
    def moves_texts(self) -> bool:
        """Whether captions may change at all."""
        return self.text.n > 0

    def at(self, eps: Number | None) -> "ThreatModel":
        """The same with another radius."""
        return replace(self, eps=eps)

    def sides(self, direction: str) -> tuple[bool, bool]:
        """Whether image and caption of a pair may be edited when a query of ``direction`` (``image_to_text`` or
        ``text_to_image``) is judged.
        """
        image_asks = direction == "image_to_text"
        return self.edits != ("item" if image_asks else "query"), self.edits != ("query" if image_asks else "item")

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """The allowed images (B,C,H,W) next to ``images``; see `Ball.project`."""
        return self.ball.project(images, clean)

    def random_start(self, clean: Tensor, sample_ids: Sequence[int], *parts: int | str) -> Tensor:
        """A uniform draw of what ``clean`` (B,C,H,W) may become; see `Ball.random_start`."""
        return self.ball.random_start(clean, sample_ids, *parts)

    def audit(self, images: Tensor, clean: Tensor) -> Tensor:
        """(B,) float64, how far each image is from the clean one.

        Raises:
            RuntimeError: a NaN, a pixel out of [0,1], or a change that is not allowed: a fault of the attack.
        """
        return self.ball.audit(images, clean)

    def audit_captions(self, captions: Sequence[str], clean: Sequence[str]) -> Tensor:
        """(M,) long, the edits of each caption.

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
    """A radius as one writes it: ``4/255`` for L-inf where it is a multiple of a quarter of 1/255, else ``0.5``."""
    if eps is None:
        return "any"
    quarters = float(eps) * 255 * 4
    if norm == "linf" and abs(quarters) > 0 and abs(quarters - round(quarters)) < 1e-6:
        return f"{round(quarters) / 4:g}/255"
    return f"{float(eps):.6g}"
