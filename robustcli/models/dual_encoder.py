"""Wrapper of every CLIP-like network: pixels in [0,1] and tokens -> embeddings of unit norm.

Mean/std and resize stand here and nowhere else, so an attack or a purifier never sees a normalised image.

Shapes: B batch, C channels, D embedding, N patches, T tokens, W width of the text tower.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models.network import PixelCheck, fingerprint, of_image, precision, resizing
from robustcli.models.patch_tokens import read_patches
from robustcli.models.text import cut_captions, read_text, token_table, tokens_read
from robustcli.utils.rowwise import filled, in_tiles

_CACHED_CAPTIONS = 1 << 17  # about 80 MB of 77 tokens each
_IDLE = ("logit_bias", "text_decoder")  # parts of some networks that no contrastive loss of ours reaches


class DualEncoder(nn.Module):
    """A dual encoder for images and captions.

    Args:
        network: open_clip's ``CLIP`` or ``CustomTextCLIP``, a ``LeanCLIP``, or ``HuggingFaceTowers``.
        tokenizer: captions -> (B,T) long.
        image_size: side in pixels that the network takes.
        mean, std: per channel, in units of [0,1] pixels.
        max_logit_scale: ceiling of the inverse temperature (100 in CLIP, none in SigLIP).
        interpolation: of images that have another size.
        description: arguments that rebuild the network (plain JSON data); stored with its weights.

    Attributes:
        remarks: sentences on what a file of weights left open and its reader decided.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Callable[[Sequence[str]], Tensor],
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        max_logit_scale: float = 100.0,
        interpolation: str = "bicubic",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.max_logit_scale = max_logit_scale
        self.interpolation = interpolation
        self.description = dict(description or {})
        self.remarks: list[str] = []
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self._rows: dict[str, Tensor] = {}
        self._fixed = {name for name, weight in network.named_parameters() if not weight.requires_grad}
        self.set_trainable("both")

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.mean.device

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, a scalar: exp of the learnt parameter, at most ``max_logit_scale``.

        Above the ceiling the gradient is that of a loss to be minimised: it passes where it would lower the scale.
        """
        learnt: Any = self.network.logit_scale
        scale: Tensor = _Ceiling.apply(learnt.exp().reshape(()), self.max_logit_scale)
        return scale

    def encode_image(self, images: Tensor, *, unit: bool = True) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) float32 of unit norm, or as the tower gives them if ``unit`` is False.

        Images whose H or W is not ``image_size`` are resized to a square (antialiased, clamped to [0,1]).

        Raises:
            ValueError: a value is out of [0,1] or NaN, or the shape is not (B,C,H,W).
        """
        check = PixelCheck(images)
        features = self.unchecked(images, unit=unit)
        check.settle()  # after the network's work is queued: a check before it would idle the device
        return features

    def unchecked(self, images: Tensor, *, unit: bool = True) -> Tensor:
        """`encode_image` without the check of the range, for a search that starts a hair outside of [0,1]."""
        network: Any = self.network
        features: Tensor = network.encode_image(self._normalised(images)).float()
        return (_unit(features) if unit else features)[: len(images)]

    def encode_patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,C,H,W) in [0,1] -> embeddings (B,D) and those of the patches (B,N,D) row by row, both float32 as the tower
        gives them; the range is not checked.

        Raises:
            UserError: the image tower has no patches, see `read_patches`.
        """
        features, patches = read_patches(self.network, self._normalised(images))
        return features.float()[: len(images)], patches.float()[: len(images)]

    def _normalised(self, images: Tensor) -> Tensor:
        """The input of the image tower, on the CPU at least 16 rows out of training: see `rowwise`."""
        images = self.sized(images.to(self.device))
        images = images if self.training else filled(images)
        # Normalised within the graph, so that a gradient by ``images`` is one by pixels in [0,1], in units of eps.
        normalised = (images - self.mean) / self.std
        network: Any = self.network
        return normalised.to(precision(network.visual, normalised.dtype))

    def sized(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0,1] at the network's size: antialiased and clamped; or as they are."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] == size:
            return images
        resized = F.interpolate(images, size, mode=self.interpolation, antialias=True)
        return resized.clamp(0.0, 1.0)  # bicubic overshoots

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B,T) long, on the CPU; the ids of a caption are cached.

        Raises:
            TypeError: one string, whose characters would count as captions.
        """
        if isinstance(captions, str):
            raise TypeError("tokenize takes a sequence of captions, not one caption")
        # A text attack asks for the same captions again and again, and tokenizers run in Python.
        missing = list(dict.fromkeys(caption for caption in captions if caption not in self._rows))
        if missing or not captions:
            self._rows.update(zip(missing, self.tokenizer(missing), strict=True))
        tokens = torch.stack([self._rows[caption] for caption in captions]) if captions else self.tokenizer([])
        while len(self._rows) > _CACHED_CAPTIONS:  # the oldest first: a dict keeps the order of insertion
            del self._rows[next(iter(self._rows))]
        return tokens

    def crop(self, tokens: Tensor) -> Tensor:
        """(B,T) -> (B,T') up to the last end-of-text token of the batch; as it is where later tokens matter.

        On the CPU T' is a multiple of 16, or T, but in training: see `rowwise`.
        """
        return tokens[:, : int(self._widths(tokens).max())] if len(tokens) else tokens

    def encode_text(self, tokens: Tensor, embeddings: Tensor | None = None, *, unit: bool = True) -> Tensor:
        """(B,T) long -> (B,D) float32 of unit norm, or as the tower gives them if ``unit`` is False.

        Args:
            tokens: as ``tokenize`` gives them; cropped here where that is exact, so padding costs nothing.
            embeddings: (B,T',W) in place of the token look-up, T' at least the cropped length; gradients flow to it.

        Raises:
            ValueError: embeddings of another batch size, or shorter than the cropped tokens.
        """
        widths = self._widths(tokens)  # before the transfer: on the CPU the length costs no synchronisation
        tokens = tokens[:, : int(widths.max())] if len(tokens) else tokens
        if embeddings is not None:
            if len(embeddings) != len(tokens) or embeddings.shape[1] < tokens.shape[1]:
                raise ValueError(f"embeddings {tuple(embeddings.shape)} do not cover the tokens {tuple(tokens.shape)}")
            embeddings = embeddings[:, : tokens.shape[1]].to(self.device)
        of_width = (
            [torch.nonzero(widths == width).flatten() for width in sorted(set(widths.tolist()))] if len(tokens) else []
        )
        if len(of_width) < 2:
            features = self._read(tokens, embeddings)
        else:  # a text has the width of its own length, whatever stands beside it
            parts = [
                self._read(
                    tokens[rows, : int(widths[rows[0]])],
                    None if embeddings is None else embeddings[rows.to(self.device), : int(widths[rows[0]])],
                )
                for rows in of_width
            ]
            features = torch.cat(parts)[torch.argsort(torch.cat(of_width)).to(self.device)]
        return _unit(features) if unit else features

    def _widths(self, tokens: Tensor) -> Tensor:
        """(B,T) -> (B,) long on the CPU: tokens of each text that are computed with; of all one width in training and
        on a GPU.
        """
        lengths = tokens_read(self.network, tokens).cpu()
        if self.training or self.mean.is_cuda:
            return lengths.amax().expand(len(lengths)) if len(lengths) else lengths
        return in_tiles(lengths).clamp(max=tokens.shape[1])

    def _read(self, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
        """(B,T) long -> (B,D) float32 as the tower gives them."""
        tokens, count = tokens.to(self.device), len(tokens)
        if not self.training:
            tokens, embeddings = filled(tokens), None if embeddings is None else filled(embeddings)
        return read_text(self.network, tokens, embeddings).float()[:count]

    def token_embedding(self) -> nn.Embedding:
        """The table (ids, W) that turns token ids into vectors."""
        return token_table(self.network)

    def set_trainable(self, which: Literal["image", "text", "both"]) -> None:
        """Let gradients reach one tower or both; the temperature always trains, weights that were built fixed stay so.

        Raises:
            ValueError: another word.
        """
        if which not in ("image", "text", "both"):
            raise ValueError(f"trainable is {which!r}: expected image, text or both")
        for name, weight in self.network.named_parameters():
            part = name.partition(".")[0]
            wanted = part == "logit_scale" or which in ("both", "image" if of_image(name) else "text")
            weight.requires_grad_(wanted and part not in _IDLE and name not in self._fixed)

    def notes(self, height: int, width: int, captions: Sequence[str]) -> list[str]:
        """Sentences on what the model does to images of ``height`` x ``width`` pixels, and to captions, before its
        network sees them.
        """
        cut = cut_captions(self.tokenizer, captions)
        length = f" of {self.tokenizer.context_length} tokens" if hasattr(self.tokenizer, "context_length") else ""
        told = [f"{cut:,} of {len(captions):,} captions are cut at the context length{length}."] if cut else []
        return [*self.remarks, *resizing(height, width, self.image_size), *told]

    def fingerprint(self) -> str:
        """sha256 (hex) over the names, types, shapes and bytes of the weights."""
        return fingerprint(self.network)

    def extra_repr(self) -> str:
        return f"image_size={self.image_size}, max_logit_scale={self.max_logit_scale}"


class _Ceiling(torch.autograd.Function):
    """min(scale, maximum), whose gradient above the ceiling passes only where a descent step would lower the scale.

    A plain clamp has no gradient there: a temperature that has overshot could never come back.
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, maximum: float) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.maximum = maximum
        return scale.clamp(max=maximum)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        (gradient,) = gradients
        return torch.where(scale > ctx.maximum, gradient.clamp(min=0.0), gradient), None


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)
