"""The bound of what latents tell of the class, where the truth is known, and the alphas that follow."""

import math
from typing import Any

import pytest
import torch

from robustcli.defenses.purification.alpha_information import Information, latent_information
from robustcli.utils.errors import UserError

SETTINGS: dict[str, Any] = {"folds": 5, "components": 8, "seed": 0, "given": "nothing"}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(count: int, classes: int) -> torch.Tensor:
    return torch.arange(count) % classes


def test_it_is_that_of_two_gaussians_and_never_above_it() -> None:
    """Classes at +1 and -1 under unit noise: I = ln 2 - E[ln(1 + exp(-2 s))] with s ~ N(1,1), which is 0.337 nats."""
    sides = torch.linspace(-7, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * (sides - 1).square()) / math.sqrt(2 * math.pi)
    truth = math.log(2) - float(torch.trapezoid(density * torch.nn.functional.softplus(-2 * sides), sides))
    labels = labels_of(1000, 2)
    latent = torch.cat([(2.0 * labels - 1)[:, None] + drawn(1000, 1), 0.3 * drawn(1000, 20, seed=1)], dim=1)
    found = latent_information([latent], labels, **SETTINGS)
    assert truth == pytest.approx(0.337, abs=1e-3) and found.entropy == pytest.approx(math.log(2))
    assert found.low[0] < truth < found.high[0] and found.mean[0] == pytest.approx(truth, abs=0.05)


def test_what_tells_all_is_kept_and_what_tells_nothing_drawn_anew() -> None:
    labels = labels_of(200, 4)
    sure = 5.0 * torch.nn.functional.one_hot(labels, 4).float().view(200, 1, 2, 2) + 0.1 * drawn(200, 1, 2, 2)
    found = latent_information([sure, drawn(200, 3, 40, 40, seed=1)], labels, **{**SETTINGS, "components": 40})
    assert found.mean[0] == pytest.approx(math.log(4), abs=0.1) and found.mean[0] <= found.entropy
    assert abs(found.mean[1]) < 0.2, "more numbers than images are no knowledge"
    assert found.alphas[0] == 0.0 and found.alphas[1] > 0.9


def test_the_images_order_and_missing_classes_do_not_matter() -> None:
    labels = 3 * labels_of(120, 2) + 1  # of the classes 0 to 4 two occur
    latent = labels[:, None].float() + drawn(120, 1)
    found = latent_information([latent], labels, **SETTINGS)
    assert found == latent_information([latent], (labels - 1) // 3, **SETTINGS)
    assert Information.of(found.table()) == found


def test_nothing_to_keep_is_told() -> None:
    nothing = Information(mean=(-0.1, 0.0), low=(-0.2, -0.1), high=(0.0, 0.1), entropy=1.0)
    with pytest.raises(UserError, match="no latent tells anything"):
        _ = nothing.alphas
    with pytest.raises(UserError, match="3 images of 1 classes"):
        latent_information([drawn(3, 2)], torch.zeros(3, dtype=torch.long), **SETTINGS)


def test_what_a_coarser_latent_tells_is_not_told_again() -> None:
    labels, half = labels_of(400, 4), labels_of(400, 4) // 2
    coarse = (half[:, None] + 0.1 * drawn(400, 2)).view(400, 2, 1)
    again = coarse.flatten(1) + 0.1 * drawn(400, 2, seed=1)
    fine = torch.nn.functional.one_hot(labels, 4) + 0.1 * drawn(400, 4, seed=2)
    alone, beyond = (
        latent_information([coarse, again, fine], labels, **{**SETTINGS, "given": given}).mean
        for given in ("nothing", "coarser")
    )
    assert alone == pytest.approx((math.log(2), math.log(2), math.log(4)), abs=0.1)
    assert beyond == pytest.approx((math.log(2), 0.0, math.log(2)), abs=0.1)
