"""BPDA: a defence that hides its gradient falls as soon as another gradient stands in for it.

Shapes: B images, N images of the pairs.
"""

from collections.abc import Callable
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from robustcli.attacks import BPDA, PGD, Pairs, Preprocessed, PreprocessedEncoder, SepAttack
from robustcli.utils.seeding import generator

from ..conftest import SmallNet, ToyDual


def quantise(images: Tensor) -> Tensor:
    """To 16 levels."""
    return (images * 15).round() / 15


def jpeg(images: Tensor) -> Tensor:
    """Through a file of quality 75."""
    found = []
    for image in images:
        file = BytesIO()
        to_pil_image((image * 255).round().byte()).save(file, "JPEG", quality=75)
        found.append(pil_to_tensor(Image.open(file)).float() / 255)
    return torch.stack(found)


@pytest.fixture
def images() -> Tensor:
    """Smooth ones, which a JPEG leaves about as they are."""
    coarse = torch.rand(40, 3, 2, 2, generator=generator(11))
    return 0.2 + 0.6 * torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")


@pytest.mark.parametrize("step", [quantise, jpeg])
def test_a_step_without_a_gradient_is_noticed_and_broken(step: Callable[[Tensor], Tensor], images: Tensor) -> None:
    net = SmallNet().eval()
    attack = PGD(eps=0.15, steps=10, random_start=False)
    defended, approached = Preprocessed(net, step), Preprocessed(net, BPDA(step))
    labels = defended(images).argmax(1)
    if step is quantise:
        plain = attack(defended, images, labels)
        assert torch.equal(plain.zero_gradients, plain.gradients) and plain.gradients.sum() > 0
        assert not plain.success.any()
    broken = attack(approached, images, labels)
    assert broken.zero_gradients.sum() == 0
    assert broken.success.float().mean() > 0.9
    assert torch.equal(defended(broken.images).argmax(1) != labels, broken.success)


def test_forward_is_the_step_bit_for_bit_and_backward_its_stand_in(images: Tensor) -> None:
    weights = torch.rand(images.shape, generator=generator(12))
    for backward, slope in ((None, torch.ones_like(images)), (lambda x: x**2, 2 * images)):
        asked = images.clone().requires_grad_(True)
        found = BPDA(quantise, backward)(asked)
        assert torch.equal(found, quantise(images))
        (gradient,) = torch.autograd.grad((weights * found).sum(), asked)
        assert torch.allclose(gradient, weights * slope)


def test_a_step_that_gives_back_its_input_does_not_alias_it(images: Tensor) -> None:
    found = BPDA(lambda x: x)(images)
    assert torch.equal(found, images) and found.data_ptr() != images.data_ptr()


def test_a_stand_in_of_another_shape_is_refused(images: Tensor) -> None:
    asked = images.clone().requires_grad_(True)
    with pytest.raises(ValueError, match="same shape"):
        BPDA(lambda x: x[:, :, ::2, ::2])(asked).sum().backward()
    found = BPDA(lambda x: x[:, :, ::2, ::2], lambda x: torch.nn.functional.avg_pool2d(x, 2))(asked)
    found.sum().backward()
    assert torch.allclose(asked.grad, torch.full_like(images, 0.25))  # type: ignore[arg-type]


def test_steps_are_applied_in_their_order_and_follow_the_modes_of_the_model(images: Tensor) -> None:
    drop = torch.nn.Dropout(0.5)
    model = Preprocessed(SmallNet(), BPDA(quantise), drop, lambda x: x / 2).train()
    labels = torch.zeros(len(images), dtype=torch.long)
    PGD(steps=1)(model, images, labels)
    assert drop.training and model.training
    assert torch.equal(model.eval()(images), model.model(quantise(images) / 2))


def test_a_dual_encoder_behind_a_step(model: ToyDual, pairs: Pairs) -> None:
    attack = SepAttack(image=PGD(eps=0.1, steps=10, loss="own_pair", random_start=False))
    defended = PreprocessedEncoder(model, quantise)
    plain = attack(defended, pairs)
    broken = attack(PreprocessedEncoder(model, BPDA(quantise)), pairs)
    assert torch.equal(plain.zero_gradients, plain.gradients) and broken.zero_gradients.sum() == 0
    assert broken.image_success.float().mean() > plain.image_success.float().mean() + 0.5
    assert torch.equal(defended.encode_image(broken.images), model.encode_image(quantise(broken.images)))
