"""The encoders in front of StyleGAN2, against the published outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.models.generators import E4EEncoder, StyleTransformerEncoder
from robustcli.utils.errors import UserError
from tests.models.generators.conftest import pictures, shaken

TOLERANCE = 1e-4


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without weights of its own, whose drawing takes seconds."""
    with torch.device("meta"):
        network = build()
    return network.to_empty(device="cpu")


@pytest.mark.parametrize("size", [32, pytest.param(1024, marks=pytest.mark.full_size)])
def test_codes_of_e4e(size: int, published: Callable[[str], Any], filled: Callable[..., Any]) -> None:
    """Of a smaller generator they are the first ones: each has weights of its own; here one at least of each level."""
    expected, model = published("e4e_encoder_ref.pt"), filled(empty(lambda: E4EEncoder(size)))
    with torch.no_grad():
        found = model(expected["x"])
    assert found.shape[1] == {32: 8, 1024: 18}[size]
    torch.testing.assert_close(found, expected["codes"][:, : found.shape[1]], rtol=TOLERANCE, atol=TOLERANCE)


def test_codes_of_style_transformer(published: Callable[[str], Any], filled: Callable[..., Any]) -> None:
    expected, model = published("styletrans_encoder_ref.pt"), filled(empty(StyleTransformerEncoder))
    with torch.no_grad():
        found = model(expected["x"], expected["query"])
    torch.testing.assert_close(found, expected["codes"], rtol=TOLERANCE, atol=TOLERANCE)


def test_the_published_networks_have_their_weights_and_names() -> None:
    with torch.device("meta"):
        faces, cars = E4EEncoder(1024), StyleTransformerEncoder()
    assert (sum(weight.numel() for weight in faces.parameters()), len(faces.state_dict())) == (267_136_704, 621)
    assert sum(weight.numel() for weight in cars.parameters()) == 40_619_200
    assert {"body.3.shortcut_layer.1.weight", "styles.17.convs.10.bias", "styles.0.linear.weight"} <= set(
        faces.state_dict()
    )
    layer = {"self_attn.in_proj_weight", "multihead_attn.out_proj.bias", "linear2.weight", "norm3.bias"}
    assert {f"transformerlayer_fine.{name}" for name in layer} <= set(cars.state_dict())


def test_later_codes_of_e4e_are_corrections_of_the_first() -> None:
    model, images = shaken(E4EEncoder(32, width=1)), pictures(2, (3, 32, 32))
    for head in list(model.styles)[1:]:
        for weight in head.parameters():
            weight.zero_()
    codes = model(images)
    assert codes.shape == (2, 8, 8) and torch.equal(codes, codes[:, :1].expand_as(codes))
    assert not torch.allclose(codes[0], codes[1])


def test_queries_of_style_transformer_are_answered_each_on_its_own_image() -> None:
    model, images = shaken(StyleTransformerEncoder(latents=5, width=1)), pictures(2, (3, 24, 32))
    query = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1)
    together = model(images, query)
    torch.testing.assert_close(together[1:], model(images[1:], query[1:]))
    turned = model(images, query.flip(1))
    torch.testing.assert_close(turned.flip(1), together), "a set of queries, without places of their own"


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="size of a StyleGAN2 is 100"):
        E4EEncoder(100)
