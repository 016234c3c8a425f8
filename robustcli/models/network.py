"""Parts of every model wrapper: the check of its input pixels, and the fingerprint of its weights.

Shapes: B batch, C channels, H height, W width.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

PROMPT = "prompt_context"  # weight of a learnt prompt, beside those of the network, which files of weights hold


class PixelCheck:
    """Range check of images (B,C,H,W), floats in [0,1]: begun before the network runs, settled after it.

    On an accelerator the answer is awaited only once the network's own work is queued, so that the device never idles
    for the check; on the CPU it is there at once.

    Raises:
        ValueError: not (B,C,H,W) floats.
    """

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}: expected floats (B,C,H,W) in [0, 1]"
            )
        self._ready: torch.cuda.Event | None = None
        self._range = torch.zeros(2)
        if images.numel():
            self._range = torch.stack(torch.aminmax(images.detach())).to("cpu", non_blocking=True)
            if images.is_cuda:
                self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._ready.record(torch.cuda.current_stream(images.device))

    def settle(self) -> None:
        """Raise `ValueError` for a value out of [0,1] or NaN."""
        if self._ready is not None:
            self._ready.synchronize()
        low, high = self._range.tolist()
        if not (low >= 0.0 and high <= 1.0):  # NaN compares as false
            raise ValueError(f"images range from {low:g} to {high:g}: expected [0, 1], not normalised, without NaN")


def resizing(height: int, width: int, size: int | None) -> list[str]:
    """A sentence on images of ``height`` x ``width`` that a network of ``size`` pixels a side takes; none if as is."""
    if size is None or (height, width) == (size, size):
        return []
    return [f"The model resizes images from {height} x {width} to {size} x {size} pixels."]


def of_image(name: str) -> bool:
    """True for a weight of the image tower of a dual encoder, open_clip's or one of transformers."""
    return name.partition(".")[0] in ("visual", "vision_model", "visual_projection")


def precision(network: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Type of the first floating-point weight, which a network takes its input in; ``otherwise`` without weights."""
    return next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), otherwise)


def fingerprint(network: nn.Module, *, settings: bool = False) -> str:
    """sha256 (hex) over the names, types, shapes and bytes of the weights.

    Args:
        settings: also over the buffers that no file of weights holds, such as the alphas of a purifier.
    """
    return digest(network.state_dict() | (dict(network.named_buffers()) if settings else {}))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over the names, types, shapes and bytes of tensors."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
