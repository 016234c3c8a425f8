"""Sentences before classes: ranks, independence of the chunks, and what an attack is given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli.attacks import CharacterEdits, SepAttack, SynonymTable, ThreatModel, WordSubstitution
from robustcli.attacks.core.target import Target
from robustcli.data import Sentences
from robustcli.evaluation import AttackRun, Entry, SentenceEvaluator
from robustcli.evaluation.aggregate import summarise
from robustcli.models import ClassEncoder, ZeroShot, load_dual

from ..colours import COLOURS, sentences, write_table

COUNT = 14  # sentences
THREAT = ThreatModel(eps=0, characters=1, edits="query")
ATTACK = SepAttack(text=CharacterEdits(search="typos", positions=1, objective="drift"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Sentences:
    return Sentences(write_table(tmp_path_factory.mktemp("table") / "colours.csv", COUNT), COLOURS, split="test")


@pytest.fixture(scope="module")
def encoder() -> ClassEncoder:
    """Its texts are all of one length but for the names, so that clean answers are not all right."""
    dual = load_dual("tiny")
    return ClassEncoder(dual, texts=ZeroShot(dual, COLOURS, templates=("something {}",)))


def judged(data: Sentences, encoder: ClassEncoder, attack: Any = ATTACK, **settings: Any) -> pd.DataFrame:
    evaluator = SentenceEvaluator(data, settings.pop("threat", THREAT), **{"batch_size": 7, **settings})
    entry = evaluator.entry("m", encoder)
    run = AttackRun(
        name="a", attack=attack, threat=evaluator.threat, access="adaptive", victim=encoder, entries=(entry,)
    )
    return pd.concat([evaluator.clean(entry), evaluator.attacked(run)], ignore_index=True)


@pytest.fixture(scope="module")
def records(data: Sentences, encoder: ClassEncoder) -> pd.DataFrame:
    """Of all sentences in one chunk."""
    return judged(data, encoder, batch_size=64)


def test_the_verdict_is_the_class_of_the_closest_vector(
    data: Sentences, encoder: ClassEncoder, records: pd.DataFrame
) -> None:
    vectors = encoder.encode_image(data.images(torch.arange(5))).double()
    for record in records.to_dict("records"):
        attacked = record["attack"] != "clean"
        text = record["caption"] if attacked else data.captions[int(record["query_id"])]
        scores = vectors @ encoder.encode_text(encoder.tokenize([text]))[0].double()
        label = COLOURS.index(record["label"])
        side = "adversarial" if attacked else "clean"
        assert record[f"{side}_class"] == COLOURS[int(scores.argmax())]
        assert record[f"{side}_rank"] == int((scores > scores[label]).sum()) + 1
        assert record[f"{side}_correct"] == record["mean"] == (record[f"{side}_rank"] == 1)
    attacked = records[records["attack"] == "a"]
    assert records["label"].tolist() == 2 * [colour for _, colour in sentences()[:COUNT]]
    assert set(records["direction"]) == {"text_to_class"} and list(attacked["image_id"]) == list(map(str, range(COUNT)))
    assert attacked["edits"].between(0, 1).all() and (attacked["queries"] > 0).all() and (attacked["eps"] == 0).all()
    clean, robust = summarise(records, resamples=20, seed=0)["recall_at_1"]
    assert clean > 0.9 and robust < clean - 0.2


def test_no_record_depends_on_the_chunks(data: Sentences, encoder: ClassEncoder, records: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(judged(data, encoder, batch_size=3), records)
    few = judged(data, encoder, batch_size=1, limit=6)
    for attack in ("clean", "a"):
        own, all_of = (each[each["attack"] == attack].reset_index(drop=True) for each in (few, records))
        assert len(own) == 6
        pd.testing.assert_frame_equal(own, all_of[:6])


def test_an_attack_sees_each_sentence_before_all_classes(data: Sentences, encoder: ClassEncoder) -> None:
    evaluator = SentenceEvaluator(data, THREAT, batch_size=8)
    rows = torch.tensor([5, 0, 11])
    pairs, gallery = evaluator.pairs(encoder, rows)
    labels = data.owner[rows]
    assert pairs.captions == tuple(data.captions[row] for row in rows.tolist())
    assert torch.equal(gallery.image_features, encoder.class_vectors)
    assert gallery.caption_matches.items.tolist() == labels.tolist() and len(gallery.caption_matches) == 3
    assert torch.equal(encoder.encode_image(pairs.images), encoder.class_vectors[labels])
    target = Target(encoder, pairs, gallery, THREAT)
    assert torch.equal(target.image_features, encoder.class_vectors[labels])
    assert torch.equal(gallery.image_matches.matrix().cpu(), labels[:, None] == data.owner[None, :])


def test_success_of_the_attack_is_the_verdict_of_the_record(
    data: Sentences, encoder: ClassEncoder, records: pd.DataFrame
) -> None:
    evaluator = SentenceEvaluator(data, THREAT, batch_size=64)
    pairs, gallery = evaluator.pairs(encoder, torch.arange(COUNT))
    result = ATTACK(encoder, pairs, gallery, THREAT)
    wrong = ~records.loc[records["attack"] == "a", "adversarial_correct"].astype(bool)
    assert result.caption_success.tolist() == wrong.tolist() and 0 < wrong.sum() < COUNT


def test_words_are_edited_too_and_the_sample_of_diagnostics_counts_sentences_alone(
    data: Sentences, encoder: ClassEncoder
) -> None:
    table = SynonymTable({colour: ["big", "small"] for colour in COLOURS})
    attack = SepAttack(text=WordSubstitution(candidates=table, objective="targeted"))
    threat = ThreatModel(eps=0, words=1, edits="query")
    records = judged(data, encoder, attack, threat=threat)
    attacked = records[records["attack"] == "a"]
    assert (attacked["edits"] == 1).all() and attacked["mean"].mean() < 0.5
    subject = SentenceEvaluator(data, threat, batch_size=8).subject(Entry(label="m", model=encoder), 10)
    assert not subject.attackable("text")[:10].any() and subject.attackable("text")[10:].sum() > 8
    assert subject.attacked(attack).success[10:].sum() > 4


def test_of_several_variants_each_sentence_has_its_worst(data: Sentences, encoder: ClassEncoder) -> None:
    """An attack that leaves every other sentence clean in one variant, and the others in the next."""
    attack = SepAttack(text=CharacterEdits(search="typos", positions=1, objective="margin"))

    class Halves:
        def variants(self, *arguments: Any) -> dict[str, Any]:
            (result,) = attack.variants(*arguments).values()
            clean = arguments[1].captions
            halves = [
                [new if row % 2 == side else clean[row] for row, new in enumerate(result.captions)] for side in (0, 1)
            ]
            return {str(side): replace(result, captions=tuple(half)) for side, half in enumerate(halves)}

    tables = [judged(data, encoder, each, batch_size=64) for each in (Halves(), attack)]
    own, whole = (each[each["attack"] == "a"] for each in tables)
    for column in ("adversarial_rank", "adversarial_class", "caption", "edits"):
        assert own[column].tolist() == whole[column].tolist(), column
    assert (own["queries"] == 2 * whole["queries"]).all()


@pytest.mark.parametrize("threat", [ThreatModel(eps=0.1, edits="query"), ThreatModel(eps=0, words=1, edits="all")])
def test_a_threat_model_of_images_or_of_galleries_is_a_fault(data: Sentences, threat: ThreatModel) -> None:
    with pytest.raises(ValueError, match="each as a query"):
        SentenceEvaluator(data, threat, batch_size=8)


def test_what_is_said_of_them(data: Sentences, encoder: ClassEncoder, tmp_path: Path) -> None:
    evaluator = SentenceEvaluator(data, THREAT, batch_size=8, limit=12)
    assert evaluator.chance() == {"text_to_class": 0.2} and len(evaluator) == 12
    assert evaluator.describe()[0].startswith("12 sentences of 5 classes")
    assert evaluator.inputs([encoder, encoder])[-1].startswith("Zero-shot: 5 classes in 1 template")
    assert not any("resizes" in note for note in evaluator.inputs([encoder]))
