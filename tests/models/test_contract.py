"""The contract that every row of the registry fulfils; a new row is run over as it stands.

Shapes: B batch, C channels, S side.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.cli.listing import print_choices
from robustcli.models import Classifier, DualEncoder, Model, load, load_classifier, load_dual, restore, save_weights
from robustcli.models.generators import NVAE, Generator, load_generator, nvae
from robustcli.models.names import preset, presets
from robustcli.models.registry import MODELS, import_factory, name_of
from robustcli.models.weights import ASSETS
from robustcli.utils.errors import UserError

from .conftest import CAPTIONS, SIZES, WORDS
from .hf_folders import make_folder

CLASSES = ("a", "b", "c")
CHEAP: Mapping[str, Mapping[str, Any]] = {  # for rows whose defaults are large; others are taken as they are
    "mlp_head": {"architecture": "resnet18", "image_size": 32},
    "open_clip": {"architecture": "clip"},  # a configuration of conftest.py
    "resnet_cifar": {"depth": 8},
    "small_cnn": {"widths": [4, 8]},
    "timm": {"architecture": "test_resnet.r160_in1k", "image_size": 32},
    "tiny": SIZES,
    "torchvision": {"architecture": "squeezenet1_1", "image_size": 32},
}
ENCODERS = [name for name, row in MODELS.items() if row.kind not in ("generator", "trained")]
GENERATORS = [name for name, row in MODELS.items() if row.kind == "generator"]
Build = Callable[..., Model]


@pytest.fixture(params=ENCODERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Row -> a small model of it, for three classes or the words of the tests."""

    def new(name: str, **settings: Any) -> Model:
        asked = {"name": name, **CHEAP.get(name, {}), **settings}
        if name == "open_clip":
            asked["architecture"] = folder(str(asked["architecture"]))
        if name == "transformers":
            asked["path"] = str(tmp_path_factory.mktemp("folder"))
            make_folder("clip", Path(asked["path"]), weights=False)
        if "classes" in inspect.signature(import_factory(MODELS[name].target)).parameters:
            asked |= {"classes": None}  # as a config does that takes those of the data set
        return load(asked, vocabulary=WORDS, classes=CLASSES)

    return new


def pictures(model: Model) -> Tensor:
    """Four images (4,C,S,S) of the model's own size and channels."""
    shape = (4, len(model.mean), *2 * [model.image_size or 32])
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def outputs(model: Model, images: Tensor) -> Tensor:
    """Logits, or embeddings."""
    return model.encode_image(images) if isinstance(model, DualEncoder) else model(images)


def within(model: Model, normalised: Tensor) -> Tensor:
    """The bare network on what is already normalised."""
    if isinstance(model, DualEncoder):
        return F.normalize(model.network.encode_image(normalised), dim=-1)
    logits: Tensor = model.network(normalised)
    return logits


def test_it_is_of_the_kind_that_its_row_says(name: str, build: Build) -> None:
    kind = {"classifier": Classifier, "dual_encoder": DualEncoder}[MODELS[name].kind]
    other: Any = load_dual if kind is Classifier else load_classifier
    assert isinstance(build(name), kind)
    with pytest.raises(UserError, match=f"the model {name} is a "):
        other({"name": name})  # said before anything is built: some would lack an architecture or words


def test_a_file_is_of_the_kind_that_is_asked_for(name: str, build: Build, tmp_path: Path) -> None:
    model, path = build(name), tmp_path / "model.safetensors"
    save_weights(model, path)
    wanted: Any = load_classifier if isinstance(model, Classifier) else load_dual
    other: Any = load_dual if isinstance(model, Classifier) else load_classifier
    assert wanted(path).fingerprint() == model.fingerprint()
    with pytest.raises(UserError, match=f"the model {name} is a "):
        other(path)


def test_outputs_have_their_shape_and_no_nan(name: str, build: Build) -> None:
    model = build(name)
    images = pictures(model)
    found = [outputs(model, images)]
    if isinstance(model, DualEncoder):
        found.append(model.encode_text(model.tokenize([*CAPTIONS, CAPTIONS[0]])))
        assert all(torch.allclose(each.norm(dim=-1), torch.ones(4)) for each in found)
        assert found[0].shape == found[1].shape == (4, 16)
    else:
        assert found[0].shape == (4, len(CLASSES)) and model.classes in (None, CLASSES)
        assert not model.training, "batch norms would read the batch, and an attack would move them"
    assert all(each.dtype == torch.float32 and bool(each.isfinite().all()) for each in found)
    torch.testing.assert_close(found[0][1:2], outputs(model, images[1:2]), atol=1e-5, rtol=0)


def test_every_parameter_and_every_image_gets_a_gradient(name: str, build: Build) -> None:
    model = build(name).eval()
    with torch.no_grad():
        for weight in model.parameters():  # some start at zero and would hide those behind them
            weight[...] = weight if bool(weight.any()) else 0.1
    images = pictures(model).requires_grad_()
    scores = outputs(model, images)
    if isinstance(model, DualEncoder):
        scores = model.logit_scale * scores @ model.encode_text(model.tokenize(CAPTIONS)).T
    F.cross_entropy(scores, torch.tensor([0, 1, 2, 1])).backward()
    assert images.grad is not None and bool(images.grad.flatten(1).any(1).all()) and bool(images.grad.isfinite().all())
    silent = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_pixels_are_normalised_exactly_once(name: str, build: Build) -> None:
    model = build(name).eval()
    images = pictures(model)
    normalised = (images - model.mean) / model.std
    torch.testing.assert_close(outputs(model, images), within(model, normalised), atol=1e-6, rtol=0)
    if not torch.equal(normalised, images):
        assert not torch.allclose(outputs(model, images), within(model, images), atol=1e-4)
    for wrong in (images - 0.5, images * float("nan")):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
            outputs(model, wrong)


def test_a_checkpoint_alone_gives_the_model_again(name: str, build: Build, path: Path) -> None:
    model = build(name, seed=5).eval()
    images = pictures(model)
    save_weights(model, path)
    again = restore(path).eval()
    assert model.description["factory"] == name and json.loads(json.dumps(model.description)) == model.description
    assert again.description == model.description and again.fingerprint() == model.fingerprint()
    assert torch.equal(outputs(again, images), outputs(model, images))
    assert getattr(again, "classes", None) == getattr(model, "classes", None)
    assert load(path).fingerprint() == load(str(path)).fingerprint() == model.fingerprint()


def test_the_seed_names_the_weights(name: str, build: Build) -> None:
    first, same, other = (build(name, seed=seed).fingerprint() for seed in (1, 1, 2))
    assert first == same != other


@pytest.mark.parametrize("group", ["model", "generator"])
def test_rows_and_files_of_settings_belong_together(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row is some file's ``_target_``, which `robustcli list` shows; each file's target is a row."""
    kinds = {"generator", "trained"} if group == "generator" else {"classifier", "dual_encoder"}
    rows = {row.target for row in MODELS.values() if row.kind in kinds}
    assert {preset(choice, group)["_target_"] for choice in presets(group)} == rows
    print_choices(group)
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:] if line.startswith("  ")}
    assert set(presets(group)) <= listed


@pytest.mark.parametrize("row", MODELS)
def test_a_row_has_the_name_of_its_factory(row: str) -> None:
    assert name_of(import_factory(MODELS[row].target)) == row


def test_all_that_the_package_ships_is_some_row_s_or_some_file_s() -> None:
    settings = [preset(choice, group) for group in ("model", "generator") for choice in presets(group)]
    named = {each["shipped"] for each in settings if each.get("shipped")}
    named |= {file for row in MODELS.values() for file in row.shipped.values()}
    assert named == {file.stem for file in ASSETS.glob("*.safetensors")}


@pytest.mark.parametrize("row", GENERATORS)
def test_generators_encode_mix_and_sample(row: str) -> None:
    for shipped_for in MODELS[row].shipped:
        model = load_generator("shipped", shipped_for=shipped_for)
        assert isinstance(model, Generator)
        images = torch.rand(2, *model.resolution, generator=torch.Generator().manual_seed(0)).requires_grad_()
        source = torch.Generator().manual_seed(1)
        noise = [torch.randn((2, *shape), generator=source) for shape in model.latent_shapes]
        made = model.decode(model.encode(images), torch.full((len(noise),), 0.5), noise)
        for found in (made, model.sample(noise)):
            assert found.shape == images.shape and bool(found.isfinite().all())
        (gradient,) = torch.autograd.grad(made.sum(), images)
        assert bool(gradient.flatten(1).any(1).all())


@pytest.mark.parametrize("choice", [choice for choice in presets("generator") if choice.startswith("nvae_")])
def test_sizes_of_a_generator_are_those_of_its_weights(choice: str) -> None:
    settings = preset(choice, "generator")
    del settings["_target_"]
    if settings["checkpoint"] == "shipped":
        assert nvae(**settings).resolution == tuple(settings["resolution"])  # which compares every size
    with torch.device("meta"):
        model = NVAE({key: settings[key] for key in ("resolution", "autoencoder", "levels")})
    assert (sum(weight.numel() for weight in model.parameters()) > 7e8) is (choice == "nvae_celeba64")
