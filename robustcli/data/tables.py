"""A delimited text file of images and captions, one row a caption; an image may have several rows."""

import io
import json
import re
import tokenize
from ast import literal_eval
from collections.abc import Iterator, Mapping
from pathlib import Path

from robustcli.data.delimited import read_rows
from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading, SameText
from robustcli.data.karpathy import SPLIT_NAMES
from robustcli.data.partition import Partition
from robustcli.data.rows import Row, grouped
from robustcli.data.sources import Blob, Record, check_split, existing, safe_name
from robustcli.utils.errors import UserError

_OTHERS = {".parquet": "parquet", ".json": "karpathy or dataset=coco_captions", ".tar": "shards"}
_NUMBERED = re.compile(r"(.+)#\d+\s*")  # Flickr's names of captions: the image and the number of its caption


class CaptionTable(FileSet):
    """Images and captions by a delimited file: CSV, TSV, Kaggle's ``.txt`` and pipes, Flickr's ``.token``.

    A cell may hold a list of captions, as ``["a dog", "a hound"]``. A name such as ``1.jpg#0`` is that of ``1.jpg``,
    where all names of the file have a number.

    Args:
        table: UTF-8, with a header but for Flickr's own; ``{split}`` in its name stands for the split where each has
            its own file.
        root: folder that the image names are relative to.
        image_column, caption_column: names in the header.
        split_column: column that says ``train``, ``val`` or ``test``; None where the file is one split.
        delimiter: ``,``, ``;``, ``|`` or ``tab``; None: told by the first line.
        holds, val_share, test_share: split of a file that does not say it, and shares of it, as for ``Partition``.
        image_size, split, same_text, on_error, fingerprint, limit, origin: as for ``KarpathyJSON``.

    Raises:
        UserError: a bad file or row, named with its line; a column or split that is not there.
    """

    def __init__(
        self,
        table: str | Path,
        root: str | Path,
        *,
        split: str,
        image_column: str = "image",
        caption_column: str = "caption",
        split_column: str | None = None,
        delimiter: str | None = None,
        holds: str | None = None,
        val_share: float = 0.0,
        test_share: float = 0.0,
        image_size: int = 224,
        same_text: SameText = "distinct",
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        origin: str | None = None,
    ) -> None:
        columns = {"image_column": image_column, "caption_column": caption_column}
        if split_column:
            columns["split_column"] = split_column
        partition = Partition(
            key="dataset.table",
            pattern=str(table),
            by_column=split_column is not None,
            holds=holds,
            val_share=val_share,
            test_share=test_share,
        )

        def located(split: str) -> Path:
            path = existing(Path(partition.file(split)).expanduser(), "dataset.table", origin)
            if (other := _OTHERS.get(path.suffix.lower())) is not None:
                raise UserError(f"dataset.table is {path}, which is no delimited text: read it by dataset={other}.")
            return path

        def read(split: str, faults: Faults) -> list[Record]:
            path, source = located(split), partition.source(split)
            rows = _rows(path, columns, delimiter, Path(root).expanduser(), source, faults)
            records, splits = grouped(rows, source, faults)
            if split_column:
                check_split(source, splits, str(path))
            return partition.take(records, split, str(path))

        faults = Faults(on_error)
        reading = Reading(located(split).stem, split, read(split, faults), faults, read)
        super().__init__(
            reading, image_size=image_size, same_text=same_text, limit=limit, fingerprint=fingerprint, origin=origin
        )


def _rows(
    path: Path, columns: Mapping[str, str], delimiter: str | None, root: Path, split: str, faults: Faults
) -> Iterator[Row]:
    rows = list(read_rows(path, columns, delimiter, faults))
    numbered = [_NUMBERED.fullmatch(fields[0]) for _, fields in rows]
    if all(numbered):
        rows = [(line, [match[1], *fields[1:]]) for match, (line, fields) in zip(numbered, rows, strict=True) if match]
    for line, fields in rows:
        where = f"{path}, line {line}"
        if not fields[0].strip():
            faults.report(where, "names no image")
            continue
        image = safe_name(fields[0], root, where)
        of = SPLIT_NAMES.get(fields[2].strip(), fields[2].strip()) if "split_column" in columns else split
        yield Row(where, image, Blob(root / image), _captions(fields[1]), of)


def _captions(cell: str) -> list[object]:
    """The text of a cell, or the texts of a list that it writes out, in JSON, or in Python's or numpy's form."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [cell]
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = _printed(text)
    listed = isinstance(found, list) and bool(found) and all(isinstance(each, str) for each in found)
    return list(found) if listed else [cell]


def _printed(text: str) -> list[object]:
    """The strings of a printed list; none where there stands anything else. Numpy puts no commas between them."""
    try:
        tokens = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.string.strip()]
        strings: list[object] = [literal_eval(each.string) for each in tokens if each.type == tokenize.STRING]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return []
    marks = [each.string for each in tokens if each.type != tokenize.STRING]
    return strings if set(marks) <= {"[", ",", "]"} else []
