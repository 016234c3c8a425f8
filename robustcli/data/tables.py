"""A CSV or TSV file of images and captions, one row a caption; an image may have several rows."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading
from robustcli.data.karpathy import SPLIT_NAMES
from robustcli.data.sources import Blob, Record, check_split, clean_captions, existing, safe_name, with_split
from robustcli.utils.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


class CaptionTable(FileSet):
    """Images and captions by a table with a header.

    Args:
        table: ``.csv`` or ``.tsv``, UTF-8; ``{split}`` in its name stands for the split where each has its own file.
        root: folder that the image names are relative to.
        image_column, caption_column: names in the header.
        split_column: column that says ``train``, ``val`` or ``test``; None where the file is one split.
        image_size, split, on_error, fingerprint, limit, origin: as for ``KarpathyJSON``.

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
        image_size: int = 224,
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        origin: str | None = None,
    ) -> None:
        faults = Faults(on_error)
        name = str(table) if split_column else with_split(str(table), split, "dataset.table")
        path = existing(Path(name).expanduser(), "dataset.table", origin)
        columns = {"image_column": image_column, "caption_column": caption_column}
        if split_column:
            columns["split_column"] = split_column
        rows = list(_rows(path, columns, faults))
        records = _records(rows, path, Path(root).expanduser(), split, faults, by_split=split_column is not None)
        reading = Reading(path.stem, split, records, faults)
        super().__init__(reading, image_size=image_size, limit=limit, fingerprint=fingerprint, origin=origin)


def _rows(path: Path, columns: Mapping[str, str], faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """The line number and the wanted fields (image, caption, and split if asked for) of each row."""
    if path.suffix.lower() not in DELIMITERS:
        raise UserError(f"dataset.table is {path}, expected a name that ends with .csv or .tsv.")
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
            header = next(reader, [])
            wanted = [_column(header, key, name, path) for key, name in columns.items()]
            for row in reader:
                line, start = reader.line_num, line + 1
                if len(row) == len(header):
                    yield start, [row[column] for column in wanted]
                elif row:
                    what = f"has {len(row)} fields, expected {len(header)} (text that holds the separator needs quotes)"
                    faults.report(f"{path}, line {start}", what)
    except csv.Error as error:
        raise UserError(f"{path}, line {line + 1} cannot be read as a table: {error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} after line {line}).") from None


def _column(header: Sequence[str], key: str, name: str, path: Path) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise UserError(f"{path} has {header.count(name)} columns {name!r}: rename all but one.")
    near = get_close_matches(name, header, n=1, cutoff=0.0)
    hint = f": set dataset.{key}, for example to {near[0]}" if near else ""
    raise UserError(f"{path} has no column {name!r}, only {', '.join(header) or 'an empty first line'}{hint}.")


def _records(
    rows: Sequence[tuple[int, list[str]]], path: Path, root: Path, split: str, faults: Faults, *, by_split: bool
) -> list[Record]:
    first: dict[str, tuple[int, str]] = {}
    captions: dict[str, list[str]] = {}
    for line, fields in rows:
        where = f"{path}, line {line}"
        if not fields[0].strip():
            faults.report(where, "names no image")
            continue
        image = safe_name(fields[0], root, where)
        of = SPLIT_NAMES.get(fields[2].strip(), fields[2].strip()) if by_split else split
        earlier, other = first.setdefault(image, (line, of))
        if other != of:
            faults.report(where, f"puts the image {image!r} into the split {of!r}, line {earlier} into {other!r}")
        elif of == split:
            captions.setdefault(image, []).extend(clean_captions([fields[1]], where, faults))
    if by_split:
        check_split(split, {of for _, of in first.values()}, str(path))
    return [
        Record(image, Blob(root / image), tuple(texts), f"{path}, line {first[image][0]}")
        for image, texts in captions.items()
        if texts
    ]
