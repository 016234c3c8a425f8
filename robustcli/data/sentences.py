"""Sentences with a class each, from a table; the classes stand where other sets have images, as texts or as pictures.

Shapes: B batch, M sentences, P pictures of a class, S image size, Y classes.
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustcli.data.base import ImageTextData, rows_of
from robustcli.data.class_folders import records_below
from robustcli.data.classes import class_list
from robustcli.data.delimited import read_rows
from robustcli.data.faults import Faults, OnError
from robustcli.data.files import check_fingerprint, check_positive, decoded
from robustcli.data.parquet import read_cells
from robustcli.data.sources import SPLITS, clean_captions, existing, splits_in, with_split
from robustcli.data.walks import normal
from robustcli.utils.errors import UserError
from robustcli.utils.numbered import as_pixels
from robustcli.utils.numbers import one_of

_SHOWN = 5  # class names in a message


class Sentences(ImageTextData):
    """Sentences of a table, judged by the text tower of a dual encoder: each against the vectors of all classes.

    The image of a class is its number (`robustcli.utils.numbered`), which `robustcli.models.ClassEncoder` looks up.

    Args:
        table: CSV, TSV or Parquet; ``*`` for several, in the order of their names. ``{split}`` in the name stands for
            the split; a file whose name tells no split is read for any.
        classes: Y names in the order of the labels, see `class_list`.
        text_column, label_column: names of columns; a label is a class name, or its number.
        first_label: number of the first class, where labels are numbers.
        delimiter: of a CSV, see `CaptionTable`.
        class_images: folder with a folder of pictures for each class, whose mean embedding is the class's vector; None:
            the classes are texts.
        image_size: S of the pictures.
        on_error, fingerprint, origin: as for `KarpathyJSON`.
        limit: the first so many sentences in the order of the file; None: all.

    Attributes:
        classes: Y names, also ``image_ids``; ``captions`` are the sentences and ``owner`` (M,) their labels.
        templates: the name alone.

    Raises:
        UserError: a bad file or row, named with its line; a column that is not there, a label that is no class, a class
            without pictures.
    """

    benchmark: str | None = None
    templates: tuple[str, ...] = ("{}",)

    def __init__(
        self,
        table: str | Path,
        classes: Sequence[str] | str | int | None,
        *,
        split: str,
        text_column: str = "text",
        label_column: str = "label",
        first_label: int = 0,
        delimiter: str | None = None,
        class_images: str | Path | None = None,
        image_size: int = 224,
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        origin: str | None = None,
    ) -> None:
        check_positive(image_size=image_size, limit=limit)
        one_of("split", split, SPLITS, node="evaluation")
        self.classes = class_list(classes, "dataset.classes", "give their names, as the labels or in their order.")
        self.split, self.image_ids = split, self.classes
        faults = Faults(on_error)
        paths = _located(str(table), split, origin)
        self.name = paths[0].stem if len(paths) == 1 else paths[0].absolute().parent.name
        columns = {"text_column": text_column, "label_column": label_column}
        rows = [row for path in paths for row in _rows(path, columns, delimiter, faults)]
        sentences = list(_labelled(rows, self.classes, first_label, faults, limit))
        if not sentences:
            raise UserError(f"{paths[0]} has no usable sentence: {faults.first or 'it has no row'}.")
        self.captions = [text for text, _ in sentences]
        self.owner = torch.tensor([label for _, label in sentences])
        self._pictures, hashes, notes = _pictures(class_images, self.classes, image_size, faults)
        self.skipped = faults.count
        absent = [name for number, name in enumerate(self.classes) if not bool((self.owner == number).any())]
        self.notes = [*faults.notes(), *notes, *([f"No sentence is of the class {_few(absent)}."] if absent else [])]
        content = json.dumps([self.classes, hashes, sentences], ensure_ascii=False)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        check_fingerprint(self, fingerprint, limit)

    def images(self, indices: Tensor) -> Tensor:
        """The numbers of the classes ``indices`` (B,) as images (B,3,1,1)."""
        return as_pixels(rows_of(indices, len(self)))

    def pictures(self) -> list[Tensor] | None:
        """Pictures (P,3,S,S) float32 in [0,1] of each class; None where the classes are texts."""
        if self._pictures is None:
            return None
        return [torch.from_numpy(np.asarray(each)).float().div_(255) for each in self._pictures]

    def provenance(self) -> dict[str, str | int]:
        counts = {"sentences": len(self.captions), "classes": len(self.classes), "skipped": self.skipped}
        return {"fingerprint": self.fingerprint, **counts}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, split={self.split!r}, sentences={len(self.captions)},"
            f" classes={len(self.classes)}, skipped={self.skipped})"
        )


def _located(table: str, split: str, origin: str | None) -> list[Path]:
    """The files of ``split``."""
    told = "{split}" in table or splits_in(table)
    pattern = str(Path(with_split(table, split, "dataset.table") if told else table).expanduser())
    return [existing(Path(name), "dataset.table", origin) for name in sorted(glob.glob(pattern)) or [pattern]]


def _rows(
    path: Path, columns: Mapping[str, str], delimiter: str | None, faults: Faults
) -> Iterator[tuple[str, object, object]]:
    """Place, text and label of each row."""
    if path.suffix.lower() == ".parquet":
        for blob, (text, label) in read_cells(path, columns):
            yield f"{path}, row {blob.offset}", text, label
        return
    for line, (text, label) in read_rows(path, columns, delimiter, faults):
        yield f"{path}, line {line}", text, label


def _labelled(
    rows: Sequence[tuple[str, object, object]], classes: Sequence[str], first: int, faults: Faults, limit: int | None
) -> Iterator[tuple[str, int]]:
    """The first ``limit`` sentences with the place of their class; rows behind them are not looked at."""
    by_name, found = {name: number for number, name in enumerate(classes)}, 0
    for where, text, label in rows:
        if found == limit:
            return
        number = _class_number(label, by_name, first)
        if number is None:
            last = first + len(classes) - 1
            told = f"is none of dataset.classes ({_few(classes)}), and no number from {first} to {last}"
            beyond = str(label).strip() == str(last + 1)
            hint = f" (dataset.first_label={first + 1}, where they begin with {first + 1})" if beyond else ""
            faults.report(where, f"has the label {str(label)!r:.40}, which {told}{hint}")
        elif texts := clean_captions([text], where, faults):
            found += 1
            yield texts[0], number


def _class_number(label: object, by_name: Mapping[str, int], first: int) -> int | None:
    """The class that a cell names, or has the number of (a whole one, though a column with gaps reads as floats)."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    shown = normal(str(label).strip())
    if shown in by_name:
        return by_name[shown]
    try:
        number = int(shown) - first
    except ValueError:
        return None
    return number if 0 <= number < len(by_name) else None


def _pictures(
    folder: str | Path | None, classes: Sequence[str], image_size: int, faults: Faults
) -> tuple[list[np.ndarray] | None, list[str], Sequence[str]]:
    """Pictures (P,3,S,S) uint8 of each class, the hashes of all, and notes on what was done to them."""
    if folder is None:
        return None, [], ()
    place = Path(folder).expanduser()
    if missing := [name for name in classes if not (place / name).is_dir()]:
        raise UserError(
            f"dataset.class_images is {place}, which has no folder of pictures for the class {_few(missing)}: each "
            "class has its own, by its name."
        )
    found = {name: records_below(place, [name], faults) for name in classes}
    kept, store = decoded([record for each in found.values() for record in each], image_size, faults)
    owner = {record.image_id: name for name, each in found.items() for record in each}
    pixels, of_class = np.asarray(store.pixels), [owner[record.image_id] for record in kept]
    made = [pixels[[name == own for own in of_class]] for name in classes]
    if empty := [name for name, each in zip(classes, made, strict=True) if not len(each)]:
        raise UserError(f"the class {_few(empty)} has no usable picture in {place}: {faults.first}.")
    return made, list(store.hashes), store.notes


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
