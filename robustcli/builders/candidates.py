"""Builders of candidate sources for word substitutions, from config nodes."""

from collections.abc import Callable
from functools import cache, partial

from omegaconf import DictConfig

from robustcli.attacks import CandidateSource
from robustcli.builders.hook import build
from robustcli.data import ImageTextData
from robustcli.models import DualEncoder, build_vocabulary
from robustcli.utils.errors import UserError

_CHOICES = "choose candidates=synonyms, neighbours or masked_lm, or attacks on images alone"


def build_candidates(config: DictConfig | None, data: ImageTextData, model: DualEncoder) -> CandidateSource:
    """The candidate source of ``candidates=...``; one with a ``build`` of its own is given the data set and the model.

    Args:
        data: gives the synonyms and the vocabulary that a source may draw on.
        model: its token embeddings, as they are at the call, measure the distance between words.

    Raises:
        UserError: settings of which no source can be made, data that lack what the source needs, or no config.
    """
    if config is None:
        raise UserError(f"candidates is left out, but an attack replaces words: {_CHOICES}.")
    source: CandidateSource = build(config, data, model, partial(build_vocabulary, data.captions), node="candidates")
    return source


def lazy_candidates(
    config: DictConfig | None, data: ImageTextData, model: DualEncoder
) -> Callable[[], CandidateSource]:
    """`build_candidates` on first use, cached: a masked language model is loaded only if an attack needs it."""

    @cache
    def source() -> CandidateSource:
        return build_candidates(config, data, model)

    return source
