"""The interface of a set of images with one label each, and the list of classes that labels point into.

Shapes: B batch, C channels, H height, W width, N images, Y classes.
"""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustcli.data.base import rows_of
from robustcli.data.sources import existing
from robustcli.data.walks import normal
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed


class ImageClassData(ABC):
    """Images and their labels.

    Attributes:
        name: of the set, in tables.
        split: ``train``, ``val`` or ``test``.
        image_ids: N unique names of the images.
        labels: (N,) long, places in ``classes``.
        classes: Y names; the order is part of the set and comes from its config, never from the folders on the disk.
        fingerprint: sha256 (hex) of the content, or of the recipe where the content is made from one.
        skipped: entries that were left out because ``on_error=skip`` was asked for.
        notes: sentences on what was done to the files' content, for the foot of a table.
        benchmark: the name by which clip-benchmark (on PyPI) knows the set's templates, and its class names where they
            are as many as ``classes``; None: it does not know the set.
        templates: texts of a class for image-text models, with ``{}`` for its name; empty: the set has none of its own.
        synonyms: word of such a text -> words of the same meaning, where the set knows them; else None.
    """

    name: str
    split: str
    image_ids: Sequence[str]
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    skipped: int = 0
    notes: Sequence[str] = ()
    benchmark: str | None = None
    templates: tuple[str, ...] = ()
    synonyms: Mapping[str, Sequence[str]] | None = None

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """Images (B,C,H,W), float32 in [0,1], for ``indices`` (B,) long.

        Raises:
            IndexError: an index outside of [0,N), a negative one too.
        """

    def provenance(self) -> dict[str, str | int]:
        """Entry of the set in the manifest of a run: fingerprint, number of images and classes, entries left out."""
        return {
            "fingerprint": self.fingerprint,
            "images": len(self),
            "classes": len(self.classes),
            "skipped": self.skipped,
        }

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, split={self.split!r}, images={len(self)},"
            f" classes={len(self.classes)}, skipped={self.skipped})"
        )


class PixelClasses(ImageClassData):
    """A set whose pixels lie in memory.

    Args:
        pixels: (N,C,H,W) in [0,scale], of any dtype.
        scale: the value that is white; images are ``pixels / scale``.
        labels: (N,) long, places in ``classes``.
        classes, image_ids: Y and N names.
        fingerprint: sha256 (hex), see `fingerprint_of`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        pixels: Tensor,
        scale: float,
        labels: Tensor,
        classes: Sequence[str],
        image_ids: Sequence[str],
        fingerprint: str,
    ) -> None:
        self.name, self.split, self.classes, self.fingerprint = name, split, tuple(classes), fingerprint
        self.labels, self.image_ids = labels, list(image_ids)
        self._pixels, self._scale = pixels, scale

    def images(self, indices: Tensor) -> Tensor:
        return self._pixels[rows_of(indices, len(self))].float() / self._scale


def class_list(classes: Sequence[str] | str | Path | int | None, key: str, remedy: str) -> tuple[str, ...]:
    """Class names in label order, from a list, a file (JSON list, or a name a line), or a number for ``0``, ``1``, ...

    Names are in NFC, in which two that look alike are equal.

    Args:
        key: of the config, for messages.
        remedy: end of the message where nothing is given.

    Raises:
        UserError: none given, no such file, fewer than two names, or a name that stands twice.
    """
    if classes is None:
        raise UserError(f"{key} is null, but the order of the classes decides what a label means: {remedy}")
    if isinstance(classes, int):
        names: list[str] = [str(number) for number in range(classes)]
    elif isinstance(classes, str | Path):
        names = listed(classes, key)
    else:
        names = [str(name) for name in classes]
    names = [normal(name) for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{key} has {twice[0]!r} twice: each class stands once.")
    if len(names) < 2 or not all(name.strip() for name in names):
        raise UserError(
            f"{key} has {len(names)} names ({', '.join(names)}): expected at least two, none of them empty."
        )
    return tuple(names)


def listed(file: str | Path, key: str) -> list[str]:
    """The texts of a file: a JSON list, or one a line; `UserError` where there is none or it holds something else."""
    path = existing(Path(file).expanduser(), key, None)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{key} is {path}, which cannot be read as a list of names ({error}).") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(
            f"{key} is {path}, which holds no list of names: expected a JSON list, or a .txt, a name a line."
        )
    return [name for name in found if name]


def held_out(image_ids: Sequence[str], share: float) -> Tensor:
    """(N,) bool: the images that are ``val`` where a set knows only train and test; a function of the name alone.

    Args:
        share: expected share of the images, in [0,1).

    Raises:
        UserError: a share out of range.
    """
    if not 0 <= share < 1:
        raise UserError(f"dataset.val_share is {share}: it is a share of the training images, at least 0 and below 1.")
    return torch.tensor([derive_seed("held out", name) < share * 2**63 for name in image_ids], dtype=torch.bool)
