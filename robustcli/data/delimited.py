"""Delimited text: the fields of each line, whose delimiter is given or told by the first line.

Many files quote nothing, and a caption that begins with a quotation mark would there swallow rows; so lines are
compared with rows, and what does not agree is an error with its line.
"""

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from robustcli.data.faults import Faults
from robustcli.utils.errors import UserError

DELIMITERS = {",": ",", ";": ";", "|": "|", "tab": "\t", "\t": "\t", "\\t": "\t"}
_BY_SUFFIX = {".tsv": "\t", ".token": "\t"}
# Flickr's files have no header: the image and the number of its caption, a tab, the caption.
_TOKEN = re.compile(r"[^\t]+#\d+\t")
# What the columns are called in files that are passed on, for the hint.
_USUAL = {
    "image_column": ("image", "image_name", "file_name", "filename", "filepath", "image_path", "path", "img"),
    "caption_column": ("caption", "captions", "comment", "text", "title", "sentence", "description"),
    "text_column": ("text", "sentence", "review", "content", "title", "description"),
    "label_column": ("label", "class", "category", "sentiment", "class index", "stars"),
    "split_column": ("split", "set", "subset", "partition"),
}


def read_rows(
    path: Path, columns: Mapping[str, str], delimiter: str | None, faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row, in the order of ``columns``.

    Args:
        columns: key of the config -> name in the header.
        delimiter: ``,``, ``;``, ``|`` or ``tab``; None: the one with which the first line names all columns.

    Raises:
        UserError: text that is neither UTF-8 nor marked as UTF-16, a column that is not there, or rows that merge.
    """
    if delimiter is not None and delimiter not in DELIMITERS:
        raise UserError(f"dataset.delimiter is {delimiter!r}: choose one of , ; | and tab, or null.")
    lines = _lines(path)
    first = lines[0] if lines else ""
    headless = bool(_TOKEN.match(first))
    if headless:
        mark, start, wanted = "\t", 0, [0, 1]
        count = 2
        if "split_column" in columns:
            raise UserError(f"{path} has no header, and so no column {columns['split_column']!r}.")
    else:
        mark = DELIMITERS[delimiter] if delimiter else _told(first, columns, path)
        header, start = _header(first, mark), 1
        wanted, count = [_column(header, key, name, path) for key, name in columns.items()], len(header)
    for line, row in _split_rows(lines, mark, count, path, start):
        if len(row) == count:
            yield line, [row[column] for column in wanted]
        elif row:
            what = f"has {len(row)} fields, expected {count} (text that holds the separator needs quotes)"
            faults.report(f"{path}, line {line}", what)


def _lines(path: Path) -> list[str]:
    """Lines of the file, whose ends stay; UTF-8, or UTF-16 as spreadsheets mark it."""
    data = path.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        at = data[: error.start].count(b"\n")
        raise UserError(f"{path} is not UTF-8 text ({error.reason} after line {at}).") from None
    return re.findall(r"[^\n]*\n|[^\n]+", text.replace("\r\n", "\n").replace("\r", "\n"))


def _told(line: str, columns: Mapping[str, str], path: Path) -> str:
    """The delimiter with which ``line`` names all columns; where none does, the one that cuts it into most."""
    marks = list(dict.fromkeys((_BY_SUFFIX.get(path.suffix.lower(), ","), *DELIMITERS.values())))
    fits = [mark for mark in marks if set(columns.values()) <= set(_header(line, mark))]
    return fits[0] if fits else max(marks, key=lambda mark: len(_header(line, mark)))


def _header(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in _fields(line, delimiter)] if line else []


def _split_rows(
    lines: Sequence[str], delimiter: str, count: int, path: Path, start: int
) -> list[tuple[int, list[str]]]:
    """Rows with their first line, from line number ``start`` on, counted from 0.

    A line is a row wherever every line alone has ``count`` fields; only else may a quoted field go on over several
    lines.

    Raises:
        UserError: a quoted field over several lines, of which one alone is a whole row, or one without an end.
    """
    alone = [_fields(line, delimiter, count) for line in lines]
    if all(len(row) in (0, count) for row in alone):
        return list(enumerate(alone[start:], start + 1))
    rows, reader, line = list[tuple[int, list[str]]](), csv.reader(lines, delimiter=delimiter, strict=True), start
    try:
        for _ in range(start):
            next(reader)
        for row in reader:
            begin, line = line + 1, reader.line_num
            whole = [at for at in range(begin + 1, line + 1) if len(alone[at - 1]) == count]
            if whole:
                raise UserError(
                    f"{path}, line {begin}: a quotation mark opens a field that only ends in line {line}, but line "
                    f"{whole[0]} looks like a row of its own: put the caption into quotation marks and double those in "
                    "it, or take the line break out of it."
                )
            rows.append((begin, row))
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
    usual = [each for each in header if each.lower() in _USUAL[key]]
    near = usual or get_close_matches(name, header, n=1)
    hint = f": set dataset.{key}, for example to {near[0]}" if near else f": set dataset.{key}"
    raise UserError(f"{path} has no column {name!r}, only {', '.join(header) or 'an empty first line'}{hint}.")
