"""COCO's own captions: one JSON a split with ``images`` and ``annotations`` (Chen et al. 2015, arXiv 1504.00325)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading, SameText
from robustcli.data.karpathy import load_json
from robustcli.data.partition import Partition
from robustcli.data.sources import Blob, Record, clean_captions, existing, safe_name
from robustcli.utils.errors import UserError


class CocoCaptions(FileSet):
    """Images and captions by a file such as ``captions_val2017.json``, in the order of its images.

    Args:
        annotations: ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``; ``{split}`` in its
            name stands for the split where each has a file of its own.
        root: folder that the file names are relative to; ``{split}`` in it too.
        holds, val_share, test_share: split of a file that does not say it, and shares of it, as for ``Partition``.
        positives, positives_threshold: further positives, see `FileSet`.
        image_size, split, same_text, on_error, fingerprint, limit, origin: as for ``KarpathyJSON``.

    Raises:
        UserError: a bad file or entry, named with its place.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        *,
        split: str,
        holds: str | None = None,
        val_share: float = 0.0,
        test_share: float = 0.0,
        image_size: int = 224,
        same_text: SameText = "distinct",
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        origin: str | None = None,
        positives: str | Sequence[str] | None = None,
        positives_threshold: float = 3.0,
    ) -> None:
        key = "dataset.annotations"
        partition = Partition(
            key=key, pattern=str(annotations), holds=holds, val_share=val_share, test_share=test_share
        )

        def located(split: str) -> Path:
            return existing(Path(partition.file(split)).expanduser(), key, origin)

        def read(split: str, faults: Faults) -> list[Record]:
            path, folder = located(split), Path(str(root).replace("{split}", partition.source(split))).expanduser()
            return partition.take(_records(load_json(path), path, folder, faults), split, str(path))

        faults = Faults(on_error)
        reading = Reading(located(split).stem, split, read(split, faults), faults, read)
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


def _records(content: Any, path: Path, root: Path, faults: Faults) -> list[Record]:
    images, annotations = (
        (content.get("images"), content.get("annotations")) if isinstance(content, dict) else (None, None)
    )
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(
            f'{path} is not of COCO\'s form, {{"images": [{{"id", "file_name"}}], "annotations": [{{"image_id", '
            '"caption"}]}: Karpathy\'s files and lists are read by dataset=karpathy.'
        )
    names: dict[Any, str] = {}  # by id, in the order of the file
    places: dict[str, str] = {}
    for number, entry in enumerate(images):
        where = f"{path}, images[{number}]"
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            faults.report(where, "has no id or no file_name")
            continue
        name = safe_name(entry["file_name"], root, where)
        if entry["id"] in names or name in places:
            faults.report(where, f"repeats the id {entry['id']} or the image {name!r}")
            continue
        names[entry["id"]], places[name] = name, where
    keys = {name: str(key) for key, name in names.items()}
    captions: dict[str, list[str]] = {name: [] for name in places}
    caption_keys: dict[str, list[str | None]] = {name: [] for name in places}
    for number, entry in enumerate(annotations):
        where = f"{path}, annotations[{number}]"
        of = entry.get("image_id") if isinstance(entry, dict) else None
        if not _is_id(of) or of not in names:
            faults.report(where, f"is of the image {of!r}, which images does not list")
            continue
        texts = clean_captions([entry.get("caption")], where, faults)
        captions[names[of]].extend(texts)
        caption_keys[names[of]].extend(str(entry["id"]) if _is_id(entry.get("id")) else None for _ in texts)
    for name, texts in captions.items():
        if not texts:
            faults.report(f"{places[name]} ({name})", "has no caption")
    return [
        Record(name, Blob(root / name), tuple(texts), places[name], keys[name], tuple(caption_keys[name]))
        for name, texts in captions.items()
        if texts
    ]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
