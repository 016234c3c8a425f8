"""The attack on what a defence keeps: it moves the codes, through averages, and the logits of a bare model."""

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import EOT, LatentDrift, ThreatModel
from robustcli.attacks.core.passes import Problem
from robustcli.defenses import NormNoise, PurifiedClassifier, Purifier, Step
from robustcli.defenses.purification.cleaner import Cleaner
from robustcli.models import small_cnn
from robustcli.models.generators import NVAE
from tests.models.generators.conftest import AUTOENCODER

THREAT = ThreatModel(norm="l2", eps=1.0)


class Left(nn.Module):
    """Keeps the left half of an image."""

    randomised = False

    def forward(self, images: Tensor) -> Tensor:
        return images * (torch.arange(images.shape[3]) < images.shape[3] // 2)


def defended(cleaner: Cleaner, draws: int = 1) -> tuple[PurifiedClassifier, Tensor, Tensor]:
    model = PurifiedClassifier(small_cnn(classes=list("abc"), channels=1, widths=[4, 4], seed=0), cleaner, draws=draws)
    images = 0.3 + 0.4 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return model.eval(), images, model(images).argmax(1)


def test_it_spends_its_budget_on_what_is_kept() -> None:
    model, images, labels = defended(Step(Left()))
    found = LatentDrift(steps=10)(model, images, labels, THREAT).images - images
    assert found[..., :4].norm() > 0.99 * found.norm() > 1.5


def test_it_goes_through_an_average_and_moves_the_codes_farther_than_noise() -> None:
    purifier = Purifier(NVAE({"resolution": [1, 8, 8], "autoencoder": AUTOENCODER}), alphas=[0, 0, 1, 1])
    model, images, labels = defended(purifier, draws=2)
    found = EOT(LatentDrift(steps=10), draws=2)(model, images, labels, THREAT).images
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    noisy = THREAT.project(images + noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1), images)

    def moved(x: Tensor) -> Tensor:
        return (model.codes(x) - model.codes(images)).norm(dim=1)

    with torch.no_grad():
        assert bool((moved(found) > 1.3 * moved(noisy)).all())
        codes = model.codes(images)
        sizes = [feature[0].numel() for feature in purifier.generator.encode(images)]
        assert not codes[:, sum(sizes[:2]) :].any(), "what is drawn anew is no code"


def test_a_pass_of_the_encoder_counts_once_and_one_of_the_logits_for_each_draw() -> None:
    purifier = Purifier(NVAE({"resolution": [1, 8, 8], "autoencoder": AUTOENCODER}), alphas=[0, 0, 1, 1])
    model, images, labels = defended(purifier, draws=2)
    encoded, encode = list[int](), purifier.generator.encode
    attack = EOT(LatentDrift(steps=3), draws=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(purifier.generator), "encode", lambda _, x: encoded.append(len(x)) or encode(x))
        found = attack(model, images, labels, THREAT)
    assert found.queries.tolist() == [3 + 2] * 4 and found.gradients.tolist() == [3] * 4
    # Beside the attack: two passes of two copies, a look at how the model draws, and two of the images for verdicts.
    assert sum(encoded) == 4 * (3 + 2) + 2 * 2 + 2 * 4
    said = attack.passes(Problem(classes=3, norm="l2", randomised=True))
    assert said is not None and said.at_most and said.forward == 5 * (3 + 2)
    drawing, _, _ = defended(Step(NormNoise(1.0)))
    logits = EOT(LatentDrift(steps=3), draws=5)(_Bare(drawing), images, labels, THREAT)
    assert logits.queries.tolist() == [5 * (3 + 2)] * 4 and logits.gradients.tolist() == [5 * 3] * 4


class _Bare(nn.Module):
    """A defence that does not say what it keeps."""

    randomised = True

    def __init__(self, defence: PurifiedClassifier) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.defence(images)
        return logits


def test_of_a_bare_model_it_moves_the_logits() -> None:
    model, images, _ = defended(Step(Left()))
    bare = model.classifier
    found = LatentDrift(steps=10)(bare, images, bare(images).argmax(1), THREAT).images
    assert found.sub(images)[..., 4:].norm() > 0.1
