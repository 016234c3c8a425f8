"""Models behind a cleaner: folded draws are those of one by one, within any memory, and the encoder runs once."""

import pytest
import torch
from torch import nn

from robustcli.attacks import EOT, PGD, judge_on_draws
from robustcli.defenses import GaussianBlur, NormNoise, PurifiedClassifier, PurifiedEncoder, Purifier, Step
from robustcli.models import Classifier, tiny
from robustcli.models.generators import NVAE
from robustcli.utils.errors import UserError

DRAWS = 4


class CountedNVAE(NVAE):
    """Counts the images that are encoded."""

    encoded = 0

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.encoded += len(images)
        return super().encode(images)


@pytest.fixture
def purifier(generator: NVAE) -> Purifier:
    return Purifier(CountedNVAE(generator.configuration), alphas="linear")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_an_answer_is_the_mean_of_draws_one_by_one(
    purifier: Purifier, classifier: Classifier, images: torch.Tensor
) -> None:
    model = PurifiedClassifier(classifier, purifier, draws=DRAWS)
    noise = purifier.sample_noise(DRAWS * 3, images)
    found = model(images, noise)
    for row in range(3):
        alone = [
            classifier(purifier(images[row : row + 1], [latent[place : place + 1] for latent in noise]))
            for place in range(row, DRAWS * 3, 3)
        ]
        assert torch.allclose(found[row : row + 1], torch.stack(alone).mean(0), atol=1e-5)


def test_a_memory_bound_changes_neither_answer_nor_gradient(
    purifier: Purifier, classifier: Classifier, images: torch.Tensor
) -> None:
    found = []
    for memory in (None, 1e-4):  # 100 KiB: a draw or two at a time
        model = PurifiedClassifier(classifier, purifier, draws=DRAWS, memory=memory)
        pixels = images.clone().requires_grad_(True)
        torch.manual_seed(5)
        logits = model(pixels)
        (slope,) = torch.autograd.grad(logits[:, 0].sum(), pixels)
        found.append((logits.detach(), slope, torch.rand(1)))
    assert slope.abs().sum() > 0
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_bound_is_kept(purifier: Purifier, classifier: Classifier, images: torch.Tensor) -> None:
    sizes = []
    watched = nn.Sequential(classifier)
    watched.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    model = PurifiedClassifier(classifier, purifier, draws=64, memory=1e-3)
    model._drawn.function = watched
    model(images)
    needed = model._drawn._needed[1, 8, 8]
    assert needed > 0
    assert max(sizes) * needed <= 1e-3 * (1 << 30) < 64 * 3 * needed


def test_the_encoder_runs_once_an_image(purifier: Purifier, classifier: Classifier, images: torch.Tensor) -> None:
    model, counted = PurifiedClassifier(classifier, purifier, draws=DRAWS), purifier.generator
    assert isinstance(counted, CountedNVAE)
    model(images)
    assert counted.encoded == 3
    assert model.answers(images, 5).shape == (5, 3, 10)
    assert counted.encoded == 6
    judge_on_draws(model, images, torch.zeros(3, dtype=torch.long), draws=50)
    assert counted.encoded == 6 + 3 + 4  # four to see how the model draws


def test_averaged_attacks_take_the_short_way(purifier: Purifier, classifier: Classifier, images: torch.Tensor) -> None:
    model, counted = PurifiedClassifier(classifier, purifier, draws=2), purifier.generator
    assert isinstance(counted, CountedNVAE)
    labels = torch.zeros(3, dtype=torch.long)
    EOT(PGD(norm="l2", eps=0.5, steps=3, early_stop=False), draws=7)(model, images, labels)
    assert counted.encoded < 3 * 3 * 7  # far fewer than a pass for each draw


def test_answers_are_means_over_draws_of_their_own(
    purifier: Purifier, classifier: Classifier, images: torch.Tensor
) -> None:
    torch.manual_seed(5)
    single = PurifiedClassifier(classifier, purifier, draws=1).answers(images, 6)
    torch.manual_seed(5)
    double = PurifiedClassifier(classifier, purifier, draws=2).answers(images, 3)
    assert torch.allclose(double, single.reshape(3, 2, 3, 10).mean(1), atol=1e-5)


def test_a_cleaner_that_does_not_draw_is_asked_once(classifier: Classifier, images: torch.Tensor) -> None:
    model = PurifiedClassifier(classifier, Step(GaussianBlur(sigma=0.6)), draws=32)
    assert model.draws == 1
    assert torch.allclose(model(images), classifier(GaussianBlur(sigma=0.6)(images)), atol=1e-6)
    assert torch.equal(model.answers(images, 2)[0], model.answers(images, 2)[1])


def test_noise_in_front_differs_between_draws(generator: NVAE, classifier: Classifier, images: torch.Tensor) -> None:
    cleaner = Purifier(generator, alphas="none", preprocess=NormNoise(1.0))
    answers = PurifiedClassifier(classifier, cleaner, draws=1).answers(images, 4)
    assert len({tuple(row) for row in answers[:, 0].tolist()}) == 4


def test_only_the_images_get_a_gradient(purifier: Purifier, classifier: Classifier, images: torch.Tensor) -> None:
    model = PurifiedClassifier(classifier, purifier, draws=2)
    found = PGD(norm="l2", eps=0.5, steps=2)(model, images, torch.zeros(3, dtype=torch.long))
    assert int(found.zero_gradients.sum()) == 0
    assert all(weight.grad is None for weight in model.parameters())


def test_a_dual_encoder_answers_with_the_mean_embedding() -> None:
    model, images = tiny(["a", "dot"]), torch.rand(2, 3, 32, 32)
    wrapped = PurifiedEncoder(model, Step(NormNoise(1.0)), draws=3)
    found = wrapped.encode_image(images)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.equal(wrapped.encode_text(wrapped.tokenize(["a dot"])), model.encode_text(model.tokenize(["a dot"])))


def test_mistakes(purifier: Purifier, classifier: Classifier) -> None:
    with pytest.raises(UserError, match=r"purifier\.draws is 0"):
        PurifiedClassifier(classifier, purifier, draws=0)
    with pytest.raises(UserError, match=r"purifier\.memory is 0"):
        PurifiedClassifier(classifier, purifier, draws=2, memory=0)


def test_named_images_have_the_same_draws_in_any_batch_and_memory(
    purifier: Purifier, classifier: Classifier, images: torch.Tensor
) -> None:
    found = []
    for memory, rows in ((None, [0, 1, 2]), (1e-4, [0, 1, 2]), (None, [2, 1])):
        model = PurifiedClassifier(classifier, purifier, draws=DRAWS, memory=memory)
        torch.manual_seed(5)
        found.append(model.answers(images[rows], 2, [10 + row for row in rows]))
    whole, bounded, part = found
    assert torch.allclose(whole, bounded, atol=1e-5)
    assert torch.allclose(whole[:, [2, 1]], part, atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-4)


def test_no_images_get_no_answers(purifier: Purifier, classifier: Classifier, images: torch.Tensor) -> None:
    model = PurifiedClassifier(classifier, purifier, draws=DRAWS)
    assert model.answers(images[:0], 3, []).shape == model.answers(images[:0], 3).shape == (3, 0, 10)


def test_the_fingerprint_of_a_defence_names_its_alphas(generator: NVAE, classifier: Classifier) -> None:
    """They come from a file or a preset, and no file of weights holds them."""
    schedules = ("linear", "linear", "cosine")
    prints = [PurifiedClassifier(classifier, Purifier(generator, alphas=name)).fingerprint() for name in schedules]
    assert prints[0] == prints[1] != prints[2]
