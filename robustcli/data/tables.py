"""A CSV or TSV file of images and captions, one row a caption; an image may have several rows."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading, SameText
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

        def located(split: str) -> Path:
            name = str(table) if split_column else with_split(str(table), split, "dataset.table")
            return existing(Path(name).expanduser(), "dataset.table", origin)

        def read(split: str, faults: Faults) -> list[Record]:
            path = located(split)
            rows = list(_rows(path, columns, faults))
            return _records(rows, path, Path(root).expanduser(), split, faults, by_split=split_column is not None)

        faults = Faults(on_error)
        reading = Reading(located(split).stem, split, read(split, faults), faults, read)
        super().__init__(
            reading, image_size=image_size, same_text=same_text, limit=limit, fingerprint=fingerprint, origin=origin
        )


def _rows(path: Path, columns: Mapping[str, str], faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """The line number and the wanted fields (image, caption, and split if asked for) of each row."""
    if path.suffix.lower() not in DELIMITERS:
        raise UserError(f"dataset.table is {path}, expected a name that ends with .csv or .tsv.")
    delimiter = DELIMITERS[path.suffix.lower()]
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = list(file)
    except UnicodeDecodeError as error:
        at = path.read_bytes()[: error.start].count(b"\n")
        raise UserError(f"{path} is not UTF-8 text ({error.reason} after line {at}).") from None
    header = _fields(lines[0], delimiter) if lines else []
    wanted = [_column(header, key, name, path) for key, name in columns.items()]
    for line, row in _split_rows(lines, delimiter, len(header), path):
        if len(row) == len(header):
            yield line, [row[column] for column in wanted]
        elif row:
            what = f"has {len(row)} fields, expected {len(header)} (text that holds the separator needs quotes)"
            faults.report(f"{path}, line {line}", what)


def _split_rows(lines: Sequence[str], delimiter: str, count: int, path: Path) -> list[tuple[int, list[str]]]:
    """Rows with their first line, without the header.

    Many files quote nothing, and a caption that begins with a quotation mark would there swallow the rows up to the
    next one that ends with such a mark. So a line is a row wherever every line alone has ``count`` fields; only else
    may a quoted field go on over several lines.

    Raises:
        UserError: a quoted field over several lines, of which one alone is a whole row, or one without an end.
    """
    alone = [_fields(line, delimiter, count) for line in lines]
    if all(len(row) in (0, count) for row in alone):
        return list(enumerate(alone[1:], 2))
    rows, reader, line = list[tuple[int, list[str]]](), csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        next(reader)
        for row in reader:
            start, line = line + 1, reader.line_num
            whole = [at for at in range(start + 1, line + 1) if len(alone[at - 1]) == count]
            if whole:
                raise UserError(
                    f"{path}, line {start}: a quotation mark opens a field that only ends in line {line}, but line "
                    f"{whole[0]} looks like a row of its own: put the caption into quotation marks and double those in "
                    "it, or take the line break out of it."
                )
            rows.append((start, row))
    except csv.Error as error:
        raise UserError(f"{path}, line {line + 1} cannot be read as a table: {error}.") from None
    return rows


def _fields(line: str, delimiter: str, count: int | None = None) -> list[str]:
    """Fields of one line, taken as plain text where it breaks the rules of quotation or gives another ``count``."""
    line = line.rstrip("\n")
    try:
        fields = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return line.split(delimiter)
    plain = line.split(delimiter)
    return plain if count is not None and len(fields) != count == len(plain) else fields


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
