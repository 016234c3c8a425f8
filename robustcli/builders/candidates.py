"""From a composed config to a source of words that may stand for others."""

from collections.abc import Callable
from functools import cache, partial

from omegaconf import DictConfig

from robustcli.attacks import CandidateSource
from robustcli.builders.hook import build
from robustcli.data import ImageTextData
from robustcli.models import DualEncoder, build_vocabulary


def build_candidates(config: DictConfig, data: ImageTextData, model: DualEncoder) -> CandidateSource:
    """The source of ``candidates=...``; one with a ``build`` of its own takes from the data set and the model.

    Args:
        data: whose synonyms and words a source may take.
        model: whose token table says what is near, as it is now.

    Raises:
        UserError: settings of which no source can be made, or data that lack what it takes.
    """
    source: CandidateSource = build(config, data, model, partial(build_vocabulary, data.captions), node="candidates")
    return source


def lazy_candidates(config: DictConfig, data: ImageTextData, model: DualEncoder) -> Callable[[], CandidateSource]:
    """`build_candidates`, made once and only where an attack asks for words."""

    @cache
    def source() -> CandidateSource:
        return build_candidates(config, data, model)

    return source
