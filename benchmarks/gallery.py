"""Retrieval before large galleries: time against the bare products of features, and the most memory that is held.

The floor of a ranking multiplies the same float64 blocks and throws the scores away; that of a step of an attack is
the product with all captions and back, in float32, and nothing of a model. Features are random, 512 of each item as
those of a ViT-B/16. The memory is the most that the process holds meanwhile (``VmHWM`` of Linux), with its features and
libraries.
"""

import math
import resource
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import Row, cpu_seconds, cpu_seconds_once
from robustcli import metrics
from robustcli.attacks import PGD, CharacterEdits, Gallery, Pairs, SepAttack, ThreatModel
from robustcli.data import Scenes
from robustcli.data.scenes import vocabulary
from robustcli.metrics.retrieval import KEYS
from robustcli.models import tiny
from robustcli.utils.relevance import Relevance

DIMENSIONS = 512
BOUND = 4.0  # GiB
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run(*, quick: bool = False) -> list[Row]:
    """The test set of COCO, both ways; a million captions of 200,000 images, of which the first 250 images and
    their captions are queries; and a step of PGD, alone and in a Sep-Attack, on 32 images and their captions there.
    """
    coco = _Task(60, 300) if quick else _Task(5_000, 25_000)
    rows = [coco.row("COCO", queries=len(coco.images), target=2.0)]
    del coco
    large = _Task(400, 2_000) if quick else _Task(200_000, 1_000_000)
    rows.append(large.row("large", queries=40 if quick else 250, target=2.0))
    rows += large.attacks(8 if quick else 32)
    return rows


class _Task:
    """Features of images (N,D) and of five captions each (M,D), and which are whose."""

    def __init__(self, images: int, captions: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images, self.texts = (_unit(count, draw) for count in (images, captions))
        self.owner = torch.arange(captions) // (captions // images)
        self.true = Relevance.of_pairs(self.owner, torch.arange(captions), (images, captions))

    def row(self, name: str, *, queries: int, target: float) -> Row:
        """Both directions, of the first ``queries`` images and of their captions."""
        texts = int((self.owner < queries).sum())
        sides = [
            (self.images[:queries], self.texts, self.true[torch.arange(queries)]),
            (self.texts[:texts], self.images, self.true.T[torch.arange(texts)]),
        ]
        recall: list[float] = []

        def ours() -> None:
            found = [metrics.ranking(*side) for side in sides]
            recall[:] = [metrics.recall_at_k(side.rank, 10) for side in found]

        with _Peak() as peak:
            spent = cpu_seconds_once(ours)
        floor = cpu_seconds_once(lambda: [_products(*side[:2]) for side in sides])
        note = f"peak {peak.gib:.2f} of {BOUND:g} GiB; recall@10 {recall[0]:.1e} / {recall[1]:.1e}"
        what = f"{name}: {queries:,} x {len(self.texts):,} and {texts:,} x {len(self.images):,}, ranks"
        return Row(what=what, against="float64 products", ours=spent, other=floor, at_most=target, note=note)

    def attacks(self, images: int) -> list[Row]:
        """One step of PGD on the first ``images`` images, alone and beside an edit of a character of their captions."""
        model, data = tiny(vocabulary(), embed_dim=DIMENSIONS).eval(), Scenes(split="test", train=1, val=1, test=images)
        rows, own = torch.arange(images), self.owner < images
        texts = torch.nonzero(own).flatten()
        pairs = Pairs(
            images=data.images(rows),
            captions=tuple(data.captions[caption] for row in rows for caption in data.captions_of()[row][:5].tolist()),
            owner=self.owner[own],
            image_ids=rows,
            caption_ids=texts,
        )
        gallery = Gallery(
            image_features=self.images,
            text_features=self.texts,
            image_matches=self.true[rows],
            caption_matches=self.true.T[texts],
            image_rows=rows,
            caption_rows=texts,
        )
        step = PGD(steps=1, eps="4/255", loss="cross_entropy", keep="last", early_stop=False)
        text = CharacterEdits(search="typos", positions=1, objective="margin")
        threat = ThreatModel(eps="4/255", characters=1)
        features = F.normalize(torch.randn(images, DIMENSIONS), dim=1).requires_grad_()
        floor = cpu_seconds({"products": lambda: (features @ self.texts.T).sum().backward()}, repeats=1)["products"]
        rows = []
        for name, attack in {"PGD": SepAttack(image=step), "Sep-Attack": SepAttack(image=step, text=text)}.items():
            with _Peak() as peak:
                spent = cpu_seconds_once(lambda attack=attack: attack(model, pairs, gallery, threat))  # type: ignore[misc]
            what, note = f"large: {name} of one step, {images} images", f"peak {peak.gib:.2f} of {BOUND:g} GiB"
            rows.append(Row(what=what, against="products of a step", ours=spent, other=floor, note=note))
        return rows


def _unit(count: int, draw: torch.Generator) -> Tensor:
    features = torch.randn(count, DIMENSIONS, generator=draw)
    for block in torch.split(features, 1 << 14):
        F.normalize(block, dim=1, out=block)
    return features


def _products(queries: Tensor, gallery: Tensor) -> None:
    side = math.isqrt(KEYS["cpu"])
    for block in torch.split(queries, side):
        rows = block.double()
        for items in torch.split(gallery, side):
            torch.mm(rows, items.double().T)


class _Peak:
    """Context that notes the most memory of this process within it, in GiB; since its start where Linux is not."""

    gib = 0.0

    def __enter__(self) -> "_Peak":
        if _RESET.exists():
            _RESET.write_text("5")  # the mark of the highest resident set is set back
        return self

    def __exit__(self, *_: object) -> None:
        if _STATUS.exists():
            lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
            self.gib = int(lines["VmHWM"].split()[0]) / (1 << 20)
        else:
            self.gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
