"""Dual encoder before classes: its images are the numbers of classes, its image embeddings their vectors.

Shapes: B batch, D embedding, P pictures of a class, S image size, Y classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.zero_shot import ZeroShot
from robustcli.utils.numbered import numbers_in

_AT_ONCE = 64  # pictures in one pass of the image tower


class ClassEncoder(DualEncoder):
    """A dual encoder whose text tower classifies sentences, by their cosines to class vectors.

    The vector of a class is that of its texts, as in `ZeroShot`, or the mean of the unit embeddings of its pictures,
    made unit again. An image is the number of a class, see `robustcli.utils.numbered`; so whatever attacks captions
    before a gallery of images attacks sentences before classes.

    Args:
        dual: the dual encoder, whose network is shared.
        texts: `ZeroShot` of ``dual``; or
        pictures: of each class, (P,3,S,S) float32 in [0,1].

    Raises:
        ValueError: both or neither.
    """

    def __init__(
        self, dual: DualEncoder, *, texts: ZeroShot | None = None, pictures: Sequence[Tensor] | None = None
    ) -> None:
        if (texts is None) == (pictures is None):
            raise ValueError("a class encoder takes the texts of the classes, or their pictures")
        super().__init__(
            dual.network,
            dual.tokenizer,
            image_size=dual.image_size,
            mean=dual.mean.flatten().tolist(),
            std=dual.std.flatten().tolist(),
            max_logit_scale=dual.max_logit_scale,
            interpolation=dual.interpolation,
            description=dual.description,
        )
        self.remarks, self.dual, self.texts, self.pictures = dual.remarks, dual, texts, pictures
        self.requires_grad_(False)
        self._vectors: Tensor | None = None
        self.eval()

    @property
    def class_vectors(self) -> Tensor:
        """(Y,D) of unit norm, on the device of the network; those of pictures are computed at their first use."""
        if self.texts is not None:
            return self.texts.class_features
        if self._vectors is None:
            self._vectors = torch.stack([self._mean(each) for each in self.pictures or ()])
        self._vectors = self._vectors.to(self.device)
        return self._vectors

    def unchecked(self, images: Tensor, *, unit: bool = True) -> Tensor:
        return self.class_vectors[numbers_in(images).to(self.device)]

    def sized(self, images: Tensor) -> Tensor:
        return images

    def notes(self, height: int, width: int, captions: Sequence[str]) -> list[str]:
        """Sentences on the sentences and on what the classes are; ``height`` and ``width`` are those of numbers."""
        if self.texts is not None:
            size = self.image_size
            of_classes = [note for note in self.texts.notes(size, size) if note not in self.dual.remarks]
            return [*self.dual.notes(size, size, captions), *of_classes]
        assert self.pictures is not None
        count, (height, width) = sum(map(len, self.pictures)), self.pictures[0].shape[-2:]
        told = f"Classes are pictures: {count} of {len(self.pictures)} classes, the mean of those of a class."
        return [*self.dual.notes(height, width, captions), told]

    def fingerprint(self) -> str:
        """sha256 (hex) over weights and class texts; pictures are part of the data set's."""
        return super().fingerprint() if self.texts is None else self.texts.fingerprint()

    @torch.no_grad()
    def _mean(self, pictures: Tensor) -> Tensor:
        """(P,3,S,S) -> (D,)."""
        units = torch.cat([self.dual.encode_image(part) for part in torch.split(pictures, _AT_ONCE)])
        return F.normalize(units.mean(0), dim=0)
