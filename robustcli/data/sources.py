"""Location of an image and its captions on disk: the records that every reader of a file format returns."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.data.faults import Faults
from robustcli.data.walks import is_unicode, normal, printable
from robustcli.utils.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Blob:
    """The bytes of one image: a file, or ``size`` bytes from ``offset`` of an archive."""

    path: Path
    offset: int = 0
    size: int | None = None

    def length(self) -> int:
        """Number of bytes; `OSError` where the file is gone."""
        return self.path.stat().st_size if self.size is None else self.size

    def read(self, most: int | None = None) -> bytes:
        """The bytes, or the first ``most`` of them, read anew at each call; `OSError` where the file is gone."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length() if most is None else min(most, self.length()))


@dataclass(frozen=True)
class Record:
    """One image with its captions; ``where`` names the file and the line or record for messages, ``key`` and
    ``caption_keys`` are the ids of the image and of its captions in COCO's files, where the annotations give them.
    """

    image_id: str
    blob: Blob
    captions: tuple[str, ...]
    where: str
    key: str | None = None
    caption_keys: tuple[str | None, ...] = ()


def safe_name(relative: str, root: Path, where: str) -> str:
    """The image name in NFC and without detours; one that leads out of ``root`` is an error even where bad entries are
    skipped.

    The check is by name: a folder of images that is itself a link to another disk is the user's own doing.

    Raises:
        UserError: an absolute name, a drive, ``..`` that leads out, a NUL byte, or half of a character.
    """
    if not is_unicode(relative):
        raise UserError(f"{where} names the image {printable(relative)!r}, which is no text of whole characters.")
    name = normal(os.path.normpath(relative.strip()))
    if name.startswith(("..", "/", "\\")) or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise UserError(
            f"{where} names the image {relative!r}, which is outside of {root}: image names are relative to"
            " dataset.root and stay inside it."
        )
    return name


def clean_captions(raw: Sequence[object], where: str, faults: Faults) -> list[str]:
    """Captions with single spaces between words; one that is empty or no text is a fault, and so is none at all."""
    captions = []
    for number, caption in enumerate(raw):
        text = " ".join(caption.split()) if isinstance(caption, str) else ""
        if not is_unicode(text):
            faults.report(where, f"has a caption with half of a character ({printable(text)!r:.60})")
        elif text:
            captions.append(text)
        else:
            faults.report(where, f"has an empty caption (number {number} of its {len(raw)})")
    if not raw:
        faults.report(where, "has no caption")
    return captions


def existing(path: Path, key: str, origin: str | None) -> Path:
    """``path`` as it is; `UserError` with the place and the origin of the file where there is none."""
    if path.is_file():
        return path
    source = f" ({origin})" if origin else ""
    raise UserError(f"{key} is {path}, which does not exist: put the file there{source}, or set {key} to where it is.")


def splits_in(pattern: str) -> list[str]:
    """The splits that a file name holds as words: ``val`` of ``captions_val2017.json``."""
    words = re.split(r"[^a-z]+", Path(pattern).name.lower())
    return [name for name in SPLITS if name in words]


def with_split(pattern: str, split: str, key: str) -> str:
    """File name of one split: ``captions_{split}.csv`` filled in, or a name that holds it, ``captions_test.csv``.

    Raises:
        UserError: a name without ``{split}`` that holds another split, several or none.
    """
    if "{split}" in pattern:
        return pattern.replace("{split}", split)
    named = splits_in(pattern)
    if named == [split]:
        return pattern
    found = f"it is of the split {named[0]!r}" if len(named) == 1 else "it does not say which split it is"
    raise UserError(
        f"{key} is {pattern!r} and split {split!r} is asked for, but {found}: write {{split}} where the name of the"
        " split belongs, for example captions_{split}.csv."
    )


def check_split(split: str, present: Collection[str], where: str) -> None:
    """`UserError` for a split that the set does not have, with those that it has."""
    if split not in present:
        raise UserError(f"{where} has no split {split!r}, only {', '.join(sorted(present)) or 'none at all'}.")
