"""Attacks on images, on captions and on both."""

from collections.abc import Mapping

from robustcli.attacks.base import Attack, ImageAttack, RetrievalAttack, TextAttack, frozen
from robustcli.attacks.cached import Cached
from robustcli.attacks.candidates import CandidateSource, EmbeddingNeighbours, SynonymTable
from robustcli.attacks.masked_lm import MaskedLM
from robustcli.attacks.multimodal import SGA, CoAttack, SepAttack, SequentialAttack
from robustcli.attacks.pairs import Adversarial, DualEncoderLike, Gallery, ImageAdversarial, Pairs
from robustcli.attacks.pgd import PGD
from robustcli.attacks.threat import L2, Characters, Linf, Words, parse_eps
from robustcli.attacks.words import WordSubstitution

# What a contract test, a list or a default goes through; an attack is one class and one row here.
IMAGE_ATTACKS: Mapping[str, type[ImageAttack]] = {"pgd": PGD}
TEXT_ATTACKS: Mapping[str, type[TextAttack]] = {"words": WordSubstitution}
ATTACKS: Mapping[str, tuple[type[RetrievalAttack], tuple[str, ...]]] = {  # the class and the parts that it takes
    "pgd": (SepAttack, ("image",)),
    "words": (SepAttack, ("text",)),
    "sep": (SepAttack, ("image", "text")),
    "mat": (SequentialAttack, ("image", "text")),
    "coattack": (CoAttack, ("image", "text")),
    "sga": (SGA, ("image", "text")),
}

__all__ = [
    "ATTACKS",
    "IMAGE_ATTACKS",
    "L2",
    "PGD",
    "SGA",
    "TEXT_ATTACKS",
    "Adversarial",
    "Attack",
    "Cached",
    "CandidateSource",
    "Characters",
    "CoAttack",
    "DualEncoderLike",
    "EmbeddingNeighbours",
    "Gallery",
    "ImageAdversarial",
    "ImageAttack",
    "Linf",
    "MaskedLM",
    "Pairs",
    "RetrievalAttack",
    "SepAttack",
    "SequentialAttack",
    "SynonymTable",
    "TextAttack",
    "WordSubstitution",
    "Words",
    "frozen",
    "parse_eps",
]
