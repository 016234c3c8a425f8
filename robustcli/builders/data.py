"""Builders of data sets of captions or of classes, from config nodes."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from robustcli.builders.hook import construct
from robustcli.config.unread import refuse_unread
from robustcli.data import ImageClassData, ImageTextData
from robustcli.data.augment import Augmented, FewerCaptions
from robustcli.utils.errors import UserError

_OF_TRAINING = ("captions_per_image", "augmentations", "augmented_per_image")  # keys of `build_training_pairs`


def build_data(config: DictConfig, split: str) -> ImageTextData | ImageClassData:
    """One split (``train``, ``val`` or ``test``) of the data set of ``dataset=...``.

    Raises:
        UserError: missing files or settings that do not fit together.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for key in _OF_TRAINING:
        plain.pop(key, None)
    data: ImageTextData | ImageClassData = construct(plain, node="dataset", split=split)
    return data


def build_training_pairs(config: DictConfig, split: str) -> ImageTextData:
    """`build_captioned` as a training sees it: with ``captions_per_image`` captions and ``augmentations`` beside them.

    Raises:
        UserError: the data set has classes, or a directory does not hold augmented pairs of this very set.
    """
    data = build_captioned(config, split)
    if config.captions_per_image is not None:
        data = FewerCaptions(data, config.captions_per_image)
    if config.get("augmentations"):
        return Augmented(data, config.augmentations, number=config.augmented_per_image)
    refuse_unread("dataset.augmented_per_image", "dataset.augmentations names no augmented pairs")
    return data


def augmented(data: ImageTextData) -> bool:
    """True for a set with augmented pairs beside its own."""
    return isinstance(data, Augmented)


def build_captioned(config: DictConfig, split: str) -> ImageTextData:
    """`build_data` for a command that needs captions.

    Raises:
        UserError: the data set has classes.
    """
    data = build_data(config, split)
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
        raise UserError(f"dataset {data.name} has captions and no classes: choose one such as dataset=scene_classes.")
    return data
