"""Labelled images in tar shards, as clip-benchmark writes and reads them: ``test/0.tar`` with ``1.jpg`` and ``1.cls``.

Shapes: B batch, S image size.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from robustcli.data.class_files import ClassReading, FileClasses, check_settings
from robustcli.data.class_sets import check_known
from robustcli.data.classes import class_list, held_out
from robustcli.data.decode import Fit
from robustcli.data.faults import Faults, OnError
from robustcli.data.shards import IMAGES, samples_in
from robustcli.data.sources import Record
from robustcli.utils.errors import UserError


class ClassShards(FileClasses):
    """Images (B,3,S,S) by shards, in the order of their numbers, with the class names and templates that lie beside.

    Args:
        root: folder with folders ``train`` and ``test`` of shards, ``classnames.txt`` (a name a line, in the order of
            the labels) and, if there are templates, ``zeroshot_classification_templates.txt``, in which ``{c}`` stands
            for the name of a class.
        split: ``train``, ``val`` or ``test``.
        val_share: share of the training images that is ``val``, by a hash of their names.
        name: of the set, in tables; None: that of the folder, without ``wds_`` and ``vtab-``.
        image_size, fit, on_error, fingerprint, limit: as for `ClassFolders`.

    Raises:
        UserError: no shard or list of classes, a damaged shard, a sample without an image or a label.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str,
        image_size: int = 224,
        fit: Fit = "crop",
        val_share: float = 0.1,
        name: str | None = None,
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        check_settings(image_size, limit, fit)
        check_known(split)
        folder, faults = Path(root).expanduser(), Faults(on_error)
        shards = _shards(folder, "train" if split == "val" else split)
        classes = class_list(
            folder / "classnames.txt" if folder.is_dir() else None,
            "dataset.root/classnames.txt",
            f"there is no folder {folder}.",
        )
        self.templates = _templates(folder / "zeroshot_classification_templates.txt")
        called = name or folder.resolve().name.removeprefix("wds_").removeprefix("vtab-")
        labelled: dict[str, tuple[Record, int]] = {}
        for shard in shards:
            labelled |= {record.image_id: (record, label) for record, label in _records(shard, len(classes), faults)}
        records = [record for record, _ in labelled.values()]
        if split != "test":
            held = held_out(list(labelled), val_share).tolist()
            records = [each for each, val in zip(records, held, strict=True) if val == (split == "val")]
        if not records:
            raise UserError(f"the split {split!r} of {called} is empty{f': {faults.first}' if faults.count else ''}.")
        labels = {image_id: label for image_id, (_, label) in labelled.items()}
        reading = ClassReading(called, split, classes, records, faults, labels)
        super().__init__(reading, image_size=image_size, fit=fit, limit=limit, fingerprint=fingerprint)


def _shards(folder: Path, split: str) -> list[Path]:
    """The shards of a split in the order of their numbers, as many as ``nshards.txt`` says, if it is there."""
    found = sorted((folder / split).glob("*.tar"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    if not found:
        raise UserError(
            f"dataset.root is {folder}, which has no shards {split}/0.tar, {split}/1.tar, ...: download the set of "
            "clip-benchmark on Hugging Face (wds_...), or write one with its clip_benchmark_export_wds."
        )
    listed = folder / split / "nshards.txt"
    said = listed.read_text(encoding="utf-8", errors="replace").strip() if listed.is_file() else str(len(found))
    if said != str(len(found)):
        raise UserError(f"{listed} says {said:.20}, but {len(found)} shards lie there: complete the download.")
    return found


def _templates(path: Path) -> tuple[str, ...]:
    """The lines of a file, with ``{}`` for clip-benchmark's ``{c}``; none where there is no file."""
    if not path.is_file():
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8 text: expected a template a line.") from None
    if bad := [line for line in lines if line.count("{c}") != 1]:
        raise UserError(f"{path} has the line {bad[0]!r}: expected {{c}} once, where the name of the class belongs.")
    return tuple(line.replace("{c}", "{}") for line in lines)


def _records(shard: Path, classes: int, faults: Faults) -> list[tuple[Record, int]]:
    """Image and label of each sample of a shard."""
    found = []
    for key, parts in samples_in(shard, faults).items():
        where = f"{shard}, sample {key!r}"
        image = next((parts[extension] for extension in IMAGES if extension in parts), None)
        text = parts["cls"].read(20).decode(errors="replace").strip() if "cls" in parts else ""
        if image is None:
            faults.report(where, f"has no image ({', '.join(IMAGES)})")
        elif not (text.isascii() and text.isdigit() and int(text) < classes):
            faults.report(where, f"has the label {text!r} in .cls, expected a number from 0 to {classes - 1}")
        else:
            found.append((Record(f"{shard.stem}/{key}", image, (), where), int(text)))
    return found
