"""The sets of photographs of varied sizes that torchvision downloads, in its layouts; its readers list the files, which
are then decoded as those of every other set.

Shapes: B batch, S image size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustcli.data.class_files import ClassReading, FileClasses, check_count, check_settings, shuffled
from robustcli.data.class_sets import check_known, read_stored
from robustcli.data.decode import Fit
from robustcli.data.faults import Faults, OnError
from robustcli.data.sources import Blob, Record, safe_name
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed

_TWO = {"train": "train", "test": "test"}
_THREE = {**_TWO, "val": "val"}
_CARS = (
    "torchvision cannot download it any more, so put the folders cars_train, cars_test and devkit and the file "
    "cars_test_annos_withlabels.mat of the original archive, of which Kaggle and Hugging Face have copies, into its "
    "folder stanford_cars"
)


@dataclass(frozen=True)
class _Archive:
    """Facts on a set.

    Attributes:
        reader: class of torchvision.datasets.
        holds: what ``dataset.root`` holds.
        splits: our split -> the reader's; empty: the set has none.
        benchmark: see `ImageClassData`.
        counts: images of each of our splits, ``all`` where the set has none.
        blanks: letters that stand for a blank in class names.
        numbers: how many classes the set has, where the reader knows no names; None: it does.
        source: see `read_stored`.
    """

    reader: str
    holds: str
    benchmark: str
    counts: Mapping[str, int]
    splits: Mapping[str, str] = field(default_factory=dict)
    blanks: str = "_"
    numbers: int | None = None
    source: str = ""


ARCHIVES: Mapping[str, _Archive] = {
    "caltech101": _Archive("Caltech101", "caltech101/101_ObjectCategories", "caltech101", {"all": 8677}),
    "oxford_pets": _Archive(
        "OxfordIIITPet", "oxford-iiit-pet", "pets", {"train": 3680, "test": 3669}, {"train": "trainval", "test": "test"}
    ),
    "flowers102": _Archive("Flowers102", "flowers-102", "flowers", {"train": 1020, "val": 1020, "test": 6149}, _THREE),
    "dtd": _Archive("DTD", "dtd/dtd", "dtd", {"train": 1880, "val": 1880, "test": 1880}, _THREE),
    "eurosat": _Archive("EuroSAT", "eurosat/2750", "eurosat", {"all": 27000}),
    "fgvc_aircraft": _Archive(
        "FGVCAircraft", "fgvc-aircraft-2013b", "fgvc_aircraft", {"train": 3334, "val": 3333, "test": 3333}, _THREE
    ),
    "stanford_cars": _Archive(
        "StanfordCars", "stanford_cars", "cars", {"train": 8144, "test": 8041}, _TWO, source=_CARS
    ),
    "food101": _Archive("Food101", "food-101", "food101", {"train": 75750, "test": 25250}, _TWO),
    "sun397": _Archive("SUN397", "SUN397", "sun397", {"all": 108754}, blanks="_/"),
    "gtsrb": _Archive("GTSRB", "gtsrb", "gtsrb", {"train": 26640, "test": 12630}, _TWO, numbers=43),
    "country211": _Archive(
        "Country211",
        "country211",
        "country211",
        {"train": 31650, "val": 10550, "test": 21100},
        {**_TWO, "val": "valid"},
    ),
}


class TorchvisionFiles(FileClasses):
    """Images (B,3,S,S) of one of `ARCHIVES`, in a fixed shuffled order: most archives list one class after the other.

    Args:
        archive: key of `ARCHIVES`, which is the name of the set too.
        root: folder that holds what torchvision unpacks.
        split: ``train``, ``val`` or ``test``.
        val_share: share of the training images that is ``val``, by a hash of their names; 0 where the set has its own.
        test_share: of a set without splits, the share of all images that is ``test``; 1, with which nothing is left to
            train on, is what zero-shot tables take. None: the set has splits.
        whole: the archive has to have all of its images; False for a part of it.
        image_size, fit, on_error, fingerprint, limit: as for `ClassFolders`.

    Raises:
        UserError: the files are not there or damaged, a split that the set does not have, another number of images.
    """

    def __init__(
        self,
        archive: str,
        root: str | Path,
        *,
        split: str,
        image_size: int = 224,
        fit: Fit = "crop",
        val_share: float = 0.0,
        test_share: float | None = None,
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        whole: bool = True,
    ) -> None:
        check_settings(image_size, limit, fit)
        check_known(split)
        facts = _facts(archive)
        shares = _checked_shares(archive, facts, val_share, test_share)
        source = _source(archive, facts, split, val_share)
        folder, faults = Path(root).expanduser(), Faults(on_error)
        arguments = {"split": facts.splits[source]} if facts.splits else {}
        stored = read_stored(facts.reader, folder, arguments, holds=facts.holds, source=facts.source)
        listed, classes, where = _listed(stored), _class_names(stored, facts), str(folder / facts.holds)
        check_count(
            archive, source, where, len(listed), facts.counts if whole else {}, "dataset.whole=false for a part of it"
        )
        if not all(0 <= label < len(classes) for _, label in listed):
            raise UserError(
                f"{where} has a label that none of its {len(classes)} classes has: unpack the archive anew."
            )
        labels = {safe_name(str(path.relative_to(folder)), folder, where): label for path, label in listed}
        records = [Record(name, Blob(folder / name), (), where) for name in labels]
        if source in ("train", "all"):
            records = [record for record in records if _part(record.image_id, *shares) == split]
        if not records:
            raise UserError(
                f"the split {split!r} of {archive} is empty with dataset.val_share={val_share}"
                f"{'' if test_share is None else f' and dataset.test_share={test_share}'}: change the shares."
            )
        self.benchmark = facts.benchmark
        reading = ClassReading(archive, split, classes, shuffled(records), faults, labels)
        super().__init__(reading, image_size=image_size, fit=fit, limit=limit, fingerprint=fingerprint)


def _facts(archive: str) -> _Archive:
    if archive not in ARCHIVES:
        raise UserError(f"dataset.archive is {archive!r}: choose one of {', '.join(ARCHIVES)}.")
    return ARCHIVES[archive]


def _checked_shares(archive: str, facts: _Archive, val_share: float, test_share: float | None) -> tuple[float, float]:
    """The shares of ``val`` and ``test``, the latter 0 where the set has a split ``test``."""
    if not 0 <= val_share < 1:
        raise UserError(f"dataset.val_share is {val_share}: it is a share of the training images, from 0 to below 1.")
    if facts.splits and test_share is not None:
        raise UserError(
            f"dataset.test_share is {test_share}, but {archive} has a split test of its own: set it to null."
        )
    if not facts.splits and not (test_share is not None and 0 < test_share <= 1):
        raise UserError(
            f"dataset.test_share is {test_share}, but {archive} has no splits of its own: expected a share of all "
            "images, above 0 and at most 1."
        )
    return val_share, test_share or 0.0


def _source(archive: str, facts: _Archive, split: str, val_share: float) -> str:
    """The split of the archive that holds the images of ``split``; ``all`` where it has none."""
    if not facts.splits:
        return "all"
    source = "train" if split == "val" and val_share else split
    if source not in facts.splits:
        raise UserError(f"{archive} has no split {split!r}: set dataset.val_share above 0, which takes it from train.")
    return source


def _part(name: str, val_share: float, test_share: float) -> str:
    """The split of an image, by a hash of its name alone."""
    draw = derive_seed("held out", name) / 2**63
    if draw < test_share:
        return "test"
    return "val" if draw < test_share + (1 - test_share) * val_share else "train"


def _listed(stored: Any) -> list[tuple[Path, int]]:
    """Files and labels of a reader, which keeps them under one of four names."""
    if hasattr(stored, "categories"):  # Caltech101
        folder = Path(stored.root) / "101_ObjectCategories"
        return [
            (folder / stored.categories[label] / f"image_{number:04d}.jpg", label)
            for label, number in zip(stored.y, stored.index, strict=True)
        ]
    pairs = getattr(stored, "samples", getattr(stored, "_samples", None))
    if pairs is None:
        files = stored._image_files if hasattr(stored, "_image_files") else stored._images
        pairs = zip(files, stored._labels, strict=True)
    return [(Path(path), int(label)) for path, label in pairs]


def _class_names(stored: Any, facts: _Archive) -> tuple[str, ...]:
    if facts.numbers is not None:
        return tuple(map(str, range(facts.numbers)))
    names = getattr(stored, "categories", None) or getattr(stored, "classes", None)
    if names is None:
        raise UserError(f"the installed torchvision has no class names for {facts.reader}: update it.")
    return tuple(str(name).translate({ord(letter): " " for letter in facts.blanks}) for name in names)
