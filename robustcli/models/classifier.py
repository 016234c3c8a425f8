"""Wrapper of every classifier: pixels in [0,1] -> logits.

Mean/std and resize stand here and nowhere else, so an attack or a purifier never sees a normalised image.

Shapes: B batch, C channels, H height, W width, Y classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.network import PixelCheck, fingerprint, precision, resizing
from robustcli.utils.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns RGB into grey


class Classifier(nn.Module):
    """A classifier of images; in eval mode until it is trained.

    Args:
        network: (B,C,S,S) normalised, in the type of its weights -> logits (B,Y), or several outputs, see ``output``.
        classes: Y names, or Y alone where the names are not known.
        mean, std: one number for each channel of the network, in units of [0,1] pixels.
        image_size: side S in pixels that images are resized to (bilinear, antialiased where they shrink); None: as is.
        description: arguments that rebuild the network (plain JSON data); stored with its weights.
        output: which of several outputs the logits are: the place in a tuple, from 0, or the key of a dict or the name
            of an attribute. None: the first of a tuple, of a dict ``logits``.

    Attributes:
        classes: the names, or None.
        class_count: Y.
        remarks: sentences on what a file of weights left open and its reader decided.

    Raises:
        ValueError: neither one nor three of mean and std each, or a std that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: Sequence[str] | int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        description: Mapping[str, Any] | None = None,
        output: int | str | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) not in (1, 3) or not all(value > 0 for value in std):
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)}: expected one or three of each, std above 0")
        self.network = network
        self.classes = None if isinstance(classes, int) else tuple(classes)
        self.class_count = classes if isinstance(classes, int) else len(classes)
        self.image_size = image_size
        self.description = dict(description or {})
        self.output = output
        self.remarks: list[str] = []
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.mean.device

    @property
    def channels(self) -> int:
        """C of the network: images of one channel are repeated for 3, those of three are weighed by luma for 1."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1], C 1 or 3 -> logits (B,Y) float32, differentiable in the images.

        Raises:
            ValueError: a value is out of [0,1] or NaN, or the shape is not (B,C,H,W) with C 1 or 3.
            UserError: the network gives no logits of Y classes.
        """
        check = PixelCheck(images)
        logits = self.unchecked(images)
        check.settle()  # after the network's work is queued: a check before it would idle the device
        return logits

    def unchecked(self, images: Tensor) -> Tensor:
        """`forward` without the check of the range, for a search that starts a hair outside of [0,1]."""
        images = self.sized(self.coloured(images.to(self.device)))
        normalised = (images - self.mean) / self.std
        return self._logits(self.network(normalised.to(precision(self.network, normalised.dtype)))).float()

    def _logits(self, output: Any) -> Tensor:
        logits = _picked(output, self.output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != self.class_count:
            raise UserError(
                f"the network {type(self.network).__name__} gives {_shapes(output)} in place of logits "
                f"(B,{self.class_count}): expected one number a class, alone, first in a tuple, or as 'logits' of a "
                "dict; model.output picks another place or key of several outputs; for two classes by one logit z "
                "return torch.stack([-z, z], 1) / 2."
            )
        return logits

    def coloured(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) with the channels of the network: grey ones repeated, those of three weighed by luma."""
        if images.shape[1] == self.channels:
            return images
        if images.shape[1] == 1:
            return images.expand(-1, self.channels, -1, -1)
        if images.shape[1] == 3:
            return (images * images.new_tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
        raise ValueError(f"images have {images.shape[1]} channels: expected 1 or 3")

    def sized(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) at the network's size: bilinear, antialiased where they shrink; or as they are."""
        size = self.image_size
        if size is None or images.shape[-2:] == (size, size):
            return images
        shrinks = max(images.shape[-2:]) > size
        return F.interpolate(images, (size, size), mode="bilinear", antialias=shrinks)

    def notes(self, height: int, width: int) -> list[str]:
        """Sentences on what the model does to images of ``height`` x ``width`` pixels before its network sees them."""
        return [*self.remarks, *resizing(height, width, self.image_size)]

    def fingerprint(self) -> str:
        """sha256 (hex) over the names, types, shapes and bytes of the weights."""
        return fingerprint(self.network)

    def extra_repr(self) -> str:
        return f"classes={self.class_count}, channels={self.channels}, image_size={self.image_size}"


def _picked(output: Any, which: int | str | None) -> Any:
    """The output at a place, a key or an attribute; None where there is none."""
    if which is None:
        if isinstance(output, Mapping):
            return output.get("logits")
        return output[0] if isinstance(output, tuple | list) and output else output  # auxiliary heads, in train mode
    if isinstance(which, int):
        several = list(output.values()) if isinstance(output, Mapping) else output
        return several[which] if isinstance(several, tuple | list) and -len(several) <= which < len(several) else None
    return output.get(which) if isinstance(output, Mapping) else getattr(output, which, None)


def _shapes(output: Any) -> str:
    """What a network gave, for a message: shapes, each with its place or key."""
    if isinstance(output, Tensor):
        return f"numbers of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return "a dict of " + ", ".join(f"{key}: {_shapes(value)}" for key, value in output.items())
    if isinstance(output, tuple | list):
        return "a tuple of " + ", ".join(f"{place}: {_shapes(value)}" for place, value in enumerate(output))
    return f"a {type(output).__name__}"
