"""Images in one folder a class, ``root/split/class/image.jpg``, under a class list that the config fixes.

Shapes: B batch, S image size, N images.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcli.data.base import rows_of
from robustcli.data.classes import ImageClassData, class_list, held_out
from robustcli.data.decode import FITS, Fit
from robustcli.data.faults import Faults, OnError
from robustcli.data.files import check_fingerprint, check_positive, decoded, other_splits
from robustcli.data.overlap import in_two_classes, overlaps
from robustcli.data.sources import SPLITS, Blob, Record
from robustcli.data.walks import files_below, hidden, is_unicode, normal, on_disk, printable
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


class ClassFolders(ImageClassData):
    """Images (B,3,S,S) by folders; every file is decoded and checked when the set is made.

    The images stand in a fixed shuffled order, so that the first so many of them are of all classes.

    Args:
        root: folder with a folder for each split; or a path with ``{split}`` in it.
        classes: the names of the folders in the order of the labels: a list, or a file with a JSON list or with a name
            a line. It is never read off the disk: a folder more or less would silently shift every label behind it.
        split: ``train``, ``val`` or ``test``.
        image_size: S in pixels.
        fit: how an image becomes square: ``crop`` (short side to S, bicubic, then the centre), ``squash`` (both sides
            to S, bilinear) or ``letterbox`` (long side to S, bilinear, between black bars); all antialiased.
        val_share: share of the training images that is ``val``, by a hash of their names; 0 where the set has a folder
            ``val``.
        on_error: ``raise``, or ``skip``, which leaves bad images out and counts them.
        fingerprint: that the set must have, or one for each split; None: any.
        limit: the first so many images; None: all.
        name: of the set, in tables; None: that of its folder.
        class_count: number of names that ``classes`` must have; None: any.
        counts: images that each split must have, such as ``{"test": 2000}``; None, or a split left out: any number.

    Raises:
        UserError: no class list, a listed class without a folder or images, a folder that is not listed, a bad image,
            another number of classes or images than the set has.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        classes: Sequence[str] | str | Path | None = None,
        image_size: int = 224,
        fit: Fit = "crop",
        val_share: float = 0.0,
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        name: str | None = None,
        class_count: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        check_positive(image_size=image_size, limit=limit)
        if fit not in FITS:
            raise UserError(f"dataset.fit is {fit!r}: choose one of {', '.join(FITS)}.")
        source = _source(split, val_share)
        folder = _split_folder(str(root), source)
        self.name, self.split, self.image_size = name or _name(str(root)), split, image_size
        self.classes = _checked_classes(classes, folder, class_count, self.name)
        faults = Faults(on_error)
        found = _records(folder, self.classes, faults)
        _check_count(self.name, source, folder, len(found), counts)
        found = _of_split(found, split, val_share)
        records, store = decoded(found[:limit], image_size, faults, fit=fit)
        if not records:
            raise UserError(f"the split {split!r} of {self.name} has no usable image left: {faults.first}.")
        _check_none_lost(self.classes, found[:limit], records, faults)
        self.skipped = faults.count
        self.image_ids = [record.image_id for record in records]
        places = {name: place for place, name in enumerate(self.classes)}
        self.labels = torch.tensor([places[name.split("/")[0]] for name in self.image_ids])
        self.fingerprint = _fingerprint(self.classes, self.image_ids, store.hashes)
        self._pixels = store.pixels
        others = other_splits(split, partial(_images_of, str(root), val_share))
        twice = in_two_classes(store.hashes, self.labels.tolist(), self.classes)
        self.notes = [
            *faults.notes(),
            *store.notes,
            *overlaps(split, [record.blob for record in records], others),
            *twice,
        ]
        check_fingerprint(self, fingerprint, limit)

    def images(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self._pixels[rows_of(indices, len(self)).numpy()])).float().div_(255)


def _source(split: str, val_share: float) -> str:
    return "train" if split == "val" and val_share else split


def _of_split(records: list[Record], split: str, val_share: float) -> list[Record]:
    if not val_share or split == "test":
        return records
    chosen = held_out([record.image_id for record in records], val_share).tolist()
    return [record for record, held in zip(records, chosen, strict=True) if held == (split == "val")]


def _split_folder(root: str, split: str) -> Path:
    if split not in SPLITS:
        raise UserError(f"dataset has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    names = (split, "validation") if split == "val" else (split,)
    pattern = root if "{split}" in root else f"{root}/{{split}}"
    folders = [Path(pattern.replace("{split}", name)).expanduser() for name in names]
    for folder in folders:
        if folder.is_dir():
            return folder
    folder = folders[0]
    if "{split}" not in root and (inner := sorted(Path(root).expanduser().glob(f"*/{split}"))):
        raise UserError(
            f"dataset.root is {root}, but the folder {split!r} is one level deeper: set dataset.root={inner[0].parent}."
        )
    share = " or set dataset.val_share, which takes the images from train," if split == "val" else ""
    raise UserError(
        f"dataset.root is {root}, but there is no folder {folder}: put a folder for each class there,{share} or write "
        "{split} where the name of the split belongs."
    )


def _name(root: str) -> str:
    parts = [part for part in Path(root).expanduser().resolve().parts if "{split}" not in part]
    return parts[-1].strip("/") or "folders"


def _checked_classes(
    classes: Sequence[str] | str | Path | None, folder: Path, number: int | None, name: str
) -> tuple[str, ...]:
    """The class list of the config, which must name exactly the folders that are there."""
    present = _class_folders(folder)
    found = ", ".join(present[:12]) + (f" and {len(present) - 12} more" if len(present) > 12 else "")
    where = f"{folder} has the folders {found}" if present else f"{folder} has no folders"
    origin = "" if number is None else f"the list of the {number} classes of {name} comes with its archive; "
    listed = class_list(
        classes,
        "dataset.classes",
        f"{origin}{where}; write dataset.classes=[{','.join(present[:3])}{',...' if len(present) > 3 else ''}] in the "
        "order of the labels, or the path of a file with a name a line.",
    )
    if number is not None and len(listed) != number:
        raise UserError(
            f"dataset.classes has {len(listed)} names, but {name} has {number} classes: mend the list, or set "
            "dataset.class_count=null for a set of your own."
        )
    missing = [name for name in listed if name not in present]
    if missing:
        read = isinstance(classes, Sequence) and not all(isinstance(name, str) for name in classes)
        quotes = " (names such as true, null, 001 and 1e3 need quotes, or they are read as no text)" if read else ""
        raise UserError(
            f"dataset.classes lists {missing[0]!r}{_more(missing)}, but {where}: make the folder, or mend the list"
            f"{quotes}."
        )
    unlisted = [name for name in present if name not in listed]
    if unlisted:
        raise UserError(
            f"{folder} has the folder {unlisted[0]!r}{_more(unlisted)}, which dataset.classes does not list: list it, "
            "or move it away."
        )
    return listed


def _class_folders(folder: Path) -> list[str]:
    """Normal names of the folders in ``folder``, sorted; `UserError` for two that differ in their code points alone."""
    names = sorted(normal(path.name) for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    if foreign := [name for name in names if not is_unicode(name)]:
        raise UserError(f"{folder} has a folder {printable(foreign[0])!r}, whose name is not UTF-8: rename it.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{folder} has two folders {twice[0]!r}, in other code points (NFC and NFD): make them one.")
    return names


def _check_count(name: str, split: str, folder: Path, found: int, counts: Mapping[str, int] | None) -> None:
    """`UserError` for part of an archive, or another one, before the first image is decoded."""
    expected = (counts or {}).get(split)
    if expected is not None and found != expected:
        raise UserError(
            f"{folder} has {found} images, but the split {split!r} of {name} has {expected}: unpack the archive anew, "
            "or set dataset.counts=null for a set of your own."
        )


def _check_none_lost(classes: Sequence[str], found: Sequence[Record], usable: Sequence[Record], faults: Faults) -> None:
    """`UserError` for a class all of whose images were skipped: the others alone would be an easier task."""
    before, after = ({record.image_id.split("/")[0] for record in records} for records in (found, usable))
    if lost := [name for name in classes if name in before - after]:
        raise UserError(
            f"no image of the class {lost[0]!r}{_more(lost)} can be read, for example {faults.first}: mend them, or "
            "leave the class out of dataset.classes and move its folder away."
        )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _records(folder: Path, classes: Sequence[str], faults: Faults) -> list[Record]:
    records: dict[str, Record] = {}
    for name in classes:
        files = files_below(on_disk(folder / name), faults)
        if not files:
            raise UserError(f"the class {name!r} has no image in {folder / name}: put some there, or mend the list.")
        for path in files:
            relative = normal(path.relative_to(folder).as_posix())
            if path.suffix.lower() not in SUFFIXES:
                faults.report(str(path), f"is not an image file ({', '.join(SUFFIXES)})")
            elif relative in records:
                faults.report(str(path), "has the name of another file, in other code points (NFC and NFD)")
            else:
                records[relative] = Record(relative, Blob(path), (), str(folder))
    return sorted(records.values(), key=lambda record: derive_seed("order", record.image_id))


def _images_of(root: str, val_share: float, split: str, faults: Faults) -> list[Record]:
    """The images of a split, whatever its classes are."""
    folder = _split_folder(root, _source(split, val_share))
    paths = [path for path in files_below(folder, faults) if path.suffix.lower() in SUFFIXES]
    records = [Record(normal(path.relative_to(folder).as_posix()), Blob(path), (), str(folder)) for path in paths]
    return _of_split(records, split, val_share)


def _fingerprint(classes: Sequence[str], image_ids: Sequence[str], hashes: Sequence[str]) -> str:
    """sha256 (hex) of the class list, names and contents in their order; of neither the folder nor the cache."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for name, content in zip(image_ids, hashes, strict=True):
        digest.update(json.dumps([name, content]).encode() + b"\n")
    return digest.hexdigest()
