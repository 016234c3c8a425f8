"""CLIP's weights as papers and libraries publish them: TorchScript, entries in entries, prefixes, image towers.

Each file is written by torch from the network of the library, and the features are those of that network.
"""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip as library
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models import DualEncoder, load, open_clip
from robustcli.models.architectures import architectures
from robustcli.models.torch_files import read_torch
from robustcli.models.weights import read_weights
from robustcli.utils.errors import UserError

State = dict[str, Tensor]
Build = Callable[..., DualEncoder]


def features(network: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return network.encode_image(images), network.encode_text(tokens)  # type: ignore[operator]


def assert_same(model: DualEncoder, source: DualEncoder, images: Tensor) -> None:
    """The features of ``model`` are those of the library's network in ``source``, by its own forward pass."""
    tokens = source.tokenize(["a red circle", "two dogs"])
    wanted = features(source.network.eval(), (images - source.mean) / source.std, tokens)
    model.eval()
    found = model.encode_image(images), model.encode_text(tokens)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, F.normalize(other, dim=-1), atol=1e-5, rtol=0)


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


HEAD = {"criterion.weight": torch.ones(3), "text_features": torch.ones(3, 16)}
WHOLE: dict[str, tuple[Callable[[State], Any], bool]] = {  # a file, and whether something is told
    "plain": (lambda state: state, False),
    "open_clip": (lambda state: {"epoch": 3, "name": "run", "state_dict": under("module.", state)}, False),
    "lightning": (lambda state: {"state_dict": under("model.", state), "global_step": 3}, False),
    "lightning with a head": (lambda state: {"state_dict": under("clip_model.", state) | HEAD}, True),
    "deep in a module": (lambda state: under("module.learner.clip.", state) | HEAD, True),
    "compiled": (lambda state: {"model": under("_orig_mod.module.", state)}, False),
    "entries in entries": (lambda state: {"checkpoint": {"networks": {"clip": state}}}, False),
    "beside other entries": (lambda state: {"state_dict": HEAD, "optimizer": {"a": HEAD}, "clip": state}, True),
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_dual_encoder_is_found_wherever_it_stands(form: str, build: Build, tmp_path: Path, images: Tensor) -> None:
    source, (write, told) = build("clip", seed=1), WHOLE[form]
    torch.save(write(source.network.state_dict()), tmp_path / "last.ckpt")
    model = build("clip", checkpoint=tmp_path / "last.ckpt")
    assert_same(model, source, images)
    assert len(model.remarks) == told and all("which fit the model" in each for each in model.remarks)


TOWERS: dict[str, Callable[[State], Any]] = {
    "FARE, TeCoA": lambda tower: tower,
    "open_clip's names": lambda tower: under("visual.", tower),
    "PMG-AFT, TGA-ZSR": lambda tower: {"epoch": 1, "state_dict": HEAD, "vision_encoder_state_dict": tower},
    "data parallel": lambda tower: {"vision_encoder_state_dict": under("module.", tower)},
    "lightning": lambda tower: {"state_dict": under("clip.visual.", tower) | {"text_features": torch.ones(3, 16)}},
    "half": lambda tower: {name: value.half() for name, value in tower.items()},
}


@pytest.mark.parametrize("form", TOWERS)
def test_an_image_tower_is_found_wherever_it_stands(form: str, build: Build, tmp_path: Path, images: Tensor) -> None:
    base, robust = build("clip", seed=1), build("clip", seed=2)
    torch.save({"state_dict": base.network.state_dict()}, tmp_path / "base.pt")
    torch.save(TOWERS[form](robust.network.visual.state_dict()), tmp_path / "tower.pt")
    with pytest.raises(UserError, match="holds the image tower alone: say whose text tower"):
        build("clip", checkpoint=tmp_path / "tower.pt")
    model = build("clip", checkpoint=tmp_path / "tower.pt", pretrained=str(tmp_path / "base.pt"))
    if form == "half":
        robust.network.visual.load_state_dict(
            {name: value.half().float() for name, value in robust.network.visual.state_dict().items()}
        )
    tokens = base.tokenize(["a red circle", "two dogs"])
    assert torch.equal(model.eval().encode_image(images), robust.eval().encode_image(images))
    assert torch.equal(model.encode_text(tokens), base.eval().encode_text(tokens))
    assert "the text tower that of" in model.remarks[-1]


def test_several_places_that_fit_are_told(build: Build, tmp_path: Path) -> None:
    first, second = (build("clip", seed=seed) for seed in (1, 2))
    states = [model.network.state_dict() for model in (first, second)]
    file = tmp_path / "two.pt"
    torch.save(under("student.", states[0]) | under("teacher.", states[1]), file)
    with pytest.raises(UserError, match=r"under student and teacher: choose one of them by model\.weights_key"):
        build("clip", checkpoint=file)
    for key, model in (("student", first), ("teacher", second)):
        assert build("clip", checkpoint=read_weights(file, key=key)).fingerprint() == model.fingerprint()
    torch.save({"state_dict": under("model.", states[0]) | under("ema.", states[1])}, file)
    usual = build("clip", checkpoint=file)
    assert usual.fingerprint() == first.fingerprint()
    assert "those under 'model' are read, which fit the model; model.weights_key picks ema." in usual.remarks[0]
    with pytest.raises(UserError, match=r"weights_key is 'emma', but the checkpoint .* has the weights state_dict"):
        read_weights(file, key="emma")


class Published(nn.Module):
    """A network as OpenAI's archives hold it: the parts of open_clip's, and three numbers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, part in [*network.named_children(), *network.named_parameters(recurse=False)]:
            setattr(self, name, part)
        for name, value in {"input_resolution": 32, "context_length": 20, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.visual(images)
        return pooled


def archive(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Published(network).eval(), torch.rand(1, 3, 32, 32), check_trace=False)
        traced.half().save(str(path))


def test_an_archive_of_openai_is_read_without_its_code(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    source = build("clip", seed=1)
    with torch.random.fork_rng():
        archive(source.network, tmp_path / "ViT-B-32.pt")
    wanted = torch.jit.load(str(tmp_path / "ViT-B-32.pt")).state_dict()
    found = read_torch(tmp_path / "ViT-B-32.pt")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    monkeypatch.setattr(torch.jit, "load", None)
    model = build("clip", checkpoint=tmp_path / "ViT-B-32.pt")
    assert model.description["quick_gelu"] is True and model.remarks == []
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, source.network.state_dict()[name].half().float()), name
    base = build("clip", seed=2)
    torch.save(base.network.visual.state_dict(), tmp_path / "tower.pt")
    both = build("clip", checkpoint=tmp_path / "tower.pt", pretrained=str(tmp_path / "ViT-B-32.pt"))
    assert both.description["quick_gelu"] is True
    tokens = both.tokenize(["a dog"])
    assert torch.equal(both.eval().encode_text(tokens), model.eval().encode_text(tokens))


class Evil:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


def rewritten(source: Path, target: Path, member: str, content: bytes) -> None:
    """An archive with another content in the member whose name ends with ``member``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for each in old.infolist():
            new.writestr(each.filename, content if each.filename.endswith(member) else old.read(each))


def test_a_forged_archive_runs_nothing(build: Build, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        archive(build("clip").network, tmp_path / "good.pt")
    evil = pickle.dumps({"w": Evil(tmp_path / "ran")}, protocol=2)
    rewritten(tmp_path / "good.pt", tmp_path / "evil.pt", "/data.pkl", evil)
    with pytest.raises(UserError, match="could run code"):
        read_torch(tmp_path / "evil.pt")
    rewritten(tmp_path / "good.pt", tmp_path / "code.pt", "/code/__torch__.py", b"import os\nos.abort()\n")
    assert read_torch(tmp_path / "code.pt").keys() == read_torch(tmp_path / "good.pt").keys()
    assert not (tmp_path / "ran").exists()


def test_modules_that_are_in_one_another_end(tmp_path: Path) -> None:
    """Two to the power of thirty paths lead to the last module of this file."""
    name = b"c__torch__.M\nM\n"
    level = name + b")\x81}(U\x01w"
    body = b"N" + b"s".join([b""])
    nested = level + b"K\x01ub"
    for _ in range(30):
        nested = name + b")\x81}(U\x01aq\x00" + nested + b"q\x01U\x01bh\x01ub"
    with zipfile.ZipFile(tmp_path / "deep.pt", "w") as made:
        for member, content in (("data.pkl", b"\x80\x02" + nested + b"."), ("version", b"3"), ("constants.pkl", body)):
            made.writestr(f"deep/{member}", content)
    assert read_torch(tmp_path / "deep.pt") == {}


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(1 << 20)}, content)
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    with pytest.raises(UserError, match="is a packed archive, which torch does not write"):
        read_torch(tmp_path / "bomb.pt")


def test_names_of_members_lead_nowhere(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as old, zipfile.ZipFile(tmp_path / "odd.pt", "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        new.writestr("good/../../../escaped", b"x")
    assert torch.equal(read_torch(tmp_path / "odd.pt")["weight"], torch.ones(2))
    assert not list(tmp_path.parent.glob("escaped"))


def test_entries_in_one_another_end(tmp_path: Path) -> None:
    entries: dict[str, Any] = {"epoch": 1}
    for _ in range(40):
        entries = {f"part{number}": entries for number in range(8)}
    entries["itself"] = entries
    torch.save(entries, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a table of weights"):
        read_weights(tmp_path / "x.pt")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Configurations that open_clip has by name."""
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    wide = {"embed_dim": 16, "vision_cfg": {**vision, "width": 48}, "text_cfg": text}
    resnet = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": text}
    known = {
        "small": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "wide": wide,
        "wide-quickgelu": {**wide, "quick_gelu": True},
        "small-resnet": {**resnet, "vision_cfg": {**resnet["vision_cfg"], "patch_size": None}},  # type: ignore[dict-item]
    }
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {**library.factory._MODEL_CONFIGS, **known})
    return known


def test_weights_of_another_architecture_are_named(small: dict[str, Any], tmp_path: Path) -> None:
    wide, resnet = open_clip("wide", seed=1), open_clip("small-resnet", seed=1)
    torch.save(under("module.", wide.network.state_dict()), tmp_path / "wide.pt")
    with pytest.raises(UserError, match=r"its shapes are those of wide or wide-quickgelu: model\.architecture=wide\.$"):
        open_clip("small", checkpoint=tmp_path / "wide.pt")
    torch.save(wide.network.visual.state_dict(), tmp_path / "tower.pt")
    torch.save(open_clip("small").network.state_dict(), tmp_path / "small.pt")
    with pytest.raises(UserError, match=r"its shapes are those of wide or wide-quickgelu"):
        open_clip("small", checkpoint=tmp_path / "tower.pt", pretrained=str(tmp_path / "small.pt"))
    torch.save({"state_dict": resnet.network.state_dict()}, tmp_path / "resnet.pt")
    with pytest.raises(UserError, match=r"its shapes are those of small-resnet"):
        open_clip("small", checkpoint=tmp_path / "resnet.pt")
    torch.save({**open_clip("small").network.state_dict(), "extra": torch.ones(1)}, tmp_path / "extra.pt")
    with pytest.raises(UserError, match=r"the model has no extra: give the architecture and sizes .* trained with$"):
        open_clip("small", checkpoint=tmp_path / "extra.pt")
    torch.save({"state_dict": HEAD}, tmp_path / "head.pt")
    with pytest.raises(UserError, match=r"holds the image tower alone|is of another model"):
        open_clip("small", checkpoint=tmp_path / "head.pt")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-336", "RN50"])
def test_published_sizes_are_recognised(name: str) -> None:
    with torch.device("meta"):
        state = library.CLIP(**library.get_model_config(name)).state_dict()
    assert architectures(library, state)[0] == name
    assert architectures(library, under("clip.", state))[0] == name
    assert name in architectures(library, {key[7:]: value for key, value in state.items() if key.startswith("visual.")})


def test_the_activation_of_a_base_is_told_beside_its_towers(
    small: dict[str, Any], tmp_path: Path, images: Tensor
) -> None:
    """OpenAI's weights in an architecture without QuickGELU: the commonest slip, which answers wrong without error."""
    base = open_clip("wide-quickgelu", seed=1)
    torch.save(base.network.state_dict(), tmp_path / "base.pt")
    torch.save(base.network.visual.state_dict(), tmp_path / "tower.pt")
    model = load({"name": "wide", "checkpoint": str(tmp_path / "tower.pt"), "pretrained": str(tmp_path / "base.pt")})
    assert isinstance(model, DualEncoder) and len(model.remarks) == 2
    assert (
        "GELU is taken: for weights that come from OpenAI's CLIP set model.architecture=wide-quickgelu"
        in (model.remarks[0])
    )
    assert not torch.allclose(model.eval().encode_image(images), base.eval().encode_image(images), atol=1e-4)
