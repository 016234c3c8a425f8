"""Cleaners of images in front of an untouched model, in two halves: once an image, and once a draw.

Shapes: B images, C channels, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustcli.attacks.adaptive.bpda import BPDA
from robustcli.utils.seeding import generator as named_generator


class Cleaner(nn.Module, ABC):
    """Cleaner of images in two halves: ``prepare`` runs once an image, ``finish`` once a draw.

    ``finish(prepare(images), sample_noise(...))`` is a pass; a model that averages draws repeats the second half alone.
    """

    @property
    @abstractmethod
    def randomised(self) -> bool:
        """True if two passes over the same image differ."""

    @property
    def bounded(self) -> bool:
        """True if cleaned images are within [0,1]; the input of others goes to the network without that check."""
        return True

    @property
    def plain(self) -> "Cleaner":
        """The cleaner whose graph tells what a pass needs: itself, without checkpoints or approximate gradients."""
        return self

    @abstractmethod
    def prepare(self, images: Tensor) -> list[Tensor]:
        """First half, shared by all draws: images (B,C,H,W) in [0,1] -> tensors with B as their first dimension."""

    @abstractmethod
    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        """Second half, one draw an entry: tensors of `prepare` and their noise -> (B,C,H,W); nothing is drawn here."""

    @abstractmethod
    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        """Noise that ``finish`` takes for ``count`` entries, on the device and of the type of ``like``.

        Args:
            source: None: torch's global generator.
        """

    def named_noise(self, names: Sequence[int], like: Tensor, *, seed: int, draw: int = 0) -> list[Tensor]:
        """Noise of one entry a name, as `sample_noise`; it depends on ``seed``, ``draw`` and the name alone."""
        if not names:
            return self.sample_noise(0, like)
        rows = [self.sample_noise(1, like, named_generator(seed, "clean", draw, name)) for name in names]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    def codes(self, images: Tensor) -> Tensor:
        """What is kept of images (B,C,H,W), as (B,K), for an attack that moves it: here the image itself, cleaned
        without noise; deterministic.
        """
        noise = [torch.zeros_like(part) for part in self.named_noise(list(range(len(images))), images, seed=0)]
        return self.finish(self.prepare(images), noise).flatten(1)

    def shortened(self) -> "Cleaner | None":
        """The same cleaner in less work, for an attacker's gradients; None where there is none."""
        return None

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> the same, cleaned."""
        return self.finish(self.prepare(images), self.sample_noise(len(images), images))


class Step(Cleaner):
    """A function of images as a cleaner: the paper's ablations, noise alone and blur alone, and JPEG.

    Args:
        function: images (B,C,H,W) in [0,1] -> the same; one that draws says so by an attribute ``randomised``, and
            takes standard-normal noise (B,C,H,W) as its second argument.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    @property
    def randomised(self) -> bool:
        return bool(getattr(self.function, "randomised", False))

    def prepare(self, images: Tensor) -> list[Tensor]:
        return [images if self.randomised else self.function(images)]

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        return self.function(prepared[0], noise[0]) if self.randomised else prepared[0]

    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        return [standard_normal((count, *like.shape[1:]), like, source)] if self.randomised else []


class StraightThrough(Cleaner):
    """A cleaner with the gradient of the identity (straight through), as a BPDA attacker differentiates it.

    Args:
        cleaner: see `BPDA`.
    """

    def __init__(self, cleaner: Cleaner) -> None:
        super().__init__()
        self.cleaner = cleaner

    @property
    def randomised(self) -> bool:
        return self.cleaner.randomised

    @property
    def bounded(self) -> bool:
        return self.cleaner.bounded

    @property
    def plain(self) -> Cleaner:
        return self.cleaner.plain

    def prepare(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():  # the images go along for their gradient; no graph of the cleaner is kept
            return [images, *self.cleaner.prepare(images)]

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        images, *rest = prepared
        cleaned: Tensor = BPDA(lambda _: self.cleaner.finish(rest, noise))(images)
        return cleaned

    def sample_noise(self, count: int, like: Tensor, source: torch.Generator | None = None) -> list[Tensor]:
        return self.cleaner.sample_noise(count, like, source)


def standard_normal(shape: tuple[int, ...], like: Tensor, source: torch.Generator | None) -> Tensor:
    """Standard-normal noise on the device and of the type of ``like``, from a source on any device.

    Drawn on the device of the source and then moved: from a CPU generator the bits are the same for every device.
    """
    device = like.device if source is None else source.device
    return torch.randn(shape, device=device, dtype=like.dtype, generator=source).to(like.device)
