"""Builders of data sets of captions or of classes, from config nodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustcli.builders.hook import construct
from robustcli.config.unread import refuse_unread
from robustcli.data import ClassPairs, ClassTexts, ImageClassData, ImageTextData, Sentences
from robustcli.data.augment import Augmented, FewerCaptions, read_manifest, read_method
from robustcli.utils.errors import UserError
from robustcli.utils.flatten import flatten

_LONGEST = 40  # letters of a parameter in a label: one may be a prompt
_OF_TRAINING = ("captions_per_image", "augmentations", "augmented_per_image")  # keys of `build_training_pairs`


def build_data(config: DictConfig, split: str) -> ImageTextData | ImageClassData:
    """One split (``train``, ``val`` or ``test``) of the data set of ``dataset=...``.

    Raises:
        UserError: missing files or settings that do not fit together.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for key in _OF_TRAINING:
        plain.pop(key, None)
    if not any(str(name).endswith(".csv") for name in _listed(plain.get("positives"))):
        refuse_unread("dataset.positives_threshold", "dataset.positives names no CSV, which alone has scores")
    data: ImageTextData | ImageClassData = construct(plain, node="dataset", split=split)
    return data


def _listed(names: Any) -> list[Any]:
    return names if isinstance(names, list) else [names]


def build_training_pairs(config: DictConfig, split: str, texts: ClassTexts | None = None) -> ImageTextData:
    """`build_captioned` as a training sees it: with ``captions_per_image`` captions and ``augmentations`` beside them.

    Args:
        texts: of the classes, for a set that has classes: they are its captions; None: it has captions.

    Raises:
        UserError: the data set has classes and no ``texts``, or a directory does not hold augmented pairs of this very
            set.
    """
    if texts is not None:
        for key in _OF_TRAINING:
            refuse_unread(f"dataset.{key}", "the data set has classes, whose captions are as many as templates")
        return ClassPairs(build_classes(config, split), texts)
    places = list(_directories(config).values())
    data = _fewer_captions(config, split)
    if places:
        return Augmented(data, places, number=config.augmented_per_image)
    refuse_unread("dataset.augmented_per_image", "dataset.augmentations names no augmented pairs")
    return data


def _fewer_captions(config: DictConfig, split: str) -> ImageTextData:
    data = build_captioned(config, split)
    return data if config.captions_per_image is None else FewerCaptions(data, config.captions_per_image)


def _directories(config: DictConfig) -> dict[str | int, Path]:
    """The directories of ``dataset.augmentations`` by their names, or of a list by their numbers.

    Raises:
        UserError: what is no finished directory of ``robustcli augment``, or the same one twice.
    """
    named: Any = OmegaConf.to_container(config, resolve=True)
    named = named.get("augmentations") or {}
    if not isinstance(named, dict):
        named = dict(enumerate(_listed(named)))
    places = {}
    for name, each in named.items():
        if not isinstance(each, str) or not each:
            shown = "null" if each is None else repr(each)
            raise UserError(
                f"dataset.augmentations has {shown}: expected directories of `robustcli augment`, [DIR, ...]."
            )
        places[name] = Path(each).expanduser()
        if len({place.resolve() for place in places.values()}) < len(places):
            raise UserError(f"dataset.augmentations names {each} twice: give every directory once.")
        read_manifest(places[name].absolute())  # before the set is read, which may take long
    return places


def build_augmented(config: DictConfig, split: str) -> tuple[ImageTextData, dict[str, Augmented]]:
    """The set without ``augmentations``, and by label the set with the pairs of each of these directories alone.

    The label is that of a mapping; of a list it is the method, with what tells it from others.

    Raises:
        UserError: none is named, or as `build_training_pairs`.
    """
    named = _directories(config)
    if not named:
        raise UserError(
            "dataset.augmentations names no directory: give those of `robustcli augment`, as in "
            "'dataset.augmentations=[DIR, ...]' or 'dataset.augmentations={name: DIR, ...}'."
        )
    places = list(named.values())
    data = _fewer_captions(config, split)
    made = [Augmented(data, [place], number=config.augmented_per_image) for place in places]
    labels = _labels(places) if 0 in named else list(map(str, named))
    return data, dict(zip(labels, made, strict=True))


def _labels(places: Sequence[Path]) -> list[str]:
    """Method of each directory, with the parameters in which it differs from others of the same method; its path too
    where it differs in none.
    """
    made = [(method, flatten(parameters)) for method, parameters in map(read_method, places)]
    labels = []
    for method, parameters in made:
        alike = [others for name, others in made if name == method]
        told = {key: value for key, value in parameters.items() if any(each.get(key) != value for each in alike)}
        labels.append(" ".join([method, *(f"{key}={str(value)[:_LONGEST]}" for key, value in told.items())]))
    return [
        label if labels.count(label) == 1 else f"{label} ({place})" for label, place in zip(labels, places, strict=True)
    ]


def plain(data: ImageTextData) -> ImageTextData:
    """The set as it is without ``captions_per_image`` and ``augmentations``."""
    while isinstance(data, Augmented | FewerCaptions):
        data = data.base
    return data


def augmented(data: ImageTextData) -> bool:
    """True for a set with augmented pairs beside its own."""
    return isinstance(data, Augmented)


def build_pictured(config: DictConfig, split: str) -> ImageTextData | ImageClassData:
    """`build_data` for a command that needs images, with captions or with classes.

    Raises:
        UserError: the data set has sentences without images.
    """
    data = build_data(config, split)
    if isinstance(data, Sentences):
        raise UserError(
            f"dataset {data.name} has sentences with classes and no images: `robustcli evaluate` and `attack` read it, "
            "which judge a text tower; choose one such as dataset=scenes."
        )
    return data


def build_captioned(config: DictConfig, split: str) -> ImageTextData:
    """`build_data` for a command that needs captions.

    Raises:
        UserError: the data set has classes, or sentences without images.
    """
    data = build_pictured(config, split)
    if not isinstance(data, ImageTextData):
        raise UserError(f"dataset {data.name} has classes and no captions: choose one such as dataset=scenes.")
    return data


def build_classes(config: DictConfig, split: str) -> ImageClassData:
    """`build_data` for a command that needs classes.

    Raises:
        UserError: the data set has captions.
    """
    data = build_data(config, split)
    if not isinstance(data, ImageClassData):
        kind = "sentences and no images" if isinstance(data, Sentences) else "captions and no classes"
        raise UserError(f"dataset {data.name} has {kind}: choose one such as dataset=scene_classes.")
    return data
