"""Subjects of diagnostics: a model on a small sample, of which the queries count that are correct when clean.

Shapes: N images, M captions, C channels, H height, W width, Q queries, K gradients, B images of a call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustcli.attacks import (
    Adversarial,
    ClassifierAttack,
    DualEncoderLike,
    Gallery,
    ImageAdversarial,
    Pairs,
    RetrievalAttack,
    ThreatModel,
    frozen,
    judge_on_draws,
)
from robustcli.attacks.core.base import Classifier, is_randomised
from robustcli.attacks.core.class_losses import margin
from robustcli.attacks.core.losses import image_objective
from robustcli.attacks.core.success import fooled_queries
from robustcli.attacks.core.target import Target
from robustcli.diagnostics.changes import AnyAttack
from robustcli.diagnostics.moves import moves
from robustcli.diagnostics.searches import StraightThrough, inner_network
from robustcli.diagnostics.tracing import GradientNorms, TracedClassifier, TracedEncoder
from robustcli.utils.seeding import derive_seed

Objective = Callable[[Tensor], Tensor]  # images (B,C,H,W) in [0,1] -> (B,), above 0 where they fool
_DRAWS = 20  # fresh draws that judge a query of a randomised model, by majority
_PROBE = 8  # images whose answers are compared


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attack for each query, all on the CPU.

    Attributes:
        images: (N,C,H,W), adversarial; clean where no attack was run.
        success: (Q,) bool; False of an image that was not attacked.
        passes: (N,) long, forward and backward passes for each image and its captions.
        gradients, zero, nan: gradient evaluations, those that were all zero, and those that held a NaN.
        gradient_norms: (K,) float64, dual norms of the gradients.
    """

    images: Tensor
    success: Tensor
    passes: Tensor
    gradients: int
    zero: int
    nan: int
    gradient_norms: Tensor

    @classmethod
    def of(
        cls,
        result: ImageAdversarial | Adversarial,
        rows: Tensor,
        images: Tensor,
        success: Tensor,
        gradient_norms: GradientNorms,
    ) -> "Outcome":
        """From the output of an attack on ``rows``; ``images`` and ``success`` are among those not attacked."""
        passes = torch.zeros(len(images), dtype=torch.long)
        return cls(
            images=images.cpu(),
            success=success,
            passes=passes.index_copy(0, rows, (result.queries + result.gradients).cpu()),
            gradients=int(result.gradients.sum()),
            zero=int(result.zero_gradients.sum()),
            nan=int(result.nan_gradients.sum()),
            gradient_norms=gradient_norms.norms(),
        )


class Subject(Protocol):
    """Protocol of a model on a sample.

    Attributes:
        model: untraced.
        images: (N,C,H,W) in [0,1], clean.
        captions: of the images, in the order of the queries; none of a classifier.
        probe: the first few images, and first_answers: those of the model (B,K) before any attack.
        image_of: (Q,) long, the row of the image that each query belongs to.
        pixels: C H W.
        threat: of the attacks.
        randomised: two passes over the same image differ.
        passes: forward and backward passes of an image or a caption that were asked for since it was made.
        chance: share of the queries that a random ranking gets right.
    """

    model: Any
    threat: ThreatModel
    images: Tensor
    captions: tuple[str, ...]
    probe: Tensor
    first_answers: Tensor
    image_of: Tensor
    pixels: int
    randomised: bool
    passes: int
    chance: float

    def attackable(self, side: str) -> Tensor:
        """(Q,) bool: correct when clean, and the attacker may edit the ``image`` or ``text`` (``side``)."""

    def foolable(self) -> Tensor:
        """(Q,) bool: attackable queries that some image in [0,1] is bound to fool."""

    def attacked(self, attack: AnyAttack, rows: Tensor | None = None, *, threat: ThreatModel | None = None) -> Outcome:
        """Outcome of ``attack`` on the images ``rows`` (None: all) and their captions within ``threat`` (None: that of
        the subject); Q queries, those of other images not fooled.
        """

    def answers(self, images: Tensor) -> Tensor:
        """(B,K): logits or embeddings of images (B,C,H,W); the caller freezes the model."""

    def objective(self, rows: Tensor) -> Objective:
        """Margin loss of the images ``rows``; the caller freezes the model."""

    def straight_through(self) -> nn.Module | None:
        """Stand-in for the model with the gradient of the network behind its defence; None where there is none."""

    def moved(self, rows: Tensor) -> "Subject | None":
        """The images ``rows``, moved a little in the way that the model minds least; None where that has no meaning."""


class ClassifierSubject:
    """Images with labels before a classifier; each image is a query.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it was, if it is a module.
        images: (N,C,H,W) float32 in [0,1], where the model is.
        labels: (N,) long.
        threat: of the attacks.
        sample_ids: (N,) long, seeds of the samples' random draws; None: their places.
    """

    chance = 0.0  # an unbounded attacker can show an image of another class
    captions: tuple[str, ...] = ()

    def __init__(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        *,
        sample_ids: Tensor | None = None,
    ) -> None:
        self.model, self.images, self.labels, self.threat = model, images, labels.to(images.device), threat
        self.sample_ids = torch.arange(len(images)) if sample_ids is None else sample_ids.cpu()
        self.image_of, self.pixels = torch.arange(len(images)), images[0].numel() if len(images) else 0
        self.probe = images[:_PROBE]
        with frozen(model), torch.no_grad():
            torch.manual_seed(derive_seed(0, "diagnostics"))  # of a randomised model; `frozen` puts the state back
            self.randomised = is_randomised(model, images)
            self.first_answers = self.model(self.probe)
        self._correct = self._majority_correct(images, self.labels)
        self.passes = 0

    def attackable(self, side: str) -> Tensor:
        return self._correct if side == "image" else torch.zeros_like(self._correct)

    def foolable(self) -> Tensor:
        return self._correct

    def attacked(self, attack: AnyAttack, rows: Tensor | None = None, *, threat: ThreatModel | None = None) -> Outcome:
        assert isinstance(attack, ClassifierAttack)
        within = threat or self.threat
        chosen, gradient_norms = self.image_of if rows is None else rows, GradientNorms(within.norm)
        on_device = chosen.to(self.images.device)
        images, labels = self.images[on_device], self.labels[on_device]
        traced = TracedClassifier(self.model, gradient_norms)
        result = attack(traced, images, labels, within, sample_ids=self.sample_ids[chosen])
        fooled = ~self._majority_correct(result.images, labels) if self.randomised else result.success.cpu()
        everywhere = self.images.index_copy(0, on_device, result.images)
        fooled = _scattered(fooled, chosen, len(self.images))
        outcome = Outcome.of(result, chosen, everywhere, fooled, gradient_norms)
        self.passes += int(outcome.passes.sum())
        return outcome

    def answers(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        return self.model(images)

    def objective(self, rows: Tensor) -> Objective:
        labels = self.labels[rows.to(self.labels.device)]

        def loss(images: Tensor) -> Tensor:
            self.passes += _passes(images)
            return margin(self.model(images), labels)

        return loss

    def straight_through(self) -> nn.Module | None:
        if not isinstance(self.model, nn.Module):
            return None
        with frozen(self.model):
            inner = inner_network(self.model, self.probe)
        return None if inner is None else StraightThrough(self.model, inner)

    def moved(self, rows: Tensor) -> "ClassifierSubject":
        on_device = rows.to(self.images.device)
        images, labels = self.images[on_device], self.labels[on_device]
        with frozen(self.model), torch.no_grad():
            candidates = moves(images, labels, self.images, self.labels)
            # The move of lowest margin loss: what then falls would not fall by the move alone. One that stays near the
            # ball does not tell whether the model knows the image.
            self.passes += len(candidates) * len(rows)
            far = [self.threat.ball.distance(each, images) > 2 * self.threat.ball.eps for each in candidates]
            margins = [margin(self.model(each), labels) for each in candidates]
            losses = torch.where(torch.stack(far), torch.stack(margins), torch.inf)
        chosen = torch.stack(candidates)[losses.argmin(0), torch.arange(len(rows), device=losses.device)]
        return ClassifierSubject(self.model, chosen, labels, self.threat, sample_ids=self.sample_ids[rows])

    def _majority_correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B,) bool on the CPU: the label has a majority of the fresh draws; one pass of a deterministic model."""
        return judge_on_draws(self.model, images, labels, draws=_DRAWS if self.randomised else 1).majority()


class RetrievalSubject:
    """Pairs before a dual encoder; the queries are the images, then the captions.

    Args:
        model: left as it was, if it is a module.
        pairs: the sample, where the model is.
        threat: of the attacks, with the edited side.
        gallery: entries that queries are ranked against; None: the pairs themselves.
    """

    def __init__(
        self,
        model: DualEncoderLike,
        pairs: Pairs,
        threat: ThreatModel,
        *,
        gallery: Gallery | None = None,
    ) -> None:
        self.model, self.pairs, self.threat = model, pairs, threat
        self.image_of = torch.cat([torch.arange(len(pairs.images)), pairs.owner.cpu()])
        self.pixels = pairs.images[0].numel() if len(pairs.images) else 0
        with frozen(model), torch.no_grad():
            self.gallery = gallery or Gallery.of(model, pairs)
            torch.manual_seed(derive_seed(0, "diagnostics"))  # of a randomised model; `frozen` puts the state back
            self.randomised = is_randomised(model.encode_image, pairs.images)
            self.probe = pairs.images[:_PROBE]
            self.first_answers = self.model.encode_image(self.probe)
        self.passes = 0
        self.images, self.captions = pairs.images, pairs.captions
        self.chance = self.gallery.image_matches.share
        target = Target(model, pairs, self.gallery, self.threat)
        self._correct = ~self._mostly_fooled(target, pairs.images, pairs.captions)

    def attackable(self, side: str) -> Tensor:
        part, sizes = ("image", "text").index(side), (len(self.pairs.images), len(self.pairs.captions))
        edited = [self.threat.sides(direction)[part] for direction in ("image_to_text", "text_to_image")]
        return self._correct & torch.repeat_interleave(torch.tensor(edited), torch.tensor(sizes))

    def foolable(self) -> Tensor:
        """Images with a negative caption, whose image they can become, and captions with a single positive image:
        another positive stays clean and may rank first.
        """
        has_negative = (self.gallery.image_matches.counts < self.gallery.image_matches.width).cpu()
        one_positive = (self.gallery.caption_matches.counts == 1).cpu()
        return self.attackable("image") & torch.cat([has_negative, one_positive])

    def attacked(self, attack: AnyAttack, rows: Tensor | None = None, *, threat: ThreatModel | None = None) -> Outcome:
        assert isinstance(attack, RetrievalAttack)
        within = threat or self.threat
        chosen = torch.arange(len(self.pairs.images)) if rows is None else rows
        whole = Target(self.model, self.pairs, self.gallery, within)
        target, captions = whole.part(chosen.to(self.pairs.images.device))
        gradient_norms = GradientNorms(within.norm)
        result = attack(TracedEncoder(self.model, gradient_norms), target.pairs, target.gallery, within)
        fooled = torch.cat([result.image_success, result.caption_success]).cpu()
        if self.randomised:
            fooled = self._mostly_fooled(target, result.images, result.captions)
        queries = torch.cat([chosen, len(self.pairs.images) + captions.cpu()])
        everywhere = self.images.index_copy(0, chosen.to(self.images.device), result.images)
        fooled = _scattered(fooled, queries, len(self.image_of))
        outcome = Outcome.of(result, chosen, everywhere, fooled, gradient_norms)
        self.passes += int(outcome.passes.sum())
        return outcome

    def answers(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        return self.model.encode_image(images)

    def objective(self, rows: Tensor) -> Objective:
        on_device = rows.to(self.images.device)
        target, _ = Target(self.model, self.pairs, self.gallery, self.threat).part(on_device)
        objective, numbers = image_objective("margin", target, None), torch.arange(len(rows), device=on_device.device)

        def loss(images: Tensor) -> Tensor:
            self.passes += _passes(images)
            value = objective(images, numbers)
            return value[0] if isinstance(value, tuple) else value

        return loss

    def straight_through(self) -> nn.Module | None:
        return None

    def moved(self, rows: Tensor) -> None:
        return None

    def _mostly_fooled(self, target: Target, images: Tensor, captions: tuple[str, ...]) -> Tensor:
        """(Q,) bool on the CPU: queries of ``target`` that are fooled in more than half of the fresh draws."""
        with frozen(self.model), torch.no_grad():
            torch.manual_seed(derive_seed(0, "diagnostics", "fresh draws"))
            texts = target.encode_text(captions)
            passes = range(_DRAWS if self.randomised else 1)
            drawn = [torch.cat(fooled_queries(target, self.model.encode_image(images), texts)) for _ in passes]
        return torch.stack(drawn).cpu().double().mean(0) > 0.5


def _passes(images: Tensor) -> int:
    """Forward passes, and backward ones where a gradient is going to be asked for."""
    return len(images) * (2 if images.requires_grad and torch.is_grad_enabled() else 1)


def _scattered(success: Tensor, queries: Tensor, count: int) -> Tensor:
    """(count,) bool: ``success`` of ``queries``, False of all others."""
    return torch.zeros(count, dtype=torch.bool).index_put((queries,), success)
