"""Honest members of the zoo: small networks, robust or not, whose gradients are what they seem.

Shapes: N images, C channels, H height, W width, Y classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import PGD, ThreatModel
from robustcli.data.sampling import ClassBatch
from robustcli.defenses.objectives.classification import ClassObjective
from robustcli.models import Classifier

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # images, labels, rows of the set, number of the step -> scalar
_BATCH = 64


class SortedPairs(nn.Module):
    """GroupSort of pairs: a 1-Lipschitz activation that keeps the norm of the gradient (Anil et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack([pairs.amax(2), pairs.amin(2)], 2).flatten(1)


class Lipschitz(nn.Module):
    """Network whose logits move by no more than the L2 norm of the change of the image: orthogonal weights between
    `SortedPairs`.

    Args:
        pixels: of an image, an even number.
    """

    def __init__(self, pixels: int, classes: int, seed: int) -> None:
        super().__init__()
        orthogonal = nn.utils.parametrizations.orthogonal
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden = nn.ModuleList(orthogonal(nn.Linear(pixels, pixels)) for _ in range(2))
            self.head = orthogonal(nn.Linear(pixels, classes))
        self.sort = SortedPairs()

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,Y)."""
        x = images.flatten(1)
        for layer in self.hidden:
            x = self.sort(layer(x))
        logits: Tensor = self.head(x)
        return logits


def linear(pixels: int, classes: int, seed: int) -> nn.Module:
    """A linear classifier of the pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def trained(network: nn.Module, images: Tensor, labels: Tensor, loss: Loss, *, epochs: int, lr: float) -> nn.Module:
    """The network after some epochs of Adam with a one-cycle rate; the order of the images is always the same."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    steps = epochs * (len(images) // _BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    order = torch.Generator().manual_seed(0)
    network.train()
    for step in range(steps):
        rows = torch.randperm(len(images), generator=order)[:_BATCH]
        optimizer.zero_grad()
        loss(images[rows], labels[rows], rows, step).backward()
        optimizer.step()
        rate.step()
    return network.eval()


def cross_entropy(network: nn.Module, *, scale: float = 1.0) -> Loss:
    """Cross-entropy of clean images; ``scale`` multiplies the logits."""
    return lambda images, labels, _, __: F.cross_entropy(scale * network(images), labels)


def adversarial(network: Classifier, objective: ClassObjective, eps: str) -> Loss:
    """The loss of an adversarial objective within L-inf ``eps``, with five steps of PGD where it takes an attack."""
    threat, attack = ThreatModel(eps=eps), PGD(steps=5) if objective.takes_attack else None
    return lambda images, labels, rows, step: objective.loss(
        network, attack, threat, images, ClassBatch(image_ids=rows, labels=labels), seed=step
    )
