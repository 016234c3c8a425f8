"""Images in one folder a class, ``root/split/class/image.jpg``, under a class list that the config fixes.

Shapes: B batch, S image size, N images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from robustcli.data.class_files import ClassReading, FileClasses, and_more, check_count, check_settings, shuffled
from robustcli.data.classes import class_list, held_out
from robustcli.data.decode import Fit
from robustcli.data.faults import Faults, OnError
from robustcli.data.sources import SPLITS, Blob, Record
from robustcli.data.walks import files_below, hidden, is_unicode, normal, on_disk, printable
from robustcli.utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


class ClassFolders(FileClasses):
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
        check_settings(image_size, limit, fit)
        source = _source(split, val_share)
        folder = _split_folder(str(root), source)
        called = name or _name(str(root))
        listed = _checked_classes(classes, folder, class_count, called)
        faults = Faults(on_error)
        found = records_below(folder, listed, faults)
        check_count(called, source, folder, len(found), counts or {}, "dataset.counts=null for a set of your own")
        read = partial(_images_of, str(root), val_share)
        reading = ClassReading(called, split, listed, _of_split(found, split, val_share), faults, read=read)
        super().__init__(reading, image_size=image_size, fit=fit, limit=limit, fingerprint=fingerprint)


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
        f"dataset.root is {root}, but there is no folder {folder}: {_instead(root, split)}put a folder for each class "
        f"there,{share} or write {{split}} where the name of the split belongs."
    )


def _instead(root: str, split: str) -> str:
    """What to say where the folder holds other splits, or the classes themselves."""
    place = Path(root).expanduser()
    present = class_folders_in(place) if "{split}" not in root and place.is_dir() else []
    names = {"validation": "val"} | {name: name for name in SPLITS}
    if others := [names[name] for name in present if name in names]:
        return f"judge on one that is there, evaluation.split={others[-1]}, or " if split == "test" else ""
    images = (path for name in present for path in (place / name).iterdir())
    if any(path.suffix.lower() in SUFFIXES for path in images):
        return f"its own folders are classes: move them into {root}/{split}; in general "
    return ""


def _name(root: str) -> str:
    parts = [part for part in Path(root).expanduser().resolve().parts if "{split}" not in part]
    return parts[-1].strip("/") or "folders"


def _checked_classes(
    classes: Sequence[str] | str | Path | None, folder: Path, number: int | None, name: str
) -> tuple[str, ...]:
    """The class list of the config, which must name exactly the folders that are there."""
    present = class_folders_in(folder)
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
            f"dataset.classes lists {missing[0]!r}{and_more(missing)}, but {where}: make the folder, or mend the list"
            f"{quotes}."
        )
    unlisted = [name for name in present if name not in listed]
    if unlisted:
        raise UserError(
            f"{folder} has the folder {unlisted[0]!r}{and_more(unlisted)}, which dataset.classes does not list: "
            "list it, or move it away."
        )
    return listed


def class_folders_in(folder: Path) -> list[str]:
    """Normal names of the folders in ``folder``, sorted; `UserError` for two that differ in their code points alone."""
    names = sorted(normal(path.name) for path in folder.iterdir() if path.is_dir() and not hidden(path.name))
    if foreign := [name for name in names if not is_unicode(name)]:
        raise UserError(f"{folder} has a folder {printable(foreign[0])!r}, whose name is not UTF-8: rename it.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{folder} has two folders {twice[0]!r}, in other code points (NFC and NFD): make them one.")
    return names


def records_below(folder: Path, classes: Sequence[str], faults: Faults) -> list[Record]:
    """The images in the folders ``classes`` of ``folder``, shuffled; an id is the path below it, ``cat/1.png``.

    Raises:
        UserError: a folder without images.
    """
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
    return shuffled(list(records.values()))


def _images_of(root: str, val_share: float, split: str, faults: Faults) -> list[Record]:
    """The images of a split, whatever its classes are."""
    folder = _split_folder(root, _source(split, val_share))
    paths = [path for path in files_below(folder, faults) if path.suffix.lower() in SUFFIXES]
    records = [Record(normal(path.relative_to(folder).as_posix()), Blob(path), (), str(folder)) for path in paths]
    return _of_split(records, split, val_share)
