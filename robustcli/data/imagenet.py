"""ImageNet and the sets that judge its classes on other images, in a folder for each class.

Shapes: B batch, S image size.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from robustcli.data.class_files import ClassReading, FileClasses, and_more, check_count, check_settings
from robustcli.data.class_folders import class_folders_in, records_below
from robustcli.data.class_sets import check_known
from robustcli.data.classes import held_out
from robustcli.data.decode import Fit
from robustcli.data.faults import Faults, OnError
from robustcli.utils.errors import UserError


@dataclass(frozen=True)
class _Variant:
    """Facts on a set: timm's list of its synsets, the folder of each split below ``dataset.root``, the images of each,
    and where the files come from, for a message.
    """

    listed: str
    splits: Mapping[str, str]
    counts: Mapping[str, int]
    source: str


VARIANTS: Mapping[str, _Variant] = {
    "imagenet": _Variant(
        "imagenet",
        {"train": "train", "test": "val"},
        {"train": 1281167, "test": 50000},
        "with an account at image-net.org take the ILSVRC2012 archives and put the images of each synset into a folder "
        "of its name, below train and val",
    ),
    "imagenet-r": _Variant(
        "imagenet_r", {"test": "."}, {"test": 30000}, "unpack imagenet-r.tar of its authors (Hendrycks et al. 2021)"
    ),
    "imagenet-a": _Variant(
        "imagenet_a", {"test": "."}, {"test": 7500}, "unpack imagenet-a.tar of its authors (Hendrycks et al. 2021)"
    ),
    "imagenet_sketch": _Variant(
        "imagenet", {"test": "."}, {"test": 50889}, "unpack the archive of its authors (Wang et al. 2019)"
    ),
    "imagenetv2": _Variant(
        "imagenet",
        {"test": "."},
        {"test": 10000},
        "unpack the matched-frequency archive of its authors (Recht et al. 2019)",
    ),
}


class ImageNet(FileClasses):
    """Images (B,3,S,S) of one of `VARIANTS`, in a fixed shuffled order.

    Labels are places among the sorted synsets of the set, which ImageNet-R and -A have 200 of; classes are called as
    open_clip calls them. The split ``test`` of ImageNet is its folder ``val``, as in the field's tables.

    Args:
        variant: key of `VARIANTS`, which is the name of the set too.
        root: folder with a folder for each synset (``n01440764``), of ImageNetV2 for each number (``0`` to ``999``); of
            ImageNet with folders ``train`` and ``val`` of them.
        split: ``test``; of ImageNet ``train`` and ``val`` too.
        val_share: share of ImageNet's training images that is ``val``, by a hash of their names.
        whole: the folder has to have all images of the set; False for a part of it.
        image_size, fit, on_error, fingerprint, limit: as for `ClassFolders`.

    Raises:
        UserError: folders that are not those of the set, a bad image, a split that the set does not have.
    """

    benchmark = "imagenet1k"  # clip-benchmark takes ImageNet's templates for all of them

    def __init__(
        self,
        variant: str,
        root: str | Path,
        *,
        split: str,
        image_size: int = 224,
        fit: Fit = "crop",
        val_share: float = 0.01,
        on_error: OnError = "raise",
        fingerprint: str | Mapping[str, str] | None = None,
        limit: int | None = None,
        whole: bool = True,
    ) -> None:
        check_settings(image_size, limit, fit)
        check_known(split)
        if variant not in VARIANTS:
            raise UserError(f"dataset.variant is {variant!r}: choose one of {', '.join(VARIANTS)}.")
        facts, source = VARIANTS[variant], "train" if split == "val" else split
        if source not in facts.splits:
            raise UserError(f"{variant} has no split {split!r}, only {', '.join(facts.splits)}: it judges alone.")
        synsets = synsets_of(facts.listed)
        names = list(map(str, range(len(synsets)))) if variant == "imagenetv2" else synsets
        folder, faults = Path(root).expanduser() / facts.splits[source], Faults(on_error)
        _check_folders(folder, names, facts.source)
        records = records_below(folder, names, faults)
        check_count(
            variant, source, folder, len(records), facts.counts if whole else {}, "dataset.whole=false for a part of it"
        )
        if source == "train":
            held = held_out([record.image_id for record in records], val_share).tolist()
            records = [each for each, val in zip(records, held, strict=True) if val == (split == "val")]
        if not records:
            raise UserError(f"the split {split!r} of {variant} is empty: set dataset.val_share above 0.")
        places = {name: place for place, name in enumerate(names)}
        labels = {record.image_id: places[record.image_id.split("/")[0]] for record in records}
        reading = ClassReading(variant, split, class_names(synsets), records, faults, labels)
        super().__init__(reading, image_size=image_size, fit=fit, limit=limit, fingerprint=fingerprint)


def synsets_of(listed: str) -> list[str]:
    """The synsets (``n01440764``) of ``imagenet``, ``imagenet_r`` or ``imagenet_a``, sorted, from timm's lists."""
    return sorted(_lines(f"{listed}_synsets.txt"))


def class_names(synsets: list[str]) -> tuple[str, ...]:
    """open_clip's name of each synset of ImageNet; of two that it calls alike, the first lemma of WordNet."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    names = dict(zip(synsets_of("imagenet"), map(str, IMAGENET_CLASSNAMES), strict=True))
    lemmas = dict(line.split("\t", 1) for line in _lines("imagenet_synset_to_lemma.txt"))
    count = Counter(names.values())
    alike = {synset: lemmas[synset].split(",")[0] for synset, name in names.items() if count[name] > 1}
    return tuple((names | alike)[synset] for synset in synsets)


def _lines(file: str) -> list[str]:
    return resources.files("timm.data").joinpath("_info", file).read_text(encoding="utf-8").splitlines()


def _check_folders(folder: Path, names: list[str], source: str) -> None:
    """`UserError` unless ``folder`` has just the folders ``names``."""
    present = class_folders_in(folder) if folder.is_dir() else []
    missing = [name for name in names if name not in set(present)]
    if missing:
        raise UserError(
            f"{folder} has no folder {missing[0]!r}{and_more(missing)}, which the set has: {source}, or set "
            "dataset.root to where they are."
        )
    if foreign := [name for name in present if name not in set(names)]:
        raise UserError(
            f"{folder} has the folder {foreign[0]!r}{and_more(foreign)}, no class of the set: move it away."
        )
