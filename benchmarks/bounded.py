"""AutoAttack and PGD against torchattacks' on the shipped classifiers, with the same steps, and both judged.

torchattacks' AutoAttack is given the 100 steps of the publication, instead of its default 10; neither its PGD nor its
APGD leaves a sample alone that is fooled already, before all steps are done.
"""

from functools import partial

import torch
import torchattacks

from benchmarks.report import Row, cpu_seconds
from robustcli.attacks import PGD, AutoAttack
from robustcli.attacks.core.base import ClassifierAttack
from robustcli.data import Digits, SceneClasses
from robustcli.models import load

_STEPS, _QUERIES, _PGD_STEPS = 100, 5000, 40
# Of each shipped classifier: where half of the images fall in the first quarter of PGD's steps, and where none does.
_EPS = {"digits": (0.11, 0.002), "scene_classes": (3 / 255, 0.1 / 255)}


def run(*, quick: bool = False) -> list[Row]:
    """On the test images of both embedded data sets of classes; ``quick``: on few digits, with few steps."""
    rows = []
    for name in ("digits",) if quick else _EPS:
        task = _Task(name, 8 if quick else 128)
        rows += [_auto_attack(task, _EPS[name][0], quick=quick)]
        rows += [_pgd(task, eps, target, quick=quick) for eps, target in zip(_EPS[name], (2.0, 1.0), strict=True)]
    return rows


def _auto_attack(task: "_Task", eps: float, *, quick: bool) -> Row:
    steps, queries = (3, 10) if quick else (_STEPS, _QUERIES)
    theirs = torchattacks.AutoAttack(task.model, eps=eps, n_classes=task.classes, seed=0)
    for member in theirs._autoattack.attacks:
        if hasattr(member, "steps"):
            member.steps = steps
        if hasattr(member, "n_queries"):
            member.n_queries = queries
    return task.row(f"AutoAttack, eps {eps:.3g}", AutoAttack(eps=eps, steps=steps, queries=queries), theirs, 1.5)


def _pgd(task: "_Task", eps: float, target: float, *, quick: bool) -> Row:
    steps = 5 if quick else _PGD_STEPS
    ours = PGD(eps=eps, steps=steps, alpha=eps / 10, keep="last")
    theirs = torchattacks.PGD(task.model, eps=eps, alpha=eps / 10, steps=steps, random_start=True)
    return task.row(f"PGD, {steps} steps, eps {eps:.3g}", ours, theirs, target, repeats=1 if quick else 5)


class _Task:
    """A shipped classifier, by name, and the first images of its test split."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.model, self.robust = name, load(name).eval(), dict[str, float]()
        data = Digits(split="test") if name == "digits" else SceneClasses(split="test", train=1, val=1, test=count)
        self.images, self.labels = data.images(torch.arange(count)), data.labels[:count]
        self.classes = len(data.classes)

    def row(
        self, what: str, ours: ClassifierAttack, theirs: torchattacks.attack.Attack, target: float, *, repeats: int = 1
    ) -> Row:
        """Both attacks on all images, with the robust accuracy that each is left with."""
        sides = {"ours": partial(self._ours, ours), "theirs": partial(self._theirs, theirs)}
        cpu = cpu_seconds(sides, repeats=repeats)
        return Row(
            what=f"{self.name}, {what}",
            against=f"torchattacks {type(theirs).__name__}",
            ours=cpu["ours"],
            other=cpu["theirs"],
            at_least=target,
            note=f"robust accuracy {self.robust['ours']:.3f} and {self.robust['theirs']:.3f}",
        )

    def _ours(self, attack: ClassifierAttack) -> None:
        self.robust["ours"] = float((~attack(self.model, self.images, self.labels).success).double().mean())

    def _theirs(self, attack: torchattacks.attack.Attack) -> None:
        """The images that are classified wrongly to begin with are told apart and every result is judged, as by us."""
        with torch.no_grad():
            right = self.model(self.images).argmax(1) == self.labels
        found = attack(self.images[right], self.labels[right])
        with torch.no_grad():
            stands = self.model(found).argmax(1) == self.labels[right]
        self.robust["theirs"] = float(stands.double().sum()) / len(self.images)
