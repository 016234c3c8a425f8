"""BERT-Attack (Li et al. 2020) as attacks on dual encoders use it (Zhang et al. 2022; Lu et al. 2023)."""

import copy
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from robustcli.attacks.text.cached import Cached
from robustcli.attacks.text.candidates import CandidateSource
from robustcli.attacks.text.constraints import Constraint
from robustcli.attacks.text.masked_lm import MaskedLM
from robustcli.attacks.text.stopwords import STOP_WORDS
from robustcli.attacks.text.words import WordSubstitution
from robustcli.utils.errors import UserError

COMPATS = ("fixed", "coattack")
_LANGUAGE_MODEL = "bert-base-uncased"


class BertAttack(WordSubstitution):
    """Visits the words by how far the embedding moves without them, KL(clean || "[UNK]" there), and puts into each the
    best of what a masked language model proposes, until ``max_words`` are replaced.

    It is `WordSubstitution` by importance: stop words stay, and a word is replaced only if that raises the loss.

    Args:
        max_words, objective, protected, constraints, seed: see `WordSubstitution`.
        candidates: a `MaskedLM` as a rule, or any other source; None: ``bert-base-uncased``, whose answers are kept on
            disk, loaded when it is first asked.
        compat: ``fixed``, or ``coattack``: the published code's defect, see `MaskedLM`, except that the budget is
            counted on the caption that comes out there too; None: as ``candidates`` has it, fixed by default.

    Raises:
        UserError: an unknown objective or compat, a number out of range, or ``coattack`` with candidates that are no
            masked language model's.
    """

    def __init__(
        self,
        *,
        max_words: int = 1,
        objective: str = "drift",
        candidates: CandidateSource | None = None,
        compat: str | None = None,
        protected: AbstractSet[str] = STOP_WORDS,
        constraints: Sequence[Constraint] = (),
        seed: int = 0,
    ) -> None:
        if compat not in (None, *COMPATS):
            raise UserError(f"attack.text.compat is {compat!r}: choose one of {', '.join(COMPATS)}, or null.")
        super().__init__(
            max_words=max_words,
            search="importance",
            objective=objective,
            candidates=candidates if compat is None or candidates is None else _read_as(candidates, compat),
            protected=protected,
            constraints=constraints,
            seed=seed,
        )
        self.compat = compat

    def source(self) -> CandidateSource:
        if self.candidates is None:
            self.candidates = Cached(MaskedLM(_LANGUAGE_MODEL, compat=_of_model(self.compat)))
        return self.candidates


def _read_as(source: CandidateSource, compat: str) -> CandidateSource:
    """The same language model, fixed or not."""
    if isinstance(source, Cached):
        inner = _read_as(source.source, compat)
        return source if inner is source.source else Cached(inner, source.directory)
    if isinstance(source, MaskedLM) and source.compat != _of_model(compat):
        other = copy.copy(source)  # shares the weights
        other.compat = _of_model(compat)
        return other
    if not isinstance(source, MaskedLM) and compat == "coattack":
        raise UserError(
            f"attack.text.compat is coattack, but {type(source).__name__} is no masked language model: choose "
            "candidates=masked_lm, or attack.text.compat=null."
        )
    return source


def _of_model(compat: str | None) -> str | None:
    return "coattack" if compat == "coattack" else None
