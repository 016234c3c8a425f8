"""Rows of a file of captions, one or many a row, and the images that they make together."""

from collections.abc import Iterable
from dataclasses import dataclass

from robustcli.data.faults import Faults
from robustcli.data.sources import Blob, Record, clean_captions


@dataclass(frozen=True)
class Row:
    """One row: an image by its name, captions as they stand, and the split where the file says it.

    ``where`` names the file and the line; ``content`` tells two pictures of one name apart, where it is known.
    """

    where: str
    name: str
    blob: Blob
    captions: list[object]
    split: str
    content: str = ""


def grouped(rows: Iterable[Row], split: str, faults: Faults) -> tuple[list[Record], set[str]]:
    """Records of ``split``, in the order in which their images come first, and the splits that the rows name.

    An image in two splits, or two pictures under one name, are faults.
    """
    first: dict[str, Row] = {}
    captions: dict[str, list[str]] = {}
    for row in rows:
        earlier = first.setdefault(row.name, row)
        if earlier.split != row.split:
            faults.report(
                row.where,
                f"puts the image {row.name!r} into the split {row.split!r}, {_short(earlier)} into {earlier.split!r}",
            )
        elif earlier.content != row.content:
            faults.report(row.where, f"has another picture of the name {row.name!r} than {_short(earlier)}")
        elif row.split == split:
            captions.setdefault(row.name, []).extend(clean_captions(row.captions, row.where, faults))
    records = [Record(name, first[name].blob, tuple(texts), first[name].where) for name, texts in captions.items()]
    return [record for record in records if record.captions], {row.split for row in first.values()}


def _short(row: Row) -> str:
    return row.where.rpartition(", ")[2]
