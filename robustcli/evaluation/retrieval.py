"""Judging a dual encoder on a gallery of images and captions.

Shapes: B chunk of images, D embedding, N images, M captions.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks import Adversarial, Gallery, Pairs, RetrievalAttack
from robustcli.data.base import ImageTextData
from robustcli.diagnostics import RetrievalSubject
from robustcli.evaluation.base import COSTS, Attacked, Judge, Keep, Part, computed, drawn_alike
from robustcli.models import DualEncoder
from robustcli.report.figures import Example

_EDITED = {
    "all": "All pairs are attacked at once, on both sides where an attack has both parts, and each query is judged in "
    "the attacked gallery, as the field does.",
    "both": "Of a query's own pair both sides are attacked; all other entries of the gallery are clean.",
    "query": "Only the query is attacked: an image against clean captions, a caption against clean images.",
    "item": "Only a query's own entries in the gallery are attacked: its captions, or its image; the query and all "
    "other entries are clean.",
}


class RetrievalJudge(Judge):
    """Judges dual encoders on the first ``limit`` images of a set and on all of their captions.

    Args:
        data: the set; its relation of truth decides what counts as a hit.
        attacker: what the attacker may edit: the ``query``, the ``item`` (the query's own entry in the gallery), or
            ``both`` of them, the rest of the gallery being clean; or ``all`` pairs at once, as the field does.
        batch_size, limit, on_chunk: see `Judge`.
    """

    directions = ("image_to_text", "text_to_image")

    def __init__(
        self,
        data: ImageTextData,
        *,
        batch_size: int,
        limit: int | None = None,
        attacker: str = "all",
        on_chunk: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(data, batch_size=batch_size, limit=limit, on_chunk=on_chunk)
        self.data, self.attacker = data, attacker
        self.caption_rows = torch.nonzero(data.owner < len(self)).flatten()
        self.captions = tuple(data.captions[j] for j in self.caption_rows.tolist())
        self.owner = data.owner[self.caption_rows]
        self.relevance = data.relevance(self.image_rows, self.caption_rows)
        self._clean: tuple[str, Tensor, Tensor] | None = None

    def features(self, model: DualEncoder) -> tuple[Tensor, Tensor]:
        """Clean features (N,D) and (M,D) of the gallery; computed once for the same weights."""
        identity = model.fingerprint()
        if self._clean is None or self._clean[0] != identity:
            chunks = [self._encode_images(model, self.data.images(rows)) for rows in self.chunks()]
            self._clean = (identity, torch.cat(chunks), self._encode_captions(model, self.captions))
        return self._clean[1], self._clean[2]

    def ranks(self, model: DualEncoder) -> metrics.Ranks:
        """Ranks of the clean queries."""
        return metrics.ranks(*self.features(model), self.relevance)

    def pairs(self, model: DualEncoder, rows: Tensor) -> tuple[Pairs, Gallery]:
        """The images of ``rows`` with their captions, and the clean gallery around them."""
        own = torch.nonzero(torch.isin(self.owner, rows)).flatten()
        image_features, text_features = self.features(model)
        place = torch.full((len(self),), -1).index_put((rows,), torch.arange(len(rows)))
        pairs = Pairs(
            images=self.data.images(rows).to(model.device),
            captions=tuple(self.captions[j] for j in own.tolist()),
            owner=place[self.owner[own]],
            image_ids=rows,
            caption_ids=self.caption_rows[own],
            relevance=self.relevance[rows][:, own],
        )
        return pairs, Gallery(
            image_features=image_features,
            text_features=text_features,
            image_matches=self.relevance[rows].to(model.device),
            caption_matches=self.relevance[:, own].T.to(model.device),
            image_rows=rows.to(model.device),
            caption_rows=own.to(model.device),
            attacker="both" if self.attacker == "all" else self.attacker,
        )

    def records(
        self,
        model: DualEncoder,
        label: str,
        name: str,
        attack: RetrievalAttack | None,
        *,
        keep: Keep | None = None,
        part: Part | None = None,
    ) -> pd.DataFrame:
        found = None if attack is None else self._attacked(model, label, name, attack, keep, part or computed)
        clean = self.ranks(model)
        hostile = None if found is None else self._hardest(model, found)
        names = [self.data.image_ids[i] for i in self.image_rows.tolist()]
        owners = [names[i] for i in self.owner.tolist()]
        numbers = [str(j) for j in self.caption_rows.tolist()]
        sides = []
        for direction, ids, images in (("image_to_text", names, names), ("text_to_image", numbers, owners)):
            side: metrics.Direction = direction  # type: ignore[assignment]
            before = getattr(clean, side)
            if found is None or hostile is None:
                sides.append(metrics.per_query(side, ids, images, before))
            else:
                table = metrics.per_query(side, ids, images, before, hostile[side].ranks)
                sides.append(_with_costs(table, found, hostile[side].variants, side))
        table = pd.concat(sides, ignore_index=True)
        table.insert(0, "model", label)
        table.insert(1, "attack", name)
        return table

    def chance(self) -> dict[str, float]:
        chance = metrics.chance_recall(self.relevance, 1)
        return {"image_to_text": chance.image_to_text, "text_to_image": chance.text_to_image}

    def subject(self, model: DualEncoder, samples: int) -> RetrievalSubject:
        return RetrievalSubject(model, *self.pairs(model, self.spread(samples)))

    def describe(self) -> list[str]:
        return [
            f"{len(self)} images and {len(self.captions)} captions; other galleries give other figures.",
            _EDITED[self.attacker],
        ]

    def examples(self, model: DualEncoder, attack: RetrievalAttack, records: pd.DataFrame, count: int) -> list[Example]:
        """Each image with the first of its captions that was edited, or else its first."""
        rows = self.spread(count)
        pairs, gallery = self.pairs(model, rows)
        attacked = attack(model, pairs, gallery)
        ranks = records.set_index(["direction", "query_id"]).to_dict("index")
        shown = []
        for place, row in enumerate(rows.tolist()):
            mine = torch.nonzero(pairs.owner == place).flatten().tolist()
            j = next((j for j in mine if attacked.captions[j] != pairs.captions[j]), mine[0])
            image = ranks["image_to_text", self.data.image_ids[row]]
            caption = ranks["text_to_image", str(int(pairs.caption_ids[j]))]
            note = f"rank of a true caption {_change(image)}, of a true image {_change(caption)}"
            shown.append(
                Example(
                    clean=pairs.images[place].cpu(),
                    adversarial=attacked.images[place].cpu(),
                    caption=pairs.captions[j],
                    adversarial_caption=attacked.captions[j],
                    note=note,
                )
            )
        return shown

    def _attacked(
        self, model: DualEncoder, label: str, name: str, attack: RetrievalAttack, keep: Keep | None, part: Part
    ) -> pd.DataFrame:
        """One row for each image and each caption, and each variant of the attack, with the attacked features."""
        parts = []
        for number, rows in enumerate(self.chunks()):

            def compute(rows: Tensor = rows) -> pd.DataFrame:
                return self._attack_chunk(model, attack, rows, keep)

            parts.append(part(f"{label}-{name}-{number:05d}", compute))
            self.on_chunk(len(rows))
        return pd.concat(_same_variants(parts), ignore_index=True)

    def _attack_chunk(
        self, model: DualEncoder, attack: RetrievalAttack, rows: Tensor, keep: Keep | None
    ) -> pd.DataFrame:
        pairs, gallery = self.pairs(model, rows)
        frames = []
        for variant, found in attack.variants(model, pairs, gallery).items():
            if keep is not None:
                keep(Attacked(rows, found.images.cpu(), found.captions, variant))
            frames += [frame.assign(variant=variant) for frame in self._features_of(model, found, rows, gallery)]
        return pd.concat(frames, ignore_index=True)

    def _features_of(
        self, model: DualEncoder, found: Adversarial, rows: Tensor, gallery: Gallery
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Everything is encoded again from what the attack put out: no feature of the attack's own is believed."""
        images, captions = self._encode_images(model, found.images), self._encode_captions(model, found.captions)
        costs = {key: getattr(found, key).cpu().numpy() for key in COSTS}
        own = gallery.caption_rows.cpu().numpy()
        return (
            pd.DataFrame({"side": "image", "row": rows.numpy(), "feature": _rows_of(images), **costs}),
            pd.DataFrame(
                {
                    "side": "caption",
                    "row": own,
                    "feature": _rows_of(captions),
                    "edits": found.edits.cpu().numpy(),
                    "caption": list(found.captions),
                }
            ),
        )

    def _hardest(self, model: DualEncoder, found: pd.DataFrame) -> "dict[str, _Hardest]":
        ranks = {name: self._ranks_of(model, rows) for name, rows in found.groupby("variant")}
        return {
            direction: _Hardest({name: getattr(each, direction) for name, each in ranks.items()})
            for direction in self.directions
        }

    def _ranks_of(self, model: DualEncoder, found: pd.DataFrame) -> metrics.Ranks:
        """Ranks under one variant, of the queries that the attacker may reach."""
        images, captions = (_stacked(found[found["side"] == side]).to(model.device) for side in ("image", "caption"))
        clean_images, clean_captions = self.features(model)
        if self.attacker == "all":
            return metrics.ranks(images, captions, self.relevance)
        query, item = self.attacker != "item", self.attacker != "query"
        asking = images if query else clean_images, captions if query else clean_captions
        entries = images if item else clean_images, captions if item else clean_captions
        numbers, owner = torch.arange(len(self.captions)), self.owner.to(model.device)
        to_text = (self.owner, numbers, (asking[0][owner] * entries[1]).sum(1))
        to_image = (numbers, self.owner, (asking[1] * entries[0][owner]).sum(1))
        return metrics.Ranks(
            metrics.first_true_rank(asking[0], clean_captions, self.relevance, replaced=to_text),
            metrics.first_true_rank(asking[1], clean_images, self.relevance.T, replaced=to_image),
        )

    @torch.no_grad()
    def _encode_images(self, model: DualEncoder, images: Tensor) -> Tensor:
        with drawn_alike():
            return model.encode_image(images.to(model.device))

    @torch.no_grad()
    def _encode_captions(self, model: DualEncoder, captions: tuple[str, ...]) -> Tensor:
        """(M,D); captions of like length are encoded together, since a batch costs as much as its longest."""
        tokens = model.tokenize(captions)
        order = torch.argsort(tokens.argmax(-1), stable=True)
        encoded = torch.cat([model.encode_text(tokens[rows]) for rows in torch.split(order, 4 * self.batch_size)])
        return torch.empty_like(encoded).index_copy_(0, order.to(encoded.device), encoded)


class _Hardest:
    """For the queries of one direction the worst rank over the variants of an attack, and which one gave it."""

    def __init__(self, ranks: Mapping[Hashable, Tensor]) -> None:
        self.ranks, which = torch.stack(list(ranks.values())).max(0)
        names = list(ranks)
        self.variants = [names[i] for i in which.tolist()]


def _with_costs(table: pd.DataFrame, found: pd.DataFrame, variants: list[Hashable], direction: str) -> pd.DataFrame:
    """The queries with what became of them under the variant that hurts each most; costs are those of all variants."""
    side = found[found["side"] == ("image" if direction == "image_to_text" else "caption")]
    keys = list(zip(sorted(side["row"].unique()), variants, strict=True))
    chosen = side.set_index(["row", "variant"]).loc[keys]
    if direction == "text_to_image":
        columns: dict[str, Any] = {name: chosen[name].to_numpy() for name in ("edits", "caption")}
        columns["edits"] = columns["edits"].astype("int64")
    else:
        spent = side.groupby("row")[list(COSTS[1:])].sum()
        columns = {"norm": chosen["norm"].to_numpy(), **{name: spent[name].to_numpy() for name in COSTS[1:]}}
    if len(set(found["variant"])) > 1:
        columns["variant"] = variants
    return table.assign(**columns)


def _same_variants(parts: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Chunks of an ensemble may have more variants than others; there the last one is taken again, at no cost."""
    names = list(dict.fromkeys(name for part in parts for name in part["variant"]))
    filled = []
    for part in parts:
        known = list(dict.fromkeys(part["variant"]))
        last = part[part["variant"] == known[-1]].assign(**dict.fromkeys(COSTS[1:], 0))
        filled += [part, *(last.assign(variant=name) for name in names if name not in known)]
    return filled


def _rows_of(features: Tensor) -> list[Any]:
    return list(features.cpu().float().numpy())


def _stacked(frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(np.stack(frame.sort_values("row")["feature"].to_list()))


def _change(record: Mapping[Hashable, Any]) -> str:
    return f"{record['clean_rank']} → {record['adversarial_rank']}"
