"""Every attack on pairs runs on models of the transformers library, whose tokenizers differ from CLIP's.

Shapes: N images, M captions.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustcli.attacks import ATTACKS, PGD, Pairs, RetrievalAttack, SepAttack, SynonymTable, TextAttack
from robustcli.attacks.core.oracle import content_lengths
from robustcli.attacks.text.candidates import EmbeddingNeighbours
from robustcli.attacks.text.edits import _inside
from robustcli.models import DualEncoder, transformers
from robustcli.utils.seeding import generator

from ..models.hf_folders import KINDS, WORDS, make_folder
from .conftest import attack_of, family, names_of

SYNONYMS = {"red": ["blue"], "circle": ["square"], "small": ["red"]}
CAPTIONS = ("a red circle", "the small circle", "small red circle", "a circle")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    folder: Path = tmp_path_factory.mktemp(request.param)
    make_folder(request.param, folder)
    return transformers(str(folder)).eval()


def pairs() -> Pairs:
    images: Tensor = torch.rand(2, 3, 32, 32, generator=generator(0, "images"))
    owner = torch.tensor([0, 0, 1, 1])
    return Pairs(images=images, captions=CAPTIONS, owner=owner, image_ids=torch.arange(2), caption_ids=torch.arange(4))


def attack(name: str) -> RetrievalAttack:
    kind = family(name)
    text = {"candidates": SynonymTable(SYNONYMS)}
    if issubclass(kind, TextAttack):
        return SepAttack(text=attack_of(name, **(text if kind.needs_candidates else {})))
    if not issubclass(kind, RetrievalAttack):
        return SepAttack(image=attack_of(name, steps=1, eps=8 / 255))
    found: RetrievalAttack = ATTACKS[name](image=PGD(steps=1, eps=8 / 255), text=attack_of("words", **text))  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("name", sorted([*names_of(RetrievalAttack), *names_of(TextAttack), "pgd"]))
def test_an_attack_changes_pairs_within_its_budget(model: DualEncoder, name: str) -> None:
    found, before = attack(name)(model, pairs()), pairs()
    assert float((found.images - before.images).abs().max()) <= 8 / 255 + 1e-6
    changed_images = not torch.equal(found.images, before.images)
    changed_texts = found.captions != before.captions
    assert changed_images or changed_texts
    assert bool((found.edits >= 0).all()) and (found.edits > 0).any() == changed_texts


def test_neighbours_read_the_tokens_of_the_whole_word(model: DualEncoder) -> None:
    """A tokenizer may have no start, and one token for end and padding."""
    table = model.token_embedding().weight
    ids = {word: [int(i) for i in model.tokenize([word])[0] if i not in model.tokenize([""])[0]] for word in WORDS}
    means = torch.stack([table[ids[word]].mean(0) for word in WORDS]).detach()
    cosines = torch.nn.functional.normalize(means, dim=1) @ torch.nn.functional.normalize(means, dim=1).T
    best = cosines.fill_diagonal_(-2.0).argmax(1).tolist()
    found = EmbeddingNeighbours(model, list(WORDS), top_k=1)(["red circle zebra"])[0]
    expected = [(place, WORDS[best[WORDS.index(word)]]) for place, word in enumerate(("red", "circle", "zebra"))]
    assert found == expected


def test_special_tokens_in_a_caption_are_counted(model: DualEncoder) -> None:
    empty = model.tokenize([""])[0]
    plain = model.tokenize(["red circle"])
    place = int((~torch.isin(plain[0], empty)).nonzero()[0])
    forged = plain.clone()
    forged[0, place] = empty[-1] if empty[-1] in empty else empty[0]
    assert int(_inside(forged, empty)) == int(_inside(plain, empty)) + 1
    assert int(content_lengths(plain)) > place
