"""TRADES: accuracy against the smoothness of the predictions around each image (Zhang et al. 2019).

Shapes: B batch, C channels, H height, W width, Y classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.attacks import ClassifierAttack, ThreatModel, frozen
from robustcli.attacks.core.balls import Ball
from robustcli.attacks.core.randomness import sample_noise
from robustcli.data.sampling import ClassBatch
from robustcli.defenses.objectives.classification import ClassObjective, check_bounded
from robustcli.models import Classifier
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, at_least, parse_number

Draws = Callable[[], Tensor]  # standard normal (B,C,H,W), fresh at every call
_START = 1e-3  # standard deviation of the start: at the clean image itself the gradient of the divergence is zero


@dataclass(frozen=True, kw_only=True)
class TRADES(ClassObjective):
    """Cross-entropy of the clean images plus ``beta`` times KL(clean || adversarial) (equation 5).

    The adversarial images maximise that divergence within norm and eps of the threat model; the run's attack is not
    used. The search runs in eval mode, the loss in train mode; gradients flow through both sides of the divergence.

    Args:
        name: in tables.
        beta: weight of the divergence, 0 or more; 1/lambda of the paper, which takes 1 to 6.
        steps: gradient steps of the search.
        step_size: in units of [0,1] pixels; None: ``2 eps / steps``.

    Raises:
        UserError: a value out of range.
    """

    takes_threat = True

    name: str = "trades"
    beta: float = 6.0
    steps: int = 10
    step_size: Number | None = None

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise UserError(f"objective.beta is {self.beta}: it weighs a divergence, 0 or more.")
        at_least("steps", self.steps, 1, node="objective")
        if self.step_size is not None:
            parse_number("step_size", self.step_size, node="objective")

    def check(self, attack: ClassifierAttack | None, threat: ThreatModel) -> None:
        check_bounded(self.name, attack, threat)
        eps, step_size = threat.ball.eps, self._step_size(threat.ball)
        if self.steps * step_size < eps * (1 - 1e-9):
            raise UserError(
                f"objective: {self.steps} steps of {step_size:.4g} cannot cross a ball of {threat}: set "
                "objective.step_size=null, which scales with threat.eps."
            )

    def loss(
        self,
        model: Classifier,
        attack: ClassifierAttack | None,
        threat: ThreatModel,
        images: Tensor,
        batch: ClassBatch,
        *,
        seed: int,
    ) -> Tensor:
        drawn, ids = count(), batch.image_ids.tolist()

        def draws() -> Tensor:
            return sample_noise(images.shape[1:], ids, seed, "trades", next(drawn), normal=True).to(images)

        adversarial = self.adversarial(model, threat.ball, images, draws)
        return trades_loss(model, images, adversarial, batch.labels.to(images.device), beta=self.beta)

    def adversarial(self, model: Classifier, ball: Ball, images: Tensor, draws: Draws) -> Tensor:
        """Adversarial images (B,C,H,W) in ball and box, by ascent on the divergence from the clean predictions.

        Args:
            ball: norm and eps around ``images``.
            images: (B,C,H,W) in [0,1], clean.
            draws: the start, and the directions of steps where the gradient is zero.
        """
        step_size = self._step_size(ball)
        with frozen(model):
            # One forward pass for the clean predictions, then a forward and a backward pass a step.
            with torch.no_grad():
                target = F.softmax(model(images), dim=1)
            adversarial = images + _START * draws()  # not clamped: so do the authors, and the first step clamps
            for _ in range(self.steps):
                gradient = _gradient(model, adversarial, target)
                vanished = gradient.flatten(1).abs().amax(1) == 0
                if ball.norm == "l2" and bool(vanished.any()):  # a zero gradient has no direction: a random one then
                    gradient = torch.where(vanished.view(-1, 1, 1, 1), draws(), gradient)
                adversarial = _project(ball, adversarial + ball.step(gradient, step_size), images)
        return adversarial

    def _step_size(self, ball: Ball) -> float:
        return 2 * ball.eps / self.steps if self.step_size is None else parse_number("step_size", self.step_size)


def trades_loss(model: Classifier, images: Tensor, adversarial: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    """Cross-entropy of ``images`` plus ``beta`` times the mean KL(clean || adversarial) (equation 5), a scalar.

    Args:
        images, adversarial: (B,C,H,W) in [0,1].
        labels: (B,) long.
    """
    # Two passes, not one over both: in train mode batch norms then normalise each kind by its own moments.
    clean_logits, adversarial_logits = model(images), model(adversarial)
    divergence = _divergence(adversarial_logits, F.softmax(clean_logits, dim=1))
    return F.cross_entropy(clean_logits, labels) + beta * divergence / len(images)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax of logits), summed over the batch."""
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="sum")


def _gradient(model: Classifier, images: Tensor, target: Tensor) -> Tensor:
    """Gradient of the divergence by the images; unchecked, since the start may be a hair outside of [0,1]."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(_divergence(model.unchecked(images), target), images)
    return gradient.detach()


def _project(ball: Ball, images: Tensor, clean: Tensor) -> Tensor:
    """The box first, then the ball, as the authors do; the ball shrinks towards ``clean`` and so stays in the box."""
    return ball.project(images.clamp(0.0, 1.0), clean)
