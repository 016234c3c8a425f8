"""What is diagnosed: a model on a small sample, of which only the queries count that it answers rightly when clean.

Shapes: N images, M captions, C channels, H height, W width, Q queries, K gradients, B images asked for.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

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
from robustcli.attacks.core.success import fooled_queries
from robustcli.attacks.core.target import Target
from robustcli.diagnostics.changes import AnyAttack
from robustcli.diagnostics.watching import Slopes, WatchedClassifier, WatchedEncoder
from robustcli.utils.seeding import derive_seed

_DRAWS = 20  # of which a model that draws must get most wrong, or clean most right


@dataclass(frozen=True)
class Outcome:
    """What became of the queries, all on the CPU.

    Attributes:
        success: (Q,) bool; never of an image that was not attacked.
        gradients, zero, nan: evaluations of a gradient, those that were all zero, and those that held a NaN.
        slopes: (K,) float64, sizes of the gradients in the dual norm of the budget.
    """

    success: Tensor
    gradients: int
    zero: int
    nan: int
    slopes: Tensor

    @classmethod
    def of(cls, found: ImageAdversarial | Adversarial, success: Tensor, slopes: Slopes) -> "Outcome":
        """From what an attack put out."""
        return cls(
            success=success,
            gradients=int(found.gradients.sum()),
            zero=int(found.zero_gradients.sum()),
            nan=int(found.nan_gradients.sum()),
            slopes=slopes.sizes(),
        )


class Subject(Protocol):
    """A model on a sample.

    Attributes:
        model: the bare one.
        image_of: (Q,) long, the row of the image that each query belongs to.
        pixels: C H W.
        threat: what the attacks may change.
        randomised: two passes over the same image differ.
        chance: share of the queries that would be right by luck.
    """

    model: Any
    threat: ThreatModel
    image_of: Tensor
    pixels: int
    randomised: bool
    chance: float

    def reached(self, side: str) -> Tensor:
        """(Q,) bool: right when clean, and the attacker may edit their ``image`` or ``text``."""

    def breakable(self) -> Tensor:
        """(Q,) bool: those that some image of the attacker's must mislead, whatever it takes."""

    def attacked(self, attack: AnyAttack, rows: Tensor | None = None, *, threat: ThreatModel | None = None) -> Outcome:
        """The images ``rows`` (None: all) attacked, with their captions, within ``threat`` (None: the subject's own),
        and all queries judged.
        """


class ClassifierSubject:
    """Images with labels before a classifier; each image is a query.

    Args:
        model: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it was, if it is a module.
        images: (N,C,H,W) float32 in [0,1], where the model is.
        labels: (N,) long.
        threat: what the attacks may change.
        sample_ids: (N,) long; names of the draws; None: their places.
    """

    chance = 0.0  # an attacker leaves no label, not even by luck

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
        with frozen(model):
            self.randomised = is_randomised(model, images)
        self._right = self._known(images, self.labels)

    def reached(self, side: str) -> Tensor:
        return self._right if side == "image" else torch.zeros_like(self._right)

    def breakable(self) -> Tensor:
        return self._right

    def attacked(self, attack: AnyAttack, rows: Tensor | None = None, *, threat: ThreatModel | None = None) -> Outcome:
        assert isinstance(attack, ClassifierAttack)
        within = threat or self.threat
        chosen, slopes = self.image_of if rows is None else rows, Slopes(within.norm)
        here = chosen.to(self.images.device)
        images, labels = self.images[here], self.labels[here]
        watched = WatchedClassifier(self.model, slopes)
        found = attack(watched, images, labels, within, sample_ids=self.sample_ids[chosen])
        fooled = ~self._known(found.images, labels) if self.randomised else found.success.cpu()
        return Outcome.of(found, _spread(fooled, chosen, len(self.images)), slopes)

    def _known(self, images: Tensor, labels: Tensor) -> Tensor:
        """(B,) bool on the CPU: the label has more draws than any other class; of a model that does not draw, one."""
        return judge_on_draws(self.model, images, labels, draws=_DRAWS if self.randomised else 1).majority()


class RetrievalSubject:
    """Pairs before a dual encoder; the queries are the images, then the captions.

    Args:
        model: left as it was, if it is a module.
        pairs: the sample, where the model is.
        threat: what the attacks may change, and who edits what.
        gallery: what queries are ranked against; None: the pairs themselves.
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
            torch.manual_seed(derive_seed(0, "diagnostics"))  # of a model that draws; `frozen` puts the state back
            self.randomised = is_randomised(model.encode_image, pairs.images)
        self.chance = float(self.gallery.image_matches.float().mean())
        self._right = ~self._misled(Target(model, pairs, self.gallery, self.threat), pairs.images, pairs.captions)

    def reached(self, side: str) -> Tensor:
        part, sizes = ("image", "text").index(side), (len(self.pairs.images), len(self.pairs.captions))
        moved = [self.threat.sides(direction)[part] for direction in ("image_to_text", "text_to_image")]
        return self._right & torch.repeat_interleave(torch.tensor(moved), torch.tensor(sizes))

    def breakable(self) -> Tensor:
        """An image may become that of any other caption; a caption keeps what other images it is true of."""
        false = (~self.gallery.image_matches).any(1).cpu()
        alone = (self.gallery.caption_matches.sum(1) == 1).cpu()
        return self.reached("image") & torch.cat([false, alone])

    def attacked(self, attack: AnyAttack, rows: Tensor | None = None, *, threat: ThreatModel | None = None) -> Outcome:
        assert isinstance(attack, RetrievalAttack)
        within = threat or self.threat
        chosen = torch.arange(len(self.pairs.images)) if rows is None else rows
        whole = Target(self.model, self.pairs, self.gallery, within)
        target, captions = whole.part(chosen.to(self.pairs.images.device))
        slopes = Slopes(within.norm)
        found = attack(WatchedEncoder(self.model, slopes), target.pairs, target.gallery, within)
        fooled = torch.cat([found.image_success, found.caption_success]).cpu()
        if self.randomised:
            fooled = self._misled(target, found.images, found.captions)
        queries = torch.cat([chosen, len(self.pairs.images) + captions.cpu()])
        return Outcome.of(found, _spread(fooled, queries, len(self.image_of)), slopes)

    def _misled(self, target: Target, images: Tensor, captions: tuple[str, ...]) -> Tensor:
        """(Q,) bool on the CPU: the queries of ``target`` that are led astray; of a model that draws, mostly."""
        with frozen(self.model), torch.no_grad():
            torch.manual_seed(derive_seed(0, "diagnostics", "fresh draws"))
            texts = target.encode_text(captions)
            passes = range(_DRAWS if self.randomised else 1)
            drawn = [torch.cat(fooled_queries(target, self.model.encode_image(images), texts)) for _ in passes]
        return torch.stack(drawn).cpu().double().mean(0) > 0.5


def _spread(success: Tensor, queries: Tensor, count: int) -> Tensor:
    """(count,) bool: ``success`` of ``queries``, False of all others."""
    return torch.zeros(count, dtype=torch.bool).index_put((queries,), success)
