"""Base classes of attacks on captions, and on pairs of images and captions before a gallery.

Shapes: N images, M captions, C channels, H height, W width, K candidates, D embedding.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from robustcli.attacks.core.base import Attack, ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.edit_distance import Words
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.losses import TEXT_LOSSES, image_objective, text_objective
from robustcli.attacks.core.oracle import ImageObjective, TextEncoder, TextObjective
from robustcli.attacks.core.pairs import Adversarial, Alternative, DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.passes import Passes, Problem
from robustcli.attacks.core.success import fooled_queries, worst_of
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import one_of
from robustcli.utils.seeding import derive_seed

_ROUNDING = 1e-4  # of a cosine, between batches of different shape


class Constraint(Protocol):
    """Constraint on edited captions: a filter of the candidates of a search, and once more an audit of its output."""

    def allowed(
        self, clean: Sequence[str], edited: Sequence[str], encoder: TextEncoder, *, slack: float = 0.0
    ) -> Sequence[bool]:
        """K bools: the edited caption may stand for the clean one beside it.

        Args:
            encoder: text tower of the attacked model.
            slack: tolerance for rounding; 0 in a search, more in the audit, whose batches have other shapes.
        """


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Reach of a search over captions: the units and the captions that it has an edit for, before any is tried.

    Args:
        unit: ``words`` or ``characters``.
        units, editable_units: of all captions together.
        captions, editable_captions: those with an editable unit.
    """

    unit: str
    units: int
    editable_units: int
    captions: int
    editable_captions: int

    def __str__(self) -> str:
        share = self.editable_units / max(1, self.units)
        return (
            f"candidates for {share:.1%} of the {self.unit}; "
            f"{self.editable_captions} of {self.captions} captions can be edited"
        )


@dataclass(frozen=True, kw_only=True)
class TextAttack(Attack):
    """Base class of attacks on captions, within a budget of words or characters that is counted on the output.

    Args:
        objective: loss of a dual encoder that is maximised: ``guided``, ``drift``, ``cross_entropy``, ``margin`` or
            ``targeted``; see `losses`.
        constraints: on edited captions, beside the budget; see `constraints`.
        seed: see `Attack`.
    """

    unit: ClassVar[str]  # ``words`` or ``characters``
    needs_candidates: ClassVar[bool] = False  # True of searches over the words of a `CandidateSource`

    objective: str = "guided"
    constraints: Sequence[Constraint] = ()

    def __post_init__(self) -> None:
        self._store(constraints=tuple(self.constraints))
        one_of("objective", self.objective, TEXT_LOSSES)

    def check(self, threat: ThreatModel) -> None:
        if threat.moves_texts and threat.text.key != self.unit:
            raise UserError(
                f"{type(self).__name__} edits {self.unit}, but the threat model counts {threat.text.key}: choose "
                f"threat={'characters' if self.unit == 'characters' else 'text'}, or another attack."
            )

    def editable(self, captions: Sequence[str]) -> Sequence[int] | None:
        """Units (words or characters) of each caption that the search has an edit for; None: a search that cannot
        tell.
        """
        return None

    def coverage(self, captions: Sequence[str]) -> Coverage | None:
        """Reach of the search over ``captions``; None of a search that cannot tell."""
        counts = self.editable(captions)
        if counts is None:
            return None
        return Coverage(
            unit=self.unit,
            units=sum(len(caption.split() if self.unit == "words" else caption) for caption in captions),
            editable_units=sum(counts),
            captions=len(captions),
            editable_captions=sum(count > 0 for count in counts),
        )

    @abstractmethod
    def edit(
        self,
        encoder: TextEncoder,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Sequence[int],
        threat: ThreatModel,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        """The search: M captions of higher loss, and the forward and backward passes for each, (M,) long on the CPU."""

    def maximise(
        self,
        model: DualEncoderLike,
        objective: TextObjective,
        captions: Sequence[str],
        caption_ids: Tensor,
        threat: ThreatModel | None = None,
        *,
        encoder: TextEncoder | None = None,
        owner: Tensor | None = None,
        counter: QueryCounter | None = None,
    ) -> tuple[str, ...]:
        """Captions within the threat model that maximise ``objective``; ``model`` should be `frozen`.

        Args:
            objective: features (K,D) and the captions' rows (K,) -> (K,) losses.
            threat: None: the attack's own number of words or characters.
            encoder: cache of features of the same model and weights; None: an empty one.
            owner, counter: the image of each caption (M,), and the counter that its passes are added to.

        Raises:
            RuntimeError: an edit beyond the budget or against a constraint: a fault of the attack.
        """
        threat = threat or self.threat
        if not threat.moves_texts or not captions:
            return tuple(captions)
        self.check(threat)
        encoder = encoder or TextEncoder(model)
        edited, queries, gradients = self.edit(encoder, objective, captions, caption_ids.tolist(), threat)
        threat.audit_captions(edited, captions)
        self._audit_constraints(captions, edited, encoder)
        if counter is not None and owner is not None:
            counter.add_texts(queries, gradients, owner)
        return tuple(edited)

    def _audit_constraints(self, clean: Sequence[str], edited: Sequence[str], encoder: TextEncoder) -> None:
        changed = [(old, new) for old, new in zip(clean, edited, strict=True) if old != new]
        for constraint in self.constraints if changed else ():
            before, after = zip(*changed, strict=True)
            allowed = constraint.allowed(before, after, encoder, slack=_ROUNDING)
            for (old, new), ok in zip(changed, allowed, strict=True):
                if not ok:
                    raise RuntimeError(f"{constraint!r} forbids that {old!r} becomes {new!r}")


@dataclass(frozen=True, kw_only=True)
class RetrievalAttack(Attack):
    """Base class of attacks on images, captions or both of a dual encoder.

    Args:
        image, text: searches of either side, within one threat model; the side of a None stays clean.
        seed: see `Attack`.
    """

    replaced: ClassVar[tuple[str, ...]] = ()  # settings of the parts that this search does not read

    image: ImageAttack | None = None
    text: TextAttack | None = None

    def __post_init__(self) -> None:
        if self.image is None and self.text is None:
            raise UserError("attack.image and attack.text are both null: give at least one of them.")

    @property
    def threat(self) -> ThreatModel:
        """Threat model of the parts together."""
        image = {"eps": 0.0} if self.image is None else {"norm": self.image.norm, "eps": self.image.eps}
        text = {} if self.text is None else {self.text.unit: self.text.threat.text.n}
        return ThreatModel(**image, **text)  # type: ignore[arg-type]

    @property
    def baseline(self) -> bool:
        """True where every side that is searched is a baseline's; see `Attack.baseline`."""
        return all(side.baseline for side in (self.image, self.text) if side is not None)

    def check(self, threat: ThreatModel) -> None:
        if self.image is not None:
            self.image.check(threat)
        if self.text is not None:
            self.text.check(threat)

    def passes_of_parts(self, problem: Problem) -> Passes | None:
        """Passes of a search that calls each of its parts once."""
        image = Passes() if self.image is None else self.image.passes(problem)
        return image and image + Passes(searches=0 if self.text is None else 1)

    @abstractmethod
    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        """The search, out of `attack_images` and `attack_captions`: images (N,C,H,W) and M captions."""

    def perturb(
        self,
        model: DualEncoderLike,
        pairs: Pairs,
        gallery: Gallery | None = None,
        threat: ThreatModel | None = None,
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Adversarial images and captions, audited but not judged.

        Args:
            gallery: None: the pairs themselves.
            threat: None: that of the parts.

        Raises:
            RuntimeError: a result beyond the threat model: a fault of the attack.
        """
        threat = threat or self.threat
        self.check(threat)
        with frozen(model):
            target = Target(model, pairs, gallery, threat)
            images, captions = self.search(target, QueryCounter.of(len(pairs.images)))
        self._audit(target, images, captions)
        return images, captions

    def __call__(
        self,
        model: DualEncoderLike,
        pairs: Pairs,
        gallery: Gallery | None = None,
        threat: ThreatModel | None = None,
    ) -> Adversarial:
        """Attack the pairs; of several `variants` each query has its worst."""
        return worst_of(list(self.variants(model, pairs, gallery, threat).values()))

    def variants(
        self,
        model: DualEncoderLike,
        pairs: Pairs,
        gallery: Gallery | None = None,
        threat: ThreatModel | None = None,
    ) -> Mapping[str, Adversarial]:
        """Outputs that an attacker may choose from for each query, by name; most attacks have one, called "".

        Every query is ranked again from the images and strings of the output. The costs of all stand with the first.
        """
        threat = threat or self.threat
        self.check(threat)
        with frozen(model), torch.no_grad():
            torch.manual_seed(derive_seed(self.seed, "model"))  # of a randomised model; `frozen` puts the state back
            target, counter = Target(model, pairs, gallery, threat), QueryCounter.of(len(pairs.images))
            alternatives, encoder = self.alternatives(target, counter), TextEncoder(model)
            costs = [counter, *(QueryCounter.of(len(pairs.images)) for _ in range(len(alternatives) - 1))]
            return {
                name: self._judged(target, encoder, output, cost)
                for (name, output), cost in zip(alternatives.items(), costs, strict=True)
            }

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, Alternative]:
        """Unjudged outputs by name, at least one; where none is a success the first is shown for images, the last for
        captions.
        """
        return {"": Alternative(*self.search(target, counter))}

    def attack_images(
        self,
        target: Target,
        counter: QueryCounter,
        objective: ImageObjective | None = None,
        *,
        text_features: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Images (N,C,H,W) of the image part, which maximises ``objective``, or its own loss against ``text_features``
        (M,D; None: the clean ones).
        """
        pairs = target.pairs
        if self.image is None:
            return pairs.images.clone()
        chosen = objective or image_objective(self.image.loss, target, text_features)
        return self.image.maximise(chosen, pairs.images, pairs.image_ids, target.threat, start=start, counter=counter)

    def attack_captions(
        self, target: Target, counter: QueryCounter, objective: TextObjective | None = None
    ) -> tuple[str, ...]:
        """Captions of the text part, which edits the clean ones to maximise ``objective``, or its own against the clean
        images.
        """
        pairs = target.pairs
        if self.text is None:
            return pairs.captions
        return self.text.maximise(
            target.model,
            objective or text_objective(self.text.objective, target, seed=self.text.seed),
            pairs.captions,
            pairs.caption_ids,
            target.threat,
            encoder=target.encoder,
            owner=pairs.owner,
            counter=counter,
        )

    def _judged(self, target: Target, encoder: TextEncoder, output: Alternative, cost: QueryCounter) -> Adversarial:
        images, captions = output.images, output.captions
        norm, edits = self._audit(target, images, captions)
        # Encoded anew from pixels and strings, not counted: features of the search, or of its surrogate, may differ.
        image_features = target.model.encode_image(images)
        text_features = encoder.encode(captions) if captions else target.encode_text(captions)
        image_success, caption_success = fooled_queries(target, image_features, text_features)
        return Adversarial(
            images=images,
            captions=captions,
            norm=norm,
            edits=edits,
            image_success=image_success,
            caption_success=caption_success,
            image_members=output.image_members,
            caption_members=output.caption_members,
            **vars(cost),
        )

    def _audit(self, target: Target, images: Tensor, captions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Norms (N,) and edits (M,) of the output; a side that is not attacked may not change at all."""
        pairs, threat = target.pairs, target.threat
        norm = (threat if self.image else threat.at(0)).audit(images, pairs.images)
        edits = (
            threat.audit_captions(captions, pairs.captions) if self.text else Words(0).audit(captions, pairs.captions)
        )
        return norm, edits
