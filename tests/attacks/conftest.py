"""A dual encoder of thirty lines, with pairs that it ranks perfectly, and classifiers whose weak points are known.

Shapes: B batch, C channels, D embedding, N images, M captions, T tokens, W width of the tokens.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import (
    ATTACKS,
    PGD,
    Attack,
    Pairs,
    RetrievalAttack,
    SynonymTable,
    TextAttack,
    ThreatModel,
    WordSubstitution,
)
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

PIXELS = (3, 8, 8)
CONTEXT = 9
COLOURS, SHAPES, SIZES = ("red", "blue", "green", "black"), ("ball", "box", "cone", "ring"), ("big", "small")
SYNONYMS = {
    "red": ["crimson", "scarlet"],
    "blue": ["azure", "navy"],
    "green": ["lime"],
    "black": ["dark"],
    "ball": ["sphere", "globe"],
    "box": ["cube"],
    "cone": ["spike"],
    "ring": ["loop", "hoop"],
    "big": ["large", "huge"],
    "small": ["tiny"],
    "the": ["this"],
}
WORDS = ["[PAD]", "a", "the", "with", "[UNK]", *SYNONYMS, *(word for others in SYNONYMS.values() for word in others)]
VOCABULARY = {word: number for number, word in enumerate(dict.fromkeys(WORDS))}
LETTERS = " abcdefghijklmnopqrstuvwxyz"
START, END = len(VOCABULARY), len(VOCABULARY) + 1
# What makes a row of `ATTACKS` cheap enough for a test on 192 pixels and short captions, where its defaults are not.
CHEAP: Mapping[str, Mapping[str, Any]] = {
    "apgd": {"steps": 20},
    "square": {"queries": 200},
    "autoattack": {"steps": 10, "queries": 20},
    "fab": {"steps": 10},
    "cw": {"steps": 50},
    "fmn": {"steps": 50},
    "ddn": {"steps": 50},
    "alma": {"steps": 100},
    "minimum_norm": {"members": ("deepfool", "ddn"), "steps": 20},
    "reduced_autoattack": {"steps": 10, "fab_steps": 10},
    "torchattacks": {"name": "APGD", "params": {"steps": 20}},
    "characters": {"positions": 5, "alphabet": "ekx "},  # the default tries forty characters at each place
    "typos": {"positions": 5},
}


def family(name: str) -> type[Attack]:
    """The class of a row of `ATTACKS`."""
    row = ATTACKS[name]
    found: type[Attack] = row.func if isinstance(row, partial) else row  # type: ignore[assignment]
    return found


def names_of(kind: type[Any]) -> list[str]:
    """The rows of `ATTACKS` of one kind: a new row is tested without another line."""
    return sorted(name for name in ATTACKS if issubclass(family(name), kind))


def attack_of(name: str, **changed: Any) -> Any:
    """The attack of a row, with cheap settings unless others are given."""
    return ATTACKS[name](**{**CHEAP.get(name, {}), **changed})


def norms_of(name: str) -> tuple[str, ...]:
    """The norms that the check of an attack on classifiers serves."""

    def serves(norm: str) -> bool:
        try:
            attack_of(name).check(ThreatModel(norm=norm, eps=0.1))
        except UserError:
            return False
        return True

    return tuple(norm for norm in ("linf", "l2") if serves(norm))


class ToyDual(nn.Module):
    """Linear towers with unit-norm outputs; batch norm and dropout stand in for what an attack must leave alone."""

    def __init__(self, width: int = 12, dimensions: int = 24) -> None:
        super().__init__()
        draw = generator(0, "toy")
        self.table = nn.Embedding(len(VOCABULARY) + 2, width)
        self.table.weight.data = torch.randn(self.table.weight.shape, generator=draw)
        for word, others in SYNONYMS.items():
            for other in others:  # a synonym stands near its word, but not at it
                offset = 0.5 * torch.randn(width, generator=generator(0, other))
                self.table.weight.data[VOCABULARY[other]] = self.table.weight.data[VOCABULARY[word]] + offset
        self.places = nn.Parameter(0.3 * torch.randn(CONTEXT, width, generator=draw))
        self.text = nn.Linear(width, dimensions, bias=False)
        self.text.weight.data = torch.randn(dimensions, width, generator=draw)
        self.image = nn.Linear(192, dimensions, bias=False)
        self.image.weight.data = torch.randn(dimensions, 192, generator=draw) / 192**0.5
        self.norm, self.drop = nn.BatchNorm1d(dimensions, affine=False), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))

    @property
    def logit_scale(self) -> Tensor:
        return self.scale.exp()

    def encode_image(self, images: Tensor) -> Tensor:
        assert images.min() >= 0
        assert images.max() <= 1
        return F.normalize(self.drop(self.norm(self.image((images - 0.5).flatten(1)))), dim=1)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        rows = []
        for caption in captions:
            known = [VOCABULARY.get(word.lower().strip(".,"), VOCABULARY["[UNK]"]) for word in caption.split()]
            row = [START, *known[: CONTEXT - 2], END]
            rows.append(row + [0] * (CONTEXT - len(row)))
        return torch.tensor(rows, dtype=torch.long).view(-1, CONTEXT)

    def encode_text(self, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        vectors = self.table(tokens) if embeddings is None else embeddings
        vectors = torch.tanh(vectors + self.places[: vectors.shape[1]]) * (tokens != 0)[..., None]
        return F.normalize(self.text(vectors.sum(1)), dim=1)

    def token_embedding(self) -> nn.Embedding:
        return self.table


@pytest.fixture
def model() -> ToyDual:
    return ToyDual().eval()


def make_pairs(model: ToyDual, captions_each: Sequence[int] = (2,) * 16, contrast: float = 0.03) -> Pairs:
    """Images whose feature is the mean of their captions', ``contrast`` away from the grey image in the mean pixel."""
    n = len(captions_each)
    owner = torch.repeat_interleave(torch.arange(n), torch.tensor(captions_each))
    captions = []
    for j, i in enumerate(owner.tolist()):
        size, colour, shape = SIZES[(i + j) % 2], COLOURS[i % 4], SHAPES[i // 4 % 4]
        captions.append(f"a {size} {colour} {shape}" if j % 2 else f"the {shape} with a {colour} ring")
    with torch.no_grad():
        texts = model.encode_text(model.tokenize(captions))
        wanted = torch.zeros(n, texts.shape[1]).index_add_(0, owner, texts)
        pixels = wanted @ torch.linalg.pinv(model.image.weight).T
    pixels = contrast * pixels / pixels.abs().mean(1, keepdim=True).clamp(min=1e-9)
    texture = torch.rand(n, 192, generator=generator(0, "texture")) - 0.5
    texture = 0.1 * (texture - texture @ torch.linalg.pinv(model.image.weight.data) @ model.image.weight.data)
    return Pairs(
        images=(0.5 + pixels + texture).clamp(0, 1).view(n, *PIXELS),
        captions=tuple(captions),
        owner=owner,
        image_ids=torch.arange(n) + 100,
        caption_ids=torch.arange(len(captions)) + 1000,
    )


@pytest.fixture
def pairs(model: ToyDual) -> Pairs:
    return make_pairs(model)


def words(**settings: object) -> WordSubstitution:
    return WordSubstitution(candidates=SynonymTable(SYNONYMS), **settings)  # type: ignore[arg-type]


def text_attack(name: str, budget: int | None = None, **settings: object) -> TextAttack:
    """A text attack of `ATTACKS` with the toy's candidates; ``budget``: how many words or characters (None: the
    default).
    """
    kind = family(name)
    assert issubclass(kind, TextAttack)
    given: dict[str, object] = {"candidates": SynonymTable(SYNONYMS)} if kind.needs_candidates else {}
    edits = {} if budget is None else {f"max_{kind.unit}": budget}
    found: TextAttack = attack_of(name, **{**given, **edits, **settings})
    return found


def whole(name: str) -> Attack:
    """The attack of a row, with all that it needs: a retrieval attack with both sides."""
    kind = family(name)
    if issubclass(kind, TextAttack):
        return text_attack(name)
    sides = {"image": PGD(steps=2), "text": words()} if issubclass(kind, RetrievalAttack) else {}
    found: Attack = attack_of(name, **sides)
    return found


class LetterDual(ToyDual):
    """The toy with a text tower that reads letters; "<end>" is its end of text, as it is to CLIP's tokenizer."""

    context = 40

    def __init__(self, width: int = 12, dimensions: int = 24) -> None:
        super().__init__(width, dimensions)
        draw = generator(0, "letters")
        self.table = nn.Embedding(len(LETTERS) + 4, width)
        self.table.weight.data = torch.randn(self.table.weight.shape, generator=draw)
        self.places = nn.Parameter(torch.randn(self.context, width, generator=draw))

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        known = {letter: number for number, letter in enumerate(LETTERS + "\n", start=2)}
        rows = []
        for caption in captions:
            text = " ".join(caption.lower().split()).replace("<end>", "\n")
            read = [known.get(letter, len(known) + 2) for letter in text[: self.context - 2]]
            row = [1, *read, known["\n"]]
            rows.append(row + [0] * (self.context - len(row)))
        return torch.tensor(rows, dtype=torch.long).view(-1, self.context)


@pytest.fixture(scope="module")
def letters() -> LetterDual:
    return LetterDual().eval()


class LinearClassifier(nn.Module):
    """Two classes, logits (0, w.x + b): its distance to the boundary has a closed form."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.flatten()), nn.Parameter(torch.tensor(bias))

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


class SmallNet(nn.Module):
    """A fixed small convolutional network of four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(512, 4)
        )
        draw = generator(1, "small net")
        for weight in self.parameters():
            weight.data = 0.3 * torch.randn(weight.shape, generator=draw)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


def inputs(n: int, seed: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    """`SmallNet`, images and the labels that it gives them."""
    net, images = SmallNet().eval(), torch.rand(n, *PIXELS, generator=generator(seed))
    return net, images, net(images).argmax(1)


def untouched(images: Tensor) -> Tensor:
    """A model that nobody may ask."""
    raise AssertionError("the model was asked before the threat model was checked")
