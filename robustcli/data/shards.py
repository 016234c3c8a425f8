"""Tar shards as webdataset writes them: members of one key are one sample (``01.jpg`` with ``01.txt`` or ``01.json``).

The shards are indexed when the set is made; images are then read from their place in the archive, nothing is unpacked.
"""

import glob
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from robustcli.data.faults import Faults, OnError
from robustcli.data.files import FileSet, Reading, SameText
from robustcli.data.sources import Blob, Record, clean_captions, with_split
from robustcli.data.walks import hidden, normal
from robustcli.utils.errors import UserError

log = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
MOST_SHARDS = 100_000
KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # the key ends at the first dot of the file name


class Shards(FileSet):
    """Images and captions by webdataset shards.

    A caption is a line of ``.txt`` (several are told in the log; other separators are blanks), or ``caption`` or
    ``captions`` of ``.json`` (a text or a list); where there are both, the ``.json`` counts, unless it is empty.

    Args:
        pattern: path with ``{0000..0012}`` or ``*``; ``{split}`` stands for the split where the name does not say it.
        split, image_size, same_text, on_error, fingerprint, limit: as for ``KarpathyJSON``.

    Raises:
        UserError: no such shard, a damaged one, a sample without an image or caption, a repeated key, all named.
    """

    def __init__(
        self,
        pattern: str,
        *,
        split: str,
        image_size: int = 224,
        same_text: SameText = "distinct",
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> None:

        def located(split: str) -> list[Path]:
            return shard_paths(with_split(pattern, split, "dataset.pattern"))

        def read(split: str, faults: Faults) -> list[Record]:
            return [record for path in located(split) for record in _records(path, faults)]

        faults = Faults(on_error)
        reading = Reading(located(split)[0].parent.name or "shards", split, read(split, faults), faults, read)
        super().__init__(reading, image_size=image_size, same_text=same_text, limit=limit, fingerprint=fingerprint)


def shard_paths(pattern: str) -> list[Path]:
    """The files that a pattern with braces or stars stands for, in order.

    Raises:
        UserError: one does not exist, or two have the same name.
    """
    names = [name for part in _expanded(pattern) for name in sorted(glob.glob(part)) or [part]]
    paths = [Path(name) for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"dataset.pattern is {pattern!r}: {len(missing)} of its {len(paths)} shards do not exist, the first is"
            f" {missing[0]}; correct the pattern or put the shards there."
        )
    repeated = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if repeated:
        raise UserError(
            f"dataset.pattern is {pattern!r}: two shards are called {min(repeated)}, expected unique names."
        )
    return paths


def _expanded(pattern: str) -> list[str]:
    """The names that the braces of a pattern stand for; `UserError` for more than a set can have."""
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)  # braceexpand would list each to its end
    names: list[str] = []
    if all(abs(int(last) - int(first)) < MOST_SHARDS for first, last in ranges):
        names = list(islice(braceexpand(str(Path(pattern).expanduser())), MOST_SHARDS + 1))
    if not 0 < len(names) <= MOST_SHARDS:
        raise UserError(
            f"dataset.pattern is {pattern!r}, which stands for more than {MOST_SHARDS:,} shards: narrow it."
        )
    return names


def _records(path: Path, faults: Faults) -> Iterator[Record]:
    several = 0
    for key, parts in samples_in(path, faults).items():
        where = f"{path}, sample {key!r}"
        image = next((parts[extension] for extension in IMAGES if extension in parts), None)
        if image is None:
            faults.report(where, f"has no image ({', '.join(IMAGES)})")
            continue
        try:
            raw, lines = _captions(parts)
        except ValueError as error:  # one bad member is one sample's fault
            faults.report(where, f"has captions that cannot be read: {error}")
            continue
        several += lines
        captions = clean_captions(raw, where, faults)
        if captions:
            yield Record(f"{path.stem}/{key}", image, tuple(captions), where)
    if several and not faults.quiet:
        log.warning("%s: %d .txt members have several lines, each of which is read as a caption", path, several)


def samples_in(path: Path, faults: Faults) -> dict[str, dict[str, Blob]]:
    """Key -> extension -> place in the archive."""
    samples: dict[str, dict[str, Blob]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                match = KEY_AND_EXTENSION.fullmatch(member.name)
                if match is None or member.isdir() or hidden(member.name):
                    continue
                key, extension = normal(match[1]), match[2].lower()
                if not member.isreg():
                    faults.report(f"{path}, sample {key!r}", f"has a .{extension} that is no file, but a link")
                    continue
                if extension in samples.setdefault(key, {}):
                    faults.report(f"{path}, sample {key!r}", f"has two members .{extension}")
                    continue
                samples[key][extension] = Blob(path, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"{path} is not an intact, uncompressed tar file: {error}.") from None
    return samples


def _captions(parts: Mapping[str, Blob]) -> tuple[list[object], bool]:
    """The captions as they stand, none where no member has any; and True for a ``.txt`` of several lines.

    Raises:
        ValueError: text that is not UTF-8, or no JSON.
    """
    try:
        if "json" in parts:
            content = json.loads(parts["json"].read())
            fields = content if isinstance(content, dict) else {}
            # An empty list or null says nothing, and leaves the word to the other key and to the .txt.
            found = fields.get("captions") or fields.get("caption")
            if found is not None:
                return list(found) if isinstance(found, list) else [found], False
        if "txt" in parts:
            text = parts["txt"].read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            lines: list[object] = [line for line in text.split("\n") if line.strip()]
            return lines, len(lines) > 1
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the .json, line {error.lineno} is not valid JSON ({error.msg})") from None
    return [], False
