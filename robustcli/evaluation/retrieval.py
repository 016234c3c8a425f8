"""Evaluator of dual encoders on a gallery of images and captions.

Shapes: B chunk of images, C channels, H height, W width, D embedding, N images, M captions, Q queries, R fresh answers,
V variants of an attack.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks import Adversarial, Gallery, Pairs, RetrievalAttack
from robustcli.data.base import ImageTextData
from robustcli.diagnostics import RetrievalSubject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.evaluation.evaluator import Attacked, Evaluator, Example, Keep, Part, computed, drawn_alike
from robustcli.evaluation.records import CLEAN, SPENT, per_query
from robustcli.utils.seeding import derive_seed

Direction = Literal["image_to_text", "text_to_image"]

_EDITED = {
    "all": "All pairs are attacked at once, on both sides where an attack has both parts, and each query is judged in "
    "the attacked gallery, as the field does.",
    "both": "Of a query's own pair both sides are attacked; all other entries of the gallery are clean.",
    "query": "Only the query is attacked: an image against clean captions, a caption against clean images.",
    "item": "Only a query's own entries in the gallery are attacked: its captions, or its image; the query and all "
    "other entries are clean.",
}


class RetrievalEvaluator(Evaluator):
    """Ranks the first ``limit`` images of a set among all of their captions, and the captions among the images.

    What of a query is edited, ``threat.edits`` says; with ``all`` every pair is attacked and all are ranked among each
    other. The relation of truth of the data set decides what counts as a hit.

    Args:
        data, threat, batch_size, limit, fresh, seed, on_chunk: see `Evaluator`.
    """

    directions: tuple[Direction, ...] = ("image_to_text", "text_to_image")
    data: ImageTextData

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.caption_rows = torch.nonzero(self.data.owner < len(self)).flatten()
        self.captions = tuple(self.data.captions[j] for j in self.caption_rows.tolist())
        self.owner = self.data.owner[self.caption_rows]
        self.relevance = self.data.relevance(self.image_rows, self.caption_rows)
        self._features: dict[str, tuple[Tensor, Tensor]] = {}

    def features(self, model: Any) -> tuple[Tensor, Tensor]:
        """Clean features (N,D) and (M,D) of the gallery, those of one answer; computed once for the same weights."""
        identity = model.fingerprint()
        if identity not in self._features:
            chunks = [self._encode_images(model, self.data.images(rows)) for rows in self.chunks()]
            self._features[identity] = torch.cat(chunks), self._encode_captions(model, self.captions)
        return self._features[identity]

    def ranks(self, model: Any) -> metrics.Ranks:
        """Ranks of the clean queries, of one answer."""
        return metrics.ranks(*self.features(model), self.relevance)

    def pairs(self, model: Any, rows: Tensor) -> tuple[Pairs, Gallery]:
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
        )

    def clean(self, entry: Entry) -> pd.DataFrame:
        images, captions = self._clean_draws(entry)
        judged = self._judged(entry, images, captions)
        sides = [
            self._records(entry, CLEAN, CLEAN, None, direction, judged[direction], None)
            for direction in self.directions
        ]
        return pd.concat(sides, ignore_index=True)

    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        kept, parts = part or computed, []
        for number, rows in enumerate(self.chunks()):

            def compute(rows: Tensor = rows) -> pd.DataFrame:
                return self._attack_chunk(run, rows, keep)

            parts.append(kept(f"{run.part}/{number:05d}", compute))
            self.on_chunk(len(rows))
        found = pd.concat(_same_variants(parts), ignore_index=True)
        tables = [self._table(run, entry, found[found["model"] == entry.label]) for entry in run.entries]
        return pd.concat(tables, ignore_index=True)

    def answers(self, model: Any, images: Tensor) -> Tensor:
        features: Tensor = model.encode_image(images)
        return features

    def chance(self) -> dict[str, float]:
        chance = metrics.chance_recall(self.relevance, 1)
        return {"image_to_text": chance.image_to_text, "text_to_image": chance.text_to_image}

    def subject(self, entry: Entry, samples: int) -> RetrievalSubject:
        pairs, gallery = self.pairs(entry.model, self.spread(samples))
        return RetrievalSubject(entry.model, pairs, self.threat, gallery=gallery)

    def describe(self) -> list[str]:
        return [
            f"{len(self)} images and {len(self.captions)} captions; other galleries give other figures.",
            _EDITED[self.threat.edits],
        ]

    def examples(self, run: AttackRun, records: pd.DataFrame, count: int) -> list[Example]:
        """Each image with the first of its captions that was edited, or else its first."""
        rows = self.spread(count)
        pairs, gallery = self.pairs(run.victim, rows)
        attacked = run.attack(run.victim, pairs, gallery, run.threat)
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

    def _attack_chunk(self, run: AttackRun, rows: Tensor, keep: Keep | None) -> pd.DataFrame:
        """One row for each image and each caption, entry and variant of the attack, with the features of R answers.

        Everything is encoded again from what the attack put out: no feature of the attack's own is believed.
        """
        pairs, gallery = self.pairs(run.victim, rows)
        attack: RetrievalAttack = run.attack
        frames = []
        for variant, found in attack.variants(run.victim, pairs, gallery, run.threat).items():
            norm = run.threat.audit(found.images, pairs.images)  # of a foreign attack too, whatever its base says
            edits = run.threat.audit_captions(found.captions, pairs.captions)
            if keep is not None:
                keep(run, Attacked(rows, found.images.cpu(), found.captions, variant))
            costs = {name: getattr(found, name).cpu().numpy() for name in SPENT} | {"norm": norm.cpu().numpy()}
            for entry in run.entries:
                own = {"model": entry.label, "variant": variant}
                images, captions = self._encoded(entry, rows, found)
                known = {"row": rows.numpy(), "feature": images, **costs}
                frames.append(pd.DataFrame({"side": "image", **own, **known}))
                texts = {"edits": edits.numpy(), "caption": list(found.captions)}
                known = {"row": gallery.caption_rows.cpu().numpy(), "feature": captions, **texts}
                frames.append(pd.DataFrame({"side": "caption", **own, **known}))
        return pd.concat(frames, ignore_index=True)

    def _encoded(self, entry: Entry, rows: Tensor, found: Adversarial) -> tuple[list[Any], list[Any]]:
        """Features of images, R answers behind each other, and of captions, as rows for a table."""
        drawn = self._draw_images(entry, found.images, rows)
        captions = self._encode_captions(entry.model, found.captions)
        flat = drawn.transpose(0, 1).flatten(1)
        return list(flat.cpu().float().numpy()), list(captions.cpu().float().numpy())

    def _table(self, run: AttackRun, entry: Entry, found: pd.DataFrame) -> pd.DataFrame:
        """The queries of ``entry`` under the variant that hurts each most."""
        clean = self._judged(entry, *self._clean_draws(entry))
        by_variant = {str(name): self._judged_variant(entry, rows) for name, rows in found.groupby("variant")}
        sides = []
        for direction in self.directions:
            hardest, variants = _hardest({name: each[direction] for name, each in by_variant.items()})
            eps = run.threat.radius
            table = self._records(entry, run.name, run.access, eps, direction, clean[direction], hardest)
            sides.append(_with_costs(table, found, variants, direction))
        return pd.concat(sides, ignore_index=True)

    def _judged_variant(self, entry: Entry, found: pd.DataFrame) -> "dict[Direction, _Judged]":
        images, captions = (
            _stacked(found[found["side"] == side]).to(entry.model.device) for side in ("image", "caption")
        )
        drawn = images.view(len(images), self.draws(entry), -1).transpose(0, 1)
        return self._judged(entry, drawn, captions)

    def _judged(self, entry: Entry, images: Tensor, captions: Tensor) -> "dict[Direction, _Judged]":
        """From R answers for all images (R,N,D), and features (M,D) of all captions."""
        ranks = [self._ranks_of(entry, answer, captions) for answer in images]
        return {each: _Judged(torch.stack([getattr(one, each) for one in ranks])) for each in self.directions}

    def _ranks_of(self, entry: Entry, images: Tensor, captions: Tensor) -> metrics.Ranks:
        """Ranks of the queries that the attacker may reach, from features of all images and captions as attacked."""
        clean_images, clean_captions = self.features(entry.model)
        if self.threat.edits == "all":
            return metrics.ranks(images, captions, self.relevance)
        query, item = self.threat.edits != "item", self.threat.edits != "query"
        asking = images if query else clean_images, captions if query else clean_captions
        entries = images if item else clean_images, captions if item else clean_captions
        numbers, owner = torch.arange(len(self.captions)), self.owner.to(entry.model.device)
        to_text = (self.owner, numbers, (asking[0][owner] * entries[1]).sum(1))
        to_image = (numbers, self.owner, (asking[1] * entries[0][owner]).sum(1))
        return metrics.Ranks(
            metrics.first_true_rank(asking[0], clean_captions, self.relevance, replaced=to_text),
            metrics.first_true_rank(asking[1], clean_images, self.relevance.T, replaced=to_image),
        )

    def _records(
        self,
        entry: Entry,
        attack: str,
        access: str,
        eps: float | None,
        direction: Direction,
        clean: "_Judged",
        hostile: "_Judged | None",
    ) -> pd.DataFrame:
        names = [self.data.image_ids[i] for i in self.image_rows.tolist()]
        ids, images = names, names
        if direction == "text_to_image":
            ids = [str(j) for j in self.caption_rows.tolist()]
            images = [names[i] for i in self.owner.tolist()]
        table = per_query(direction, ids, images, clean.rank, None if hostile is None else hostile.rank)
        said = clean if hostile is None else hostile
        table = table.assign(draws=len(said.ranks), mean=said.mean, worst=said.worst, majority=said.majority)
        known = {"model": entry.label, "defence": entry.defence, "attack": attack, "access": access}
        for place, (name, value) in enumerate(known.items()):
            table.insert(place, name, value)
        table.insert(4, "eps", pd.Series([eps] * len(table), dtype="float64"))
        return table

    def _clean_draws(self, entry: Entry) -> tuple[Tensor, Tensor]:
        """Clean features (R,N,D) of fresh answers, and (M,D)."""
        images, captions = self.features(entry.model)
        if not entry.randomised:
            return images[None], captions
        drawn = [self._draw_images(entry, self.data.images(rows), rows) for rows in self.chunks()]
        return torch.cat(drawn, dim=1), captions

    @torch.no_grad()
    def _draw_images(self, entry: Entry, images: Tensor, rows: Tensor) -> Tensor:
        """(R,B,D): fresh answers for images (B,C,H,W); the draws of an image are the same in any batch where the model
        names them.
        """
        count, model = self.draws(entry), entry.model
        if not entry.randomised:
            return self._encode_images(model, images)[None]
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, "fresh draws"))
            if hasattr(model, "answers"):
                features: Tensor = model.answers(images.to(model.device), count, rows.tolist())
                return features
            return torch.stack([model.encode_image(images.to(model.device)) for _ in range(count)])

    @torch.no_grad()
    def _encode_images(self, model: Any, images: Tensor) -> Tensor:
        with drawn_alike():
            features: Tensor = model.encode_image(images.to(model.device))
            return features

    @torch.no_grad()
    def _encode_captions(self, model: Any, captions: tuple[str, ...]) -> Tensor:
        """(M,D); captions of like length are encoded together, since a batch costs as much as its longest."""
        tokens = model.tokenize(captions)
        order = torch.argsort(tokens.argmax(-1), stable=True)
        encoded = torch.cat([model.encode_text(tokens[rows]) for rows in torch.split(order, 4 * self.batch_size)])
        return torch.empty_like(encoded).index_copy_(0, order.to(encoded.device), encoded)


@dataclass(frozen=True)
class _Judged:
    """R answers for the queries of one direction: their ranks (R,Q)."""

    ranks: Tensor

    @property
    def rank(self) -> Tensor:
        """(Q,) the median, the higher one of two."""
        return self.ranks.sort(0).values[len(self.ranks) // 2]

    @property
    def mean(self) -> Any:
        return (self.ranks <= 1).double().mean(0).numpy()

    @property
    def worst(self) -> Any:
        return (self.ranks <= 1).all(0).numpy()

    @property
    def majority(self) -> Any:
        return (self.rank <= 1).numpy()


def _hardest(variants: Mapping[str, _Judged]) -> tuple[_Judged, list[str]]:
    """For each query the variant that leaves the fewest answers right, and of equals the one of the worst rank."""
    names, judged = list(variants), list(variants.values())
    ranks = torch.stack([each.ranks for each in judged])  # (V,R,Q)
    wrong = (ranks > 1).double().mean(1)
    which = (wrong * 1e12 + torch.stack([each.rank for each in judged])).max(0).indices
    chosen = ranks.gather(0, which[None, None].expand(1, ranks.shape[1], -1))[0]
    return _Judged(chosen), [names[i] for i in which.tolist()]


def _with_costs(table: pd.DataFrame, found: pd.DataFrame, variants: list[str], direction: str) -> pd.DataFrame:
    """The queries with what became of them under the variant that hurts each most; costs are those of all variants."""
    side = found[found["side"] == ("image" if direction == "image_to_text" else "caption")]
    keys = list(zip(sorted(side["row"].unique()), variants, strict=True))
    chosen = side.set_index(["row", "variant"]).loc[keys]
    if direction == "text_to_image":
        columns: dict[str, Any] = {name: chosen[name].to_numpy() for name in ("edits", "caption")}
        columns["edits"] = columns["edits"].astype("int64")
    else:
        spent = side.groupby("row")[list(SPENT)].sum()
        columns = {"norm": chosen["norm"].to_numpy(), **{name: spent[name].to_numpy() for name in SPENT}}
    if len(set(found["variant"])) > 1:
        columns["variant"] = variants
    return table.assign(**columns)


def _same_variants(parts: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Chunks of an ensemble may have more variants than others; there the last one is taken again, at no cost."""
    names = list(dict.fromkeys(name for part in parts for name in part["variant"]))
    filled = []
    for part in parts:
        known = list(dict.fromkeys(part["variant"]))
        last = part[part["variant"] == known[-1]].assign(**dict.fromkeys(SPENT, 0))
        filled += [part, *(last.assign(variant=name) for name in names if name not in known)]
    return filled


def _stacked(frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(np.stack(frame.sort_values("row")["feature"].to_list()))


def _change(record: Mapping[Hashable, Any]) -> str:
    return f"{record['clean_rank']} → {record['adversarial_rank']}"
