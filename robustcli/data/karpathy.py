"""JSON annotations beside a folder of images: the two forms in which Flickr8k, Flickr30k and COCO are passed on.

- Karpathy: ``{"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}``, all splits in one file;
  COCO's ``restval`` is part of ``train`` (Karpathy and Fei-Fei 2015, section 4).
- a list, a file for each split: ``[{"image": name, "caption": text or [texts]}]``; rows of single texts that name the
  same image belong together.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading, SameText
from robustcli.data.positives import image_key
from robustcli.data.sources import (
    SPLITS,
    Blob,
    Record,
    check_split,
    clean_captions,
    existing,
    safe_name,
    with_split,
)
from robustcli.utils.errors import UserError

SPLIT_NAMES = {name: name for name in SPLITS} | {"restval": "train", "valid": "val", "dev": "val"}


class KarpathyJSON(FileSet):
    """Images and captions by a JSON file.

    Args:
        annotations: the JSON file; ``{split}`` in its name stands for the split where each has a file of its own.
        root: folder that the image names are relative to.
        image_size: S, side of the square images in pixels.
        split: ``train``, ``val`` or ``test``.
        same_text: ``distinct``, or ``match``: a caption is true of all images that have its text; see `FileSet`.
        on_error: ``raise`` at the first bad entry, or ``skip`` and count them.
        fingerprint: expected fingerprint of this split, or a mapping from split to fingerprint; None checks nothing.
        limit: only the first so many images of the split.
        origin: where the files come from, for the message when they are missing.
        positives, positives_threshold: further positives, see `FileSet`; the file must have ``cocoid``, or COCO's names
            of images, and ``sentid``.

    Raises:
        UserError: a bad file or entry, named with its place; an absent split; another fingerprint.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        *,
        split: str,
        image_size: int = 224,
        same_text: SameText = "distinct",
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        origin: str | None = None,
        positives: str | Sequence[str] | None = None,
        positives_threshold: float = 3.0,
    ) -> None:
        reading = read(str(annotations), Path(root).expanduser(), split, Faults(on_error), origin)
        super().__init__(
            reading,
            image_size=image_size,
            same_text=same_text,
            limit=limit,
            fingerprint=fingerprint,
            origin=origin,
            positives=positives,
            positives_threshold=positives_threshold,
        )


def read(annotations: str, root: Path, split: str, faults: Faults, origin: str | None = None) -> Reading:
    """The records of one split, whichever form the file has.

    Raises:
        UserError: no such file, no valid JSON, neither form, or a split that is not there.
    """
    path = existing(Path(annotations.replace("{split}", split)).expanduser(), "dataset.annotations", origin)
    content = load_json(path)
    if isinstance(content, list):
        with_split(annotations, split, "dataset.annotations")
        read_file = partial(_read_list, annotations, root)
        return Reading(path.stem, split, _from_list(content, path, root, faults), faults, read_file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(
            f'{path} is neither of the known forms: {{"images": [{{"filename", "split", "sentences"}}]}} or'
            ' [{"image", "caption"}].'
        )
    if isinstance(content.get("annotations"), list):
        raise UserError(f"{path} has COCO's own form, images and annotations: read it by dataset=coco_captions.")
    read_split = partial(_from_karpathy, content["images"], path, root)
    return Reading(str(content.get("dataset", path.stem)), split, read_split(split, faults), faults, read_split)


def load_json(path: Path) -> Any:
    """The content of a JSON file; `UserError` with the line where it is not valid, or for text that is not UTF-8."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno} is not valid JSON: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be read.") from None


def _from_karpathy(images: list[Any], path: Path, root: Path, split: str, faults: Faults) -> list[Record]:
    records: list[Record] = []
    first: dict[str, int] = {}  # over all splits: a repeated image may be one that is trained on and tested on
    splits = set()
    for number, entry in enumerate(images):
        where = f"{path}, images[{number}]"
        missing = [key for key in ("filename", "split", "sentences") if not _has(entry, key)]
        if missing:
            faults.report(where, f"has no {' and no '.join(missing)}")
            continue
        name = safe_name(os.path.join(entry.get("filepath") or "", entry["filename"]), root, where)
        splits.add(SPLIT_NAMES.get(entry["split"], entry["split"]))
        if first.setdefault(name, number) != number:
            faults.report(where, f"repeats the image {name!r} of images[{first[name]}]")
        elif SPLIT_NAMES.get(entry["split"]) == split:
            raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in entry["sentences"]]
            captions = clean_captions(raw, f"{where} ({name})", faults)
            if captions:
                key = image_key(entry.get("cocoid", entry["filename"]))
                records.append(Record(name, Blob(root / name), tuple(captions), where, key, _keys(entry["sentences"])))
    check_split(split, splits, str(path))
    return records


def _keys(sentences: list[Any]) -> tuple[str | None, ...]:
    """The id of each sentence that is no fault."""
    quiet = Faults("skip", quiet=True)
    kept = [
        sentence
        for sentence in sentences
        if clean_captions([sentence.get("raw") if isinstance(sentence, dict) else sentence], "", quiet)
    ]
    ids = [sentence.get("sentid") if isinstance(sentence, dict) else None for sentence in kept]
    return tuple(None if each is None else str(each) for each in ids)


def _has(entry: Any, key: str) -> bool:
    kind = list if key == "sentences" else str
    return isinstance(entry, dict) and isinstance(entry.get(key), kind) and entry[key] != ""


def _read_list(annotations: str, root: Path, split: str, faults: Faults) -> list[Record]:
    key = "dataset.annotations"
    path = existing(Path(with_split(annotations, split, key)).expanduser(), key, None)
    return _from_list(load_json(path), path, root, faults)


def _from_list(rows: list[Any], path: Path, root: Path, faults: Faults) -> list[Record]:
    first: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for where, relative, caption in _rows(rows, path, faults):
        name = safe_name(relative, root, where)
        if name in first and isinstance(caption, list):
            faults.report(where, f"repeats the image {name!r} of {first[name]}")
            continue
        first.setdefault(name, where)
        raw = caption if isinstance(caption, list) else [caption]
        captions.setdefault(name, []).extend(clean_captions(raw, f"{where} ({name})", faults))
    return [Record(name, Blob(root / name), tuple(texts), first[name]) for name, texts in captions.items() if texts]


def _rows(rows: list[Any], path: Path, faults: Faults) -> Iterator[tuple[str, str, Any]]:
    for number, row in enumerate(rows):
        where = f"{path}, [{number}]"
        if isinstance(row, dict) and isinstance(row.get("image"), str) and row["image"] and "caption" in row:
            yield where, row["image"], row["caption"]
        else:
            faults.report(where, "is not an object with image and caption")
