"""DeepFool and C&W against torchattacks' on the same model and images, with the same settings.

torchattacks' DeepFool takes one image and one class at a time; its C&W ends when the sum of the losses of the whole
batch no longer falls, ours ends for each image on its own.

Shapes: N images, C channels, H height, W width, Y classes.
"""

from collections.abc import Callable
from functools import partial

import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.report import Row, cpu_seconds
from robustcli.attacks import CW, DeepFool
from robustcli.attacks.core.base import ClassifierAttack
from robustcli.models.resnet_cifar import resnet_cifar
from robustcli.utils.seeding import generator

CLASSES, TOP = 30, 10
_C, _LR = 10.0, 3e-3  # torchattacks has no search for c


def run(*, quick: bool = False) -> list[Row]:
    """On a plain network of three layers and on ResNet-20, both with random weights."""
    rows = _compare("small network", small_network(), quick=quick)
    return rows if quick else rows + _compare("ResNet-20", resnet_cifar(20, classes=CLASSES), quick=quick)


def small_network() -> nn.Module:
    """Two convolutions and a linear layer, whose decisions differ from image to image."""
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, CLASSES),
    )
    for name, weight in layers.named_parameters():
        draw = torch.randn(weight.shape, generator=generator(0, "minimum norm", name))
        weight.data = draw / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1 * draw
    return layers


def images(count: int) -> Tensor:
    """(count,3,32,32) in [0,1]: coarse noise with some fine noise on it."""
    coarse, fine = (torch.rand(count, 3, size, size, generator=generator(0, "minimum norm", size)) for size in (4, 32))
    upscaled = nn.functional.interpolate(coarse, size=32, mode="bilinear", align_corners=False)
    return (0.8 * upscaled + 0.2 * fine).clamp(0, 1)


def _compare(name: str, model: nn.Module, *, quick: bool) -> list[Row]:
    task, steps = _Task(model.eval(), images(4 if quick else 64)), 10 if quick else 50
    every, top = DeepFool(classes=None), DeepFool(classes=TOP)
    other = torchattacks.DeepFool(model, steps=every.steps, overshoot=every.overshoot)
    cw = CW(c=_C, lr=_LR, steps=steps, search_steps=1)
    sides: dict[str, Callable[[], None]] = {
        "all": partial(task.ours, "all", every),
        "top": partial(task.ours, "top", top),
        "theirs": partial(task.theirs, "theirs", other),
        "cw": partial(task.ours, "cw", cw),
        "their cw": partial(task.theirs, "their cw", torchattacks.CW(model, c=_C, kappa=0, steps=steps, lr=_LR)),
    }
    cpu = cpu_seconds(sides, repeats=1)
    return [
        Row(what=f"{name}, {what}", against=f"torchattacks {against}", ours=cpu[ours], other=cpu[theirs],
            at_least=target, note=task.agreement(ours, theirs))
        for what, against, ours, theirs, target in (
            (f"DeepFool, {CLASSES} classes", "DeepFool", "all", "theirs", 3.0),
            (f"DeepFool, top {TOP}", "DeepFool", "top", "theirs", 10.0),
            (f"C&W, {steps} steps", "CW", "cw", "their cw", 1.3),
        )
    ]  # fmt: skip


class _Task:
    """Images that are to leave the class that the model gives them."""

    def __init__(self, model: nn.Module, clean: Tensor) -> None:
        self.model, self.clean, self.norms = model, clean, dict[str, Tensor]()
        with torch.no_grad():
            self.labels = model(clean).argmax(1)

    def ours(self, side: str, attack: ClassifierAttack) -> None:
        self.norms[side] = attack(self.model, self.clean, self.labels).norm

    def theirs(self, side: str, attack: torchattacks.attack.Attack) -> None:
        found = attack(self.clean, self.labels)
        found = (found[0] if isinstance(found, tuple) else found).detach()
        with torch.no_grad():
            failed = self.model(found).argmax(1) == self.labels
        norm = (found.double() - self.clean.double()).flatten(1).norm(dim=1)
        self.norms[side] = norm.masked_fill(failed, torch.inf)

    def agreement(self, ours: str, theirs: str) -> str:
        """Number of images that each has fooled, and the ratio of the norms where both have."""
        here, there = self.norms[ours], self.norms[theirs]
        both = (here < torch.inf) & (there < torch.inf)
        ratio = here[both] / there[both]
        share = f"ours / theirs {ratio.median():.3f}, {ratio.min():.3f} to {ratio.max():.3f}" if len(ratio) else "none"
        fooled = [int((norm < torch.inf).sum()) for norm in (here, there)]
        return f"{fooled[0]} and {fooled[1]} of {len(here)} misled; L2 {share}"
