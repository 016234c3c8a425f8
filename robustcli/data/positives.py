"""Further positives of COCO-like sets from files: which captions people found true of which other images.

- ECCV Caption (Chun et al. 2022, arXiv 2204.03359): JSON of image id -> caption ids, and of caption id -> image ids,
  also one entry a line.
- CxC (Parekh et al. 2021, arXiv 2004.15020): CSV ``caption,image,agg_score,...``, positives from a score of 3 on.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.data.sources import Record, existing
from robustcli.utils.errors import UserError

Pair = tuple[str, str]  # id of an image, id of a caption

_KEY = "dataset.positives"


@dataclass(frozen=True)
class Positives:
    """Positives of a set beyond the own captions of each image.

    Attributes:
        images: row of a caption -> rows of images (long).
        sha256: of the files, and of the threshold where it counts.
        note: how many were matched.
    """

    images: Mapping[int, Tensor]
    sha256: str
    note: str


def further_positives(files: str | Sequence[str], threshold: float, records: Sequence[Record], split: str) -> Positives:
    """The pairs of ``files`` that are of the images and captions of ``records``.

    Args:
        files: one or several, see the module.
        threshold: least score of a positive, where a file has scores.

    Raises:
        UserError: a missing file, another form, a set whose files have no ids, or on ``test`` no pair of the set.
    """
    if any(record.key is None or None in record.caption_keys or not record.caption_keys for record in records):
        raise UserError(
            f"{_KEY} names images and captions by COCO's ids, which the annotations of this set do not give: read "
            "COCO's own JSON by dataset=coco_captions, or Karpathy's with cocoid and sentid by dataset=coco."
        )
    row_of_image = {record.key: row for row, record in enumerate(records)}
    keys = [(key, row) for row, record in enumerate(records) for key in record.caption_keys]
    row_of_caption, owner = {key: row for row, (key, _) in enumerate(keys)}, [row for _, row in keys]
    digest, found, listed = hashlib.sha256(str(threshold).encode()), dict[int, set[int]](), 0
    names = [files] if isinstance(files, str) else list(files)
    matched = set[tuple[int, int]]()
    for name in names:
        path = existing(Path(name).expanduser(), _KEY, None)
        digest.update(path.read_bytes())
        pairs = _read(path, threshold, row_of_image, row_of_caption)
        listed += len(pairs)
        matched |= {
            (row_of_image[image], row_of_caption[caption])
            for image, caption in pairs
            if image in row_of_image and caption in row_of_caption
        }
    shown = ", ".join(Path(name).name for name in names)
    if not matched and split == "test":
        raise UserError(
            f"{_KEY}: none of the {listed:,} pairs of {shown} is of images and captions of the split {split!r}: the "
            "ids must be those of its annotations."
        )
    further = {(image, caption) for image, caption in matched if owner[caption] != image}
    for image, caption in further:
        found.setdefault(caption, set()).add(image)
    note = (
        f"{len(further):,} positives beyond the own captions come from {shown}, of whose {listed:,} pairs "
        f"{len(matched):,} are of this split."
    )
    return Positives(
        {caption: torch.tensor(sorted(images)) for caption, images in found.items()}, digest.hexdigest(), note
    )


def image_key(name: Any) -> str | None:
    """The id in COCO's name of an image, ``COCO_val2014_000000365325.jpg`` or a number; None where there is none."""
    found = re.fullmatch(r"(?:.*[_/])?(\d+)(?:\.\w+)?", str(name))
    return str(int(found[1])) if found else None


def _caption_key(name: Any) -> str | None:
    """The id of a caption, ``COCO_val2014:sentid:732091`` or a number."""
    last = str(name).rpartition(":")[2]
    return str(int(last)) if re.fullmatch(r"\d+", last) else None


def _read(path: Path, threshold: float, images: Mapping[Any, int], captions: Mapping[Any, int]) -> set[Pair]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return set(_scored(text, path, threshold))
        lists = list(_lists(text))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{_KEY}: {path} cannot be read ({error}).") from None
    if not lists:
        raise UserError(
            f"{_KEY}: {path} is of no known form: a JSON of image id -> [caption ids] or caption id -> [image ids], "
            "or a CSV with the columns caption, image and agg_score."
        )
    pairs = set[Pair]()
    for mapping, by_image in lists:
        forward = {(str(key), str(value)) for key, values in mapping.items() for value in values}
        backward = {(image, caption) for caption, image in forward}
        if by_image is None:
            # Both ids are numbers: of which kind the keys are is told by what of them is in the set.
            by_image = _known(forward, images, captions) >= _known(backward, images, captions)
        pairs |= forward if by_image else backward
    return pairs


def _known(pairs: set[Pair], images: Mapping[Any, int], captions: Mapping[Any, int]) -> int:
    return sum(image in images and caption in captions for image, caption in pairs)


def _scored(text: str, path: Path, threshold: float) -> Iterator[Pair]:
    rows = csv.DictReader(text.splitlines())
    if not {"caption", "image", "agg_score"} <= set(rows.fieldnames or ()):
        raise UserError(f"{_KEY}: {path} has not the columns caption, image and agg_score of CxC's sits_*.csv.")
    for row in rows:
        image, caption = image_key(row["image"]), _caption_key(row["caption"])
        if image is None or caption is None:
            raise UserError(f"{_KEY}: {path}, line {rows.line_num} names no image and caption by COCO's ids.")
        if float(row["agg_score"]) >= threshold:
            yield image, caption


def _lists(text: str) -> Iterator[tuple[dict[str, list[Any]], bool | None]]:
    """Mappings from an id to ids, and whether they are from images; None: not said."""
    try:
        entries = [json.loads(text)]
    except json.JSONDecodeError:  # one a line
        entries = [json.loads(line) for line in text.splitlines() if line.strip()]
    plain: dict[str, list[Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            return
        if "image_id" in entry and "caption_ids" in entry:
            yield {str(entry["image_id"]): entry["caption_ids"]}, True
        elif "caption_id" in entry and "image_ids" in entry:
            yield {str(entry["caption_id"]): entry["image_ids"]}, False
        elif all(isinstance(value, list) for value in entry.values()):
            plain |= entry
        else:
            return
    if plain:
        yield plain, None
