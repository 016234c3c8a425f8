"""Zero-shot evaluation of `tiny` under APGD-CE against the same loop through torchattacks' APGD, and both judged.

Each side begins with the class weights, as an evaluation does: ours come from the cache on the disk, the other's are
encoded class by class, as by open_clip's ``build_zero_shot_classifier``. torchattacks goes all steps with every image;
ours stops with one that is fooled.
"""

import resource
from functools import partial

import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.report import Row, cpu_seconds
from robustcli.attacks import APGD
from robustcli.data import SceneClasses
from robustcli.data.scenes.world import COLOURS
from robustcli.models import DualEncoder, ZeroShot, load_dual

_BATCH = 50  # as in the field's code
_LARGE, _AT_ONCE, _STEPS = "ViT-B-32", 32, 2
# Of the colours of scenes, and the targets.
_EPS = {"more than half fall": (2.3 / 255, 2.0), "few fall": (0.5 / 255, 1.0)}


def run(*, quick: bool = False) -> list[Row]:
    """On colours of scenes; ``quick``: on few images, with few steps."""
    task = _Task(8 if quick else 100)
    rows = [
        task.row(f"colours, {what}", eps, target, steps=3 if quick else 100, repeats=1)
        for what, (eps, target) in _EPS.items()
    ]
    return [*rows, _step("tiny" if quick else _LARGE, 2 if quick else _AT_ONCE)]


def _step(name: str, count: int) -> Row:
    """APGD on a model of random weights against as many bare passes, forward and backward, as it makes."""
    dual = load_dual({"name": "open_clip", "architecture": name, "pretrained": "random"} if name == _LARGE else name)
    model = ZeroShot(dual, list(COLOURS), templates=["something {}."])
    images = torch.rand(count, 3, dual.image_size, dual.image_size, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    attack = APGD(eps=1e-4, steps=_STEPS, loss="cross_entropy", early_stop=False)

    def bare() -> None:
        for _ in range(_STEPS + 1):  # at the start too
            x = images.clone().requires_grad_()
            torch.autograd.grad(model.dual.unchecked(x).sum(), x)
        with torch.no_grad():
            for _ in range(2):  # the clean answer, and the verdict
                model.dual.unchecked(images)

    cpu = cpu_seconds({"ours": lambda: attack(model, images, labels), "bare": bare}, repeats=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Row(
        what=f"{name}, batch {count}, APGD of {_STEPS} steps",
        against="bare passes",
        ours=cpu["ours"],
        other=cpu["bare"],
        at_most=1.1,
        note=f"{cpu['ours'] / count / (_STEPS + 1):.3f} s an image and step, peak {peak:.1f} GiB of the process",
    )


class _Plain(nn.Module):
    """The classifier of a paper's script: scaled cosines with class weights that were made beforehand."""

    def __init__(self, dual: DualEncoder, weights: Tensor) -> None:
        super().__init__()
        self.dual, self.weights = dual, weights

    def forward(self, images: Tensor) -> Tensor:
        return self.dual.logit_scale.detach() * self.dual.encode_image(images) @ self.weights


class _Task:
    """The shipped `tiny`, and images of six colours with their labels."""

    def __init__(self, count: int) -> None:
        self.dual = load_dual("tiny").eval()
        self.data = SceneClasses("colour", split="test", train=1, val=1, test=count)
        self.images, self.labels = self.data.images(torch.arange(count)), self.data.labels
        self.robust: dict[str, float] = {}
        self._zero_shot()(self.images[:1])  # fills the cache

    def row(self, what: str, eps: float, target: float, *, steps: int, repeats: int) -> Row:
        sides = {"ours": partial(self._ours, eps, steps), "theirs": partial(self._theirs, eps, steps)}
        cpu = cpu_seconds(sides, repeats=repeats)
        return Row(
            what=what,
            against="torchattacks APGD",
            ours=cpu["ours"],
            other=cpu["theirs"],
            at_least=target,
            note=f"robust accuracy {self.robust['ours']:.3f} and {self.robust['theirs']:.3f}",
        )

    def _zero_shot(self) -> ZeroShot:
        return ZeroShot(self.dual, self.data.classes, templates=self.data.templates)

    def _ours(self, eps: float, steps: int) -> None:
        model, attack = self._zero_shot(), APGD(eps=eps, steps=steps, loss="cross_entropy")
        stood = [~attack(model, *self._batch(rows), sample_ids=rows).success for rows in self._batches()]
        self.robust["ours"] = float(torch.cat(stood).double().mean())

    def _theirs(self, eps: float, steps: int) -> None:
        with torch.no_grad():
            texts = [[each.replace("{}", name) for each in self.data.templates] for name in self.data.classes]
            tokens = [self.dual.tokenize(each) for each in texts]
            weights = [nn.functional.normalize(self.dual.encode_text(each).mean(0), dim=0) for each in tokens]
        model = _Plain(self.dual, torch.stack(weights, 1))
        attack = torchattacks.APGD(model, eps=eps, steps=steps, loss="ce")
        stood = []
        for rows in self._batches():
            images, labels = self._batch(rows)
            with torch.no_grad():
                right = model(images).argmax(1) == labels
            found = attack(images[right], labels[right])
            with torch.no_grad():
                stood.append(int((model(found).argmax(1) == labels[right]).sum()))
        self.robust["theirs"] = sum(stood) / len(self.images)

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.split(torch.arange(len(self.images)), _BATCH)

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[rows], self.labels[rows]
