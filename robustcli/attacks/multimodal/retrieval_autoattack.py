"""An ensemble of attacks on a dual encoder without parameters of its own: what is left of a model's recall when an
attacker may choose, for each query, the worst of all that was tried. Our own, after the idea of AutoAttack (Croce and
Hein 2020).

Shapes: N images, M captions, C channels, P captions of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.pairs import Adversarial, DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.pgd import PGD
from robustcli.attacks.multimodal.sga import SGA
from robustcli.attacks.multimodal.worst_queries import WorstCaptionQueries, WorstImageQueries, WorstQueries
from robustcli.utils.seeding import derive_seed

_TARGETS = 5  # nearest false captions that an image is drawn to in turn
_SOFT = 0.1  # cosines; wordings that stand so much behind the best one still count


@dataclass(frozen=True, kw_only=True)
class RetrievalAutoAttack(RetrievalAttack):
    """Attacks every query for itself, by one member after the other, and keeps the worst that was found for it.

    An image's query may be misled by its image and all of its captions, a caption's query by that caption and by an
    image of its own; what of it the attacker may edit, the threat model says. Each image moves against all wordings
    that the search of the text met, so that image and text are attacked jointly; then the text is searched against the
    new image. The members:

    - the text alone;
    - ``image`` on the cross-entropy over the gallery (for a caption: on the distance from the own image, a soft
      maximum over wordings) for all queries; the members below attack those alone that still stand;
    - ``image`` on the margin;
    - ``image`` towards each of the nearest false captions;
    - SGA with ten steps;
    - the images that were found for the other queries of the pair, and the text against them;
    - ``image`` on the margin once more, from the worst that was found, and the text against that.

    With one part None, or where the attacker may not edit that side, the other is attacked alone.

    Args:
        image: the search, with its steps; its own loss is not read.
        text: the search of words, whose objective is not read: for an image's query it raises the distance from the
            image, for a caption's the margin over the gallery.
        seed: see `RetrievalAttack`.
    """

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        found = list(self.alternatives(target, counter).values())
        return found[0][0], found[-1][1]

    def perturb(
        self,
        model: DualEncoderLike,
        pairs: Pairs,
        gallery: Gallery | None = None,
        threat: ThreatModel | None = None,
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Images and captions of the call itself: which variant is shown is known only when all are judged."""
        found: Adversarial = self(model, pairs, gallery, threat)
        return found.images, found.captions

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """``image_to_text``, and ``text_to_image_1`` to ``text_to_image_P``: the images in the last are each for one
        of their captions, the first to the last.
        """
        images = WorstImageQueries(target, counter, image=self.image, text=self.text)
        captions = WorstCaptionQueries(target, counter, image=self.image, text=self.text)
        for queries in (images, captions):
            queries.attack_captions()
        if self.image is not None and target.threat.moves_images:
            self._attack_images(images)
            self._attack_captions(captions)
            self._sga(target, counter, images, captions)
            _share(target, images, captions)
            last = self._member("alternate")
            images.attack_images(images.over_gallery("margin"), images.standing(), attack=last, resume=True)
            captions.attack_images(captions.apart(), captions.standing(), attack=last, resume=True)
        return {"image_to_text": (images.images, tuple(images.captions)), **_by_caption(target, captions)}

    def _attack_images(self, queries: WorstImageQueries) -> None:
        everything = torch.arange(len(queries.images), device=queries.images.device)
        queries.attack_images(
            queries.over_gallery("cross_entropy", tell=False), everything, attack=self._member("cross-entropy")
        )
        queries.attack_images(queries.over_gallery("margin"), queries.standing(), attack=self._member("margin"))
        for number, captions in enumerate(queries.nearest_false(_TARGETS).unbind(1)):
            queries.attack_images(
                queries.towards(captions), queries.standing(), attack=self._member(f"target {number}")
            )

    def _attack_captions(self, queries: WorstCaptionQueries) -> None:
        everything = torch.arange(len(queries.images), device=queries.images.device)
        queries.attack_images(queries.apart(_SOFT, tell=False), everything, attack=self._member("cross-entropy"))
        queries.attack_images(queries.apart(), queries.standing(), attack=self._member("margin"))

    def _sga(
        self, target: Target, counter: QueryCounter, images: WorstImageQueries, captions: WorstCaptionQueries
    ) -> None:
        """The field's own attack on the pairs of which a query still stands."""
        assert self.image is not None
        rows = torch.unique(torch.cat([images.standing(), target.owner[captions.standing()]]))
        if not len(rows):
            return
        part, places = target.part(rows)
        inner = PGD(steps=10, loss="own_pair", seed=self.seed)
        spent = QueryCounter.of(len(rows))
        found, texts = SGA(image=inner, text=self.text, seed=self.seed).search(part, spent)
        counter.add(spent, rows)
        found = inner.settle(found, part.pairs.images, target.threat)
        whole, words = target.pairs.images.index_copy(0, rows, found), list(target.pairs.captions)
        for j, text in zip(places.tolist(), texts, strict=True):
            words[j] = text
        for queries, chosen in ((images, rows), (captions, places)):
            queries.offer(chosen, whole[queries.image_rows[chosen]], words)
            queries.answer(chosen, whole[queries.image_rows[chosen]])

    def _member(self, name: str) -> ImageAttack | None:
        if self.image is None:
            return None
        return self.image.replace(seed=derive_seed(self.seed, "retrieval_autoattack", name))


def _share(target: Target, images: WorstImageQueries, captions: WorstCaptionQueries) -> None:
    """Try on each query that still stands what was made for the others of its pair."""
    rows = captions.standing()
    captions.answer(rows, images.images[target.owner[rows]])
    for found, _ in _by_caption(target, captions).values():
        rows = images.standing()
        images.answer(rows, found[rows])
        rows = captions.standing()
        captions.answer(rows, found[target.owner[rows]])


def _by_caption(target: Target, queries: WorstQueries) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """The worst images of captions, one of each image's at a time; where an image has no more, its last one again."""
    own = target.own
    last = (own.valid.sum(1) - 1).clamp(min=0)
    found = {}
    for number in range(own.table.shape[1]):
        chosen = own.table.gather(1, last.clamp(max=number)[:, None]).squeeze(1)
        images = torch.where(own.valid[:, :1, None, None], queries.images[chosen], target.pairs.images)
        found[f"text_to_image_{number + 1}"] = (images, tuple(queries.captions))
    return found
