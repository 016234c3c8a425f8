"""The attack on what a defence keeps: it moves the codes, through averages, and the logits of a bare model."""

import torch
from torch import Tensor, nn

from robustcli.attacks import EOT, LatentDrift, ThreatModel
from robustcli.defenses import PurifiedClassifier, Purifier, Step
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


def test_of_a_bare_model_it_moves_the_logits() -> None:
    model, images, _ = defended(Step(Left()))
    bare = model.classifier
    found = LatentDrift(steps=10)(bare, images, bare(images).argmax(1), THREAT).images
    assert found.sub(images)[..., 4:].norm() > 0.1
