"""Folders of the transformers library: features are the library's own, and mistakes are sentences."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from robustcli.models import DualEncoder, load_dual, restore, save_weights, transformers
from robustcli.utils.errors import UserError

from .hf_folders import CAPTIONS, KINDS, MEAN, STD, make_folder


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The library's model and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return make_folder(request.param, folder), folder


def library_features(model: Any, folder: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the library makes of 8-bit images and of captions by its own processors."""
    library = pytest.importorskip("transformers")
    processor = library.AutoImageProcessor.from_pretrained(folder)
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    pixels = processor(images=[(image * 255).byte() for image in images], return_tensors="pt")["pixel_values"]
    fixed = {"padding": "max_length", "max_length": 12} if model.config.model_type == "siglip" else {"padding": True}
    read = tokenizer(CAPTIONS, truncation=True, return_tensors="pt", **fixed)
    if model.config.model_type == "siglip":
        read.pop("attention_mask", None)  # its processor gives none: padding is read as any token
    read.pop("token_type_ids", None)
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels)
        texts = model.get_text_features(**read)
    return getattr(seen, "pooler_output", seen), getattr(texts, "pooler_output", texts)


def test_features_are_those_of_the_library(pair: tuple[Any, Path], images: Tensor) -> None:
    theirs, folder = pair
    images = (images * 255).round() / 255
    wanted = library_features(theirs, folder, images)
    ours = load_dual({"name": "transformers", "path": str(folder)}).eval()
    with torch.no_grad():
        found = [
            ours.encode_image(images, unit=False),
            ours.encode_text(ours.tokenize(CAPTIONS), unit=False),
        ]
        logits = ours.logit_scale * F.normalize(found[0], dim=-1) @ F.normalize(found[1], dim=-1).T
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert found[0].std() > 1e-3 and found[1].std(dim=0).min() > 0, "the captions differ"
    similar = theirs.logit_scale.exp() * F.normalize(wanted[0], dim=-1) @ F.normalize(wanted[1], dim=-1).T
    torch.testing.assert_close(logits, similar, atol=1e-4, rtol=1e-5)
    assert ours.mean.flatten().tolist() == pytest.approx(MEAN) and ours.std.flatten().tolist() == pytest.approx(STD)


def test_the_scale_of_siglip_has_no_ceiling(tmp_path: Path) -> None:
    theirs = make_folder("siglip", tmp_path)
    model = transformers(str(tmp_path))
    assert math.isclose(model.logit_scale.item(), math.exp(theirs.logit_scale.item()), rel_tol=1e-6)
    assert model.logit_scale.item() > 100
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["network.logit_bias"]


def test_embeddings_stand_for_the_look_up_and_get_gradients(pair: tuple[Any, Path]) -> None:
    model = transformers(str(pair[1])).eval()
    tokens = model.tokenize(CAPTIONS)
    vectors = model.token_embedding()(tokens).detach().requires_grad_()
    by_vectors = model.encode_text(tokens, vectors)
    torch.testing.assert_close(by_vectors, model.encode_text(tokens), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(by_vectors.square().sum(1).sum() + by_vectors[:, 0].sum(), vectors)
    assert bool(gradient[:, 1].abs().sum(-1).gt(0).all()), "the first word of each caption"
    assert not torch.equal(model.encode_text(tokens, vectors + 0.1), by_vectors)


def test_cropped_tokens_change_nothing(pair: tuple[Any, Path]) -> None:
    model = transformers(str(pair[1])).train()
    tokens = model.tokenize(CAPTIONS)
    short = model.crop(tokens)
    kind = pair[0].config.model_type
    assert short.shape[1] == tokens.shape[1] if kind == "siglip" else short.shape[1] < tokens.shape[1]
    whole = F.normalize(model.network.encode_text(tokens), dim=-1)
    torch.testing.assert_close(model.encode_text(tokens), whole, atol=1e-6, rtol=0)


def test_each_tower_trains_alone(pair: tuple[Any, Path]) -> None:
    model = transformers(str(pair[1]))
    for which, part in (("image", "vi"), ("text", "text")):
        model.set_trainable(which)  # type: ignore[arg-type]
        moving = {name for name, weight in model.network.named_parameters() if weight.requires_grad}
        assert moving - {"logit_scale"} and all(name.startswith((part, "logit_scale")) for name in moving)


def test_a_trained_file_and_the_folder_give_the_model_again(pair: tuple[Any, Path], path: Path, images: Tensor) -> None:
    model = transformers(str(pair[1])).eval()
    with torch.no_grad():
        model.network.visual.embeddings.patch_embedding.weight.add_(0.1)
    save_weights(model, path)
    again = restore(path).eval()
    assert again.description == model.description
    assert torch.equal(again.encode_image(images), model.encode_image(images))  # type: ignore[union-attr]


def test_captions_that_do_not_fit_are_told(tmp_path: Path) -> None:
    make_folder("chinese_clip", tmp_path)
    model = transformers(str(tmp_path), context_length=6)
    assert model.tokenize(["a red circle", "红 圆"]).shape == (2, 6)
    told = model.notes(32, 32, ["a red circle", "a small red circle", "the red blue small circle"])
    assert any("1 of 3 captions are cut at the context length of 6 tokens" in each for each in told)
    with pytest.raises(UserError, match=r"model\.context_length is 21: the text tower has 20 positions"):
        transformers(str(tmp_path), context_length=21)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"size": {"height": 32, "width": 32}}, ["squeezes whole images into a square"]),
        ({"size": {"shortest_edge": 40}}, ["shorter side to 40 pixels and crops the centre of 32"]),
        ({"resample": 1}, ["resizes by the filter lanczos, and bicubic is taken"]),
    ],
)
def test_preprocessing_that_differs_is_told(change: dict[str, Any], told: list[str], tmp_path: Path) -> None:
    make_folder("clip", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    remarks = transformers(str(tmp_path)).remarks
    assert len(remarks) == len(told) and all(part in remark for part, remark in zip(told, remarks, strict=True))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_factor": 1 / 127.5}))
    with pytest.raises(UserError, match="does not divide pixels by 255"):
        transformers(str(tmp_path))
    file.unlink()
    assert "mean and std are the usual ones of its kind, clip" in transformers(str(tmp_path)).remarks[0]


def test_other_sizes_are_resized_as_published(tmp_path: Path) -> None:
    make_folder("clip", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 2}))
    model = transformers(str(tmp_path)).eval()
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    resized = F.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(model.encode_image(images), model.encode_image(resized))
    (gradient,) = torch.autograd.grad(model.encode_image(images)[:, 0].sum(), images)
    assert bool(gradient.abs().sum((1, 2, 3)).gt(0).all())


def test_an_image_tower_stands_beside_the_text_of_the_folder(tmp_path: Path, images: Tensor) -> None:
    make_folder("clip", tmp_path / "base")
    other = make_folder("clip", tmp_path / "other", seed=1)
    tower = {name: value for name, value in other.state_dict().items() if name.startswith("vi")}
    torch.save(
        {"vision_encoder_state_dict": {f"module.{name}": each for name, each in tower.items()}}, tmp_path / "t.pt"
    )
    base, robust = (transformers(str(tmp_path / name)).eval() for name in ("base", "other"))
    both = transformers(str(tmp_path / "base"), checkpoint=tmp_path / "t.pt").eval()
    assert torch.equal(both.encode_image(images), robust.encode_image(images))
    tokens = both.tokenize(CAPTIONS)
    assert torch.equal(both.encode_text(tokens), base.encode_text(tokens))
    assert f"The image tower is that of {tmp_path / 't.pt'}, the text tower that of" in both.remarks[-1]
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds the image tower alone, and .*base has no text tower"):
        transformers(str(tmp_path / "base"), checkpoint=tmp_path / "t.pt")


def test_random_weights_are_not_those_of_the_folder(tmp_path: Path) -> None:
    asked = {"name": "transformers", "path": str(tmp_path), "pretrained": "random"}
    make_folder("clip", tmp_path)
    with pytest.raises(UserError, match=r"has weights \(model\.safetensors\), which would be read"):
        load_dual(asked)
    (tmp_path / "model.safetensors").unlink()
    assert load_dual(asked, seed=1).fingerprint() != load_dual(asked, seed=2).fingerprint()


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path is missing"):
        load_dual("transformers")
    with pytest.raises(UserError, match="where no folder is: give one of transformers"):
        transformers(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"has no config\.json of transformers"):
        transformers(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="local-dir:FOLDER of model=open_clip reads it"):
        transformers(str(tmp_path))
    for kind, said in (("siglip2", r"'siglip2' \(SigLIP 2 of flexible resolution"), ("blip", "expected one of clip")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UserError, match=said):
            transformers(str(tmp_path))


def change_config(folder: Path, **change: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_weights_of_another_size_are_refused_before_the_network_is_built(tmp_path: Path) -> None:
    make_folder("clip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change_config(tmp_path, vision_config=config["vision_config"] | {"hidden_size": 2**20, "intermediate_size": 2**22})
    with pytest.raises(UserError, match="is of another model"):
        transformers(str(tmp_path))
    change_config(tmp_path, vision_config=config["vision_config"] | {"num_hidden_layers": 10**9})
    with pytest.raises(UserError, match="more than can be meant"):
        transformers(str(tmp_path))


def test_a_missing_weight_or_tokenizer_is_refused(tmp_path: Path) -> None:
    make_folder("altclip", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in state.items() if name != "logit_scale"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="it lacks logit_scale"):
        transformers(str(tmp_path))
    save_file(state, tmp_path / "model.safetensors")
    change = json.loads((tmp_path / "config.json").read_text())
    change["text_config"]["vocab_size"] -= 5
    with pytest.raises(UserError, match=r"the tokenizer of .* has \d+ tokens, the text tower \d+|another model"):
        change_config(tmp_path, **change)
        transformers(str(tmp_path))
    for file in tmp_path.glob("*token*"):
        file.unlink()
    change["text_config"]["vocab_size"] += 5
    change_config(tmp_path, **change)
    with pytest.raises(UserError, match="of which the tokenizer cannot be read"):
        transformers(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [("clip", "eos_token_id", "the end of text, the text tower 7"), ("altclip", "pad_token_id", "padding, the text")],
)
def test_a_tokenizer_of_another_model_is_refused(kind: str, key: str, said: str, tmp_path: Path) -> None:
    """It would run: the tower would read each caption at its first token, or padding as a word."""
    make_folder(kind, tmp_path)
    change = json.loads((tmp_path / "config.json").read_text())
    change["text_config"][key] = 7
    change_config(tmp_path, **change)
    with pytest.raises(UserError, match=f"has the id .* for {said}.* it is of another model"):
        transformers(str(tmp_path))


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    make_folder("clip", tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    names = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    change_config(tmp_path, auto_map=names, attn_implementation="someone/kernels")
    assert isinstance(transformers(str(tmp_path)), DualEncoder)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": names, "tokenizer_class": "Evil"}))
    assert isinstance(transformers(str(tmp_path)), DualEncoder)
    assert not (tmp_path / "ran").exists()
