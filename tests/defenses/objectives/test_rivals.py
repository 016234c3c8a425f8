"""Objectives of the image tower: each is its formula, in value, in inner loss and in the gradient of every weight.

All in float64, with pairs of images and captions and with classes.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import CW, PGD, ThreatModel
from robustcli.data import Scenes
from robustcli.data.sampling import ClassBatch, PairBatch, PairSampler
from robustcli.data.scenes.world import COLOURS
from robustcli.defenses import (
    AGFT,
    FARE,
    PMGAFT,
    TGAZSR,
    AdvFLYP,
    OnClasses,
    PGDAdversarialTraining,
    SimCLIP,
    TeCoA,
    VisualObjective,
)
from robustcli.models import DualEncoder, ZeroShot
from robustcli.utils.errors import UserError

THREAT = ThreatModel(norm="linf", eps="8/255")
LABELS = torch.tensor([3, 0, 5, 0, 1, 3])


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrappers give float32, here float64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


class Given(PGD):
    """An attack whose result is given; it keeps the inner loss there."""

    image: Any
    adversarial: Tensor
    inner: Tensor

    def __init__(self, adversarial: Tensor) -> None:
        vars(self).update(image=self, adversarial=adversarial)

    def maximise(self, objective: Any, images: Tensor, *_: Any, **__: Any) -> Tensor:
        vars(self).update(inner=objective(self.adversarial, torch.arange(len(images))).detach())
        return self.adversarial


@dataclass
class Case:
    """A batch and its parts, as the formulas name them; ``loss`` runs an objective on it."""

    model: DualEncoder
    earlier: DualEncoder
    x: Tensor
    x_adv: Tensor
    texts: Tensor
    scale: float
    labels: list[int]
    same: Tensor  # (B,B) bool: the text of the column's image is true of the row's
    excluded: Tensor  # (B,Y) bool: a text that is true of the image, but not its own
    loss: Callable[[VisualObjective, Any], Tensor]

    def f(self, x: Tensor) -> Tensor:
        return self.model.encode_image(x, unit=False)

    def f0(self, x: Tensor) -> Tensor:
        return self.earlier.encode_image(x, unit=False).detach()

    def answers(self, features: Tensor, scale: float | None = None) -> Iterator[tuple[Tensor, int]]:
        """Probabilities of the classes of each image, and the place of its own."""
        for i, each in enumerate(unit(features)):
            kept = [c for c in range(len(self.texts)) if not self.excluded[i, c]]
            exponents = torch.stack([(scale or self.scale) * (each * self.texts[c]).sum() for c in kept])
            yield exponents.exp() / exponents.exp().sum(), kept.index(self.labels[i])

    def ce(self, features: Tensor, scale: float | None = None) -> Tensor:
        return torch.stack([-p[y].log() for p, y in self.answers(features, scale)])

    def kl(self, target: Tensor, features: Tensor, scale: float | None = None) -> Tensor:
        pairs = zip(self.answers(target, scale), self.answers(features, scale), strict=True)
        return torch.stack([(p * (p / q).log()).sum() for (p, _), (q, _) in pairs])

    def contrast(self, features: Tensor) -> Tensor:
        """Both directions, pairs that are true too left out."""
        own = self.texts[torch.tensor(self.labels)]
        products, losses = (self.scale * unit(features) @ own.T).exp(), []
        for i in range(len(products)):
            kept = [j for j in range(len(products)) if j == i or not self.same[i, j]]
            back = [j for j in range(len(products)) if j == i or not self.same[j, i]]
            of_image, of_text = products[i, i] / products[i, kept].sum(), products[i, i] / products[back, i].sum()
            losses.append(-(of_image.log() + of_text.log()) / 2)
        return torch.stack(losses)

    def maps(self, model: DualEncoder, x: Tensor, compat: bool = False) -> Tensor:
        """(B,48,48), from all tokens of the tower."""
        tower: Any = model.network.visual
        tokens = tower.tokens((x - model.mean) / model.std)
        tokens = tokens / tokens.norm(dim=1 if compat else 2, keepdim=True)
        grids = []
        for each, label in zip(tokens[:, 1:], self.labels, strict=True):
            products = each @ self.texts[label]
            grids.append(((products - products.min()) / (products.max() - products.min())).view(1, 4, 4))
        return nn.functional.interpolate(torch.stack(grids), 48, mode="bilinear").squeeze(1)


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


def earlier_than(model: DualEncoder) -> DualEncoder:
    """The model some steps before: another image tower."""
    earlier = copy.deepcopy(model).eval().requires_grad_(False)
    drawn = torch.Generator().manual_seed(3)
    for name, weight in earlier.network.named_parameters():
        if name.startswith("visual"):
            weight.add_(0.02 * torch.randn(weight.shape, generator=drawn))
    return earlier


def of_pairs(model: DualEncoder, scenes: Scenes) -> Case:
    batch: PairBatch = PairSampler(scenes, batch_size=8, seed=0)(0)
    batch.matches[1, 2] = batch.matches[2, 1] = True  # of this batch none is true of another image
    x, earlier = scenes.images(batch.image_ids).double(), earlier_than(model)
    texts = earlier.encode_text(earlier.tokenize(batch.captions))

    def loss(objective: VisualObjective, attack: Any) -> Tensor:
        return objective.loss(model.train(), attack, THREAT, x, batch, seed=1, reference=earlier)

    labels, scale = list(range(8)), float(earlier.logit_scale)
    excluded = batch.matches & ~torch.eye(8, dtype=torch.bool)
    return Case(model, earlier, x, moved(x), texts, scale, labels, batch.matches, excluded, loss)


def of_classes(model: DualEncoder, scenes: Scenes) -> Case:
    earlier = earlier_than(model)
    before, now = (ZeroShot(each, COLOURS, templates=["a {} one"]) for each in (copy.deepcopy(earlier), model))
    x, batch = scenes.images(torch.arange(6)).double(), ClassBatch(torch.arange(6), LABELS)
    texts = earlier.encode_text(earlier.tokenize([f"a {name} one" for name in COLOURS]))

    def loss(objective: VisualObjective, attack: Any) -> Tensor:
        return OnClasses(objective, before).loss(now.train(), attack, THREAT, x, batch, seed=1)

    nothing = torch.zeros(6, len(COLOURS), dtype=torch.bool)
    same = LABELS[:, None] == LABELS
    return Case(model, earlier, x, moved(x), texts, float(earlier.logit_scale), LABELS.tolist(), same, nothing, loss)


def moved(x: Tensor) -> Tensor:
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)).double()
    return (x + 0.1 * (noise - 0.5)).clamp(0, 1)


@pytest.fixture(params=[of_pairs, of_classes])
def case(request: pytest.FixtureRequest, small_model: DualEncoder, scenes: Scenes) -> Case:
    built: Case = request.param(small_model.double(), scenes)
    return built


def agft(c: Case, features: Tensor) -> Tensor:
    rows = zip(c.answers(c.f0(c.x), 0.3 * 20), c.answers(features, 20), strict=True)
    return torch.stack([-(p * q.log()).sum() for (p, _), (q, _) in rows])


def sim_clip(c: Case, features: Tensor) -> Tensor:
    similarity = (unit(features) * unit(c.f0(c.x))).sum(1).mean()
    return -0.5 * similarity - 0.5 * similarity.detach()


def adv_flyp(c: Case, features: Tensor) -> Tensor:
    clean, original = c.f(c.x), c.f0(c.x_adv)
    distances = sum((unit(features) - unit(each)).pow(2).sum(1).sqrt() for each in (original, clean))
    return (c.contrast(features) + 0.7 * distances + 0.3 * (c.kl(features, original) + c.kl(features, clean))).mean()


def tga_zsr(c: Case, features: Tensor, compat: bool = False) -> Tensor:
    with torch.no_grad():
        original = c.maps(c.earlier, c.x, compat)
    a, b = ((c.maps(c.model, x, compat) - original).pow(2).sum((1, 2)).sqrt() for x in (c.x_adv, c.x))
    return (c.ce(features) + 0.2 * a + 0.1 * b).mean()


def pmg_aft(c: Case, features: Tensor, scale: float | None = None) -> Tensor:
    general, clean = c.kl(c.f0(c.x_adv), features, scale), c.kl(c.f(c.x), features, scale)
    return c.ce(features, scale).mean() + 0.5 * general.sum() + 2 * clean.sum()


def squared(c: Case, features: Tensor) -> Tensor:
    return (features - c.f0(c.x)).pow(2).sum(1)


Formula = Callable[[Case, Tensor], Tensor]  # features of the attacked images -> inner loss (B,), or the loss
MAPS = {"adversarial_weight": 0.2, "clean_weight": 0.1, "map_size": 48}
WEIGHTS = {"original_weight": 0.5, "clean_weight": 2.0}
RIVALS: dict[str, tuple[VisualObjective, Formula, Formula]] = {
    "tecoa": (TeCoA(), Case.ce, lambda c, f: c.ce(f).mean()),
    "fare": (FARE(), squared, lambda c, f: squared(c, f).mean()),
    "pmg_aft": (PMGAFT(**WEIGHTS), Case.ce, pmg_aft),
    "pmg_aft compat": (
        PMGAFT(**WEIGHTS, compat=True),
        lambda c, f: c.ce(f, 1.0),
        lambda c, f: pmg_aft(c, f, 1.0),
    ),
    "agft": (AGFT(ratio=0.3, scale=20), agft, lambda c, f: agft(c, f).mean()),
    "sim_clip": (SimCLIP(), squared, sim_clip),
    "adv_flyp": (AdvFLYP(feature_weight=0.7, logit_weight=0.3), Case.contrast, adv_flyp),
    "tga_zsr": (TGAZSR(**MAPS), Case.ce, tga_zsr),
    "tga_zsr compat": (TGAZSR(**MAPS, compat=True), Case.ce, lambda c, f: tga_zsr(c, f, compat=True)),
}


def slopes(model: DualEncoder, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: each.grad for name, each in model.network.named_parameters()}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_its_formula(name: str, case: Case) -> None:
    objective, inner, outer = RIVALS[name]
    attack = Given(case.x_adv)
    found = case.loss(objective, attack)
    case.model.eval()
    with torch.no_grad():
        expected_inner = inner(case, case.f(case.x_adv))
    torch.testing.assert_close(attack.inner, expected_inner, rtol=1e-6, atol=1e-9)
    gradients = slopes(case.model, found)
    expected = outer(case, case.f(case.x_adv))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for key, slope in slopes(case.model, expected).items():
        gradient = gradients[key]
        if key.startswith("visual"):
            assert slope is not None and gradient is not None and slope.norm() > 0
            assert (gradient - slope).norm() <= 1e-6 * slope.norm()
        else:
            assert gradient is None, f"{key} belongs to the text tower or is the temperature"
    assert all(weight.grad is None for weight in case.earlier.parameters())


def test_the_sum_and_the_mean_of_pmg_aft(case: Case) -> None:
    weights = {"original_weight": 1.0, "clean_weight": 1.0}
    total, mean = (case.loss(PMGAFT(**weights, reduction=each), Given(case.x_adv)) for each in ("sum", "mean"))
    cross_entropy = case.ce(case.f(case.x_adv)).mean()
    torch.testing.assert_close(total - cross_entropy, len(case.x) * (mean - cross_entropy))


def test_the_original_model_is_the_one_before_the_training(small_model: DualEncoder) -> None:
    model = ZeroShot(small_model, COLOURS, templates=["{}"])
    before = small_model.fingerprint()
    objective = OnClasses(FARE(), model)
    with torch.no_grad():
        next(iter(small_model.network.visual.parameters())).add_(1)  # type: ignore[operator, union-attr]
    assert objective.original.fingerprint() == before != small_model.fingerprint()
    assert not any(weight.requires_grad for weight in objective.original.parameters())


def test_tecoa_is_adversarial_training_on_the_texts(
    small_model: DualEncoder, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # float32, as the attacks have it
    model = ZeroShot(small_model, COLOURS, templates=["{}"]).train()
    images, batch = scenes.images(torch.arange(6)), ClassBatch(torch.arange(6), LABELS)
    attack = PGD(steps=3, random_start=False, keep="last")
    each = (OnClasses(TeCoA(), model), PGDAdversarialTraining())
    found, expected = (objective.loss(model, attack, THREAT, images, batch, seed=1) for objective in each)
    torch.testing.assert_close(found, expected)
    assert found > nn.functional.cross_entropy(model(images), LABELS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PMGAFT(clean_weight=-1), r"pmg_aft\.clean_weight is -1"),
        (lambda: PMGAFT(reduction="max"), r"pmg_aft\.reduction is 'max'"),  # type: ignore[arg-type]
        (lambda: AGFT(ratio=0), r"agft\.ratio is 0: expected a number above 0"),
        (lambda: AGFT(scale=-1), r"agft\.scale is -1"),
        (lambda: AdvFLYP(logit_weight=-1), r"adv_flyp\.logit_weight is -1"),
        (lambda: TGAZSR(map_size=0), r"tga_zsr\.map_size is 0"),
    ],
)
def test_a_value_out_of_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_an_attack_without_a_loss_to_give_is_refused(small_model: DualEncoder) -> None:
    objective = OnClasses(TeCoA(), ZeroShot(small_model, COLOURS, templates=["{}"]))
    with pytest.raises(UserError, match="CW looks for the smallest change"):
        objective.check(CW(), THREAT)
