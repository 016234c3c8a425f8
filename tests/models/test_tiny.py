"""The small model of our own: its towers, its seed and its checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustcli.models import save_weights, tiny
from robustcli.models.towers import Block
from robustcli.utils.errors import UserError

from .conftest import SIZES, WORDS


@pytest.mark.parametrize("causal", [False, True])
def test_pooled_block_equals_the_whole_one(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        block = Block(32, 4)
    x, pool = torch.randn(5, 9, 32, generator=generator), torch.tensor([0, 8, 3, 4, 4])
    whole = block(x, causal=causal)[torch.arange(5), pool]
    torch.testing.assert_close(block(x, causal=causal, pool=pool).squeeze(1), whole, atol=1e-6, rtol=0)


def test_a_patch_is_one_square_of_the_image(images: Tensor) -> None:
    tower = tiny(WORDS, **SIZES).network.visual
    seen: list[Tensor] = []
    tower.patches.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    tower(images)
    assert torch.equal(seen[0][1, 6], images[1, :, 8:16, 16:24].flatten())  # four patches a row: 6 is row 1, column 2


def test_size_of_the_default() -> None:
    model = tiny([f"word{index}" for index in range(100)])
    assert 1_200_000 < sum(weight.numel() for weight in model.parameters()) < 1_300_000


def test_seed_decides_the_weights() -> None:
    first, same, other = (tiny(WORDS, **SIZES, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_64_pixels(images: Tensor) -> None:
    model = tiny(WORDS, **SIZES, image_size=64, patch_size=16)
    assert model.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": 7}, "model.patch_size is 7, but it must divide model.image_size, which is 32"),
        ({"heads": 3}, "model.heads is 3"),
        ({"text_layers": 0}, "model.text_layers is 0"),
        ({"context_length": 2}, "model.context_length is 2"),
    ],
)
def test_sizes_that_do_not_fit(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(WORDS, **{**SIZES, **wrong})


def test_no_words_and_no_checkpoint() -> None:
    with pytest.raises(UserError, match=r"model\.vocabulary is empty"):
        tiny()


def test_checkpoint_alone_restores_tokenizer_and_sizes(path: Path) -> None:
    model = tiny(WORDS, **SIZES, image_size=48, seed=5)
    save_weights(model, path)
    again = tiny(["other", "words"], checkpoint=path)
    assert again.fingerprint() == model.fingerprint()
    assert again.description == model.description
    assert again.image_size == 48
    assert torch.equal(again.tokenize(["a red zebra"]), model.tokenize(["a red zebra"]))


def test_sizes_that_contradict_the_checkpoint(path: Path) -> None:
    save_weights(tiny(WORDS, **SIZES), path)
    with pytest.raises(UserError, match=r"model\.width is 64, but the checkpoint .* has 32"):
        tiny(checkpoint=path, width=64)


def test_tiny_does_not_import_open_clip() -> None:
    code = "import sys; from robustcli.models import tiny; tiny(['a']); assert 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
