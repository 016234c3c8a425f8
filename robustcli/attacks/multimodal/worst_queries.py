"""The queries of one direction under attack, each with the worst that was found for it so far.

A pair takes part in many queries: its image in one of its own, and each caption in another. An attacker who answers a
single query may make an image for that query alone, so a caption's query has an image of its own here.

Shapes: Q queries, B queries asked for, N images, M captions, K wordings of a caption, C channels, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.gallery_losses import NEVER, CaptionQueries, ImageQueries, caption_over_gallery
from robustcli.attacks.core.oracle import Evaluated, ImageObjective, TextObjective
from robustcli.attacks.core.retrieval import TextAttack
from robustcli.attacks.core.target import Target

SURE = 1e-5  # a margin in cosines that survives another batch's rounding


class WorstQueries(ABC):
    """Attacks queries and keeps, for each, the images and captions of the highest margin.

    Args:
        image, text: how either side of a pair is attacked; None, or not allowed by the threat model: that side
            stays clean.
        counter: is told what was spent, by image.

    Attributes:
        image_rows: (Q,) long, the image of each query.
        asked: (M,) long, the query in which each caption is attacked.
        images, captions, margin: (Q,C,H,W), M and (Q,): the worst so far; a query is lost where its margin, the best
            false cosine minus the best true one, is 0 or more.
        wordings: (M,K,D), features of what a caption may become; the first is the clean one.
    """

    direction: str

    def __init__(
        self, target: Target, counter: QueryCounter, *, image: ImageAttack | None, text: TextAttack | None
    ) -> None:
        image_moves, text_moves = target.threat.sides(self.direction)
        self.image = image if image_moves and target.threat.moves_images else None
        self.text = text if text_moves and target.threat.moves_texts else None
        self.target, self.counter = target, counter
        self.image_rows, self.asked = self._places()
        self.images, self.captions = target.pairs.images[self.image_rows], list(target.pairs.captions)
        self.wordings = target.text_features[:, None]
        everything = torch.arange(len(self.image_rows), device=self.image_rows.device)
        self.margin = self.margins(target.image_features[self.image_rows], target.text_features, everything)

    @abstractmethod
    def _places(self) -> tuple[Tensor, Tensor]:
        """``image_rows`` and ``asked``."""

    @abstractmethod
    def margins(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
        """(B,) of the queries ``rows``, from features (B,D) of their images and (M,D) of all captions."""

    @abstractmethod
    def text_objective(self, image_features: Tensor) -> TextObjective:
        """Loss of captions, against (Q,D) images."""

    def standing(self) -> Tensor:
        """(B,) long, the queries that are not lost yet and could be."""
        return torch.nonzero(self.margin <= SURE).flatten()

    def attack_images(
        self, objective: ImageObjective, rows: Tensor, *, attack: ImageAttack | None, resume: bool = False
    ) -> None:
        """Raise a loss of images by query, for the queries ``rows``; ``resume`` from the worst images so far."""
        if self.image is None or attack is None:
            return
        clean = self.target.pairs.images
        for part in torch.split(rows, max(1, len(clean))):
            places, spent = self.image_rows[part], QueryCounter.of(len(part))
            found = attack.maximise(
                lambda images, inner, part=part: objective(images, part[inner]),  # type: ignore[misc]
                clean[places],
                self._ids()[part.cpu()],
                self.target.threat,
                start=self.images[part] if resume else None,
                counter=spent,
            )
            self.counter.add(spent, places)
            self.answer(part, found)

    def answer(self, rows: Tensor, images: Tensor) -> None:
        """Word the captions against images (B,C,H,W), and keep both where that is worse than what was found before."""
        if not len(rows) or self.image is None:
            return
        features = self.encode(images)
        if self.text is None:
            self._keep(rows, images, features, self.target.pairs.captions)
            return
        whole = self.target.image_features[self.image_rows].index_copy(0, rows, features)
        captions, _ = self._search(rows, whole)
        self.wordings = torch.cat([self.wordings, self.target.encode_text(tuple(captions))[:, None]], dim=1)
        self._keep(rows, images, features, captions)

    def offer(self, rows: Tensor, images: Tensor, captions: Sequence[str]) -> None:
        """Keep images (B,C,H,W) and captions (M) that came from elsewhere where they are worse."""
        images = images if self.image is not None else self.target.pairs.images[self.image_rows[rows]]
        self._keep(rows, images, self.encode(images), captions if self.text is not None else self.target.pairs.captions)

    def attack_captions(self) -> None:
        """Word the captions against the clean images, and learn which wordings there are."""
        if self.text is None:
            return
        clean = self.target.image_features[self.image_rows]
        captions, tried = self._search(torch.arange(len(clean), device=clean.device), clean)
        self._learn(tried)
        self._keep(torch.arange(len(clean), device=clean.device), self.images.clone(), clean, captions)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D), in batches of the chunk's own size."""
        parts = torch.split(images, len(self.target.pairs.images))
        return torch.cat([self.target.model.encode_image(part) for part in parts])

    def _search(self, rows: Tensor, image_features: Tensor) -> tuple[list[str], list[tuple[Tensor, Tensor]]]:
        """All captions, those of the queries ``rows`` attacked, and the features that the search met: (caption rows,
        features).
        """
        assert self.text is not None
        pairs, tried = self.target.pairs, list[tuple[Tensor, Tensor]]()
        chosen = torch.nonzero(torch.isin(self.asked, rows)).flatten()
        objective = self.text_objective(image_features)

        def watched(features: Tensor, inner: Tensor) -> Tensor:
            tried.append((chosen[inner], features.detach()))
            return objective(features, chosen[inner])

        texts = self.text.maximise(
            self.target.model,
            watched,
            tuple(pairs.captions[j] for j in chosen.tolist()),
            pairs.caption_ids[chosen.cpu()],
            self.target.threat,
            encoder=self.target.encoder,
            owner=self.target.owner[chosen],
            counter=self.counter,
        )
        captions = list(pairs.captions)
        for j, text in zip(chosen.tolist(), texts, strict=True):
            captions[j] = text
        return captions, tried

    def _learn(self, tried: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add features to the wordings; where a caption has fewer than others, the clean one fills up."""
        if not tried:
            return
        owner, features = torch.cat([rows for rows, _ in tried]), torch.cat([found for _, found in tried])
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=len(self.wordings))
        place = torch.arange(len(order), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        added = self.wordings[:, :1].repeat(1, int(counts.max()), 1)
        added[owner[order], place] = features[order]
        self.wordings = torch.cat([self.wordings, added], dim=1)

    def _keep(self, rows: Tensor, images: Tensor, image_features: Tensor, captions: Sequence[str]) -> None:
        margin = self.margins(image_features, self.target.encode_text(tuple(captions)), rows)
        worse = margin > self.margin[rows]
        kept = rows[worse]
        self.margin[kept], self.images[kept] = margin[worse], images[worse]
        for j in torch.nonzero(torch.isin(self.asked, kept)).flatten().tolist():
            self.captions[j] = captions[j]

    @abstractmethod
    def _ids(self) -> Tensor:
        """(Q,) long, names of the draws."""


class WorstImageQueries(WorstQueries):
    """Each image before all captions; its own captions are attacked with it."""

    direction = "image_to_text"

    def _places(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.target.pairs.images), device=self.target.owner.device)
        return rows, self.target.owner

    def _ids(self) -> Tensor:
        return self.target.pairs.image_ids

    def margins(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
        return ImageQueries(self.target, text_features[:, None]).losses("margin", image_features, rows)

    def over_gallery(self, loss: str, *, tell: bool = True) -> ImageObjective:
        """A loss of `gallery_losses`, each own caption in the wording that is farthest; with ``tell`` also whether
        the query is lost.
        """
        queries = self._queries()

        def objective(images: Tensor, rows: Tensor) -> Evaluated:
            features = self.target.model.encode_image(images)
            value = queries.losses(loss, features, rows)
            return (value, queries.losses("margin", features.detach(), rows) > SURE) if tell else value

        return objective

    def towards(self, captions: Tensor) -> ImageObjective:
        """The cosine to one false caption of the gallery, (N,) columns, minus the best true one."""
        queries, matches = self._queries(), self.target.gallery.image_matches

        def objective(images: Tensor, rows: Tensor) -> Evaluated:
            features = self.target.model.encode_image(images)
            similarities = queries.similarities(features, rows)
            best_true = similarities.masked_fill(~matches[rows], -torch.inf).amax(1)
            value = similarities.gather(1, captions[rows][:, None]).squeeze(1) - best_true
            return value, queries.losses("margin", features.detach(), rows) > SURE

        return objective

    def nearest_false(self, count: int) -> Tensor:
        """(N,count) long: the false captions of the gallery nearest to each clean image; fewer where there are no
        more.
        """
        gallery = self.target.gallery
        similarities = (self.target.image_features @ gallery.text_features.T).masked_fill(
            gallery.image_matches, -torch.inf
        )
        fewest = int((~gallery.image_matches).sum(1).min()) if len(similarities) else 0
        return similarities.topk(min(count, fewest), dim=1).indices

    def _queries(self) -> ImageQueries:
        return ImageQueries(self.target, None if self.text is None else self.wordings)

    def text_objective(self, image_features: Tensor) -> TextObjective:
        """Minus the cosine: whatever the image meets first, no caption of its own may stand before that."""
        return lambda features, rows: -(features * image_features[self.target.owner[rows]]).sum(1)


class WorstCaptionQueries(WorstQueries):
    """Each caption before all images; its own image is attacked for it alone."""

    direction = "text_to_image"

    def _places(self) -> tuple[Tensor, Tensor]:
        return self.target.owner, torch.arange(len(self.target.owner), device=self.target.owner.device)

    def _ids(self) -> Tensor:
        return self.target.pairs.caption_ids

    def margins(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
        queries = CaptionQueries.of("margin", self.target, text_features[:, None])
        own = (image_features * text_features[rows]).sum(1, keepdim=True)
        return queries.losses(own, rows).squeeze(1)

    def standing(self) -> Tensor:
        hopeful = (self._room() > SURE).any(1) if len(self.wordings) else self.margin > SURE
        return torch.nonzero((self.margin <= SURE) & hopeful).flatten()

    def apart(self, temperature: float = 0.0, *, tell: bool = True) -> ImageObjective:
        """Best false cosine minus that to the own image, of the best wording, or their soft maximum.

        Only the own image moves, so a caption that has another true image ahead of all false ones is lost in no
        wording but those where it has not: the others count a cosine of 1 less.

        Args:
            temperature: of the soft maximum, in cosines; 0: the hard one.
        """
        queries = CaptionQueries.of("margin", self.target, self.wordings)
        room = self._room(queries)
        goal = queries.columns[..., 1] - (room <= SURE).to(room.dtype)
        again = (queries.features[:, 1:] == queries.features[:, :1]).all(-1)  # what fills up counts once
        goal[:, 1:] = goal[:, 1:].masked_fill(again, NEVER)

        def objective(images: Tensor, rows: Tensor) -> Evaluated:
            features = self.target.model.encode_image(images)
            own = torch.einsum("bd,bkd->bk", features, queries.features[rows])
            ahead = goal[rows] - own
            value = temperature * (ahead / temperature).logsumexp(1) if temperature else ahead.amax(1)
            return (value, queries.losses(own.detach(), rows).amax(1) > SURE) if tell else value

        return objective

    def _room(self, queries: CaptionQueries | None = None) -> Tensor:
        """(M,K): best false cosine minus that of the best true image besides the own one."""
        columns = (queries or CaptionQueries.of("margin", self.target, self.wordings)).columns
        return columns[..., 1] - columns[..., 0]

    def text_objective(self, image_features: Tensor) -> TextObjective:
        return caption_over_gallery("margin", self.target, image_features)
