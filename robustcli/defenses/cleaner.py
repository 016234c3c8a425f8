"""What may stand in front of an untouched model: images in, cleaned images out.

Shapes: B images, C channels, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn


class Cleaner(nn.Module, ABC):
    """A cleaner in two halves: what is done once an image, and what is done for each draw.

    ``finish(prepare(images), sample_noise(...))`` is a pass; a model that averages draws repeats the second half alone.
    """

    @property
    @abstractmethod
    def randomised(self) -> bool:
        """Whether two passes over the same image differ."""

    @abstractmethod
    def prepare(self, images: Tensor) -> list[Tensor]:
        """What can be shared by all draws: images (B,C,H,W) in [0,1] -> tensors with B as their first dimension."""

    @abstractmethod
    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        """What is left, for one draw an entry: (B,C,H,W)."""

    def sample_noise(self, count: int, like: Tensor) -> list[Tensor]:
        """Draws for ``finish`` from torch's global generator; none where it draws by itself."""
        return []

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> the same, cleaned."""
        return self.finish(self.prepare(images), self.sample_noise(len(images), images))


class Step(Cleaner):
    """A function of images as a cleaner: the paper's ablations, noise alone and blur alone, and JPEG.

    Args:
        function: images (B,C,H,W) in [0,1] -> the same; one that draws says so by an attribute ``randomised``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    @property
    def randomised(self) -> bool:
        return bool(getattr(self.function, "randomised", False))

    def prepare(self, images: Tensor) -> list[Tensor]:
        return [images if self.randomised else self.function(images)]

    def finish(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        return self.function(prepared[0]) if self.randomised else prepared[0]
