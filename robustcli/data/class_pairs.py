"""Images of classes with the texts of their classes as captions: a set of classes for a training on pairs.

Shapes: N images, M captions.
"""

import hashlib
import json

import torch
from torch import Tensor

from robustcli.data.base import ImageTextData
from robustcli.data.class_texts import SLOT, ClassTexts
from robustcli.data.classes import ImageClassData
from robustcli.utils.errors import UserError


class ClassPairs(ImageTextData):
    """The images of a set of classes; captions are the texts of the classes that it has images of, in every template.

    A caption is true of all images of its class, and of no other; classes of one name are one. It was written for none
    of them: ``owner`` is the first image of the class.

    Attributes:
        base: the set of classes.

    Args:
        texts: of its classes.

    Raises:
        UserError: a learnt prompt, which is no text.
    """

    text_decides = True

    def __init__(self, data: ImageClassData, texts: ClassTexts) -> None:
        if texts.prompt is not None:
            raise UserError(
                f"templates is {texts.prompt}, a learnt prompt, which is no text for a training on pairs: choose "
                "templates=simple or texts of your own."
            )
        self.base = data
        self.name, self.split, self.image_ids, self.synonyms = data.name, data.split, data.image_ids, data.synonyms
        self.skipped, self.notes = data.skipped, data.notes
        # The first class of the same name: published lists have names twice.
        self._labels = torch.tensor([texts.names.index(name) for name in texts.names])[data.labels]
        first: dict[int, int] = {}
        for row, label in enumerate(self._labels.tolist()):
            first.setdefault(label, row)
        present = sorted(first)
        said = [template.replace(SLOT, texts.names[label]) for label in present for template in texts.templates]
        self.captions = tuple(said)
        self._said = torch.tensor(present).repeat_interleave(len(texts.templates))
        self.owner = torch.tensor([first[label] for label in self._said.tolist()])
        self.fingerprint = hashlib.sha256(json.dumps([data.fingerprint, said]).encode()).hexdigest()

    def images(self, indices: Tensor) -> Tensor:
        images = self.base.images(indices)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
        return self._labels[images][:, None] == self._said[captions][None, :]

    def captions_of(self) -> list[Tensor]:
        """N tensors of indices (long): the texts of the class of each image."""
        rows = {label: torch.nonzero(self._said == label).flatten() for label in set(self._said.tolist())}
        return [rows[label] for label in self._labels.tolist()]
