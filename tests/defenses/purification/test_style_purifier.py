"""Purification by StyleGAN2: one encoding for all draws, nothing clamped, within a budget of memory."""

from collections.abc import Callable

import pytest
import torch

from robustcli.defenses import NormNoise, PurifiedClassifier, Purifier
from robustcli.models import Classifier, small_cnn
from robustcli.models.generators import StyleMixing
from tests.models.generators.conftest import cars, faces, pictures

DRAWS = 32
KINDS = pytest.mark.parametrize("build", [faces, cars])
Build = Callable[..., StyleMixing]


@pytest.fixture
def colours() -> Classifier:
    """Three classes of colour images, with random weights."""
    return small_cnn(classes=3, channels=3, widths=[4, 4], seed=0).requires_grad_(False)


@KINDS
def test_an_answer_encodes_once_and_is_the_mean_over_32_whole_passes(build: Build, colours: Classifier) -> None:
    generator, encoded = build(), list[int]()
    purifier = Purifier(generator, alphas="linear", attenuation=0.7)
    images = pictures(2, generator.resolution).requires_grad_()
    model = PurifiedClassifier(colours, purifier, draws=DRAWS)
    noise = purifier.sample_noise(DRAWS * 2, images)
    hook = generator.encoder.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    logits = model(images, noise)
    assert encoded == [2]
    slope = torch.autograd.grad(logits[:, 0].sum(), images)[0]
    hook.remove()
    cleaned = purifier(images.repeat(DRAWS, 1, 1, 1), noise)
    assert cleaned.min() < 0 or cleaned.max() > 1, "out of [0,1], and goes to the network as it is"
    expected = colours.unchecked(cleaned).view(DRAWS, 2, 3).mean(0)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected[:, 0].sum(), images)[0], rtol=1e-3, atol=1e-6)


@KINDS
def test_a_budget_of_memory_changes_neither_answer_nor_gradient(build: Build, colours: Classifier) -> None:
    generator = build()
    pixels, found = pictures(1, generator.resolution).requires_grad_(), []
    for memory, checkpoint in ((None, False), (1e-3, False), (1e-3, True)):
        purifier = Purifier(generator, alphas="linear", checkpoint=checkpoint)
        model = PurifiedClassifier(colours, purifier, draws=DRAWS, memory=memory)
        torch.manual_seed(5)
        logits = model(pixels)
        found.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), pixels)[0]))
        chunks = {each._drawn.chunk(pixels) for each in (model, model.straight_through())}
        assert memory is None or len(chunks) == 1, "as many draws as fit without checkpoints, whoever attacks"
        assert memory is None or 1 <= next(iter(chunks)) < DRAWS
    for answer, slope in found[1:]:
        torch.testing.assert_close(answer, found[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slope, found[0][1], rtol=1e-3, atol=1e-6)


def test_noise_in_front_has_an_encoding_of_its_own_for_each_draw(colours: Classifier) -> None:
    generator, encoded = faces(), list[int]()
    generator.encoder.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    purifier = Purifier(generator, alphas="none", preprocess=NormNoise(1.0))
    answers = PurifiedClassifier(colours, purifier, draws=1).answers(pictures(1, generator.resolution), 4)
    assert sum(encoded) == 4 and len({tuple(row) for row in answers[:, 0].tolist()}) == 4


@KINDS
def test_the_gradient_of_the_defence_is_that_of_finite_differences(build: Build, colours: Classifier) -> None:
    generator = build(16).double()
    purifier = Purifier(generator, alphas="cosine", attenuation=0.7).double()
    pixels = pictures(1, generator.resolution, dtype=torch.float64).requires_grad_()
    noise = purifier.named_noise([0], pixels.detach(), seed=0)
    network = colours.double()

    def value(x: torch.Tensor) -> torch.Tensor:
        return network.network((purifier(x, noise) - 0.5) / 0.5)[0, 0]  # the wrapper's answer is float32

    (slope,) = torch.autograd.grad(value(pixels), pixels)
    direction = pictures(1, generator.resolution, seed=3, dtype=torch.float64) - 0.5
    with torch.no_grad():
        measured = (value(pixels + 1e-6 * direction) - value(pixels - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(measured, (slope * direction).sum(), rtol=1e-5, atol=1e-12)
