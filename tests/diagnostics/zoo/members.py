"""Members of the zoo by name: planted defences and honest networks, on the digits that come with the package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor, nn

from robustcli.attacks import APGD, PGD, AutoAttack, ClassifierAttack, ThreatModel
from robustcli.data import Digits
from robustcli.defenses.objectives.pgd_at import PGDAdversarialTraining
from robustcli.defenses.objectives.trades import TRADES
from robustcli.diagnostics import ClassifierSubject
from robustcli.models import Classifier, load_classifier, small_cnn
from tests.diagnostics.zoo import planted
from tests.diagnostics.zoo.honest import Lipschitz, adversarial, cross_entropy, linear, trained

THREAT = ThreatModel(eps="32/255")
SAMPLES = 64
AUTOATTACK = AutoAttack(steps=20, queries=300)
_PIXELS, _CLASSES = 64, 10


@dataclass(frozen=True)
class Member:
    """A model of the zoo and the attack that its robust accuracy is claimed under.

    Attributes:
        make: of the model, in eval mode.
        attack: of the claim.
        threat: within which it attacks.
        honest: the claim is sound; else the model is no more robust than the bare network.
    """

    make: Callable[[], nn.Module]
    attack: ClassifierAttack
    threat: ThreatModel = field(default=THREAT)
    honest: bool = False

    def subject(self, samples: int = SAMPLES) -> ClassifierSubject:
        """The model on the first test images."""
        images, labels = sample_images()
        return ClassifierSubject(self.make(), images[:samples], labels[:samples], self.threat)


@cache
def sample_images() -> tuple[Tensor, Tensor]:
    """The first `SAMPLES` test images (N,C,H,W) and their labels (N,)."""
    data = Digits(split="test")
    return data.images(torch.arange(SAMPLES)), data.labels[:SAMPLES]


@cache
def _training_images() -> tuple[Tensor, Tensor]:
    data = Digits(split="train")
    return data.images(torch.arange(len(data))), data.labels


@cache
def bare() -> Classifier:
    """The shipped classifier of digits."""
    return load_classifier({"name": "small_cnn", "shipped": "tiny_digits", "checkpoint": "shipped"}).eval()


def _fresh() -> Classifier:
    """A copy of the shipped classifier to train on."""
    return load_classifier({"name": "small_cnn", "shipped": "tiny_digits", "checkpoint": "shipped"})


def _winners(share: float) -> nn.Module:
    """The shipped classifier with `WinnersTakeAll` for its ReLUs, trained until it is right again."""
    network = _fresh()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, planted.WinnersTakeAll(share))
    return trained(network, *_training_images(), cross_entropy(network), epochs=10, lr=3e-3)


def _robust(objective: PGDAdversarialTraining | TRADES, eps: str) -> nn.Module:
    network = _fresh()
    return trained(network, *_training_images(), adversarial(network, objective, eps), epochs=4, lr=3e-3)


def _clean(network: nn.Module, *, scale: float = 1.0, epochs: int = 8, lr: float = 3e-3) -> nn.Module:
    return trained(network, *_training_images(), cross_entropy(network, scale=scale), epochs=epochs, lr=lr)


def _before(step: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: planted.InputStep(bare(), step).eval()


def _behind(step: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: planted.OutputStep(bare(), step).eval()


def _remembering(kind: type[planted.RememberingDetector]) -> nn.Module:
    return kind(bare(), sample_images()[0], 40 / 255).eval()


_PGD = PGD(steps=20)
PLANTED: Mapping[str, Member] = {
    "k-WTA, 5 %": Member(partial(_winners, 0.05), _PGD),
    "k-WTA, 10 %": Member(partial(_winners, 0.1), _PGD),
    "k-WTA, 20 %": Member(partial(_winners, 0.2), _PGD),
    "detector that restores": Member(lambda: planted.RestoringDetector(bare()).eval(), _PGD),
    "detector that remembers": Member(partial(_remembering, planted.RememberingDetector), AUTOATTACK),
    "detector that remembers, faint slope": Member(partial(_remembering, planted.FaintDetector), APGD(steps=30)),
    "detector of rough images": Member(lambda: planted.ThresholdedDetector(bare(), 0.2).eval(), _PGD),
    "rippled loss": Member(_before(planted.rippled), _PGD),
    "rippled loss, AutoAttack": Member(_before(planted.rippled), AUTOATTACK),
    "pulsed gradients": Member(_before(planted.pulsed), _PGD),
    "noise by position and pixel": Member(_before(planted.hashed_noise), AUTOATTACK),
    "noise that is drawn": Member(_before(planted.drawn_noise), _PGD),
    "dropout at test": Member(_before(planted.dropped), _PGD),
    "quantised input": Member(_before(partial(planted.quantised, levels=5)), _PGD),
    "quantised cosines (JPEG)": Member(_before(planted.cosine_quantised), _PGD),
    "resize without gradient": Member(_before(planted.resized), _PGD),
    "flipped gradient": Member(_before(planted.flipped_gradient), _PGD),
    "noise for a gradient": Member(_before(planted.noise_gradient), _PGD),
    "dead ReLU": Member(_before(planted.dead_relu), _PGD),
    "saturated logits": Member(_behind(planted.huge), _PGD),
    "log-softmax twice": Member(_behind(planted.double_log_softmax), _PGD),
    "clipped logits": Member(_behind(planted.clipped), _PGD),
    "rounded logits": Member(_behind(planted.rounded), _PGD),
    "no graph": Member(_behind(planted.cut), _PGD),
    "counter of queries": Member(lambda: planted.CountingDefence(bare()).eval(), _PGD),
    "batch norm of the batch": Member(lambda: planted.TestTimeBatchNorm(bare()).eval(), _PGD),
}
HONEST: Mapping[str, Member] = {
    "shipped classifier": Member(bare, AUTOATTACK, honest=True),
    "shipped classifier, 16/255": Member(bare, AUTOATTACK, ThreatModel(eps="16/255"), honest=True),
    "clean, another start": Member(lambda: _clean(small_cnn(_CLASSES, seed=3)), AUTOATTACK, honest=True),
    "PGD-AT, 16/255": Member(lambda: _robust(PGDAdversarialTraining(), "16/255"), AUTOATTACK, honest=True),
    "PGD-AT, 32/255": Member(lambda: _robust(PGDAdversarialTraining(), "32/255"), AUTOATTACK, honest=True),
    "PGD-AT, 48/255": Member(lambda: _robust(PGDAdversarialTraining(), "48/255"), AUTOATTACK, honest=True),
    "TRADES, 16/255": Member(lambda: _robust(TRADES(steps=5), "16/255"), AUTOATTACK, honest=True),
    "TRADES, 32/255": Member(lambda: _robust(TRADES(steps=5), "32/255"), AUTOATTACK, honest=True),
    "linear": Member(lambda: _clean(linear(_PIXELS, _CLASSES, 0), epochs=30, lr=1e-2), AUTOATTACK, honest=True),
    "1-Lipschitz": Member(
        lambda: _clean(Lipschitz(_PIXELS, _CLASSES, 0), scale=16.0, epochs=15, lr=1e-2), AUTOATTACK, honest=True
    ),
    "1-Lipschitz, L2": Member(
        lambda: _clean(Lipschitz(_PIXELS, _CLASSES, 1), scale=16.0, epochs=15, lr=1e-2),
        AUTOATTACK,
        ThreatModel(norm="l2", eps=0.5),
        honest=True,
    ),
}
