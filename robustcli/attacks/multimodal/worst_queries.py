"""Worst case of the queries of one direction under attack, query by query.

A pair takes part in several queries: its image in one, and each of its captions in another. An attacker may make an
image for a single query, so that each query of a caption has an adversarial image of its own here.

Shapes: Q queries, B queries of a call, N images, M captions, K candidates of a caption, C channels, D
embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.attacks.core.base import ImageAttack
from robustcli.attacks.core.counter import QueryCounter
from robustcli.attacks.core.gallery_losses import MASKED_LOGIT, CaptionQueries, ImageQueries, caption_over_gallery
from robustcli.attacks.core.oracle import ImageObjective, ObjectiveValue, TextObjective
from robustcli.attacks.core.retrieval import TextAttack
from robustcli.attacks.core.target import Target
from robustcli.utils.rowwise import cosines, in_parts, paired_cosines

MARGIN_TOLERANCE = 1e-5  # in cosines; a margin above it is positive in any batch, whatever the rounding


class WorstQueries(ABC):
    """Running worst case of the queries of one direction: for each the images and captions of the highest margin.

    Args:
        image, text: searches of either side of a pair; a side that is None, or that the threat model does not let the
            attacker edit, stays clean.
        counter: passes are added to it, by image.

    Attributes:
        image_rows: (Q,) long, the image of each query.
        query_of_caption: (M,) long, the query in which each caption is attacked.
        images, captions, margin: (Q,C,H,W), M and (Q,): the worst so far; a query is fooled where its margin, the best
            negative cosine minus the best positive one, is 0 or more.
        members: of each query the member of the ensemble that its worst case is from; empty where it is clean.
        candidates: (M,K,D), features of the edited captions that the searches met; the first is the clean one.
    """

    direction: str

    def __init__(
        self, target: Target, counter: QueryCounter, *, image: ImageAttack | None, text: TextAttack | None
    ) -> None:
        edits_image, edits_text = target.threat.sides(self.direction)
        self.image = image if edits_image and target.threat.moves_images else None
        self.text = text if edits_text and target.threat.moves_texts else None
        self.target, self.counter = target, counter
        self.image_rows, self.query_of_caption = self._layout()
        self.images, self.captions = target.pairs.images[self.image_rows], list(target.pairs.captions)
        self.candidates = target.text_features[:, None]
        all_queries = torch.arange(len(self.image_rows), device=self.image_rows.device)
        self.margin = self.margins(target.image_features[self.image_rows], target.text_features, all_queries)
        self.members = [""] * len(self.image_rows)

    @abstractmethod
    def _layout(self) -> tuple[Tensor, Tensor]:
        """``image_rows`` and ``query_of_caption``."""

    @abstractmethod
    def margins(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
        """(B,) margins of the queries ``rows``, from features (B,D) of their images and (M,D) of all captions."""

    @abstractmethod
    def text_objective(self, image_features: Tensor) -> TextObjective:
        """Loss of captions, against the features (Q,D) of the images of the queries."""

    def not_fooled(self) -> Tensor:
        """(B,) long: the queries that are not fooled yet and could be."""
        return torch.nonzero(self.margin <= MARGIN_TOLERANCE).flatten()

    def attack_images(
        self, objective: ImageObjective, rows: Tensor, member: str, *, attack: ImageAttack | None, resume: bool = False
    ) -> None:
        """Attack the images of the queries ``rows``, then search the captions against them and keep the worst.

        Args:
            objective: of images by query.
            member: name of this part of the ensemble.
            attack: the search of images; None: nothing is done.
            resume: start from the worst images so far.
        """
        if self.image is None or attack is None:
            return
        clean = self.target.pairs.images
        for part in torch.split(rows, max(1, len(clean))):
            rows_of_images, counter = self.image_rows[part], QueryCounter.of(len(part))
            x_adv = attack.maximise(
                lambda images, inner, part=part: objective(images, part[inner]),  # type: ignore[misc]
                clean[rows_of_images],
                self._ids()[part.cpu()],
                self.target.threat,
                start=self.images[part] if resume else None,
                counter=counter,
            )
            self.counter.add(counter, rows_of_images)
            self.try_images(part, x_adv, member)

    def try_images(self, rows: Tensor, images: Tensor, member: str) -> None:
        """Search the captions of the queries ``rows`` against images (B,C,H,W); both are kept where the margin is
        higher.
        """
        if not len(rows) or self.image is None:
            return
        features = self.encode(images)
        if self.text is None:
            self._keep(rows, images, features, self.target.pairs.captions, member)
            return
        image_features = self.target.image_features[self.image_rows].index_copy(0, rows, features)
        captions, _ = self._search(rows, image_features)
        self.candidates = torch.cat([self.candidates, self.target.encode_text(tuple(captions))[:, None]], dim=1)
        self._keep(rows, images, features, captions, member)

    def try_pairs(self, rows: Tensor, images: Tensor, captions: Sequence[str], member: str) -> None:
        """Keep images (B,C,H,W) and captions (M) of another attack where their margin is higher."""
        images = images if self.image is not None else self.target.pairs.images[self.image_rows[rows]]
        captions = captions if self.text is not None else self.target.pairs.captions
        self._keep(rows, images, self.encode(images), captions, member)

    def attack_captions(self, member: str) -> None:
        """Search the captions against the clean images; all edits that the search met become candidates."""
        if self.text is None:
            return
        clean = self.target.image_features[self.image_rows]
        captions, searched = self._search(torch.arange(len(clean), device=clean.device), clean)
        self._add_candidates(searched)
        self._keep(torch.arange(len(clean), device=clean.device), self.images.clone(), clean, captions, member)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,D), in batches of the chunk's own size."""
        parts = torch.split(images, len(self.target.pairs.images))
        return torch.cat([self.target.model.encode_image(part) for part in parts])

    def _search(self, rows: Tensor, image_features: Tensor) -> tuple[list[str], list[tuple[Tensor, Tensor]]]:
        """All captions, those of the queries ``rows`` attacked, and the features that the search met, as pairs of
        caption rows and features.
        """
        assert self.text is not None
        pairs, searched = self.target.pairs, list[tuple[Tensor, Tensor]]()
        caption_rows = torch.nonzero(torch.isin(self.query_of_caption, rows)).flatten()
        objective = self.text_objective(image_features)

        def recorded(features: Tensor, inner: Tensor) -> Tensor:
            searched.append((caption_rows[inner], features.detach()))
            return objective(features, caption_rows[inner])

        texts = self.text.maximise(
            self.target.model,
            recorded,
            tuple(pairs.captions[j] for j in caption_rows.tolist()),
            pairs.caption_ids[caption_rows.cpu()],
            self.target.threat,
            encoder=self.target.encoder,
            owner=self.target.owner[caption_rows],
            counter=self.counter,
        )
        captions = list(pairs.captions)
        for j, text in zip(caption_rows.tolist(), texts, strict=True):
            captions[j] = text
        return captions, searched

    def _add_candidates(self, searched: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add features to the candidates; a caption with fewer than others is padded with its clean features."""
        if not searched:
            return
        owner, features = torch.cat([rows for rows, _ in searched]), torch.cat([met for _, met in searched])
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=len(self.candidates))
        position = torch.arange(len(order), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        added = self.candidates[:, :1].repeat(1, int(counts.max()), 1)
        added[owner[order], position] = features[order]
        self.candidates = torch.cat([self.candidates, added], dim=1)

    def _keep(self, rows: Tensor, images: Tensor, image_features: Tensor, captions: Sequence[str], member: str) -> None:
        margin = self.margins(image_features, self.target.encode_text(tuple(captions)), rows)
        higher = margin > self.margin[rows]
        queries = rows[higher]
        self.margin[queries], self.images[queries] = margin[higher], images[higher]
        for query in queries.tolist():
            self.members[query] = member
        for j in torch.nonzero(torch.isin(self.query_of_caption, queries)).flatten().tolist():
            self.captions[j] = captions[j]

    @abstractmethod
    def _ids(self) -> Tensor:
        """(Q,) long, seeds of the random draws."""


class WorstImageQueries(WorstQueries):
    """Images as queries before all captions; the paired captions are attacked with the image."""

    direction = "image_to_text"

    def _layout(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.target.pairs.images), device=self.target.owner.device)
        return rows, self.target.owner

    def _ids(self) -> Tensor:
        return self.target.pairs.image_ids

    def margins(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
        return ImageQueries(self.target, text_features[:, None]).losses("margin", image_features, rows)

    def over_gallery(self, loss: str, *, report_fooled: bool = True) -> ImageObjective:
        """A loss of `gallery_losses`, a paired caption counted by its least similar candidate; one pass of the image
        tower.

        Args:
            report_fooled: give also (B,) bool: the query is fooled, the stop signal of a search.
        """
        queries = self._queries()

        def objective(images: Tensor, rows: Tensor) -> ObjectiveValue:
            features = self.target.model.encode_image(images)
            value = queries.losses(loss, features, rows)
            if not report_fooled:
                return value
            return value, queries.losses("margin", features.detach(), rows) > MARGIN_TOLERANCE

        return objective

    def towards(self, captions: Tensor) -> ImageObjective:
        """Targeted loss: cosine to one negative of the gallery, ``captions`` (N,) columns, minus the best positive."""
        queries, matches = self._queries(), self.target.gallery.image_matches

        def of_part(features: Tensor, rows: Tensor) -> Tensor:
            similarities = queries.similarities(features, rows)
            best_positive = similarities.masked_fill(~matches.matrix(rows), -torch.inf).amax(1)
            return similarities.gather(1, captions[rows][:, None]).squeeze(1) - best_positive

        def objective(images: Tensor, rows: Tensor) -> ObjectiveValue:
            features = self.target.model.encode_image(images)
            value = in_parts(of_part, matches.width, features, rows)
            return value, queries.losses("margin", features.detach(), rows) > MARGIN_TOLERANCE

        return objective

    def hardest_negatives(self, count: int) -> Tensor:
        """(N,count) long: the negatives of the gallery nearest to each clean image; fewer where there are no more."""
        gallery, features = self.target.gallery, self.target.image_features
        most = gallery.image_matches.width - gallery.image_matches.most if len(features) else 0

        def nearest(features: Tensor, rows: Tensor) -> Tensor:
            similarities = cosines(features, gallery.text_features)
            negatives = similarities.masked_fill(gallery.image_matches.matrix(rows), -torch.inf)
            return negatives.topk(min(count, most), dim=1).indices

        rows = torch.arange(len(features), device=features.device)
        return in_parts(nearest, gallery.image_matches.width, features, rows)

    def _queries(self) -> ImageQueries:
        return ImageQueries(self.target, None if self.text is None else self.candidates)

    def text_objective(self, image_features: Tensor) -> TextObjective:
        """Minus the cosine to the paired image: whatever negative an image ranks best, no caption of its own may beat
        it.
        """
        return lambda features, rows: -(features * image_features[self.target.owner[rows]]).sum(1)


class WorstCaptionQueries(WorstQueries):
    """Captions as queries before all images; the paired image is attacked for each caption alone."""

    direction = "text_to_image"

    def _layout(self) -> tuple[Tensor, Tensor]:
        return self.target.owner, torch.arange(len(self.target.owner), device=self.target.owner.device)

    def _ids(self) -> Tensor:
        return self.target.pairs.caption_ids

    def margins(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
        queries = CaptionQueries.of("margin", self.target, text_features[:, None])
        paired = (image_features * text_features[rows]).sum(1, keepdim=True)
        return queries.losses(paired, rows).squeeze(1)

    def not_fooled(self) -> Tensor:
        attainable = self.margin > MARGIN_TOLERANCE
        if len(self.candidates):
            attainable = (self._attainable_margin() > MARGIN_TOLERANCE).any(1)
        return torch.nonzero((self.margin <= MARGIN_TOLERANCE) & attainable).flatten()

    def paired_margin(self, temperature: float = 0.0, *, report_fooled: bool = True) -> ImageObjective:
        """Best negative cosine minus that to the paired image, of the best candidate, or their soft maximum.

        Only the paired image is attacked, so a candidate with another positive ahead of all negatives cannot fool the
        query: it counts a cosine of 1 less.

        Args:
            temperature: of the soft maximum, in cosines; 0: the hard one.
            report_fooled: see `over_gallery`.
        """
        queries = CaptionQueries.of("margin", self.target, self.candidates)
        attainable = self._attainable_margin(queries)
        best_negative = queries.columns[..., 1] - (attainable <= MARGIN_TOLERANCE).to(attainable.dtype)
        repeated = (queries.features[:, 1:] == queries.features[:, :1]).all(-1)  # padding counts once
        best_negative[:, 1:] = best_negative[:, 1:].masked_fill(repeated, MASKED_LOGIT)

        def objective(images: Tensor, rows: Tensor) -> ObjectiveValue:
            features = self.target.model.encode_image(images)
            paired = paired_cosines(features, queries.features[rows])
            margins = best_negative[rows] - paired
            value = _soft_maximum(margins, temperature) if temperature else margins.amax(1)
            return (value, queries.losses(paired.detach(), rows).amax(1) > MARGIN_TOLERANCE) if report_fooled else value

        return objective

    def _attainable_margin(self, queries: CaptionQueries | None = None) -> Tensor:
        """(M,K): upper bound of the margins, best negative cosine minus that of the best positive besides the paired
        image.
        """
        columns = (queries or CaptionQueries.of("margin", self.target, self.candidates)).columns
        return columns[..., 1] - columns[..., 0]

    def text_objective(self, image_features: Tensor) -> TextObjective:
        return caption_over_gallery("margin", self.target, image_features)


def _soft_maximum(margins: Tensor, temperature: float) -> Tensor:
    """(B,K) -> (B,), in float64: in float32 the sum would depend on K, the most candidates of any caption beside it."""
    return (temperature * (margins.double() / temperature).logsumexp(1)).to(margins.dtype)
