"""BERT-Attack, fixed and as published, with a language model that shows which of its rows was read."""

from pathlib import Path

import pytest
import torch

from robustcli.attacks import BertAttack, Cached, MaskedLM, SynonymTable, Words, WordSubstitution
from robustcli.attacks.core.losses import Target, text_objective
from robustcli.utils.errors import UserError

from ..conftest import SYNONYMS, LetterDual, ToyDual, make_pairs
from .echo import save_echo

CAPTION = "the guitar near mountain snowy"
ONE = torch.tensor([0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_echo(tmp_path_factory.mktemp("bert"), pytest.importorskip("transformers"))


def _found(letters: LetterDual, attack: WordSubstitution) -> str:
    clean = letters.encode_text(letters.tokenize([CAPTION])).detach()
    return attack.maximise(letters, lambda f, rows: -(f @ clean[0]), [CAPTION], ONE)[0]


def test_the_published_code_puts_the_word_before_into_a_word_s_place(letters: LetterDual, folder: Path) -> None:
    """With one proposal a piece a row echoes its own word, which is no replacement; the row before echoes another."""
    one = MaskedLM(str(folder), top_k=1, threshold=-99.0)
    assert _found(letters, BertAttack(candidates=one, compat="fixed", max_words=9)) == CAPTION
    found = _found(letters, BertAttack(candidates=one, compat="coattack", max_words=9))
    before = ["", *CAPTION.split()]
    changed = [
        (new, before[at])
        for at, (new, old) in enumerate(zip(found.split(), CAPTION.split(), strict=False))
        if new != old
    ]
    assert changed
    assert all(new == word for new, word in changed)


def test_words_are_counted_on_the_output_where_the_published_code_lets_phrases_through(
    letters: LetterDual, folder: Path
) -> None:
    source = MaskedLM(str(folder), top_k=99, threshold=-99.0)
    phrases = 0
    for budget in (1, 2, 3):
        found = _found(letters, BertAttack(candidates=source, compat="coattack", max_words=budget))
        assert Words(budget).count(found, CAPTION) <= budget
        phrases += len(found.split()) > len(CAPTION.split())
    assert phrases


def test_compat_is_that_of_the_candidates_unless_it_is_said(folder: Path, tmp_path: Path) -> None:
    fixed, defect = (MaskedLM(str(folder), compat=compat) for compat in (None, "coattack"))
    kept = Cached(fixed, tmp_path)
    for source in (fixed, defect, kept):
        assert BertAttack(candidates=source).candidates is source
    assert BertAttack(candidates=kept, compat="fixed").candidates is kept
    other = BertAttack(candidates=kept, compat="coattack").candidates
    assert isinstance(other, Cached)
    assert other.path.parent == kept.path.parent
    assert other.fingerprint == defect.fingerprint != kept.fingerprint
    assert BertAttack(candidates=defect, compat="fixed").source().fingerprint == fixed.fingerprint
    assert fixed.compat is None
    with pytest.raises(UserError, match="no masked language model"):
        BertAttack(candidates=SynonymTable(SYNONYMS), compat="coattack")
    with pytest.raises(UserError, match=r"attack\.compat is 'sga'"):
        BertAttack(compat="sga")


def test_it_is_the_search_by_importance_over_any_candidates(model: ToyDual) -> None:
    target = Target(model, make_pairs(model, (2,) * 4), None)
    pairs, drift = target.pairs, text_objective("drift", target)
    source = SynonymTable(SYNONYMS)
    plain = WordSubstitution(search="importance", objective="drift", max_words=2, candidates=source)
    attack = BertAttack(max_words=2, candidates=source)
    assert attack.objective == "drift"
    found = attack.maximise(model, drift, pairs.captions, pairs.caption_ids)
    assert found == plain.maximise(model, drift, pairs.captions, pairs.caption_ids) != pairs.captions
    shown = ("objective='drift'", "search='importance'", "candidates=SynonymTable(11 words)", "max_words=2")
    assert repr(attack).startswith("BertAttack(") and all(f"{setting}, " in repr(attack) for setting in shown)


def test_without_candidates_bert_is_loaded_when_it_is_asked(
    model: ToyDual, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path))
    monkeypatch.setattr("robustcli.attacks.text.bert_attack._LANGUAGE_MODEL", str(folder))
    attack = BertAttack(compat="coattack")
    assert attack.candidates is None
    assert not list(tmp_path.iterdir())
    attack.maximise(model, lambda f, rows: f.sum(1), ["the guitar"], ONE)
    assert list(tmp_path.iterdir())
    assert isinstance(source := attack.source(), Cached) and source is attack.source()
    assert source.fingerprint == MaskedLM(str(folder), compat="coattack").fingerprint
