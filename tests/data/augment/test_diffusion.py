"""Diffusion pipelines of a few thousand weights, with the real library."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robustcli.data import Scenes
from robustcli.data.augment import ImageToImage, TextToImage
from robustcli.utils.errors import UserError

from . import models

diffusers = pytest.importorskip("diffusers", reason="diffusers is heavy (60 MB, 7 s of import): robustcli[diffusion]")
SETTINGS: dict[str, Any] = {"number": 1, "steps": 2, "guidance": 2.0, "size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.stable_diffusion(tmp_path_factory.mktemp("diffusion") / "model"))


def test_images_stand_with_their_captions_in_the_size_asked_for(folder: str) -> None:
    data = Scenes(split="train", train=3)
    pairs = TextToImage(model=folder, **{**SETTINGS, "number": 2}).pairs(data, range(3), seed=0)
    assert [pair.source for pair in pairs] == [0, 0, 1, 1, 2, 2]
    own = data.captions_of()
    assert [pair.source_caption for pair in pairs[:2]] == own[0][:2].tolist()
    assert all(pair.image is not None and pair.image.shape == (16, 16, 3) for pair in pairs)
    assert all(pair.caption is None for pair in pairs)


def test_a_weak_image_to_image_keeps_more_of_the_image(folder: str) -> None:
    data = Scenes(split="train", train=3)
    made = [
        ImageToImage(model=folder, strength=strength, **{**SETTINGS, "steps": 10}).pairs(data, range(3), seed=0)
        for strength in (0.1, 0.1, 1.0)
    ]
    pixels = [np.stack([pair.image for pair in pairs if pair.image is not None]).astype(int) for pairs in made]
    assert (pixels[0] == pixels[1]).all() and np.abs(pixels[0] - pixels[2]).max() > 0


def test_what_the_safety_checker_flags_is_left_out(folder: str) -> None:
    data = Scenes(split="train", train=3)
    method = TextToImage(model=folder, **SETTINGS)
    method._pipeline = lambda prompt, **settings: SimpleNamespace(
        images=np.zeros((len(prompt), 16, 16, 3)), nsfw_content_detected=[False, True, False]
    )
    assert [pair.source for pair in method.pairs(data, range(3), seed=0)] == [0, 2]


def test_a_size_that_the_model_cannot_make_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="multiples of 2 pixels"):
        TextToImage(model=folder, **{**SETTINGS, "size": 15})


def test_lora_weights_change_images_and_hash(folder: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: robustcli[diffusion]")
    plain = TextToImage(model=folder, **SETTINGS)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = {name: 50 * weight for name, weight in peft.get_peft_model_state_dict(unet).items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    (file,) = tmp_path.glob("*.safetensors")
    tuned = TextToImage(model=folder, lora=str(file), **SETTINGS)
    assert tuned.model_sha256 != plain.model_sha256
    data = Scenes(split="train", train=2)
    before, after = (
        np.stack([pair.image for pair in method.pairs(data, range(2), seed=0) if pair.image is not None])
        for method in (plain, tuned)
    )
    assert (before != after).any()


@pytest.mark.parametrize("damage", ["weights", "index", "pickle"])
def test_a_damaged_pipeline_is_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = models.stable_diffusion(tmp_path / "model")
    if damage == "weights":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    elif damage == "index":
        (folder / "model_index.json").write_text("{")
    else:
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"augment\.model is .* cannot be made"):
        TextToImage(model=str(folder), **SETTINGS)
