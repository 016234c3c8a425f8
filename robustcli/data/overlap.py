"""Identical pictures in two splits of a set: a model that was trained on one of them is tested on what it has seen."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence

from robustcli.data.sources import Blob

_START = 4096  # bytes that tell most pictures of equal size apart


def overlaps(split: str, own: Sequence[Blob], others: Mapping[str, Sequence[Blob]]) -> list[str]:
    """A sentence on the pictures of ``split`` that stand in ``others`` byte for byte; none where there are none.

    Args:
        own: the pictures of ``split``.
        others: split -> its pictures; files that are missing there count as no picture.
    """
    return sentence(split, len(own), {name: len(repeated(own, blobs)) for name, blobs in others.items()})


def sentence(split: str, images: int, counts: Mapping[str, int]) -> list[str]:
    """The sentence of `overlaps` from the number of repeated ``images`` by split; none where all numbers are 0."""
    found = " and ".join(f"{count:,} also in {name}" for name, count in counts.items() if count)
    return [f"Of the {images:,} images of {split} stand {found}, byte for byte."] if found else []


def in_two_classes(pictures: Sequence[Hashable], labels: Sequence[int], classes: Sequence[str]) -> list[str]:
    """A sentence on pictures that stand in several classes, of which at most one answer is right; none where none do.

    Args:
        pictures: N values that are equal for equal pictures, such as hashes.
        labels: N classes by number.
    """
    found: dict[Hashable, set[int]] = {}
    for picture, label in zip(pictures, labels, strict=True):
        found.setdefault(picture, set()).add(label)
    several = [sorted(each) for each in found.values() if len(each) > 1]
    if not several:
        return []
    example = " and ".join(repr(classes[label]) for label in several[0][:2])
    return [f"{len(several):,} pictures stand in several classes, for example one in {example}: at most one is right."]


def repeated(own: Sequence[Blob], others: Sequence[Blob]) -> list[Blob]:
    """Those of ``own`` whose bytes are the bytes of one of ``others``.

    Few pictures are read whole: sizes are compared first, which reads nothing, then the beginnings of equal sizes.
    """
    mine, theirs = list(own), [blob for blob in others if blob.path.is_file()]
    keys: Sequence[Callable[[Blob], Hashable]] = (Blob.length, _start, _content)
    for key in keys:
        my_keys, their_keys = [key(blob) for blob in mine], [key(blob) for blob in theirs]
        common = set(my_keys) & set(their_keys)
        mine = [blob for blob, value in zip(mine, my_keys, strict=True) if value in common]
        theirs = [blob for blob, value in zip(theirs, their_keys, strict=True) if value in common]
    return mine


def _start(blob: Blob) -> bytes:
    return blob.read(_START)


def _content(blob: Blob) -> bytes:
    return hashlib.sha256(blob.read()).digest()
