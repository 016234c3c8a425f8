"""Minimum-norm attacks and AutoAttack in L2 against adv_lib, foolbox, ART and pyautoattack, on networks made here.

A plain, an adversarially trained and a provably trained network of the embedded digits: on the robust ones the
boundary is bent, and gradients are of little use far from it. What is not installed is left out, with a line that says
so: `make rivals`.

Shapes: N images.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import Row, cpu_seconds
from robustcli.attacks import ALMA, CW, DDN, FMN, PGD, AutoAttack, ClassifierAttack, DeepFool, MinimumNorm, Square
from robustcli.data import Digits
from robustcli.utils.seeding import generator

Search = Callable[[nn.Module, Tensor, Tensor], Tensor]  # network, images, labels -> adversarial images
# How many times as fast; searches for the smallest norm spend as much again along the boundary.
_TARGETS = {"Square": 1.0, "AutoAttack": 1.3}
_EPS = {"plain": 0.4, "adversarially trained": 0.6, "provably trained": 0.6}  # L2, where part of the images fall
_TRAINING_EPS, _STEPS, _QUERIES = 0.2, 600, 1000  # L-inf, steps of training, queries of Square


def run(*, quick: bool = False) -> list[Row]:
    """On 40 test images of each network; ``quick``: on 6 of the plain one."""
    rows = []
    for kind in ("plain",) if quick else _EPS:
        task = _Task(kind, steps=30 if quick else _STEPS, count=6 if quick else 40)
        rows += [task.compare(name, ours, package, theirs) for name, ours, package, theirs in _pairs(_EPS[kind])]
        rows += [task.compare_ensemble()] if task.spent else []
    return rows


def _pairs(eps: float) -> list[tuple[str, ClassifierAttack, str, Search]]:
    """Name of the search, ours, package and search of the other side."""
    square, whole = Square(norm="l2", eps=eps, queries=_QUERIES), AutoAttack(norm="l2", eps=eps, queries=_QUERIES)
    pairs: list[tuple[str, ClassifierAttack, str, Search]] = [
        ("DeepFool", DeepFool(), "adv_lib", partial(_adv_lib, "df")),
        ("FMN", FMN(), "adv_lib", partial(_adv_lib, "fmn", norm=2, steps=100)),
        ("DDN", DDN(), "adv_lib", partial(_adv_lib, "ddn", steps=100, levels=None)),
        ("ALMA", ALMA(), "adv_lib", partial(_adv_lib, "alma", num_steps=200, α=0.5)),
        ("DeepFool", DeepFool(), "foolbox", partial(_foolbox, "L2DeepFoolAttack")),
        ("C&W", CW(), "foolbox", partial(_foolbox, "L2CarliniWagnerAttack", steps=100)),
        ("DeepFool", DeepFool(), "art", partial(_art, "DeepFool", batch_size=64)),
        ("C&W", CW(), "art", partial(_art, "CarliniL2Method", max_iter=100, batch_size=64)),
        ("Square", square, "pyautoattack", partial(_official, eps, ["square"])),
        ("AutoAttack", whole, "pyautoattack", partial(_official, eps, None)),
    ]
    absent = sorted({package for _, _, package, _ in pairs if find_spec(package) is None})
    for package in absent:
        print(f"rivals: {package} is not installed, its rows are left out: make rivals", file=sys.stderr)
    return [pair for pair in pairs if pair[2] not in absent]


def _adv_lib(name: str, model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    import adv_lib.attacks

    found: Tensor = getattr(adv_lib.attacks, name)(model, images, labels, **settings)
    return found


def _foolbox(name: str, model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    import foolbox

    attack = getattr(foolbox.attacks, name)(**settings)
    found: Tensor = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=[None])[1][0]
    return found


def _art(name: str, model: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    shape = tuple(images.shape[1:])
    network = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu")
    found = getattr(evasion, name)(network, verbose=False, **settings).generate(images.numpy(), labels.numpy())
    return torch.as_tensor(found)


def _official(eps: float, members: list[str] | None, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    from pyautoattack import AutoAttack as Official

    version = "standard" if members is None else "custom"
    official = Official(model, norm="L2", eps=eps, version=version, attacks=members, seed=0)
    official.square.n_queries = _QUERIES
    found: Any = official.run_standard_evaluation(images, labels)
    return found[0] if isinstance(found, tuple) else found


class _Task:
    """A network, and test images that it classifies correctly."""

    def __init__(self, kind: str, *, steps: int, count: int) -> None:
        self.kind, self.model, self.norms = kind, train(kind, steps=steps), dict[str, Tensor]()
        data = Digits(split="test")
        images, labels = data.images(torch.arange(len(data.labels))), data.labels
        with torch.no_grad():
            correct = torch.nonzero(self.model(images).argmax(1) == labels).flatten()[:count]
        self.images, self.labels = images[correct], labels[correct]
        # Of the rivals' searches for the smallest norm: the nearest that any found, and the seconds of all.
        self.nearest, self.spent = torch.full((len(correct),), torch.inf, dtype=torch.float64), 0.0

    def compare(self, name: str, ours: ClassifierAttack, package: str, theirs: Search) -> Row:
        """Both searches on all images, every result judged here."""
        sides = {
            "ours": lambda: self._judge("ours", ours(self.model, self.images, self.labels).images),
            "theirs": lambda: self._judge("theirs", theirs(self.model, self.images, self.labels)),
        }
        cpu = cpu_seconds(sides, repeats=1)
        here, there = self.norms["ours"], self.norms["theirs"]
        fooled = [int(norm.isfinite().sum()) for norm in (here, there)]
        note = f"{fooled[0]} and {fooled[1]} of {len(here)} fooled"
        if ours.minimum_norm:
            farther = int((here > 1.02 * there).sum())
            note += f", median L2 {here.median():.3f} and {there.median():.3f}, farther by 2 % on {farther}"
            self.nearest, self.spent = torch.minimum(self.nearest, there), self.spent + cpu["theirs"]
        what, target = f"{self.kind}, {name}", _TARGETS.get(name, 0.5)
        return Row(what=what, against=package, ours=cpu["ours"], other=cpu["theirs"], at_least=target, note=note)

    def compare_ensemble(self) -> Row:
        """Our ensemble against the nearest that any of the rivals found, image by image."""

        def search() -> None:
            self._judge("ours", MinimumNorm()(self.model, self.images, self.labels).images)

        cpu, here = cpu_seconds({"ours": search}, repeats=1), self.norms["ours"]
        note = (
            f"median L2 {here.median():.3f} and {self.nearest.median():.3f}, "
            f"farther by 2 % on {int((here > 1.02 * self.nearest).sum())} of {len(here)}"
        )
        what = f"{self.kind}, minimum_norm"
        return Row(what=what, against="the nearest of all", ours=cpu["ours"], other=self.spent, at_least=0.5, note=note)

    def _judge(self, side: str, found: Tensor) -> None:
        found = found.detach().clamp(0, 1)
        with torch.no_grad():
            fooled = self.model(found).argmax(1) != self.labels
        norm = (found.double() - self.images.double()).flatten(1).norm(dim=1)
        self.norms[side] = norm.masked_fill(~fooled, torch.inf)


def train(kind: str, *, steps: int) -> nn.Sequential:
    """A network of two convolutions, trained on clean digits, by PGD-AT or by interval bounds (Gowal et al. 2018)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    data, optimiser = Digits(split="train"), torch.optim.Adam(network.parameters(), lr=2e-3)
    images, labels = data.images(torch.arange(len(data.labels))), data.labels
    for step in range(steps):
        rows = torch.randperm(len(images), generator=generator(0, "rivals", step))[:100]
        eps = _TRAINING_EPS * min(1.0, 1.5 * step / steps)
        optimiser.zero_grad()
        _loss(kind, network, images[rows], labels[rows], eps, step).backward()
        optimiser.step()
    return network.eval()


def _loss(kind: str, network: nn.Sequential, images: Tensor, labels: Tensor, eps: float, step: int) -> Tensor:
    if kind == "adversarially trained" and eps > 0:
        attack = PGD(eps=eps, steps=5, keep="last", early_stop=False, seed=step)
        images = attack(network, images, labels).images
    clean = F.cross_entropy(network(images), labels)
    if kind != "provably trained":
        return clean
    low, high = _bounds(network, (images - eps).clamp(0, 1), (images + eps).clamp(0, 1))
    return (clean + F.cross_entropy(torch.where(F.one_hot(labels, 10).bool(), low, high), labels)) / 2


def _bounds(network: nn.Sequential, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the logits for images between ``low`` and ``high``."""
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            middle, radius = layer((low + high) / 2), (high - low) / 2
            radius = F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
            low, high = middle - radius, middle + radius
        elif isinstance(layer, nn.Linear):
            middle, radius = layer((low + high) / 2), F.linear((high - low) / 2, layer.weight.abs())
            low, high = middle - radius, middle + radius
        else:
            low, high = layer(low), layer(high)
    return low, high
