"""Parquet of images and captions as Hugging Face's data sets have it: image bytes or paths, one or many captions a row.

Bytes are read from the file whenever an image is decoded; a file of many gigabytes never stands in memory.
"""

import glob
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading, SameText
from robustcli.data.karpathy import SPLIT_NAMES
from robustcli.data.partition import Partition
from robustcli.data.rows import Row, grouped
from robustcli.data.sources import Blob, Record, check_split, existing, safe_name
from robustcli.utils.errors import UserError

_reading = Lock()


@dataclass(frozen=True)
class ParquetBlob(Blob):
    """The bytes of an image in a parquet file: those of the row ``offset``, number ``place`` of the row ``group``."""

    column: str = ""
    group: int = 0
    place: int = 0

    def read(self, most: int | None = None) -> bytes:
        with _reading:  # threads that decode ask for neighbours: one reads the row group, the others wait for it
            cells = _row_group(self.path, self.path.stat().st_mtime_ns, self.group, self.column)
        return _bytes(cells[self.place].as_py())[:most]


@lru_cache(maxsize=2)
def _row_group(path: Path, changed: int, group: int, column: str) -> Any:
    """A column of a row group as an Arrow array; ``changed`` keeps a file written anew from being taken for the old."""
    from pyarrow import parquet

    return parquet.ParquetFile(path).read_row_group(group, columns=[column])[column]


class CaptionParquet(FileSet):
    """Images and captions by parquet files with a row an image, or a row a caption.

    An image is Hugging Face's ``{bytes, path}``, bytes, or the name of a file below ``root``; its name in tables is its
    path, or the beginning of the sha256 of its bytes where it has none. Rows of one image belong together.

    Args:
        file: name of the file; ``*`` in it for several, ``{split}`` for the split where each has files of its own.
        root: folder that paths are relative to; None where the bytes stand in the file.
        image_column, caption_column: names of columns; a caption is a text or a list of texts.
        split_column: column that says ``train``, ``val`` or ``test``; None where the file is one split.
        holds, val_share, test_share: split of a file that does not say it, and shares of it, as for ``Partition``.
        image_size, split, same_text, on_error, fingerprint, limit, origin: as for ``KarpathyJSON``.

    Raises:
        UserError: a bad file or row, named with its number from 0; a column or split that is not there.
    """

    def __init__(
        self,
        file: str | Path,
        root: str | Path | None = None,
        *,
        split: str,
        image_column: str = "image",
        caption_column: str = "caption",
        split_column: str | None = None,
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
            key="dataset.file",
            pattern=str(file),
            by_column=split_column is not None,
            holds=holds,
            val_share=val_share,
            test_share=test_share,
        )
        folder = None if root is None else Path(root).expanduser()

        def located(split: str) -> list[Path]:
            pattern = str(Path(partition.file(split)).expanduser())
            return [existing(Path(name), "dataset.file", origin) for name in sorted(glob.glob(pattern)) or [pattern]]

        def read(split: str, faults: Faults) -> list[Record]:
            source = partition.source(split)
            rows = (row for path in located(split) for row in _rows(path, columns, folder, source, faults))
            records, splits = grouped(rows, source, faults)
            if split_column:
                check_split(source, splits, str(file))
            return partition.take(records, split, str(file))

        faults = Faults(on_error)
        reading = Reading(_name(located(split)), split, read(split, faults), faults, read)
        super().__init__(
            reading, image_size=image_size, same_text=same_text, limit=limit, fingerprint=fingerprint, origin=origin
        )


def _name(paths: list[Path]) -> str:
    return paths[0].stem if len(paths) == 1 else paths[0].absolute().parent.name


def _rows(path: Path, columns: Mapping[str, str], root: Path | None, split: str, faults: Faults) -> Iterator[Row]:
    for blob, cells in read_cells(path, columns):
        where = f"{path}, row {blob.offset}"
        data, name = _bytes(cells[0]), _path(cells[0])
        captions = cells[1] if isinstance(cells[1], list) else [cells[1]]
        of = SPLIT_NAMES.get(str(cells[2]), str(cells[2])) if "split_column" in columns else split
        if data:
            content = hashlib.sha256(data).hexdigest()
            held = replace(blob, size=len(data))
            yield Row(where, safe_name(name or content[:16], path.parent, where), held, captions, of, content)
        elif not name:
            faults.report(where, f"has no image in the column {columns['image_column']!r}")
        elif root is None:
            raise UserError(f"{where} names the file {name!r} and holds no bytes: set dataset.root to its folder.")
        else:
            name = safe_name(name, root, where)
            yield Row(where, name, Blob(root / name), captions, of)


def read_cells(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[ParquetBlob, list[Any]]]:
    """Place and wanted cells of each row; a row group at a time stands in memory."""
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        for key, column in columns.items():
            if column not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column {column!r}, only {', '.join(file.schema_arrow.names)}: set dataset.{key}."
                )
        row = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(dict.fromkeys(columns.values())))
            for place in range(len(table)):
                blob = ParquetBlob(path, row, column=columns.get("image_column", ""), group=group, place=place)
                yield blob, [table[column][place].as_py() for column in columns.values()]
                row += 1
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is damaged or no parquet file.") from None


def _bytes(cell: Any) -> bytes:
    """Bytes of an image, alone or in Hugging Face's pair of bytes and path; none where there is a path alone."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else b""


def _path(cell: Any) -> str:
    name = cell.get("path") if isinstance(cell, dict) else cell
    return name if isinstance(name, str) else ""
