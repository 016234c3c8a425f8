"""Tokens drawn row by row, outputs brought to captions, and models that cannot be read."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustcli.data import Scenes
from robustcli.data.augment import BackTranslation, Captioner, LLMRewrite, TextToImage
from robustcli.data.augment.generation import RowSampler, Sampling, TextModel, cleaned, generate
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator

from . import models

CPU = torch.device("cpu")


def drawn(sampling: Sampling, logits: torch.Tensor, rows: int) -> torch.Tensor:
    sampler = RowSampler(sampling, [generator("row", row) for row in range(rows)])
    scores = sampler(torch.empty(rows, 0), logits.expand(rows, -1))
    assert ((scores == 0).sum(1) == 1).all() and torch.isneginf(scores).sum() == scores.numel() - rows
    return scores.argmax(1)


def test_tokens_are_drawn_by_their_chances() -> None:
    chances = torch.tensor([0.1, 0.5, 0.0, 0.4])
    counts = drawn(Sampling(), chances.log(), 8000).bincount(minlength=4) / 8000
    assert torch.allclose(counts, chances, atol=0.02)
    cold = drawn(Sampling(temperature=0.5), chances.log(), 8000).bincount(minlength=4) / 8000
    assert torch.allclose(cold, chances**2 / (chances**2).sum(), atol=0.02)


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    logits = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()
    assert set(drawn(Sampling(top_k=1), logits, 200).tolist()) == {1}
    assert set(drawn(Sampling(top_k=2), logits, 200).tolist()) == {1, 3}
    assert set(drawn(Sampling(top_p=0.4), logits, 200).tolist()) == {1}
    assert set(drawn(Sampling(top_p=0.9), logits, 400).tolist()) == {0, 1, 3}


def test_a_row_draws_from_its_own_generator() -> None:
    logits = torch.zeros(3, 50)
    alone = [RowSampler(Sampling(), [generator(row)])(logits[:1, :0], logits[:1]).argmax() for row in range(3)]
    together = RowSampler(Sampling(), [generator(row) for row in range(3)])(logits[:, :0], logits).argmax(1)
    assert torch.stack(alone).tolist() == together.tolist()


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("A dog runs.", "A dog runs."),
        ('\n\n "A dog runs."\nA second line', "A dog runs."),
        ("Here is a rewritten caption:\n\nA dog runs.", "A dog runs."),
        ("Sure! Here's the caption: 'A dog  runs'", "A dog runs"),
        ("Here is a dog.", "Here is a dog."),
        ("1. A dog runs.\n2. The dog", "A dog runs."),
        ("- **A dog runs**", "A dog runs"),
        ("Caption: a dog", "a dog"),
        ("<think>What is it?\nA dog.</think>\nA dog runs.", "A dog runs."),
        ("<think>What", ""),
        ("  \n ", ""),
        ("A sign: stop", "A sign: stop"),
    ],
)
def test_an_output_becomes_a_caption(text: str, caption: str) -> None:
    assert cleaned(text) == caption


def test_a_repeated_prompt_is_cut_off() -> None:
    assert cleaned("A photo of a dog", "a photo of") == "a dog"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return tmp_path / "model"


def test_the_template_of_turns_is_used_where_there_is_one(folder: Path) -> None:
    template = "{% for turn in messages %}caption {{ turn['content'] }} {% endfor %}"
    model = TextModel("model", str(models.causal(folder, template=template)), CPU)
    seen: list[str] = []
    tokenizer = model.tokenizer
    plain = tokenizer.__class__.__call__

    class Recorder:
        chat_template, apply_chat_template = tokenizer.chat_template, tokenizer.apply_chat_template
        batch_decode = tokenizer.batch_decode

        def __call__(self, texts: list[str], **settings: object) -> object:
            seen.extend(texts)
            return plain(tokenizer, texts, **settings)

    model.tokenizer = Recorder()
    for chat in (True, False):
        model.answers(["a dog"], Sampling(max_new_tokens=2), [generator(0)], chat=chat)
    assert seen == ["caption a dog ", "a dog"]


def test_a_prompt_is_not_part_of_the_answer(folder: Path) -> None:
    """Of prompts of several lengths in a batch, filled up on the left."""
    model = TextModel("model", str(models.causal(folder)), CPU)
    prompts = ["a", "two dog runs near the red hoop"]
    together = model.answers(prompts, Sampling(max_new_tokens=5), [generator(1), generator(2)])
    alone = [
        model.answers([prompt], Sampling(max_new_tokens=5), [generator(seed)])[0]
        for prompt, seed in zip(prompts, (1, 2), strict=True)
    ]
    assert together == alone and all(len(text.split()) <= 5 for text in together)


def test_a_beam_search_draws_nothing_and_has_one_output_a_caption(folder: Path) -> None:
    data = Scenes(split="train", train=6)
    there, back = (str(models.seq2seq(folder / name, seed)) for name, seed in (("a", 7), ("b", 21)))
    method = BackTranslation(there=there, back=back, number=20, beams=2, max_new_tokens=6)
    pairs = method.pairs(data, range(6), seed=0)
    assert pairs and len(pairs) <= len(data.captions) and pairs == method.pairs(data, range(6), seed=1)


def test_an_encoder_with_a_decoder_captions_and_takes_no_prompt(folder: Path) -> None:
    data, place = Scenes(split="train", train=6), str(models.encoder_decoder(folder))
    pairs = Captioner(model=place, number=2, max_new_tokens=5).pairs(data, range(6), seed=0)
    assert pairs and all(pair.source_caption is None and pair.image is None for pair in pairs)
    with pytest.raises(UserError, match="takes images alone"):
        Captioner(model=place, number=2, prompt="a photo of")


def test_blip_goes_on_from_its_prompt(folder: Path) -> None:
    data = Scenes(split="train", train=6)
    method = Captioner(model=str(models.blip(folder)), number=2, prompt="a dog", max_new_tokens=6)
    whole = method.pairs(data, range(6), seed=0)
    assert whole and not any(str(pair.caption).startswith("a dog") for pair in whole)
    assert whole == [pair for row in range(6) for pair in method.pairs(data, [row], seed=0)]
    inputs = method._inputs([Image.new("RGB", (16, 16))])
    asked = inputs["input_ids"].clone()
    generate(method._captioner, inputs, Sampling(max_new_tokens=6), [generator(0)])
    assert torch.equal(inputs["input_ids"], asked), "BLIP writes into the ids that it is given"


def test_the_hash_is_that_of_the_weights(folder: Path) -> None:
    settings = {"number": 1, "prompt": "{caption}"}
    first = LLMRewrite(model=str(models.causal(folder / "a")), **settings)
    assert first.model_sha256 == LLMRewrite(model=str(models.causal(folder / "b")), **settings).model_sha256
    assert first.model_sha256 != LLMRewrite(model=str(models.seq2seq(folder / "c", 1)), **settings).model_sha256


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer", "code"])
def test_a_damaged_model_is_one_sentence(folder: Path, damage: str) -> None:
    models.causal(folder)
    if damage == "weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        (folder / "config.json").write_text(
            json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.M"}})
        )
        (folder / "own.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(UserError, match=r"augment\.model is .* cannot be made"):
        LLMRewrite(model=str(folder), number=1, prompt="{caption}")


def test_only_an_encoder_with_a_decoder_translates(folder: Path) -> None:
    with pytest.raises(UserError, match="no encoder"):
        BackTranslation(there=str(models.causal(folder)), back=None, number=1)


@pytest.mark.parametrize(("library", "extra"), [("transformers", "hf"), ("diffusers", "diffusion")])
def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, library: str, extra: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=rf"install robustcli\[{extra}\]"):
        if library == "diffusers":
            TextToImage(model="absent", number=1, steps=1, guidance=1.0)
        else:
            LLMRewrite(model="absent", number=1, prompt="{caption}")
