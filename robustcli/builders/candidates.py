"""From a composed config to a source of words that may stand for others."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import CandidateSource
from robustcli.data import ImageTextData
from robustcli.models import DualEncoder, build_vocabulary
from robustcli.utils.errors import wrong_type


def build_candidates(config: DictConfig, data: ImageTextData, model: DualEncoder) -> CandidateSource:
    """The source of ``candidates=...``; one with a ``build`` of its own takes from the data set and the model.

    Args:
        data: whose synonyms and words a source may take.
        model: whose token table says what is near, as it is now.

    Raises:
        UserError: settings of which no source can be made, or data that lack what it takes.
    """
    kind: Any = get_object(config["_target_"])
    if not hasattr(kind, "build"):
        source: CandidateSource = instantiate(config)
        return source
    settings: Any = OmegaConf.to_container(config, resolve=True)
    del settings["_target_"]
    try:  # not through Hydra, which would copy the data set and the model
        source = kind.build(settings, data, model, partial(build_vocabulary, data.captions))
    except (TypeError, ValueError) as error:
        raise wrong_type(f"candidates {kind.__name__}", error) from error
    return source


def lazy_candidates(config: DictConfig, data: ImageTextData, model: DualEncoder) -> Callable[[], CandidateSource]:
    """`build_candidates`, made once and only where an attack asks for words."""

    @cache
    def source() -> CandidateSource:
        return build_candidates(config, data, model)

    return source
