"""Augmented pairs on disk: parquet shards, one row a pair, each with the provenance of its making."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.data.parquet import ParquetBlob
from robustcli.data.sources import Blob
from robustcli.utils import files
from robustcli.utils.errors import UserError

COMMAND = "augment"
_FOLDER = "pairs"
_ROWS_OF_A_GROUP = 256  # decoding reads a row group at a time: bounds the memory


@dataclass(frozen=True, kw_only=True)
class AugmentedPair:
    """A pair that was made from an image of a set and its captions.

    Attributes:
        source: row of the image in the set.
        source_caption: row of the caption in the set that the pair was made from; None: of none.
        caption: the new caption; None: the one of ``source_caption``, or all of the image where that is None too.
        image: the new image, (H,W,3) uint8; None: that of ``source``.
        facts: what the new image shows, or the new caption claims, see `Derived`.
        true: whether the caption holds of the image, where the set can tell.
    """

    source: int
    source_caption: int | None = None
    caption: str | None = None
    image: NDArray[np.uint8] | None = None
    facts: str | None = None
    true: bool | None = None


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """An augmented pair as it stands on disk: names in place of rows, and the image's bytes where they lie.

    ``source_caption`` is the place of the caption among those of its image, from 0.
    """

    source: str
    source_caption: int | None
    caption: str | None
    image: Blob | None
    facts: str | None
    true: bool | None


def shard_path(directory: Path, first: int) -> Path:
    """Path of the shard that begins with image ``first``."""
    return directory / _FOLDER / f"pairs-{first:07d}.parquet"


def write_shard(
    path: Path, pairs: Sequence[AugmentedPair], names: Sequence[str], places: Mapping[int, int], made: Mapping[str, Any]
) -> None:
    """Write a shard, whole or not at all.

    Args:
        names: of the images of the set.
        places: row of a caption -> its place among those of its image.
        made: columns that are the same for all: method, parameters, seed, model and its hash.
    """
    import pandas as pd

    table = pd.DataFrame(
        {
            "source": pd.array([names[pair.source] for pair in pairs], dtype="string"),
            "source_caption": pd.array(
                [None if pair.source_caption is None else places[pair.source_caption] for pair in pairs], dtype="Int64"
            ),
            "caption": pd.array([pair.caption for pair in pairs], dtype="string"),
            "image": [None if pair.image is None else _png(pair.image) for pair in pairs],
            "facts": pd.array([pair.facts for pair in pairs], dtype="string"),
            "true": pd.array([pair.true for pair in pairs], dtype="boolean"),
            **{key: [value] * len(pairs) for key, value in made.items()},
        }
    )
    with files.atomic(path) as temporary:
        table.to_parquet(temporary, index=False, row_group_size=_ROWS_OF_A_GROUP)


def read_pairs(directory: Path) -> list[StoredPair]:
    """All pairs of a directory, in the order of their images.

    Raises:
        UserError: a damaged shard.
    """
    return [pair for path in sorted((directory / _FOLDER).glob("pairs-*.parquet")) for pair in _read(path)]


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished directory of ``robustcli augment``.

    Raises:
        UserError: it is no such directory, or was not finished.
    """
    try:
        manifest: dict[str, Any] = files.read_json(directory / "manifest.json")
    except (OSError, json.JSONDecodeError):
        manifest = {}
    if manifest.get("command") != COMMAND:
        raise UserError(
            f"{directory} is no directory of `robustcli augment`: make one by `robustcli augment augment=eda`."
        )
    if not (directory / "DONE").exists():
        raise UserError(f"{directory} was not finished: go on with `robustcli augment resume={directory}`.")
    return manifest


def read_method(directory: Path) -> tuple[str, dict[str, Any]]:
    """Name and parameters of the method that made the pairs of a directory.

    Raises:
        UserError: it holds no pair, or a damaged shard.
    """
    from pyarrow import ArrowException, parquet

    for path in sorted((directory / _FOLDER).glob("pairs-*.parquet")):
        try:
            for row in parquet.read_table(path, columns=["method", "parameters"]).slice(0, 1).to_pylist():
                return str(row["method"]), json.loads(row["parameters"])
        except (ArrowException, OSError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove its directory and augment again.") from None
    raise UserError(f"{directory} holds no augmented pair: augment again.")


def _read(path: Path) -> Iterator[StoredPair]:
    from pyarrow import ArrowException, parquet

    try:
        file, number = parquet.ParquetFile(path), 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).to_pylist()
            for place, row in enumerate(table):
                image = row["image"]  # in the cache of pixels the number tells images of equal size apart
                blob = ParquetBlob(path, number, len(image), "image", group, place) if image else None
                number += 1
                yield StoredPair(
                    **{key: row[key] for key in ("source", "source_caption", "caption", "facts", "true")}, image=blob
                )
    except (ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove its directory and augment again.") from None


def _png(image: NDArray[np.uint8]) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "png")
    return stored.getvalue()
