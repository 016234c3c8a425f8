"""The forms in which CLIP's weights are passed on beside open_clip's own: Hugging Face's, and the image tower alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcli.models import DualEncoder
from robustcli.models.weights import read_weights
from robustcli.utils.errors import UserError

State = dict[str, Tensor]
NAMES = {
    "conv1.": "embeddings.patch_embedding.",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.": "embeddings.token_embedding.",
    "transformer.resblocks.": "encoder.layers.",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "ln_final.": "final_layer_norm.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def as_hugging_face(state: State) -> State:
    """The weights of a small open_clip network under the names, and in the cut, of Hugging Face's CLIPModel."""
    found: State = {"logit_scale": state["logit_scale"]}
    for name, value in state.items():
        if name in PROJECTIONS:
            found[PROJECTIONS[name]] = value.T.contiguous()
        elif name != "logit_scale":
            rest = name.removeprefix("visual.")
            tower = "text_model" if rest == name else "vision_model"
            for ours, theirs in NAMES.items():
                rest = rest.replace(ours, theirs)
            thirds = zip("qkv", value.chunk(3), strict=True) if ".attn.in_proj_" in rest else []
            cut = {rest.replace(".attn.in_proj_", f".self_attn.{part}_proj."): third.clone() for part, third in thirds}
            found |= {f"{tower}.{key}": each for key, each in (cut or {rest: value}).items()}
    return found | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}


@pytest.mark.parametrize(("act", "quick"), [("quick_gelu", True), ("gelu", False)])
def test_a_folder_of_hugging_face_says_weights_and_activation(
    act: str, quick: bool, build: Callable[..., DualEncoder], tmp_path: Path
) -> None:
    trained = build("clip", seed=1)
    save_file(as_hugging_face(trained.network.state_dict()), tmp_path / "model.safetensors")
    towers = {f"{tower}_config": {"hidden_act": act} for tower in ("vision", "text")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", **towers}))
    model = build("clip", checkpoint=tmp_path)
    assert model.fingerprint() == trained.fingerprint()
    assert model.description["quick_gelu"] is quick and model.remarks == []


def in_shards(state: State, folder: Path, kind: str) -> Path:
    """The weights in two files and their index, as Hugging Face cuts large ones; the path of the index."""
    stem, suffix = kind.split(".")
    names = [f"{stem}-{number:05d}-of-00002.{suffix}" for number in (1, 2)]
    mapped = {weight: names[number % 2] for number, weight in enumerate(state)}
    for name in names:
        part = {weight: value for weight, value in state.items() if mapped[weight] == name}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
    index = folder / f"{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": mapped}))
    return index


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_shards_is_read_whole(kind: str, build: Callable[..., DualEncoder], tmp_path: Path) -> None:
    trained = build("clip", seed=1)
    index = in_shards(as_hugging_face(trained.network.state_dict()), tmp_path, kind)
    for given in (tmp_path, index):
        assert build("clip", checkpoint=given).fingerprint() == trained.fingerprint()
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(UserError, match=r"-00002-of-00002.* is not there: fetch all 2 files"):
        build("clip", checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no index of weights"),
        ("[1]", "is no index of weights"),
        ('{"weight_map": {"a": ["x"]}}', "is no index of weights"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "is no file of weights in its folder"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "is no file of weights in its folder"),
        ('{"weight_map": {"a": "passwd"}}', "is no file of weights in its folder"),
        ('{"weight_map": {"a": "other.safetensors", "b": "other.safetensors"}}', "its files lack b; fetch them again"),
    ],
)
def test_an_index_reads_files_of_its_folder_alone(content: str, said: str, tmp_path: Path) -> None:
    for place in (tmp_path / "model.safetensors", tmp_path / "folder" / "other.safetensors"):
        place.parent.mkdir(exist_ok=True)
        save_file({"a": torch.ones(1)}, place)
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_weights(tmp_path / "folder")


def test_the_names_of_hugging_face_give_its_embeddings(build: Callable[..., DualEncoder], tmp_path: Path) -> None:
    """The library's own network, where it is installed, on the same images and tokens."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        text_config={**sizes, "vocab_size": 49408, "max_position_embeddings": 20},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs, images = transformers.CLIPModel(config).eval(), torch.rand(2, 3, 32, 32)
    theirs.save_pretrained(tmp_path)
    ours = build("clip", checkpoint=tmp_path)
    tokens = ours.tokenize(["a dog", "two cats run"])
    with torch.no_grad():
        seen = theirs.vision_model(pixel_values=(images - ours.mean) / ours.std).pooler_output
        read = theirs.text_model(input_ids=tokens).pooler_output
        wanted = [theirs.visual_projection(seen), theirs.text_projection(read)]
        found = [ours.encode_image(images), ours.encode_text(tokens)]
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, torch.nn.functional.normalize(other, dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "visual.", "module.", "model.visual."])
def test_an_image_tower_alone_needs_a_text_tower(
    prefix: str, build: Callable[..., DualEncoder], tmp_path: Path
) -> None:
    base, robust = build("clip", seed=1), build("clip", seed=2)
    torch.save(base.network.state_dict(), tmp_path / "base.pt")
    tower = {prefix + name: value for name, value in robust.network.visual.state_dict().items()}
    torch.save({"vision_encoder_state_dict": tower, "step": 100}, tmp_path / "tower.pt")
    with pytest.raises(UserError, match=r"holds the image tower alone: .*model\.pretrained=openai"):
        build("clip", checkpoint=tmp_path / "tower.pt")
    both = build("clip", checkpoint=tmp_path / "tower.pt", pretrained=str(tmp_path / "base.pt"))
    state, base_state, robust_state = (model.network.state_dict() for model in (both, base, robust))
    for name, value in state.items():
        assert torch.equal(value, (robust_state if name.startswith("visual.") else base_state)[name]), name
    assert f"The image tower is that of {tmp_path / 'tower.pt'}" in both.remarks[-1]
    torch.save(dict(list(tower.items())[1:]), tmp_path / "tower.pt")
    with pytest.raises(UserError, match=r"it lacks visual\."):
        build("clip", checkpoint=tmp_path / "tower.pt", pretrained=str(tmp_path / "base.pt"))
