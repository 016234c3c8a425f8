"""Parameter-free ensemble of attacks on a dual encoder, of which each query has its worst case. Our own, after the idea
of AutoAttack (Croce and Hein 2020).

Shapes: N images, M captions, C channels, P captions of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.pairs import Adversarial, Alternative, DualEncoderLike, Gallery, Pairs
from robustcli.attacks.core.passes import Passes, Problem, forward
from robustcli.attacks.core.retrieval import RetrievalAttack
from robustcli.attacks.core.target import Target
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.pgd import PGD
from robustcli.attacks.multimodal.sga import SGA
from robustcli.attacks.multimodal.worst_queries import WorstCaptionQueries, WorstImageQueries, WorstQueries
from robustcli.utils.seeding import derive_seed

_NEGATIVES = 5  # hardest negatives of an image, targeted in turn
_OTHERS, _LAST = "other queries' images", "margin, resumed"  # names of the last two members
_SOFT = 0.1  # temperature in cosines: candidates that far behind the best one still count


@dataclass(frozen=True, kw_only=True)
class RetrievalAutoAttack(RetrievalAttack):
    """Worst case over an ensemble: every query is attacked by one member after the other, and keeps its highest margin.

    The query of an image is attacked by the image and all of its captions, that of a caption by the caption and an
    image of its own, within the sides that the threat model lets the attacker edit. An image is attacked against all
    candidates that the search of the text met, so that image and text are attacked jointly; then the text is searched
    against the new image. The members:

    - the text alone;
    - ``image`` on the cross-entropy over the gallery (for a caption: on the margin to the paired image, a
      soft maximum over candidates) for all queries; the members below attack those alone that are not fooled yet;
    - ``image`` on the margin;
    - ``image`` towards each of the hardest negatives;
    - SGA with ten steps;
    - the adversarial images of the other queries of the pair, and the text against them;
    - ``image`` on the margin once more, from the worst image so far, and the text against that.

    With one part None, or where the attacker may not edit that side, the other is attacked alone.

    Args:
        image: the search, with its steps; its own loss is not read.
        text: the search of words; its own objective is not read: for the query of an image it minimises the cosine
            to the image, for that of a caption it maximises the margin over the gallery.
        seed: see `RetrievalAttack`.
    """

    replaced = ("image.loss", "text.objective")

    def search(self, target: Target, counter: QueryCounter) -> tuple[Tensor, tuple[str, ...]]:
        alternatives = list(self.alternatives(target, counter).values())
        return alternatives[0][0], alternatives[-1][1]

    def perturb(
        self,
        model: DualEncoderLike,
        pairs: Pairs,
        gallery: Gallery | None = None,
        threat: ThreatModel | None = None,
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Adversarial images and captions of a full call: the variant of a query is chosen when all are judged."""
        adversarial: Adversarial = self(model, pairs, gallery, threat)
        return adversarial.images, adversarial.captions

    def passes(self, problem: Problem) -> Passes | None:
        """Those of all queries of an image: of its own, and of each of its captions, which gets an image of its own."""
        text, captions = Passes(searches=0 if self.text is None else 1), problem.captions
        if self.image is None:
            return text * 2
        search, sga = self.image.passes(problem), SGA(image=self._of_sga(), text=self.text).passes(problem)
        if search is None or sga is None:
            return None
        tried = forward(1) + text  # an image that is encoded, and the captions that are searched against it
        of_image = (search + tried) * (2 + _NEGATIVES + 1) + forward(1) + tried + tried * captions
        of_caption = (search + tried) * 3 + forward(1) + tried * (2 + captions)
        # The captions of a caption's query are searched once each, its images are made and encoded for every caption.
        images = replace(of_caption, searches=0) * captions + Passes(searches=of_caption.searches)
        return (text * 2 + of_image + sga + images).bounded()

    def alternatives(self, target: Target, counter: QueryCounter) -> Mapping[str, Alternative]:
        """``image_to_text``, and ``text_to_image_1`` to ``text_to_image_P``: the images in the last are each for one
        of their captions, the first to the last.
        """
        images = WorstImageQueries(target, counter, image=self.image, text=self.text)
        captions = WorstCaptionQueries(target, counter, image=self.image, text=self.text)
        for queries in (images, captions):
            queries.attack_captions("text")
        if self.image is not None and target.threat.moves_images:
            self._attack_images(images)
            self._attack_captions(captions)
            self._sga(target, counter, images, captions)
            _exchange(target, images, captions)
            last = self._member("alternate")
            images.attack_images(images.over_gallery("margin"), images.not_fooled(), _LAST, attack=last, resume=True)
            captions.attack_images(captions.paired_margin(), captions.not_fooled(), _LAST, attack=last, resume=True)
        members = tuple(images.members[row] for row in target.owner.tolist())
        worst = Alternative(images.images, tuple(images.captions), tuple(images.members), members)
        return {"image_to_text": worst, **_images_by_caption(target, captions)}

    def _attack_images(self, queries: WorstImageQueries) -> None:
        all_queries = torch.arange(len(queries.images), device=queries.images.device)
        queries.attack_images(
            queries.over_gallery("cross_entropy", report_fooled=False),
            all_queries,
            "cross-entropy",
            attack=self._member("cross-entropy"),
        )
        margin = queries.over_gallery("margin")
        queries.attack_images(margin, queries.not_fooled(), "margin", attack=self._member("margin"))
        for number, negatives in enumerate(queries.hardest_negatives(_NEGATIVES).unbind(1)):
            queries.attack_images(
                queries.towards(negatives), queries.not_fooled(), "targeted", attack=self._member(f"target {number}")
            )

    def _attack_captions(self, queries: WorstCaptionQueries) -> None:
        all_queries = torch.arange(len(queries.images), device=queries.images.device)
        soft = queries.paired_margin(_SOFT, report_fooled=False)
        queries.attack_images(soft, all_queries, "soft margin", attack=self._member("cross-entropy"))
        queries.attack_images(queries.paired_margin(), queries.not_fooled(), "margin", attack=self._member("margin"))

    def _sga(
        self, target: Target, counter: QueryCounter, images: WorstImageQueries, captions: WorstCaptionQueries
    ) -> None:
        """SGA on the pairs with a query that is not fooled yet."""
        assert self.image is not None
        rows = torch.unique(torch.cat([images.not_fooled(), target.owner[captions.not_fooled()]]))
        if not len(rows):
            return
        part, caption_rows = target.part(rows)
        image = self._of_sga()
        part_counter = QueryCounter.of(len(rows))
        x_adv, edited = SGA(image=image, text=self.text, seed=self.seed).search(part, part_counter)
        counter.add(part_counter, rows)
        x_adv = image.settle(x_adv, part.pairs.images, target.threat)
        images_with_sga, captions_with_sga = target.pairs.images.index_copy(0, rows, x_adv), list(target.pairs.captions)
        for j, caption in zip(caption_rows.tolist(), edited, strict=True):
            captions_with_sga[j] = caption
        for queries, query_rows in ((images, rows), (captions, caption_rows)):
            queries.try_pairs(query_rows, images_with_sga[queries.image_rows[query_rows]], captions_with_sga, "SGA")
            queries.try_images(query_rows, images_with_sga[queries.image_rows[query_rows]], "SGA")

    def _of_sga(self) -> PGD:
        return PGD(steps=10, loss="own_pair", seed=self.seed)

    def _member(self, name: str) -> ImageAttack | None:
        if self.image is None:
            return None
        return self.image.replace(seed=derive_seed(self.seed, "retrieval_autoattack", name))


def _exchange(target: Target, images: WorstImageQueries, captions: WorstCaptionQueries) -> None:
    """Try the images of the other queries of a pair on each query that is not fooled yet."""
    rows = captions.not_fooled()
    captions.try_images(rows, images.images[target.owner[rows]], _OTHERS)
    for x_adv, *_ in _images_by_caption(target, captions).values():
        rows = images.not_fooled()
        images.try_images(rows, x_adv[rows], _OTHERS)
        rows = captions.not_fooled()
        captions.try_images(rows, x_adv[target.owner[rows]], _OTHERS)


def _images_by_caption(target: Target, queries: WorstQueries) -> dict[str, Alternative]:
    """Variants with the worst images of captions number 1 to P of each image; its last one again where it has fewer."""
    paired = target.paired
    last = (paired.valid.sum(1) - 1).clamp(min=0)
    by_caption, has_one = {}, paired.valid[:, 0].tolist()
    for number in range(paired.table.shape[1]):
        caption_rows = paired.table.gather(1, last.clamp(max=number)[:, None]).squeeze(1)
        images = torch.where(paired.valid[:, :1, None, None], queries.images[caption_rows], target.pairs.images)
        members = [
            queries.members[row] if real else "" for row, real in zip(caption_rows.tolist(), has_one, strict=True)
        ]
        by_caption[f"text_to_image_{number + 1}"] = Alternative(
            images, tuple(queries.captions), tuple(members), tuple(queries.members)
        )
    return by_caption
