"""Remedies for suspect numbers, as overrides that can be pasted behind the command that printed them."""

from dataclasses import dataclass, field
from typing import Any

from robustcli.diagnostics.changes import has_setting


@dataclass(frozen=True, kw_only=True)
class ConfigKeys:
    """Config keys of an attack in the config of a command.

    Attributes:
        image, text: nodes of its image and its text part, such as ``attacks.sga.image``.
        another: override that adds another attack to the command, with ``{0}`` for its name.
    """

    image: str = "attack"
    text: str = "attack"
    another: str = "attack={0}"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Remedies for the flaws of one attack, a property or method each.

    Args:
        keys: its config keys.
        ensemble: name of the strongest ensemble for its task.
        search: its innermost image attack; settings that it has not are not advised.
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
        """Saturated cross-entropy: flat where the margin is not."""
        return (
            f"The loss is saturated, its margin is not: set {self._image}.loss=margin or {self._image}.loss=dlr, which "
            f"do not change with the scale of the logits, or add {self._another(self.ensemble)}."
        )

    @property
    def shattered(self) -> str:
        """Shattered gradients: none with the margin either."""
        return (
            "A step of the model has no useful gradient (rounding, JPEG, argmax): give it one with BPDA, and add "
            f"{self._another('square')}, which needs none."
        )

    @property
    def randomised(self) -> str:
        """Randomised model without EOT."""
        return "Average the gradient over draws and judge on fresh ones: evaluation.eot=20 evaluation.fresh=10."

    @property
    def not_monotone(self) -> str:
        """Success that is lost in a larger ball."""
        if has_setting(self.search, "alpha") and self.search.alpha is not None:
            return f"The step does not fit the ball: set {self._image}.alpha=null, so that it grows with threat.eps."
        return (
            "The search loses in a large ball what it found in a small one: add "
            f"{self._another('apgd')}, which fits its steps."
        )

    @property
    def masked(self) -> str:
        """Survivors in a ball that holds every image."""
        return (
            "Gradients are masked, or the attack is broken: BPDA or evaluation.eot for the defence, "
            f"{self._loss('margin')}{self._another('square')} beside it."
        )

    @property
    def black_box(self) -> str:
        """Black-box attack that fools more."""
        return (
            f"The gradients mislead the attack: {self._loss('margin')}BPDA or evaluation.eot for the defence; take "
            f"{self._another(self.ensemble)} for the claim."
        )

    @property
    def stronger(self) -> str:
        """APGD that fools more."""
        return (
            f"The attack is weak for its budget: add {self._another('apgd')}, or {self._another(self.ensemble)} "
            "for the claim."
        )

    @property
    def restarts(self) -> str:
        """Restarts that fool more."""
        more = f"set {self._image}.restarts=10, or " if has_setting(self.search, "restarts") else ""
        return f"The attack ends in poor optima: {more}take {self._another(self.ensemble)} for the claim."

    @property
    def misleading(self) -> str:
        """Gradients that are not the slope of the loss."""
        return (
            "The gradient is not the slope of the loss (steps, ripples, noise of the pixels, a detector): replace that "
            f"part by BPDA, and add {self._another('square')}, which needs no gradient."
        )

    @property
    def rippled(self) -> str:
        """Smoothed gradients that fool more."""
        return (
            "The loss is rough at the scale of a step, so its gradient misleads: average it over noise in the ball, "
            f"and add {self._another('square')}, which needs none."
        )

    @property
    def inside(self) -> str:
        """The network behind a defence, whose gradients fool more."""
        return (
            "What stands before or behind the network hides its gradient: attack through it with BPDA, and add "
            f"{self._another('square')}, which needs no gradient."
        )

    @property
    def entangled(self) -> str:
        """Answers that depend on other queries."""
        return (
            "An answer that depends on other queries (moments of a batch, a memory) is not the model's alone: put the "
            "model in eval mode without a state, and judge each image by itself, evaluation.batch_size=1."
        )

    @property
    def remembered(self) -> str:
        """Survivors that fall once they are moved a little."""
        return (
            "The model is robust on these very images and not beside them: judge it on images that it has not seen, "
            "such as evaluation.split=val."
        )

    @property
    def blank(self) -> str:
        """Candidate edits for hardly any caption."""
        return (
            "The attack has next to nothing to put in: take candidates of the captions' own words, such as "
            "candidates=neighbours, or a candidates.table that holds them."
        )

    @property
    def left_out(self) -> str:
        """Checks for which no passes were left."""
        return "diagnostics.share=null runs it."

    @property
    def transfer(self) -> str:
        """Transfer attack that fools more."""
        return (
            "The model's own gradients serve worse than another's: run it again with evaluation.surrogate=WEIGHTS of "
            "that model, and use BPDA or evaluation.eot for the defence."
        )

    @property
    def words(self) -> str:
        """Success of a text search that is lost with a larger budget."""
        return (
            f"The search drops what it had found: set {self._text}.search=exhaustive, or a larger {self._text}.top_k."
        )

    def more_steps(self, steps: int) -> str:
        """Too few steps; ``steps`` are twice its own."""
        return (
            f"The attack had not converged: set {self._image}.steps={steps}, until nothing changes, or add "
            f"{self._another('apgd')}."
        )

    def still_rising(self, steps: int) -> str:
        """Loss that still rises at the end; ``steps`` are twice its own."""
        key = "queries" if has_setting(self.search, "queries") else "steps"
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
        if not has_setting(self.search, "loss") or self.search.loss == name:
            return ""
        return f"{self._image}.loss={name}, "
