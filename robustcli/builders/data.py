"""Builders of data sets of captions or of classes, from config nodes."""

from omegaconf import DictConfig

from robustcli.builders.hook import construct
from robustcli.data import ImageClassData, ImageTextData
from robustcli.utils.errors import UserError


def build_data(config: DictConfig, split: str) -> ImageTextData | ImageClassData:
    """One split (``train``, ``val`` or ``test``) of the data set of ``dataset=...``.

    Raises:
        UserError: missing files or settings that do not fit together.
    """
    data: ImageTextData | ImageClassData = construct(config, node="dataset", split=split)
    return data


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
