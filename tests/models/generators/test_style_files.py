"""Published files of StyleGAN2 and its encoders: what is read, and what is said of files that are something else."""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli.models.generators import (
    CARS,
    FACES,
    NVAE,
    E4EEncoder,
    StyleGAN2,
    StyleMixing,
    StyleTransformerEncoder,
    load_generator,
)
from robustcli.models.network import fingerprint
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import cars, faces, linear, noise, pictures

E4E = {"encoder_type": "Encoder4Editing", "stylegan_size": 256, "start_from_latent_avg": True, "device": "cuda:0"}


@pytest.fixture(scope="module")
def of_faces() -> StyleMixing:
    """As small as one with the frame of the published networks can be."""
    return faces(256, frame=FACES)


@pytest.fixture(scope="module")
def of_cars() -> StyleMixing:
    return cars(512, frame=CARS)


def e4e(path: Path, model: StyleMixing, **entries: Any) -> Path:
    """A file of e4e's code."""
    parts = {"encoder": model.encoder, "decoder": model.decoder}
    state = {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}
    content = {"state_dict": state, "latent_avg": model.latent_avg, "opts": E4E, "discriminator_state_dict": {}}
    torch.save({key: value for key, value in (content | entries).items() if value is not None}, path)
    return path


def style_transformer(path: Path, model: StyleMixing, *, query: str = "encoder.module.z") -> Path:
    """A file of Style-Transformer's code, whose parts were trained in parallel."""
    parts = {"encoder.module": model.encoder, "decoder.module": model.decoder}
    state = {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}
    state[query] = state.pop("encoder.module.z")
    opts = argparse.Namespace(output_size=512, n_styles=16, device="cuda", start_from_latent_avg=True)
    torch.save({"state_dict": state, "latent_avg": model.latent_avg[0], "opts": opts}, path)
    return path


def equal(first: nn.Module, second: nn.Module) -> bool:
    return fingerprint(first) == fingerprint(second)


def test_a_file_of_e4e_is_encoder_generator_and_average_code(tmp_path: Path, of_faces: StyleMixing) -> None:
    path = e4e(tmp_path / "e4e_ffhq_encode.pt", of_faces)
    loaded = load_generator(path)
    assert isinstance(loaded, StyleMixing) and equal(loaded, of_faces) and loaded.frame == FACES
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
    assert equal(StyleMixing.load(path), of_faces)
    assert equal(E4EEncoder.load(path), of_faces.encoder) and equal(StyleGAN2.load(path), of_faces.decoder)
    images, count = pictures(1, (3, 256, 256)), of_faces.decoder.latents
    found, expected = (
        each.decode(each.encode(images), 0.5 * torch.ones(count), noise(of_faces, 1)) for each in (loaded, of_faces)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("query", ["encoder.module.z", "z", "module.z"])
def test_a_file_of_style_transformer_has_parsed_arguments_and_names_of_parallel_parts(
    query: str, tmp_path: Path, of_cars: StyleMixing
) -> None:
    path = style_transformer(tmp_path / "style_transformer_cars.pt", of_cars, query=query)
    loaded = load_generator(path)
    assert isinstance(loaded, StyleMixing) and loaded.frame == CARS
    assert torch.equal(loaded.latent_avg, of_cars.latent_avg)
    assert equal(loaded.encoder, of_cars.encoder) and equal(loaded.decoder, of_cars.decoder)
    assert equal(StyleTransformerEncoder.load(path), of_cars.encoder)
    with pytest.raises(UserError, match="holds a StyleTransformerEncoder, not a E4EEncoder"):
        E4EEncoder.load(path)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (14, 16), (1, 14, 16)])
def test_the_average_code_is_read_in_each_of_its_shapes(
    shape: tuple[int, ...], tmp_path: Path, of_faces: StyleMixing
) -> None:
    average = pictures(1, shape)[0]
    loaded = StyleMixing.load(e4e(tmp_path / "file.pt", of_faces, latent_avg=average))
    assert torch.equal(loaded.latent_avg, average.reshape(-1, 16).expand(14, 16))


def test_an_encoder_that_does_not_start_from_the_average_needs_none(tmp_path: Path, of_faces: StyleMixing) -> None:
    path = e4e(tmp_path / "file.pt", of_faces, latent_avg=None, opts=E4E | {"start_from_latent_avg": False})
    assert bool((StyleMixing.load(path).latent_avg == 0).all())


def test_a_generator_alone_is_read_from_each_of_its_layouts(tmp_path: Path, of_faces: StyleMixing) -> None:
    state = of_faces.decoder.state_dict()
    half = {name: value.half() for name, value in state.items()}
    contents = {"port.pt": {"g_ema": state, "latent_avg": of_faces.latent_avg[0]}, "bare.pt": state}
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        assert equal(StyleGAN2.load(tmp_path / name), of_faces.decoder)
    torch.save(half, tmp_path / "half.pt")
    assert {value.dtype for value in StyleGAN2.load(tmp_path / "half.pt").parameters()} == {torch.float32}
    torch.save(of_faces.encoder.state_dict(), tmp_path / "encoder.pt")
    assert equal(E4EEncoder.load(tmp_path / "encoder.pt"), of_faces.encoder)


def test_the_same_names_are_read_from_safetensors(tmp_path: Path, of_faces: StyleMixing) -> None:
    save_file({name: value.clone() for name, value in of_faces.state_dict().items()}, tmp_path / "all.safetensors")
    assert equal(load_generator(tmp_path / "all.safetensors"), of_faces)


def without(name: str) -> Callable[[StyleMixing], dict[str, Any]]:
    return lambda model: {"state_dict": {key: value for key, value in model.state_dict().items() if key != name}}


def changed(name: str, value: Tensor) -> Callable[[StyleMixing], dict[str, Any]]:
    return lambda model: {"state_dict": {**without("latent_avg")(model)["state_dict"], name: value}}


def smaller(model: StyleMixing) -> dict[str, Any]:
    """The generator of another file, whose images have half the side."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    other = faces(128).decoder.state_dict()
    together = state | {f"decoder.{name}": value for name, value in other.items()}
    return {"state_dict": together, "latent_avg": model.latent_avg[0]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (without("encoder.latlayer1.bias"), r"the e4e encoder of 14 codes: it lacks latlayer1\.bias\.$"),
        (without("decoder.convs.3.noise.weight"), r"the StyleGAN2 of 256 pixels .*: it lacks convs\.3\.noise\.weight"),
        (changed("decoder.odd", torch.zeros(2)), r"the StyleGAN2 of 256 pixels .*: it adds odd\.$"),
        (changed("decoder.conv1.activate.bias", torch.zeros(9)), r"has of another shape conv1\.activate\.bias"),
        (changed("decoder.conv1.activate.bias", torch.full((4,), torch.nan)), "NaN or infinite numbers in conv1"),
        (lambda _: {"latent_avg": None}, "has no 'latent_avg', the average code that its encoder starts from"),
        (lambda _: {"latent_avg": torch.zeros(15)}, r"a latent_avg of \(15,\): expected 16 numbers, or as many for"),
        (lambda _: {"latent_avg": torch.full((16,), torch.inf)}, "NaN or infinite numbers in latent_avg"),
        (lambda _: {"opts": argparse.Namespace(encoder_type="GradualStyleEncoder")}, "that of pSp has the same names"),
        (smaller, r"parts that do not belong together: an encoder of \(14, 16\) codes in front of \(12, 16\)"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(
    entries: Callable[[StyleMixing], dict[str, Any]], message: str, tmp_path: Path, of_faces: StyleMixing
) -> None:
    with pytest.raises(UserError, match=message) as told:
        load_generator(e4e(tmp_path / "file.pt", of_faces, **entries(of_faces)))
    assert str(tmp_path / "file.pt") in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "of_mixing", "of_generator"),
    [
        ([1], "holds list, not a table of weights", "holds list, not a table"),
        ({"epoch": 3}, "no file of a StyleGAN2 or of an encoder: it holds epoch", "it holds epoch"),
        (
            {"fc.weight": torch.zeros(2)},
            "holds no encoder of e4e or Style-Transformer: it has fc",
            "holds no StyleGAN2",
        ),
    ],
)
def test_another_thing_is_told(content: Any, of_mixing: str, of_generator: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    for load, message in ((StyleMixing.load, of_mixing), (StyleGAN2.load, of_generator), (E4EEncoder.load, of_mixing)):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "file.pt")
    with pytest.raises(UserError, match="no such file"):
        StyleMixing.load(tmp_path / "absent.pt")


def test_a_generator_alone_is_no_purifier_s(tmp_path: Path, of_faces: StyleMixing) -> None:
    torch.save({"g_ema": of_faces.decoder.state_dict()}, tmp_path / "stylegan2.pt")
    with pytest.raises(UserError, match="give the file that has encoder"):
        StyleMixing.load(tmp_path / "stylegan2.pt")
    with pytest.raises(UserError, match="give the file that has encoder"):
        load_generator(tmp_path / "stylegan2.pt")


def test_code_in_a_file_is_not_run(tmp_path: Path, of_faces: StyleMixing) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    path = e4e(tmp_path / "file.pt", of_faces, opts=argparse.Namespace(device=Evil()))
    with pytest.raises(UserError, match="Python objects beside tensors"):
        load_generator(path)
    assert not (tmp_path / "made").exists()


def test_a_file_of_an_nvae_is_still_one(tmp_path: Path, configuration: Callable[..., dict[str, Any]]) -> None:
    model = NVAE(configuration())
    torch.save({"configuration": model.configuration, "state_dict": model.state_dict()}, tmp_path / "nvae.pt")
    assert isinstance(load_generator(tmp_path / "nvae.pt"), NVAE)
    with pytest.raises(UserError, match="holds no encoder of e4e"):
        StyleMixing.load(tmp_path / "nvae.pt")


@pytest.mark.full_size
@pytest.mark.parametrize("task", ["gender", "cars"])
def test_the_published_networks_purify_within_16_gib(task: str, tmp_path: Path) -> None:
    faces_frame = task == "gender"
    encoder = E4EEncoder() if faces_frame else StyleTransformerEncoder()
    whole = StyleMixing(
        encoder, StyleGAN2(1024 if faces_frame else 512), torch.zeros(512), frame=FACES if faces_frame else CARS
    )
    path = (e4e if faces_frame else style_transformer)(tmp_path / "file.pt", whole)
    del whole, encoder
    begin = time.perf_counter()
    model = load_generator(path)
    loaded = time.perf_counter()
    images, eps = pictures(1, model.resolution), noise(model, 1)
    with torch.no_grad():
        found = model.decode(model.encode(images), linear(model), eps)
    forward = time.perf_counter()
    pixels = images.requires_grad_()
    model.decode(model.encode(pixels), linear(model), eps).sum().backward()
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"{task}: loaded in {loaded - begin:.1f} s, purified in {forward - loaded:.1f} s, forward and backward in "
        f"{done - forward:.1f} s, peak {peak / 2**30:.1f} GiB"
    )
    assert found.shape == images.shape and bool(found.isfinite().all()) and peak < 16 * 2**30
    assert pixels.grad is not None and bool(pixels.grad.any())
