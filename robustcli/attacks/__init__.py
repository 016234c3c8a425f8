"""Attacks on images, on captions and on both."""

from collections.abc import Callable, Mapping
from functools import partial

from robustcli.attacks.adaptive.averaging import AveragedClassifier, AveragedEncoder
from robustcli.attacks.adaptive.bpda import BPDA, Preprocessed, PreprocessedEncoder
from robustcli.attacks.adaptive.eot import EOT, RetrievalEOT
from robustcli.attacks.adaptive.latents import LatentDrift
from robustcli.attacks.adaptive.randomised import DrawnAnswers, judge_on_draws
from robustcli.attacks.adaptive.surrogate import RetrievalSurrogate, Surrogate
from robustcli.attacks.adaptive.transfer import retrieval_transfer_matrix, transfer_matrix
from robustcli.attacks.core.balls import L2, Linf, parse_eps
from robustcli.attacks.core.base import Attack, ClassifierAttack, ImageAttack, MinimumNormAttack
from robustcli.attacks.core.edit_distance import Characters, Words
from robustcli.attacks.core.frozen import frozen
from robustcli.attacks.core.oracle import ImageOracle, LogitOracle
from robustcli.attacks.core.pairs import Adversarial, DualEncoderLike, Gallery, ImageAdversarial, Pairs
from robustcli.attacks.core.retrieval import Constraint, RetrievalAttack, TextAttack
from robustcli.attacks.core.threat import ThreatModel
from robustcli.attacks.image.alma import ALMA
from robustcli.attacks.image.apgd import APGD
from robustcli.attacks.image.autoattack import AutoAttack
from robustcli.attacks.image.cw import CW
from robustcli.attacks.image.ddn import DDN
from robustcli.attacks.image.deepfool import DeepFool
from robustcli.attacks.image.fab import FAB
from robustcli.attacks.image.fgsm import FGSM
from robustcli.attacks.image.fmn import FMN
from robustcli.attacks.image.low_frequency import LowFrequency
from robustcli.attacks.image.minimum_norm import MinimumNorm
from robustcli.attacks.image.pgd import PGD
from robustcli.attacks.image.reduced_autoattack import ReducedAutoAttack
from robustcli.attacks.image.square import Square
from robustcli.attacks.image.torchattack import TorchAttack
from robustcli.attacks.multimodal.coattack import CoAttack
from robustcli.attacks.multimodal.retrieval_autoattack import RetrievalAutoAttack
from robustcli.attacks.multimodal.sep import SepAttack, SequentialAttack
from robustcli.attacks.multimodal.sga import SGA
from robustcli.attacks.text.bert_attack import BertAttack
from robustcli.attacks.text.cached import Cached
from robustcli.attacks.text.candidates import CandidateSource, EmbeddingNeighbours, SynonymTable
from robustcli.attacks.text.characters import CharacterEdits
from robustcli.attacks.text.constraints import MaxShare, MinSimilarity, NoAntonyms, NoNewWords
from robustcli.attacks.text.masked_lm import MaskedLM
from robustcli.attacks.text.words import WordSubstitution

# Every attack by the name of its file in conf/attack; the contract tests go through it. An attack is one class and one
# row here.
ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "low_frequency": LowFrequency,
    "latents": LatentDrift,
    "apgd": APGD,
    "square": Square,
    "autoattack": AutoAttack,
    "fab": FAB,
    "deepfool": DeepFool,
    "cw": CW,
    "fmn": FMN,
    "ddn": DDN,
    "alma": ALMA,
    "minimum_norm": MinimumNorm,
    "reduced_autoattack": ReducedAutoAttack,
    "torchattacks": TorchAttack,
    "words": WordSubstitution,
    "hotflip": partial(WordSubstitution, search="hotflip"),
    "bert": BertAttack,
    "characters": CharacterEdits,
    "characters_leaf": CharacterEdits,
    "typos": partial(CharacterEdits, search="typos"),
    "sep": SepAttack,
    "mat": SequentialAttack,
    "coattack": CoAttack,
    "sga": SGA,
    "retrieval_autoattack": RetrievalAutoAttack,
}

__all__ = [
    "ALMA",
    "APGD",
    "ATTACKS",
    "BPDA",
    "CW",
    "DDN",
    "EOT",
    "FAB",
    "FGSM",
    "FMN",
    "L2",
    "PGD",
    "SGA",
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
    "DrawnAnswers",
    "DualEncoderLike",
    "EmbeddingNeighbours",
    "Gallery",
    "ImageAdversarial",
    "ImageAttack",
    "ImageOracle",
    "LatentDrift",
    "Linf",
    "LogitOracle",
    "LowFrequency",
    "MaskedLM",
    "MaxShare",
    "MinSimilarity",
    "MinimumNorm",
    "MinimumNormAttack",
    "NoAntonyms",
    "NoNewWords",
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
    "ThreatModel",
    "TorchAttack",
    "WordSubstitution",
    "Words",
    "frozen",
    "judge_on_draws",
    "parse_eps",
    "retrieval_transfer_matrix",
    "transfer_matrix",
]
