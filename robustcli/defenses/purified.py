"""An untouched model behind a cleaner, answering with the mean over draws: the defence as it is deployed, and attacked.

Shapes: B images, R draws, C channels, H height, W width, Y classes, D embedding.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robustcli.attacks.averaging import EncoderWrapper
from robustcli.attacks.pairs import DualEncoderLike
from robustcli.defenses.cleaner import Cleaner
from robustcli.errors import UserError
from robustcli.models import Classifier
from robustcli.models.network import fingerprint

_GIB = 1 << 30


class FoldedDraws:
    """Repeated passes of images through a cleaner and a function, folded into the batch, within a memory budget.

    What a cleaner can share is computed once an image, however many draws follow. With several chunks the activations
    of a chunk are not kept for the gradient but computed again, so that the memory is that of one chunk.

    Args:
        cleaner: see `Cleaner`.
        function: images (B,C,H,W) -> (B,K).
        memory: GiB that the activations of a chunk may take; None: all draws of all images in one pass.
    """

    def __init__(self, cleaner: Cleaner, function: Callable[[Tensor], Tensor], memory: float | None) -> None:
        self.cleaner, self.function, self.memory = cleaner, function, memory
        self._needed: dict[tuple[int, ...], int] = {}

    def __call__(self, images: Tensor, draws: int, noise: Sequence[Tensor] | None = None) -> Tensor:
        """(R,B,K).

        Args:
            noise: of ``Cleaner.finish``, each (R*B, ...), draw by draw; None: drawn from torch's global generator.
        """
        count = len(images)
        prepared = self.cleaner.prepare(images)
        rows = torch.arange(count, device=images.device).repeat(draws)
        drawn = self.cleaner.sample_noise(len(rows), images) if noise is None else list(noise)
        pieces = torch.split(torch.arange(len(rows), device=images.device), self._chunk(images, len(rows)))
        again = len(pieces) > 1 and images.requires_grad and torch.is_grad_enabled()
        answers = []
        for piece in pieces:
            noise = [latent[piece.to(latent.device)] for latent in drawn]
            if again:
                answers.append(checkpoint(self._piece, rows[piece], noise, *prepared, use_reentrant=False))
            else:
                answers.append(self._piece(rows[piece], noise, *prepared))
        together = torch.cat(answers)
        return together.reshape(draws, count, *together.shape[1:])

    def _piece(self, rows: Tensor, noise: Sequence[Tensor], *prepared: Tensor) -> Tensor:
        return self.function(self.cleaner.finish([part[rows] for part in prepared], noise))

    def _chunk(self, images: Tensor, total: int) -> int:
        """Draws of a pass: as many as the budget allows, by what the graph of one keeps."""
        if self.memory is None or not total:
            return max(total, 1)
        shape = tuple(images.shape[1:])
        if shape not in self._needed:
            self._needed[shape] = self._measured(images[:1].detach())
        return max(1, int(self.memory * _GIB) // max(self._needed[shape], 1))

    def _measured(self, image: Tensor) -> int:
        """Bytes that autograd keeps for the second half of one image's pass; the global draws are left as they were."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        devices = [image.device] if image.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            prepared = [part.detach().requires_grad_(True) for part in self.cleaner.prepare(image)]
            noise = self.cleaner.sample_noise(1, image)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self.function(self.cleaner.finish(prepared, noise))
        weights = {parameter.untyped_storage().data_ptr() for parameter in self._parameters()}
        return sum(size for place, size in kept.items() if place not in weights)

    def _parameters(self) -> list[Tensor]:
        module = self.function if isinstance(self.function, nn.Module) else getattr(self.function, "__self__", None)
        return [*self.cleaner.parameters(), *(module.parameters() if isinstance(module, nn.Module) else ())]


class PurifiedClassifier(nn.Module):
    """A classifier behind a cleaner; its logits are the mean over ``draws`` (Serez et al. 2025: 32).

    It draws from torch's global generators at each call. ``answers`` gives several answers, for attacks that average
    over them and for judging on fresh draws.

    Args:
        classifier: images (B,C,H,W) in [0,1] -> logits (B,Y); left as it is.
        cleaner: in front of it.
        draws: 1 or more; a cleaner that does not draw is asked once.
        memory: see `FoldedDraws`.
    """

    def __init__(
        self, classifier: Classifier, cleaner: Cleaner, *, draws: int = 1, memory: float | None = None
    ) -> None:
        super().__init__()
        self.classifier, self.cleaner = classifier, cleaner
        self.draws, self.memory = _checked(draws, memory) if cleaner.randomised else 1, memory
        self._drawn = FoldedDraws(cleaner, classifier, memory)

    @property
    def device(self) -> torch.device:
        return self.classifier.device

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.classifier.classes

    @property
    def class_count(self) -> int:
        return self.classifier.class_count

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,Y)."""
        return self._drawn(images, self.draws).mean(0)

    def answers(self, images: Tensor, times: int) -> Tensor:
        """(R,B,Y): ``times`` answers, each the mean over draws of its own; the encoder runs once an image."""
        if not self.cleaner.randomised:
            return self._drawn(images, 1).expand(times, -1, -1)
        together = self._drawn(images, times * self.draws)
        return together.reshape(times, self.draws, *together.shape[1:]).mean(1)

    def with_draws(self, draws: int) -> Self:
        """The same defence with another number of draws."""
        return type(self)(self.classifier, self.cleaner, draws=draws, memory=self.memory)

    def fingerprint(self) -> str:
        """sha256 (hex) over the weights of the classifier and of the cleaner."""
        return fingerprint(self)


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
        self.draws = _checked(draws, memory) if cleaner.randomised else 1
        self._drawn = FoldedDraws(cleaner, model.encode_image, memory)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D) of unit norm."""
        return F.normalize(self._drawn(images, self.draws).mean(0), dim=-1)

    def fingerprint(self) -> str:
        """sha256 (hex) over the weights of the model and of the cleaner."""
        return fingerprint(self)


def _checked(draws: int, memory: float | None) -> int:
    if draws < 1:
        raise UserError(f"purifier.draws is {draws}: at least 1 is needed.")
    if memory is not None and not memory > 0:
        raise UserError(f"purifier.memory is {memory} GiB: give a number above 0, or null for no bound.")
    return draws
