"""How a model is judged: clean, and under each attack, on the whole gallery, with one record a query.

Shapes: B chunk of images, C channels, D embedding, N images, M captions.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks import Gallery, Pairs, RetrievalAttack
from robustcli.data.base import ImageTextData
from robustcli.models import DualEncoder

CLEAN = "clean"
KS = (1, 5, 10)
_COSTS = ("norm", "queries", "gradients", "zero_gradients", "nan_gradients")  # of an image and its captions


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a whole gallery: images (N,C,H,W), M captions, and what it cost."""

    images: Tensor
    captions: tuple[str, ...]
    norm: Tensor
    edits: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nan_gradients: Tensor


class Judge:
    """Judges dual encoders on the first ``limit`` images of a data set and on all of their captions.

    Args:
        data: the set; its relation of truth decides what counts as a hit.
        batch_size: images that are attacked and encoded at once; no figure depends on it but through rounding.
        limit: images; None for all.
        on_chunk: called with the number of images done, for a display.
    """

    def __init__(
        self,
        data: ImageTextData,
        *,
        batch_size: int,
        limit: int | None = None,
        on_chunk: Callable[[int], None] | None = None,
    ) -> None:
        n = min(limit or len(data), len(data))
        self.data, self.batch_size, self.on_chunk = data, batch_size, on_chunk or (lambda _: None)
        self.image_rows = torch.arange(n)
        self.caption_rows = torch.nonzero(data.owner < n).flatten()
        self.captions = tuple(data.captions[j] for j in self.caption_rows.tolist())
        self.owner = data.owner[self.caption_rows]
        self.relevance = data.relevance(self.image_rows, self.caption_rows)
        self._clean: tuple[str, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.image_rows)

    def features(self, model: DualEncoder) -> tuple[Tensor, Tensor]:
        """Clean features (N,D) and (M,D) of the gallery; computed once for the same weights."""
        identity = model.fingerprint()
        if self._clean is None or self._clean[0] != identity:
            chunks = [self._encode_images(model, self.data.images(rows)) for rows in self._chunks()]
            self._clean = (identity, torch.cat(chunks), self._encode_captions(model, self.captions))
        return self._clean[1], self._clean[2]

    def ranks(self, model: DualEncoder) -> metrics.Ranks:
        """Ranks of the clean queries."""
        return metrics.ranks(*self.features(model), self.relevance)

    def attack(self, model: DualEncoder, attack: RetrievalAttack, rows: Tensor | None = None) -> Attacked:
        """Attack the images of ``rows`` (default: all) with their captions, chunk by chunk, in the clean gallery."""
        image_features, text_features = self.features(model)
        parts, owned = [], []
        for chunk in self._chunks(rows):
            own = torch.nonzero(torch.isin(self.owner, chunk)).flatten()
            owned.append(own)
            pairs = self._pairs(chunk, own, model)
            gallery = Gallery(
                image_features=image_features,
                text_features=text_features,
                image_matches=self.relevance[chunk].to(model.device),
                caption_matches=self.relevance[:, own].T.to(model.device),
                image_rows=chunk.to(model.device),
                caption_rows=own.to(model.device),
            )
            parts.append(attack(model, pairs, gallery))
            self.on_chunk(len(chunk))
        order = torch.argsort(torch.cat(owned))  # a set may list the captions of an image far apart
        captions = [caption for part in parts for caption in part.captions]
        costs = {key: torch.cat([getattr(part, key).cpu() for part in parts]) for key in _COSTS}
        return Attacked(
            images=torch.cat([part.images.cpu() for part in parts]),
            captions=tuple(captions[j] for j in order.tolist()),
            edits=torch.cat([part.edits.cpu() for part in parts])[order],
            **costs,
        )

    def records(
        self,
        model: DualEncoder,
        label: str,
        name: str,
        attack: RetrievalAttack | None,
        keep: Callable[[Attacked], None] | None = None,
    ) -> pd.DataFrame:
        """One row a query of both directions, for the model ``label`` under the attack ``name`` (None: no attack).

        Args:
            keep: is given what the attack put out.
        """
        clean = self.ranks(model)
        attacked = None if attack is None else self.attack(model, attack)
        if attacked is not None and keep is not None:
            keep(attacked)
        hostile = None if attacked is None else self._ranks_of(model, attacked)
        images = self._side(clean.image_to_text, None if hostile is None else hostile.image_to_text, "image")
        captions = self._side(clean.text_to_image, None if hostile is None else hostile.text_to_image, "caption")
        if attacked is not None:
            costs = {key: getattr(attacked, key).numpy() for key in _COSTS}
            images = images.assign(**costs)
            captions = captions.assign(edits=attacked.edits.numpy(), caption=list(attacked.captions))
        table = pd.concat([images, captions], ignore_index=True)
        table.insert(0, "model", label)
        table.insert(1, "attack", name)
        return table

    def _ranks_of(self, model: DualEncoder, attacked: Attacked) -> metrics.Ranks:
        """Everything is encoded again from what the attack put out: no feature of the attack's own is believed."""
        chunks = [self._encode_images(model, part) for part in torch.split(attacked.images, self.batch_size)]
        return metrics.ranks(torch.cat(chunks), self._encode_captions(model, attacked.captions), self.relevance)

    def _side(self, clean: Tensor, hostile: Tensor | None, side: str) -> pd.DataFrame:
        names = [self.data.image_ids[i] for i in self.image_rows.tolist()]
        if side == "image":
            return metrics.per_query("image_to_text", names, names, clean, hostile)
        owners = [names[i] for i in self.owner.tolist()]
        return metrics.per_query("text_to_image", self.caption_rows.tolist(), owners, clean, hostile).astype(
            {"query_id": str}
        )

    def _pairs(self, chunk: Tensor, own: Tensor, model: DualEncoder) -> Pairs:
        place = torch.full((len(self),), -1).index_put((chunk,), torch.arange(len(chunk)))
        return Pairs(
            images=self.data.images(chunk).to(model.device),
            captions=tuple(self.captions[j] for j in own.tolist()),
            owner=place[self.owner[own]],
            image_ids=chunk,
            caption_ids=self.caption_rows[own],
        )

    def _chunks(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        yield from torch.split(self.image_rows if rows is None else rows, self.batch_size)

    @torch.no_grad()
    def _encode_images(self, model: DualEncoder, images: Tensor) -> Tensor:
        return model.encode_image(images.to(model.device))

    @torch.no_grad()
    def _encode_captions(self, model: DualEncoder, captions: tuple[str, ...]) -> Tensor:
        """(M,D); captions of like length are encoded together, since a batch costs as much as its longest."""
        tokens = model.tokenize(captions)
        order = torch.argsort(tokens.argmax(-1), stable=True)
        encoded = torch.cat([model.encode_text(tokens[rows]) for rows in torch.split(order, 4 * self.batch_size)])
        return torch.empty_like(encoded).index_copy_(0, order.to(encoded.device), encoded)


def summarise(records: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """One row a model, attack and direction: recall with 95 % intervals (bootstrap over images), both success rates.

    Every column is an aggregation of ``records`` (see `Judge.records`); shares in [0,1].
    """
    rows = []
    for (model, attack, direction), table in records.groupby(["model", "attack", "direction"], sort=False):
        rows.append({"model": model, "attack": attack, "direction": direction, **_figures(table, resamples, seed)})
    return pd.DataFrame(rows)


def _figures(table: pd.DataFrame, resamples: int, seed: int) -> Mapping[str, float | int | None]:
    judged = table["adversarial_rank"].fillna(table["clean_rank"]).to_numpy(dtype="int64")
    ranks, groups = torch.from_numpy(judged), torch.from_numpy(pd.factorize(table["image_id"])[0])
    figures: dict[str, float | int | None] = {"queries": len(table)}
    for k in KS:
        interval = metrics.bootstrap(ranks <= k, groups, resamples=resamples, seed=seed)
        figures |= {
            f"recall_at_{k}": interval.mean,
            f"recall_at_{k}_low": interval.low,
            f"recall_at_{k}_high": interval.high,
        }
    if table["adversarial_rank"].notna().any():
        figures |= metrics.success_rates(table) | _flip_interval(table, groups, resamples, seed)
    return figures


def _flip_interval(table: pd.DataFrame, groups: Tensor, resamples: int, seed: int) -> dict[str, float | None]:
    right = torch.from_numpy(table["clean_correct"].to_numpy(dtype=bool))
    lost = right & ~torch.from_numpy(table["adversarial_correct"].to_numpy(dtype=bool))
    interval = metrics.bootstrap_ratio(lost, right, groups, resamples=resamples, seed=seed)
    return {"success_flip_low": interval.low, "success_flip_high": interval.high}
