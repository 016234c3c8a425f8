"""BERT-Attack (Li et al. 2020) as attacks on dual encoders use it (Zhang et al. 2022; Lu et al. 2023).

A caption costs the language model one pass, the attacked text tower one pass a word for the importance and one a
candidate of each visited word, and no gradients.
"""

import copy
from dataclasses import dataclass, field
from functools import cached_property

from robustcli.attacks.text.cached import Cached
from robustcli.attacks.text.candidates import CandidateSource
from robustcli.attacks.text.masked_lm import MaskedLM
from robustcli.attacks.text.words import WordSubstitution
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import one_of

COMPATS = ("fixed", "coattack")
_LANGUAGE_MODEL = "bert-base-uncased"


@dataclass(frozen=True, kw_only=True)
class BertAttack(WordSubstitution):
    """Greedy substitution in order of word importance, KL(clean || "[UNK]" there): each word takes the best of the
    candidates of a masked language model, until the threat model is used up.

    It is `WordSubstitution` by importance: stop words stay, and a word is replaced only if that raises the loss.

    Args:
        candidates: a `MaskedLM` as a rule, or any other source; None: ``bert-base-uncased``, whose answers are kept on
            disk, loaded at the first call.
        compat: ``fixed``, or ``coattack``: the published code's defect, see `MaskedLM`, except that the budget is
            counted on the caption that comes out there too; None: as ``candidates`` has it, fixed by default.
        max_words, objective, protected, constraints, seed: see `WordSubstitution`.

    Raises:
        UserError: an unknown objective or compat, a number out of range, or ``coattack`` with candidates that are no
            masked language model's.
    """

    search: str = field(default="importance", init=False)
    objective: str = "drift"
    compat: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compat is not None:
            one_of("compat", self.compat, COMPATS)
            if self.candidates is not None:
                self._store(candidates=_with_compat(self.candidates, self.compat))

    def source(self) -> CandidateSource:
        return self._language_model if self.candidates is None else self.candidates

    @cached_property
    def _language_model(self) -> CandidateSource:
        return Cached(MaskedLM(_LANGUAGE_MODEL, compat=_of_model(self.compat)))


def _with_compat(source: CandidateSource, compat: str) -> CandidateSource:
    """The same source with the defect of ``compat``, or without."""
    if isinstance(source, Cached):
        inner = _with_compat(source.source, compat)
        return source if inner is source.source else Cached(inner, source.directory)
    if isinstance(source, MaskedLM) and source.compat != _of_model(compat):
        other = copy.copy(source)  # shares the weights
        other.compat = _of_model(compat)
        return other
    if not isinstance(source, MaskedLM) and compat == "coattack":
        raise UserError(
            f"attack.compat is coattack, but {type(source).__name__} is no masked language model: choose "
            "candidates=masked_lm, or attack.compat=null."
        )
    return source


def _of_model(compat: str | None) -> str | None:
    return "coattack" if compat == "coattack" else None
