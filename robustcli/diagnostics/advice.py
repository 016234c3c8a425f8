"""Remedies: what to type where a number is too good to be true.

Each names keys of the command that printed it, so that it can be pasted behind that command.
"""

from dataclasses import dataclass, field
from typing import Any

from robustcli.diagnostics.changes import takes


@dataclass(frozen=True, kw_only=True)
class ConfigKeys:
    """Where an attack stands in the config of a command.

    Attributes:
        image, text: the settings of its search of images, and of that of captions, such as ``attacks.sga.image``.
        another: the override by which the command runs another attack as well, with ``{0}`` for its name.
    """

    image: str = "attack"
    text: str = "attack"
    another: str = "attack={0}"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Remedies for one attack.

    Args:
        keys: where it stands in the config.
        ensemble: the attack that takes its claim as far as we can.
        search: its search of images; what that does not have is not advised.
    """

    keys: ConfigKeys = field(default_factory=ConfigKeys)
    ensemble: str = "autoattack"
    search: Any = None

    @property
    def nan(self) -> str:
        """Gradients that hold a NaN."""
        return (
            "Find the step of the model that makes the NaN (a root or logarithm of 0, an overflow in half precision); "
            f"until then add {self._another('square')}, which needs no gradient."
        )

    @property
    def saturated(self) -> str:
        """Cross-entropy that is flat where the margin is not."""
        return (
            f"The loss is saturated, its margin is not: set {self._image}.loss=margin or {self._image}.loss=dlr, which "
            f"do not change with the scale of the logits, or add {self._another(self.ensemble)}."
        )

    @property
    def shattered(self) -> str:
        """No gradient at all."""
        return (
            "A step of the model has no useful gradient (rounding, JPEG, argmax): give it one with BPDA, and add "
            f"{self._another('square')}, which needs none."
        )

    @property
    def randomised(self) -> str:
        """Answers that are drawn, one at a time."""
        return "Average the gradient over draws and judge on fresh ones: evaluation.eot=20 evaluation.fresh=10."

    @property
    def not_monotone(self) -> str:
        """A larger ball that breaks less."""
        if takes(self.search, "alpha") and self.search.alpha is not None:
            return f"The step does not fit the ball: set {self._image}.alpha=null, so that it grows with threat.eps."
        return (
            "The search loses in a large ball what it found in a small one: add "
            f"{self._another('apgd')}, which fits its steps."
        )

    @property
    def masked(self) -> str:
        """A ball that holds every image and breaks nothing."""
        return (
            "Gradients are masked, or the attack is broken: BPDA or evaluation.eot for the defence, "
            f"{self._loss('margin')}{self._another('square')} beside it."
        )

    @property
    def black_box(self) -> str:
        """A search without gradients that finds more."""
        return (
            f"The gradients mislead the attack: {self._loss('margin')}BPDA or evaluation.eot for the defence; take "
            f"{self._another(self.ensemble)} for the claim."
        )

    @property
    def stronger(self) -> str:
        """APGD that finds more."""
        return (
            f"The attack is weak for its budget: add {self._another('apgd')}, or {self._another(self.ensemble)} "
            "for the claim."
        )

    @property
    def transfer(self) -> str:
        """Another model's images that fool more."""
        return (
            "The model's own gradients serve worse than another's: run it again with evaluation.surrogate=WEIGHTS of "
            "that model, and use BPDA or evaluation.eot for the defence."
        )

    @property
    def words(self) -> str:
        """A search over words that loses what it had found."""
        return (
            f"The search drops what it had found: set {self._text}.search=exhaustive, or a larger {self._text}.top_k."
        )

    def more_steps(self, steps: int) -> str:
        """Twice its steps, ``steps``, that made it stronger."""
        return (
            f"The attack had not converged: set {self._image}.steps={steps}, until nothing changes, or add "
            f"{self._another('apgd')}."
        )

    def still_rising(self, steps: int) -> str:
        """A loss that rises to the end; ``steps`` are more than it took."""
        key = "queries" if takes(self.search, "queries") else "steps"
        return f"The attack ends on its way up: set {self._image}.{key}={steps}, or add {self._another('apgd')}."

    @property
    def _image(self) -> str:
        return self.keys.image

    @property
    def _text(self) -> str:
        return self.keys.text

    def _another(self, name: str) -> str:
        return self.keys.another.format(name)

    def _loss(self, name: str) -> str:
        if not takes(self.search, "loss") or self.search.loss == name:
            return ""
        return f"{self._image}.loss={name}, "
