"""An untouched model behind a cleaner, answering with the mean over draws: the defence as it is deployed, and attacked.

Shapes: B images, R draws, C channels, H height, W width, Y classes, D embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustcli.attacks.adaptive.averaging import EncoderWrapper
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.pairs import DualEncoderLike
from robustcli.defenses.purification.cleaner import Cleaner, StraightThrough
from robustcli.models import Classifier, DualEncoder
from robustcli.models.network import fingerprint
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least
from robustcli.utils.seeding import derive_seed

_GIB = 1 << 30


class FoldedDraws:
    """Repeated passes of images through a cleaner and a function, folded into the batch, within a memory budget.

    The first half of a cleaner runs once an image, however many draws follow. With several chunks the activations of
    a chunk are not kept for the gradient but computed again, so that the memory is that of one chunk.

    Args:
        cleaner: see `Cleaner`.
        function: images (B,C,H,W) -> (B,K).
        memory: GiB that the activations of a chunk may take; None: all draws of all images in one pass.
    """

    def __init__(self, cleaner: Cleaner, function: Callable[[Tensor], Tensor], memory: float | None) -> None:
        self.cleaner, self.function, self.memory = cleaner, function, memory
        self._needed: dict[tuple[int, ...], int] = {}

    def __call__(
        self,
        images: Tensor,
        draws: int,
        noise: Sequence[Tensor] | None = None,
        *,
        names: Sequence[int] | None = None,
    ) -> Tensor:
        """Outputs (R,B,K) of R = ``draws`` passes over images (B,C,H,W) in [0,1].

        Args:
            noise: of ``Cleaner.finish``, each (R*B, ...), draw by draw; None: from generators of their own, one a draw,
                whose seed comes from torch's global one, so that the chunks change nothing.
            names: B of them: each image has generators of its own, and its draws are the same in any batch.
        """
        prepared, chance = self.cleaner.prepare(images), _Chance(self.cleaner, images, noise, names)
        again = images.requires_grad and torch.is_grad_enabled()
        answers, pieces = [], list(_pieces(len(images), draws, self.chunk(images)))
        for piece in pieces:
            arguments = ([part[piece.rows] for part in prepared], chance.of(piece))
            if again and len(pieces) > 1:  # memory of one piece, at the price of a second forward pass of its half
                answers.append(checkpoint(self._piece, *arguments, use_reentrant=False))
            else:
                answers.append(self._piece(*arguments))
        together = torch.cat(answers)
        return together.reshape(draws, len(images), *together.shape[1:])

    def chunk(self, images: Tensor) -> int | None:
        """Entries of a pass: as many as the budget allows, by the bytes that the graph of one keeps; None: any."""
        if self.memory is None or not len(images):
            return None
        shape = tuple(images.shape[1:])
        if shape not in self._needed:
            self._needed[shape] = self._measured(images[:1].detach())
        return max(1, int(self.memory * _GIB) // max(self._needed[shape], 1))

    def _piece(self, prepared: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        return self.function(self.cleaner.finish(prepared, noise))

    def _measured(self, image: Tensor) -> int:
        """Bytes that autograd keeps for the second half of one image's pass."""
        kept: dict[int, int] = {}  # by storage: a tensor that several operations save counts once

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        source, cleaner = torch.Generator(image.device).manual_seed(0), self.cleaner.plain
        with frozen(cleaner, *self._modules()), torch.enable_grad():
            prepared = [part.detach().requires_grad_(True) for part in cleaner.prepare(image)]
            noise = cleaner.sample_noise(1, image, source)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self.function(cleaner.finish(prepared, noise))
        # Convolutions save their weights for the backward pass: there anyway, and once for all entries.
        modules = [cleaner, *self._modules()]
        weights = {part.untyped_storage().data_ptr() for module in modules for part in module.parameters()}
        return sum(size for place, size in kept.items() if place not in weights)

    def _modules(self) -> list[nn.Module]:
        """The module behind ``function``: itself, or the owner of the method."""
        module = self.function if isinstance(self.function, nn.Module) else getattr(self.function, "__self__", None)
        return [module] if isinstance(module, nn.Module) else []


@dataclass(frozen=True)
class _Piece:
    """One pass: ``draws`` of the images ``rows``; whole draws of all images, or a part of one draw."""

    draws: range
    rows: Tensor
    part: slice


def _pieces(images: int, draws: int, chunk: int | None) -> Iterator[_Piece]:
    """Passes of as many whole draws of all images as fit; where not even one does, each draw in parts."""
    step, parts = draws, [slice(0, images)]
    if chunk is not None and chunk >= images:
        step = chunk // max(images, 1)
    elif chunk is not None:
        step, parts = 1, [slice(start, min(start + chunk, images)) for start in range(0, images, chunk)]
    for first in range(0, draws, step):
        those = range(first, min(first + step, draws))
        for part in parts:
            yield _Piece(those, torch.arange(images)[part].repeat(len(those)), part)


class _Chance:
    """Noise of each piece; that of an entry is the same however the draws are cut into pieces."""

    def __init__(
        self, cleaner: Cleaner, images: Tensor, given: Sequence[Tensor] | None, names: Sequence[int] | None
    ) -> None:
        self._cleaner, self._images, self._given, self._names = cleaner, images, given, names
        # One number of the global generator a call, so that its state afterwards does not depend on the pieces either.
        self._seed = int(torch.randint(1 << 62, ())) if given is None and cleaner.randomised else 0

    def of(self, piece: _Piece) -> list[Tensor]:
        drawn = [self._drawn(draw, piece.part) for draw in piece.draws]
        return [torch.cat(latents) for latents in zip(*drawn, strict=True)]

    def _drawn(self, draw: int, part: slice) -> list[Tensor]:
        count = len(self._images)
        if self._given is not None:
            return [latent[draw * count : (draw + 1) * count][part] for latent in self._given]
        if self._names is not None:
            return self._cleaner.named_noise(self._names[part], self._images, seed=self._seed, draw=draw)
        source = torch.Generator(self._images.device).manual_seed(derive_seed(self._seed, "draw", draw))
        return [latent[part] for latent in self._cleaner.sample_noise(count, self._images, source)]


class PurifiedClassifier(nn.Module):
    """A classifier behind a cleaner; its logits are the mean over ``draws`` (Serez et al. 2025: 32).

    It draws from torch's global generators at each call. ``answers`` gives several answers, for attacks that average
    over them and for judging on fresh draws.

    Args:
        classifier: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it is.
        cleaner: in front of it.
        draws: 1 or more; a cleaner that does not draw is asked once.
        memory: see `FoldedDraws`.

    Raises:
        UserError: fewer than one draw, or a memory that is no number above 0.
    """

    def __init__(
        self, classifier: Classifier, cleaner: Cleaner, *, draws: int = 1, memory: float | None = None
    ) -> None:
        super().__init__()
        self.classifier, self.cleaner = classifier, cleaner
        self.draws, self.memory = _checked(cleaner, draws, memory), memory
        self._drawn = FoldedDraws(cleaner, classifier if cleaner.bounded else classifier.unchecked, memory)

    @property
    def randomised(self) -> bool:
        """True if two answers for the same image differ."""
        return self.cleaner.randomised

    @property
    def device(self) -> torch.device:
        """The device of the classifier."""
        return self.classifier.device

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of the logits, or None."""
        return self.classifier.classes

    @property
    def class_count(self) -> int:
        """Y."""
        return self.classifier.class_count

    def forward(self, images: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """(B,C,H,W) in [0,1] -> logits (B,Y), the mean over draws.

        Args:
            noise: as `Cleaner.sample_noise`, for R draws of B images, draw by draw; None: from torch's global
                generators.
        """
        return self._drawn(images, self.draws, noise).mean(0)

    def answers(self, images: Tensor, times: int, names: Sequence[int] | None = None) -> Tensor:
        """(R,B,Y): ``times`` answers, each the mean over draws of its own; the encoder runs once an image.

        Args:
            names: of the images; with them the draws of an image are the same in any batch.
        """
        if not self.randomised:
            return self._drawn(images, 1).expand(times, -1, -1)
        together = self._drawn(images, times * self.draws, names=names)
        return together.reshape(times, self.draws, *together.shape[1:]).mean(1)

    def straight_through(self) -> "PurifiedClassifier":
        """The same defence with the identity in place of the cleaner's gradient, for BPDA."""
        return PurifiedClassifier(self.classifier, StraightThrough(self.cleaner), draws=self.draws, memory=self.memory)

    def shortened(self) -> "PurifiedClassifier | None":
        """The same defence with a cleaner of less work, for an attacker's gradients; None where it has none."""
        short = self.cleaner.shortened()
        return (
            None if short is None else PurifiedClassifier(self.classifier, short, draws=self.draws, memory=self.memory)
        )

    def codes(self, images: Tensor) -> Tensor:
        """What the cleaner keeps of images (B,C,H,W), as (B,K); see `Cleaner.codes`."""
        return self.cleaner.codes(images)

    def fingerprint(self) -> str:
        """sha256 (hex) over the weights of the classifier and of the cleaner, and over its alphas."""
        return fingerprint(self, settings=True)


class PurifiedEncoder(EncoderWrapper):
    """A dual encoder whose images go through a cleaner; its image embedding is the mean over draws, of unit norm.

    Args:
        model, cleaner, draws, memory: see `PurifiedClassifier`.
    """

    def __init__(
        self, model: DualEncoderLike, cleaner: Cleaner, *, draws: int = 1, memory: float | None = None
    ) -> None:
        super().__init__(model)
        self.cleaner = cleaner
        self.draws, self.memory = _checked(cleaner, draws, memory), memory
        encode = model.encode_image
        if isinstance(model, DualEncoder) and not cleaner.bounded:
            encode = model.unchecked
        self._drawn = FoldedDraws(cleaner, encode, memory)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) of unit norm."""
        return F.normalize(self._drawn(images, self.draws).mean(0), dim=-1)

    @property
    def randomised(self) -> bool:
        """True if two answers for the same image differ."""
        return self.cleaner.randomised

    def answers(self, images: Tensor, times: int, names: Sequence[int] | None = None) -> Tensor:
        """(R,B,D): ``times`` embeddings of unit norm, each the mean over draws of its own; the encoder of the cleaner
        runs once an image.

        Args:
            names: of the images; with them the draws of an image are the same in any batch.
        """
        if not self.randomised:
            return self.encode_image(images).expand(times, -1, -1)
        together = self._drawn(images, times * self.draws, names=names)
        return F.normalize(together.reshape(times, self.draws, *together.shape[1:]).mean(1), dim=-1)

    def straight_through(self) -> "PurifiedEncoder":
        """The same defence with the identity in place of the cleaner's gradient, for BPDA."""
        return PurifiedEncoder(self.model, StraightThrough(self.cleaner), draws=self.draws, memory=self.memory)

    def shortened(self) -> "PurifiedEncoder | None":
        """The same defence with a cleaner of less work, for an attacker's gradients; None where it has none."""
        short = self.cleaner.shortened()
        return None if short is None else PurifiedEncoder(self.model, short, draws=self.draws, memory=self.memory)

    def codes(self, images: Tensor) -> Tensor:
        """What the cleaner keeps of images (B,C,H,W), as (B,K); see `Cleaner.codes`."""
        return self.cleaner.codes(images)

    def fingerprint(self) -> str:
        """sha256 (hex) over the weights of the model and of the cleaner, and over its alphas."""
        return fingerprint(self, settings=True)


def _checked(cleaner: Cleaner, draws: int, memory: float | None) -> int:
    if memory is not None and not (isinstance(memory, int | float) and memory > 0):
        raise UserError(f"purifier.memory is {memory} GiB: give a number above 0, or null for no bound.")
    count = at_least("draws", draws, 1, node="purifier")
    return count if cleaner.randomised else 1
