"""Diversity of texts, each a list of words: distinct n-grams and self-BLEU."""

from collections.abc import Sequence

from robustcli.utils.errors import UserError


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Share of different ones among all n-grams of ``texts``, in (0,1] (Li et al. 2016); None where there are none."""
    grams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


class SelfBLEU:
    """Mean BLEU, 0 to 100, of each text against the others as references (Zhu et al. 2018); 100 for equal texts.

    BLEU is that of sacrebleu, up to 4-grams, of a sentence: its orders that are longer than the text do not count.

    Raises:
        UserError: sacrebleu is not installed.
    """

    def __init__(self) -> None:
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError:
            raise UserError("self-BLEU needs sacrebleu: pip install 'robustcli[text]'.") from None
        # The words are split already; `force` because sacrebleu warns of a text that looks as if it were tokenised.
        self._bleu = BLEU(tokenize="none", effective_order=True, force=True)

    def __call__(self, texts: Sequence[Sequence[str]]) -> float | None:
        """Of ``texts``; None for fewer than two."""
        if len(texts) < 2:
            return None
        lines = [" ".join(text) for text in texts]
        scores = [
            self._bleu.sentence_score(line, [*lines[:at], *lines[at + 1 :]]).score for at, line in enumerate(lines)
        ]
        return float(sum(scores)) / len(scores)
