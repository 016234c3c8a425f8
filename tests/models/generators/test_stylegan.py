"""StyleGAN2: against the published outputs, the definition of its operations, and its own gradients."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.generators import StyleGAN2
from robustcli.models.generators.stylegan import StyledConv, ToRGB
from robustcli.models.generators.upfirdn import EqualLinear, fir, upfirdn
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import shaken

DIM = 6
Layer = TypeVar("Layer", bound=nn.Module)


def small(size: int = 16, *, seed: int = 0) -> StyleGAN2:
    channels = [5, 4, 3, 2][: size.bit_length() - 2]
    return shaken(StyleGAN2(size, style_dim=DIM, channels=channels, mapping_layers=2, seed=seed), seed)


def layer_of(kind: type[Layer], *sizes: int, **settings: Any) -> Layer:
    with torch.random.fork_rng(devices=[]):
        return shaken(kind(*sizes, **settings))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_codes_and_images_of_the_published_implementation(
    published: Callable[[str], Any], filled: Callable[..., Any]
) -> None:
    expected, model = published("stylegan2_g64_ref.pt"), filled(StyleGAN2(64), "unit")
    with torch.no_grad():
        torch.testing.assert_close(model.mapping(expected["z"])[None], expected["w"], rtol=1e-5, atol=1e-9)
        found = model(expected["w"])
    torch.testing.assert_close(found, expected["image64"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "weights", "names"), [(1024, 30_370_060, 171), (512, 30_276_583, 153)])
def test_the_published_networks_have_their_weights_and_names(size: int, weights: int, names: int) -> None:
    with torch.device("meta"):
        model = StyleGAN2(size)
    assert (sum(weight.numel() for weight in model.parameters()), len(model.state_dict())) == (weights, names)
    assert model.latents == 2 * math.log2(size) - 2
    some = ("style.8.bias", "input.input", "conv1.conv.modulation.weight", "convs.0.conv.blur.kernel")
    some += ("to_rgbs.0.upsample.kernel", "convs.1.noise.weight", "convs.1.activate.bias", "noises.noise_0")
    assert set(some) <= set(model.state_dict())


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1), (-1, 2)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_upfirdn_is_its_definition(up: int, down: int, padding: tuple[int, int]) -> None:
    x, kernel = normal(1, 2, 5, 5, dtype=torch.float64), normal(3, 3, seed=1, dtype=torch.float64)
    side = 5 * up + sum(padding)

    def at(channel: int, row: int, column: int) -> float:
        row, column = row - padding[0], column - padding[0]
        inside = 0 <= row < 5 * up and 0 <= column < 5 * up
        return float(x[0, channel, row // up, column // up]) if inside and row % up == column % up == 0 else 0.0

    places = range(0, side - 2, down)
    expected = [
        [
            [sum(at(c, i + m, j + n) * float(kernel[2 - m, 2 - n]) for m in range(3) for n in range(3)) for j in places]
            for i in places
        ]
        for c in range(2)
    ]
    found = upfirdn(x, kernel, up=up, down=down, padding=padding)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_a_layer_is_a_convolution_with_scaled_and_normalised_weights_for_each_image() -> None:
    """The equations of the paper, image by image; ours scales the input and divides the output."""
    x, code, noise = (normal(*shape, seed=2, dtype=torch.float64) for shape in ((2, 3, 4, 4), (2, DIM), (1, 1, 8, 8)))
    layer = layer_of(StyledConv, 3, 5, DIM, up=True).double()
    found = layer(x, code, noise)
    scales = layer.conv.modulation(code)
    for i in range(2):
        weight = layer.conv.weight[0] / math.sqrt(27) * scales[i].view(1, 3, 1, 1)
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        large = F.conv_transpose2d(x[i : i + 1], weight.transpose(0, 1), stride=2)
        seen = upfirdn(large, fir(gain=4.0).double(), padding=(1, 1)) + layer.noise.weight * noise
        expected = math.sqrt(2) * F.leaky_relu(seen + layer.activate.bias.view(1, -1, 1, 1), 0.2)
        torch.testing.assert_close(found[i : i + 1], expected)


def test_colours_are_not_normalised() -> None:
    layer, x, code = layer_of(ToRGB, 3, DIM, up=True), normal(1, 3, 4, 4), normal(1, DIM)
    weight = layer.conv.weight[0] / math.sqrt(3) * layer.conv.modulation(code).view(1, 3, 1, 1)
    expected = F.conv2d(x, weight) + layer.bias
    torch.testing.assert_close(layer(x, code), expected)
    before = torch.ones(1, 3, 2, 2)  # whose middle the filter leaves as it is
    torch.testing.assert_close(layer(x, code, before)[..., 1:3, 1:3], expected[..., 1:3, 1:3] + 1)


def test_each_layer_reads_the_code_of_its_place() -> None:
    model, codes = small(), normal(1, 6, DIM)
    read: list[Tensor] = []
    layers = [model.conv1, model.to_rgb1, *model.convs, *model.to_rgbs]
    hooks = [layer.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[1])) for layer in layers]
    model(codes)
    for hook in hooks:
        hook.remove()
    places = [next(i for i in range(6) if torch.equal(code, codes[:, i])) for code in read]
    assert places == [0, 1, 1, 2, 3, 3, 4, 5], "colours of a block share the code of the next block's first layer"


def test_the_gradient_is_that_of_finite_differences_with_and_without_checkpoints() -> None:
    model, codes = small().double(), normal(2, 6, DIM, dtype=torch.float64).requires_grad_()
    weights = normal(2, 3, 16, 16, seed=1, dtype=torch.float64)
    found = [
        torch.autograd.grad((model(codes, checkpoint=checkpoint) * weights).sum(), codes)[0]
        for checkpoint in (False, True)
    ]
    assert torch.equal(*found)
    for seed in range(3):
        step = 1e-6 * normal(2, 6, DIM, seed=seed, dtype=torch.float64)
        with torch.no_grad():
            difference = ((model(codes + step) - model(codes - step)) * weights).sum()
        torch.testing.assert_close(difference, 2 * (found[0] * step).sum(), rtol=1e-6, atol=1e-12)


def test_no_smaller_image_is_the_mean_of_the_whole_one() -> None:
    """Why no block may be left out: the image after the block before last is not the pooled image."""
    model, codes = small(32), normal(1, 8, DIM)
    with torch.no_grad():
        whole = model(codes)
        channels = list(model.channels)
        model.to_rgbs, model.convs = model.to_rgbs[:-1], model.convs[:-2]
        smaller = model(codes)
    assert channels and smaller.shape[-1] == 16
    assert (F.avg_pool2d(whole, 2) - smaller).abs().max() > 0.1


def test_a_factor_on_what_is_drawn_changes_nothing() -> None:
    model, z = small(), normal(3, 2, DIM)
    torch.testing.assert_close(model.mapping(0.8 * z), model.mapping(z), rtol=0, atol=1e-6)


def test_stored_weights_are_scaled_as_they_are_used() -> None:
    layer, x = layer_of(EqualLinear, 4, 3, rate=0.5), normal(2, 4)
    torch.testing.assert_close(layer(x), x @ layer.weight.T * 0.5 / 2 + 0.5 * layer.bias)


def test_new_weights_are_those_of_the_seed_and_the_global_generator_is_left() -> None:
    state = torch.get_rng_state()
    first, again, other = (StyleGAN2(8, channels=[2, 2], seed=seed).input.input for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="size of a StyleGAN2 is 48: expected one of 4, 8, 16"):
        StyleGAN2(48)
    with pytest.raises(UserError, match=r"channels of a StyleGAN2 are \[4\]: expected 2, for sides from 4 to 8"):
        StyleGAN2(8, channels=[4])
    with pytest.raises(ValueError, match=r"codes are \(1, 5, 6\): this StyleGAN2 takes \(B,6,6\)"):
        small()(normal(1, 5, DIM))
