"""Attacks on images, on captions and on both."""

from collections.abc import Callable, Mapping
from functools import partial

from robustcli.attacks.adaptive.averaging import AveragedClassifier, AveragedEncoder
from robustcli.attacks.adaptive.bpda import BPDA, Preprocessed, PreprocessedEncoder
from robustcli.attacks.adaptive.eot import EOT, RetrievalEOT
from robustcli.attacks.adaptive.surrogate import RetrievalSurrogate, Surrogate
from robustcli.attacks.adaptive.transfer import retrieval_transfer_matrix, transfer_matrix
from robustcli.attacks.core.base import Attack, ClassifierAttack, ImageAttack, RetrievalAttack, TextAttack, frozen
from robustcli.attacks.core.classifier import MinimumNormAttack
from robustcli.attacks.core.oracle import ImageOracle, LogitOracle
from robustcli.attacks.core.pairs import Adversarial, DualEncoderLike, Gallery, ImageAdversarial, Pairs
from robustcli.attacks.core.randomised import DrawnPredictions, judge_on_draws
from robustcli.attacks.core.threat import L2, Characters, Linf, Words, parse_eps
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.autoattack import AutoAttack
from robustcli.attacks.image.cw import CW
from robustcli.attacks.image.deepfool import DeepFool
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.fgsm import FGSM
from robustcli.attacks.image.fmn import FMN
from robustcli.attacks.image.pgd import PGD
from robustcli.attacks.image.reduced_autoattack import ReducedAutoAttack
from robustcli.attacks.image.square import Square
from robustcli.attacks.image.torchattack import TorchAttack
from robustcli.attacks.multimodal.attacks import SGA, CoAttack, SepAttack, SequentialAttack
from robustcli.attacks.multimodal.retrieval_autoattack import RetrievalAutoAttack
from robustcli.attacks.text.bert_attack import BertAttack
from robustcli.attacks.text.cached import Cached
from robustcli.attacks.text.candidates import CandidateSource, EmbeddingNeighbours, SynonymTable
from robustcli.attacks.text.characters import CharacterEdits
from robustcli.attacks.text.constraints import Constraint, MaxShare, MinSimilarity, NoAntonyms
from robustcli.attacks.text.masked_lm import MaskedLM
from robustcli.attacks.text.words import WordSubstitution

# What a contract test, a list or a default goes through; an attack is one class and one row here.
IMAGE_ATTACKS: Mapping[str, type[ImageAttack]] = {"fgsm": FGSM, "pgd": PGD, "apgd": APGD, "square": Square}
CLASSIFIER_ATTACKS: Mapping[str, Callable[..., ClassifierAttack]] = {
    **IMAGE_ATTACKS,
    "autoattack": AutoAttack,
    "fab": FAB,
    "deepfool": DeepFool,
    "cw": CW,
    "fmn": FMN,
    "reduced_autoattack": ReducedAutoAttack,
}
TEXT_ATTACKS: Mapping[str, Callable[..., TextAttack]] = {
    "words": WordSubstitution,
    "hotflip": partial(WordSubstitution, search="hotflip"),
    "bert": BertAttack,
    "characters": CharacterEdits,
    "typos": partial(CharacterEdits, search="typos"),
}
ATTACKS: Mapping[str, tuple[type[RetrievalAttack], tuple[str, ...]]] = {  # the class and the parts that it takes
    "pgd": (SepAttack, ("image",)),
    **dict.fromkeys(TEXT_ATTACKS, (SepAttack, ("text",))),
    "sep": (SepAttack, ("image", "text")),
    "mat": (SequentialAttack, ("image", "text")),
    "coattack": (CoAttack, ("image", "text")),
    "sga": (SGA, ("image", "text")),
    "retrieval_autoattack": (RetrievalAutoAttack, ("image", "text")),
}

__all__ = [
    "APGD",
    "ATTACKS",
    "BPDA",
    "CLASSIFIER_ATTACKS",
    "CW",
    "EOT",
    "FAB",
    "FGSM",
    "FMN",
    "IMAGE_ATTACKS",
    "L2",
    "PGD",
    "SGA",
    "TEXT_ATTACKS",
    "Adversarial",
    "Attack",
    "AutoAttack",
    "AveragedClassifier",
    "AveragedEncoder",
    "BertAttack",
    "Cached",
    "CandidateSource",
    "CharacterEdits",
    "Characters",
    "ClassifierAttack",
    "CoAttack",
    "Constraint",
    "DeepFool",
    "DrawnPredictions",
    "DualEncoderLike",
    "EmbeddingNeighbours",
    "Gallery",
    "ImageAdversarial",
    "ImageAttack",
    "ImageOracle",
    "Linf",
    "LogitOracle",
    "MaskedLM",
    "MaxShare",
    "MinSimilarity",
    "MinimumNormAttack",
    "NoAntonyms",
    "Pairs",
    "Preprocessed",
    "PreprocessedEncoder",
    "ReducedAutoAttack",
    "RetrievalAttack",
    "RetrievalAutoAttack",
    "RetrievalEOT",
    "RetrievalSurrogate",
    "SepAttack",
    "SequentialAttack",
    "Square",
    "Surrogate",
    "SynonymTable",
    "TextAttack",
    "TorchAttack",
    "WordSubstitution",
    "Words",
    "frozen",
    "judge_on_draws",
    "parse_eps",
    "retrieval_transfer_matrix",
    "transfer_matrix",
]
