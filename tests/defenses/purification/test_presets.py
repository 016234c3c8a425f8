"""The 27 settings of the paper's method: each composes, builds and cleans a batch through tiny networks of its kind.

The networks have the published layouts, numbers of latents and sizes of images, and a few channels.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustcli.builders.defences import build_purified
from robustcli.config import checks
from robustcli.config.compose import compose
from robustcli.defenses import GaussianBlur, NormNoise, PurifiedClassifier, Purifier
from robustcli.defenses.purification.alphas import PRESETS
from robustcli.models import small_cnn
from robustcli.models.generators import CARS, FACES, NVAE
from tests.models.generators.conftest import AUTOENCODER, cars, faces
from tests.models.generators.test_style_files import e4e, style_transformer

SIDES, EPS, ATTENUATION = {"gender": 256, "ids": 64, "cars": 128}, {"ids": 2.0}, {"gender": 1.0}
RULES = {"linear": "paper_linear", "cosine": "paper_cosine", "learned": "learned"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each task."""
    folder = tmp_path_factory.mktemp("generators")
    sizes = AUTOENCODER | {"num_scales": 3, "num_groups_per_scale": 8, "initial_channels": 2}
    nvae = NVAE({"autoencoder": sizes, "resolution": [3, 64, 64]})
    torch.save({"configuration": nvae.configuration, "state_dict": nvae.state_dict()}, folder / "nvae.pt")
    return {
        "gender": e4e(folder / "e4e.pt", faces(1024, width=1, frame=FACES, channels=1)),
        "ids": folder / "nvae.pt",
        "cars": style_transformer(folder / "cars.pt", cars(512, frame=CARS)),
    }


@pytest.mark.parametrize("step", ["none", "noise", "blur"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("task", SIDES)
def test_it_cleans_a_batch(task: str, rule: str, step: str, files: dict[str, Path]) -> None:
    given = ["dataset.root=images", f"purifier.generator={files[task]}"]
    config = compose("purify", [f"experiment=purify/mlvgm/{task}/{rule}_{step}", *given])
    checks.check(config)
    assert (config.purifier.draws, config.evaluation.draws) == (32, 32)
    config.purifier.draws, config.purifier.memory = 1, None  # in one pass: seconds saved
    images = torch.rand(1, 3, SIDES[task], SIDES[task], generator=torch.Generator().manual_seed(0))
    data: Any = SimpleNamespace(name=task, images=lambda rows: images[rows])
    model = build_purified(config.purifier, data, torch.device("cpu"))(small_cnn(classes=3, channels=3, widths=[2, 2]))
    assert isinstance(model, PurifiedClassifier) and isinstance(model.cleaner, Purifier)
    expected = torch.tensor(PRESETS[f"{RULES[rule]}_{task}"]) * ATTENUATION.get(task, 0.7)
    torch.testing.assert_close(model.cleaner.alphas, expected)
    before = model.cleaner.preprocess
    assert isinstance(before, {"none": type(None), "noise": NormNoise, "blur": GaussianBlur}[step])
    if isinstance(before, NormNoise):
        assert before.eps == EPS.get(task, 4.0)
    pixels = images.clone().requires_grad_()
    logits = model(pixels)
    (slope,) = torch.autograd.grad(logits.logsumexp(1).sum(), pixels)
    assert logits.shape == (1, 3) and bool(logits.isfinite().all()) and bool(slope.isfinite().all() and slope.any())
