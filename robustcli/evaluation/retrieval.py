"""Evaluator of dual encoders on a gallery of images and captions.

Shapes: B images of a chunk, C channels, H height, W width, D embedding, N images, M captions, Q queries, R fresh draws,
V variants of an attack.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustcli import metrics
from robustcli.attacks import Adversarial, Gallery, Pairs, RetrievalAttack, ThreatModel
from robustcli.attacks.core.passes import Problem
from robustcli.data.base import ImageTextData
from robustcli.diagnostics import RetrievalSubject
from robustcli.evaluation.access import AttackRun, Entry
from robustcli.evaluation.evaluator import Attacked, Evaluator, Example, Keep, Part, fixed_draws
from robustcli.evaluation.records import CLEAN, PRECISIONS, SPENT, per_query
from robustcli.evaluation.timing import Timing, pair_timing
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
    """Evaluator of retrieval: the first ``limit`` images of a set against all of their captions, and the reverse.

    ``threat.edits`` names the side of a query that is attacked; with ``all`` every pair is attacked and all are ranked
    among each other. Positives are those of the relevance of the data set.

    Args:
        data, threat, batch_size, limit, fresh, seed, at_model, on_chunk: see `Evaluator`.
    """

    directions: tuple[Direction, ...] = ("image_to_text", "text_to_image")
    data: ImageTextData

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._gather()

    def _gather(self) -> None:
        """Captions of the judged images, whose each is, and what is true of what."""
        self.caption_rows = torch.nonzero(self.data.owner < len(self)).flatten()
        self.captions = tuple(self.data.captions[j] for j in self.caption_rows.tolist())
        self.owner = self.data.owner[self.caption_rows]
        self.relevance = self.data.positives(self.image_rows, self.caption_rows)  # (N,M)
        self._features: dict[str, tuple[Tensor, Tensor]] = {}

    def shorten(self, count: int, why: str) -> None:
        super().shorten(count, why)
        self._gather()

    @property
    def captions_per_image(self) -> float:
        return len(self.captions) / len(self)

    def problem(self, norm: str, randomised: bool) -> Problem:
        most = int(torch.bincount(self.owner).max()) if len(self.owner) else 0
        return Problem(captions=max(most, 1), norm=norm, randomised=randomised)

    def timing(self, model: Any, rows: Tensor, threat: ThreatModel) -> Timing:
        return pair_timing(model, self._pairs(model, rows)[0], threat)

    def features(self, model: Any) -> tuple[Tensor, Tensor]:
        """Clean features (N,D) and (M,D) of the gallery, of one draw; computed once for the same weights."""
        identity = model.fingerprint()
        if identity not in self._features:
            chunks = [self._encode_images(model, self.images(model, rows)) for rows in self.chunks()]
            self._features[identity] = torch.cat(chunks), self._encode_captions(model, self.captions)
        return self._features[identity]

    def ranks(self, model: Any) -> metrics.Ranks:
        """Ranks of the clean queries, of one draw."""
        return metrics.ranks(*self.features(model), self.relevance)

    def pairs(self, model: Any, rows: Tensor) -> tuple[Pairs, Gallery]:
        """Pairs of the images ``rows`` with their captions, and the clean gallery around them."""
        pairs, columns = self._pairs(model, rows)
        image_features, text_features = self.features(model)
        return pairs, Gallery(
            image_features=image_features,
            text_features=text_features,
            image_matches=self.relevance[rows].to(model.device),
            caption_matches=self.relevance.T[columns].to(model.device),
            image_rows=rows.to(model.device),
            caption_rows=columns.to(model.device),
        )

    def _pairs(self, model: Any, rows: Tensor) -> tuple[Pairs, Tensor]:
        """Pairs of the images ``rows`` with their captions, and the rows of these in the gallery."""
        columns = torch.nonzero(torch.isin(self.owner, rows)).flatten()
        position = torch.full((len(self),), -1).index_put((rows,), torch.arange(len(rows)))
        pairs = Pairs(
            images=self.images(model, rows),
            captions=tuple(self.captions[j] for j in columns.tolist()),
            owner=position[self.owner[columns]],
            image_ids=rows,
            caption_ids=self.caption_rows[columns],
            relevance=self.relevance[rows].among(columns).matrix(),
        )
        return pairs, columns

    def clean(self, entry: Entry) -> pd.DataFrame:
        images, captions = self._clean_draws(entry)
        ranks = self._rank(entry, images, captions)
        sides = [
            self._records(entry, CLEAN, CLEAN, None, direction, ranks[direction], None) for direction in self.directions
        ]
        return pd.concat(sides, ignore_index=True)

    def attacked(self, run: AttackRun, *, keep: Keep | None = None, part: Part | None = None) -> pd.DataFrame:
        parts = list(self.parts(run, keep=keep, part=part))
        output = pd.concat(_same_variants(parts), ignore_index=True)
        tables = [self._table(run, entry, output[output["model"] == entry.label]) for entry in run.entries]
        return pd.concat(tables, ignore_index=True)

    @property
    def several(self) -> bool:
        return len(self.relevance.items) > len(self.captions)

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

    def inputs(self, models: Iterable[Any]) -> list[str]:
        shared, ceiling = metrics.same_text_ceiling(self.relevance, self.captions)
        if not shared:
            return super().inputs(models)
        most = f"{100 * ceiling.image_to_text:.1f} / {100 * ceiling.text_to_image:.1f}"
        return [
            *super().inputs(models),
            f"{shared:,} of {len(self.captions):,} captions stand word for word under several images: a faultless "
            f"model would reach at most {most} % recall@1.",
        ]

    def model_notes(self, model: Any, height: int, width: int) -> list[str]:
        return list(model.notes(height, width, self.captions)) if hasattr(model, "notes") else []

    def examples(self, run: AttackRun, records: pd.DataFrame, count: int) -> list[Example]:
        """Examples: an image with the first of its captions that was edited, or else its first."""
        rows = self.spread(count)
        pairs, gallery = self.pairs(run.victim, rows)
        attacked = run.attack(run.victim, pairs, gallery, run.threat)
        ranks = records.set_index(["direction", "query_id"]).to_dict("index")
        shown = []
        for position, row in enumerate(rows.tolist()):
            captions = torch.nonzero(pairs.owner == position).flatten().tolist()
            j = next((j for j in captions if attacked.captions[j] != pairs.captions[j]), captions[0])
            image = ranks["image_to_text", self.data.image_ids[row]]
            caption = ranks["text_to_image", str(int(pairs.caption_ids[j]))]
            note = f"rank of a true caption {_change(image)}, of a true image {_change(caption)}"
            shown.append(
                Example(
                    clean=pairs.images[position].cpu(),
                    adversarial=attacked.images[position].cpu(),
                    caption=pairs.captions[j],
                    adversarial_caption=attacked.captions[j],
                    note=note,
                )
            )
        return shown

    def attack_chunk(self, run: AttackRun, rows: Tensor, keep: Keep | None) -> pd.DataFrame:
        """One row for each image and each caption, entry and variant of the attack, with the features of R draws.

        All features are encoded from the output pixels and strings; those that the attack computed are not used.
        """
        pairs, gallery = self.pairs(run.victim, rows)
        attack: RetrievalAttack = run.attack
        frames = []
        for variant, adversarial in attack.variants(run.victim, pairs, gallery, run.threat).items():
            # Audited here as well: a foreign attack need not have a base class that does so.
            norm = run.threat.audit(adversarial.images, pairs.images)
            edits = run.threat.audit_captions(adversarial.captions, pairs.captions)
            if keep is not None:
                keep(run, Attacked(rows, adversarial.images.cpu(), adversarial.captions, variant))
            costs = {name: getattr(adversarial, name).cpu().numpy() for name in SPENT} | {"norm": norm.cpu().numpy()}
            for entry in run.entries:
                keys = {"model": entry.label, "variant": variant}
                images, captions = self._encoded(entry, rows, adversarial)
                members = list(adversarial.image_members) or ""
                columns = {"row": rows.numpy(), "feature": images, "member": members, **costs}
                frames.append(pd.DataFrame({"side": "image", **keys, **columns}))
                members = list(adversarial.caption_members) or ""
                texts = {"edits": edits.numpy(), "caption": list(adversarial.captions), "member": members}
                columns = {"row": gallery.caption_rows.cpu().numpy(), "feature": captions, **texts}
                frames.append(pd.DataFrame({"side": "caption", **keys, **columns}))
        return pd.concat(frames, ignore_index=True)

    def _encoded(self, entry: Entry, rows: Tensor, adversarial: Adversarial) -> tuple[list[Any], list[Any]]:
        """Features of images (R draws concatenated) and of captions, as rows of a table."""
        drawn = self._draw_images(entry, adversarial.images, rows)
        captions = self._encode_captions(entry.model, adversarial.captions)
        flat = drawn.transpose(0, 1).flatten(1)
        return list(flat.cpu().float().numpy()), list(captions.cpu().float().numpy())

    def _table(self, run: AttackRun, entry: Entry, output: pd.DataFrame) -> pd.DataFrame:
        """Records of the queries of ``entry``, each under its worst variant."""
        clean = self._rank(entry, *self._clean_draws(entry))
        by_variant = {str(name): self._rank_variant(entry, rows) for name, rows in output.groupby("variant")}
        sides = []
        for direction in self.directions:
            worst, variants = _worst_variants({name: each[direction] for name, each in by_variant.items()})
            eps = run.threat.radius
            table = self._records(entry, run.name, run.access, eps, direction, clean[direction], worst)
            sides.append(_with_costs(table, output, variants, direction))
        return pd.concat(sides, ignore_index=True)

    def _rank_variant(self, entry: Entry, output: pd.DataFrame) -> "dict[Direction, _DrawnRanks]":
        images, captions = (
            _stacked(output[output["side"] == side]).to(entry.model.device) for side in ("image", "caption")
        )
        drawn = images.view(len(images), self.draws(entry), -1).transpose(0, 1)
        return self._rank(entry, drawn, captions)

    def _rank(self, entry: Entry, images: Tensor, captions: Tensor) -> "dict[Direction, _DrawnRanks]":
        """Ranks of R draws, from features of all images (R,N,D) and of all captions (M,D)."""
        drawn = [self._ranks_of(entry, draw, captions) for draw in images]
        return {
            each: _DrawnRanks(
                ranks=torch.stack([one[each].rank for one in drawn]),
                map_at_r=torch.stack([one[each].map_at_r for one in drawn]),
                r_precision=torch.stack([one[each].r_precision for one in drawn]),
                positives=drawn[0][each].positives,
            )
            for each in self.directions
        }

    def _ranks_of(self, entry: Entry, images: Tensor, captions: Tensor) -> "dict[Direction, metrics.Ranking]":
        """Rankings under ``threat.edits``, from features of all images and captions, attacked."""
        clean_images, clean_captions = self.features(entry.model)
        if self.threat.edits == "all":
            return {
                "image_to_text": metrics.ranking(images, captions, self.relevance),
                "text_to_image": metrics.ranking(captions, images, self.relevance.T),
            }
        query, item = self.threat.edits != "item", self.threat.edits != "query"
        queries = images if query else clean_images, captions if query else clean_captions
        items = images if item else clean_images, captions if item else clean_captions
        # The gallery is clean but for the pair of each query, whose cosines replace those of its entries.
        caption_rows, owner = torch.arange(len(self.captions)), self.owner.to(entry.model.device)
        to_text = (self.owner, caption_rows, (queries[0][owner] * items[1]).sum(1))
        to_image = (caption_rows, self.owner, (queries[1] * items[0][owner]).sum(1))
        return {
            "image_to_text": metrics.ranking(queries[0], clean_captions, self.relevance, replaced=to_text),
            "text_to_image": metrics.ranking(queries[1], clean_images, self.relevance.T, replaced=to_image),
        }

    def _records(
        self,
        entry: Entry,
        attack: str,
        access: str,
        eps: float | None,
        direction: Direction,
        clean: "_DrawnRanks",
        adversarial: "_DrawnRanks | None",
    ) -> pd.DataFrame:
        names = [self.data.image_ids[i] for i in self.image_rows.tolist()]
        ids, images = names, names
        if direction == "text_to_image":
            ids = [str(j) for j in self.caption_rows.tolist()]
            images = [names[i] for i in self.owner.tolist()]
        table = per_query(direction, ids, images, clean.rank, None if adversarial is None else adversarial.rank)
        judged = clean if adversarial is None else adversarial
        table = table.assign(draws=len(judged.ranks), mean=judged.mean, worst=judged.worst, majority=judged.majority)
        precisions = {name: getattr(judged, name).mean(0).numpy() for name in PRECISIONS}
        table = table.assign(positives=judged.positives.numpy(), **precisions)
        keys = {"model": entry.label, "defence": entry.defence, "attack": attack, "access": access}
        for position, (name, value) in enumerate(keys.items()):
            table.insert(position, name, value)
        table.insert(4, "eps", pd.Series([eps] * len(table), dtype="float64"))
        return table

    def _clean_draws(self, entry: Entry) -> tuple[Tensor, Tensor]:
        """Clean features of the images in R fresh draws (R,N,D), and of the captions (M,D)."""
        images, captions = self.features(entry.model)
        if not entry.randomised:
            return images[None], captions
        drawn = [self._draw_images(entry, self.images(entry.model, rows), rows) for rows in self.chunks()]
        return torch.cat(drawn, dim=1), captions

    @torch.no_grad()
    def _draw_images(self, entry: Entry, images: Tensor, rows: Tensor) -> Tensor:
        """(R,B,D): features of images (B,C,H,W) in R fresh draws; an image has the same draws in any batch if the model
        takes the names of its images (`Draws`).
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
        with fixed_draws():
            features: Tensor = model.encode_image(images.to(model.device))
            return features

    def _encode_captions(self, model: Any, captions: tuple[str, ...]) -> Tensor:
        return encode_captions(model, captions, 4 * self.batch_size)


@torch.no_grad()
def encode_captions(model: Any, captions: Sequence[str], batch_size: int) -> Tensor:
    """(M,D); captions of similar length are encoded together, since a batch costs as much as its longest."""
    tokens = model.tokenize(captions)
    order = torch.argsort(tokens.argmax(-1), stable=True)
    encoded: Tensor | None = None
    for rows in torch.split(order, batch_size):
        features = model.encode_text(tokens[rows])
        if encoded is None:  # one copy of all features: of a million captions it is gigabytes
            encoded = features.new_empty(len(order), features.shape[1])
        encoded.index_copy_(0, rows.to(encoded.device), features)
    assert encoded is not None  # a split of nothing is one empty part
    return encoded


@dataclass(frozen=True)
class _DrawnRanks:
    """Ranks, mAP@R and R-precision (R,Q) of the queries of one direction in R draws, and their positives (Q,)."""

    ranks: Tensor
    map_at_r: Tensor
    r_precision: Tensor
    positives: Tensor

    @property
    def rank(self) -> Tensor:
        """(Q,) long: the median over draws, the higher one of two."""
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


def _worst_variants(variants: Mapping[str, _DrawnRanks]) -> tuple[_DrawnRanks, list[str]]:
    """Worst variant of each query: the fewest correct draws, and among equals the worst median rank."""
    names, each_ranks = list(variants), list(variants.values())
    ranks = torch.stack([each.ranks for each in each_ranks])  # (V,R,Q)
    wrong = (ranks > 1).double().mean(1)
    which = (wrong * 1e12 + torch.stack([each.rank for each in each_ranks])).max(0).indices

    def chosen(name: str) -> Tensor:
        stacked = torch.stack([getattr(each, name) for each in each_ranks])
        return stacked.gather(0, which[None, None].expand(1, stacked.shape[1], -1))[0]

    drawn = {name: chosen(name) for name in ("ranks", *PRECISIONS)}
    return _DrawnRanks(**drawn, positives=each_ranks[0].positives), [names[i] for i in which.tolist()]


def _with_costs(table: pd.DataFrame, output: pd.DataFrame, variants: list[str], direction: str) -> pd.DataFrame:
    """Records with norm, edits, caption and member of the worst variant of each query; costs are sums over variants."""
    side = output[output["side"] == ("image" if direction == "image_to_text" else "caption")]
    keys = list(zip(sorted(side["row"].unique()), variants, strict=True))
    chosen = side.set_index(["row", "variant"]).loc[keys]
    if direction == "text_to_image":
        columns: dict[str, Any] = {name: chosen[name].to_numpy() for name in ("edits", "caption")}
        columns["edits"] = columns["edits"].astype("int64")
    else:
        spent = side.groupby("row")[list(SPENT)].sum()
        columns = {"norm": chosen["norm"].to_numpy(), **{name: spent[name].to_numpy() for name in SPENT}}
    columns["member"] = chosen["member"].to_numpy()
    if len(set(output["variant"])) > 1:
        columns["variant"] = variants
    return table.assign(**columns)


def _same_variants(parts: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Parts with the same variants: where a chunk of an ensemble has fewer, its last one is repeated at no cost."""
    names = list(dict.fromkeys(name for part in parts for name in part["variant"]))
    filled = []
    for part in parts:
        present = list(dict.fromkeys(part["variant"]))
        last = part[part["variant"] == present[-1]].assign(**dict.fromkeys(SPENT, 0))
        filled += [part, *(last.assign(variant=name) for name in names if name not in present)]
    return filled


def _stacked(frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(np.stack(frame.sort_values("row")["feature"].to_list()))


def _change(record: Mapping[Hashable, Any]) -> str:
    return f"{record['clean_rank']} → {record['adversarial_rank']}"
