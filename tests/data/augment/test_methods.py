"""The contract of every choice of conf/augment: its pairs depend on image, seed and method alone, and can be read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from robustcli.builders.data import build_training_pairs
from robustcli.builders.hook import build
from robustcli.cli.launch import written_out
from robustcli.config.compose import compose
from robustcli.data.augment import Augmented, AugmentedPair, Augmenter, read_pairs
from robustcli.data.augment.base import distinct
from robustcli.data.augment.shards import shard_path
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError

from . import models
from .test_augmented import stored

METHODS = sorted(path.stem for path in (Path(__file__).parents[3] / "conf" / "augment").glob("*.yaml"))
DIFFUSION = ("text2image", "image2image")
DATA = ["dataset.train=24", "dataset.val=8", "dataset.test=8", "dataset.captions_per_image=2"]
SHORT = ["augment.number=3", "augment.max_new_tokens=6"]


def llm(folder: Path) -> list[str]:
    template = "{% for turn in messages %}caption {{ turn['content'] }} {% endfor %}"
    return [f"augment.model={models.causal(folder, template=template)}", *SHORT]


def backtranslate(folder: Path) -> list[str]:
    there, back = models.seq2seq(folder / "there", 7), models.seq2seq(folder / "back", 21)
    return [f"augment.there={there}", f"augment.back={back}", *SHORT]


def captioner(folder: Path) -> list[str]:
    return [f"augment.model={models.blip(folder)}", *SHORT]


def diffusion(folder: Path) -> list[str]:
    pytest.importorskip("diffusers", reason="diffusers is heavy (60 MB, 7 s of import): install robustcli[diffusion]")
    folder = models.stable_diffusion(folder)
    return [f"augment.model={folder}", "augment.number=2", "augment.steps=3", "augment.size=16"]


# What a method needs beside its YAML; a method that needs nothing has no row.
NEEDS: dict[str, Callable[[Path], list[str]]] = {
    "llm": llm,
    "backtranslate": backtranslate,
    "captioner": captioner,
    "text2image": diffusion,
    "image2image": diffusion,
}


@dataclass(frozen=True)
class Case:
    """A method, the set that it augments, and the pairs of all images."""

    name: str
    augmenter: Augmenter
    data: ImageTextData
    pairs: list[AugmentedPair]


def composed(name: str, words: list[str]) -> Any:
    return compose("augment", written_out("augment", [f"augment={name}", *DATA, *words]))


def method(name: str, *words: str) -> Augmenter:
    augmenter: Augmenter = build(composed(name, list(words)).augment, torch.device("cpu"), node="augment")
    return augmenter


@pytest.fixture(scope="module", params=METHODS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param
    if name in NEEDS:
        pytest.importorskip("transformers")
    words = NEEDS[name](tmp_path_factory.mktemp(name) / "model") if name in NEEDS else []
    config = composed(name, words)
    data = build_training_pairs(config.dataset, "train")
    augmenter = method(name, *words)
    augmenter.check(data)
    return Case(name, augmenter, data, augmenter.pairs(data, range(24), seed=0))


def content(pair: AugmentedPair) -> tuple[object, ...]:
    return pair.source, pair.source_caption, pair.caption, pair.facts, pair.true


def test_pairs_do_not_depend_on_the_batch_nor_on_the_order(case: Case) -> None:
    assert len(case.pairs) > 20
    random, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    for size in (1, 7, 64):
        rows = list(reversed(range(24)))
        parts = [rows[start : start + size] for start in range(0, 24, size)]
        made = [pair for part in parts for pair in case.augmenter.pairs(case.data, part, seed=0)]
        made.sort(key=lambda pair: pair.source)
        assert list(map(content, made)) == list(map(content, case.pairs))
        for pair, whole in zip(made, case.pairs, strict=True):
            if pair.image is not None and whole.image is not None:
                apart = np.abs(pair.image.astype(int) - whole.image).max()
                assert apart <= (1 if case.name in DIFFUSION else 0), "a level where a network rounds otherwise"
    assert torch.equal(random, torch.get_rng_state()) and (numpy == np.random.get_state()[1]).all()


def test_another_seed_gives_other_pairs(case: Case) -> None:
    if case.name == "captions":
        pytest.skip("nothing is drawn: the order of captions is that of the training")
    other = case.augmenter.pairs(case.data, range(24), seed=1)
    images = [pair.image.tobytes() for pair in case.pairs if pair.image is not None]
    assert list(map(content, other)) != list(map(content, case.pairs)) or images != [
        pair.image.tobytes() for pair in other if pair.image is not None
    ]


def test_pairs_are_new_and_rows_of_the_set(case: Case) -> None:
    own = case.data.captions_of()
    kept = distinct(case.pairs, case.data)
    assert kept
    for pair in kept:
        captions = [case.data.captions[row] for row in own[pair.source].tolist()]
        assert pair.caption not in captions and (pair.caption or pair.image is not None)
        assert pair.caption is None or pair.caption.strip() == pair.caption
        assert pair.source_caption is None or pair.source_caption in own[pair.source].tolist()
        if pair.image is not None:
            assert pair.image.dtype == np.uint8 and pair.image.ndim == 3 and pair.image.shape[2] == 3


def test_a_training_set_reads_what_was_stored(case: Case, tmp_path: Path) -> None:
    kept = distinct(case.pairs, case.data)
    place = stored(tmp_path, case.data, kept)
    read = read_pairs(place)
    assert [pair.source for pair in read] == [case.data.image_ids[pair.source] for pair in kept]
    assert [pair.caption for pair in read] == [pair.caption for pair in kept]
    data = Augmented(case.data, [place])
    new = torch.arange(len(case.data), len(data))
    assert len(new) == sum(pair.image is not None for pair in kept)
    assert not len(new) or data.images(new).shape[1:] == case.data.images(torch.tensor([0])).shape[1:]
    assert sum(map(len, data.pairs_of()[1])) >= len(kept)


def test_the_provenance_names_the_model(case: Case) -> None:
    made = case.augmenter.provenance()
    assert set(made) == {"model", "model_sha256"}
    assert (made["model_sha256"] is not None) == (case.name in NEEDS)


WRONG = {
    "eda": [
        ("augment.number=0", "augment.number is 0"),
        ("augment.alpha.swap=2", "between 0 and 1"),
        ("+augment.alpha.shuffle=.1", "choose among replacement"),
        ("augment.alpha={replacement:0,insertion:0,swap:0,deletion:0}", "0 for every operation"),
        ("augment.synonyms=absent.json", "does not exist"),
        ("augment.wordnet=folder", "without augment.synonyms=wordnet"),
    ],
    "synonyms": [("augment.number=0", "augment.number is 0"), ("augment.rate=1.5", "between 0 and 1")],
    "randaugment": [
        ("augment.policy=cutout", "choose one of randaugment, trivialaugment, autoaugment"),
        ("augment.magnitude=31", "at most 30"),
        ("augment.num_ops=0", "augment.num_ops is 0"),
        ("augment.policy=autoaugment augment.magnitude=3", "nothing would read it"),
    ],
    "llm": [
        ("augment.prompt=rewrite", r"write \{caption\}"),
        ("augment.temperature=0", "nothing is drawn"),
        ("augment.top_p=0", "above 0 and at most 1"),
        ("augment.top_k=-1", "0 or more"),
        ("augment.max_new_tokens=0", "1 or more"),
        ("", "augment.model is null"),
        ("augment.model=absent", "no folder is"),
        ("augment.model=.", "lacks config.json or weights"),
    ],
    "backtranslate": [("augment.beams=0", "augment.beams is 0"), ("", "augment.there is null")],
    "captioner": [("augment.number=0", "augment.number is 0"), ("", "augment.model is null")],
    "text2image": [
        ("augment.steps=0", "augment.steps is 0"),
        ("augment.lora=weights.bin", r"\.safetensors"),
        ("augment.number=0", "augment.number is 0"),
    ],
    "image2image": [("augment.strength=2", "at most 1"), ("augment.strength=.01", "at least one step")],
}


@pytest.mark.parametrize(("name", "words", "said"), [(name, *case) for name, rows in WRONG.items() for case in rows])
def test_a_wrong_setting_is_one_sentence(name: str, words: str, said: str) -> None:
    if name in NEEDS and said.startswith(("augment.model", "augment.there", "no folder", "lacks")):
        pytest.importorskip("transformers")
    with pytest.raises(UserError, match=said):
        method(name, *words.split())


def test_the_shards_tell_where_they_come_from(tmp_path: Path) -> None:
    from robustcli.cli.launch import launch

    directory = tmp_path / "run"
    assert launch("augment", ["augment=synonyms", *DATA, "seed=3", f"hydra.run.dir={directory}"]) == 0
    table = pd.read_parquet(shard_path(directory, 0))
    assert set(table["method"]) == {"synonyms"} and set(table["seed"]) == {3}
    assert '"rate": 0.3' in table["parameters"][0] and table["model"].isna().all()
