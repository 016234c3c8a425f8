"""Further positives of COCO-like sets: the forms in which they are published, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.cli.launch import launch
from robustcli.data import CocoCaptions, KarpathyJSON
from robustcli.data.augment import FewerCaptions
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError

CAPTIONS = [(70, 701, "a dog"), (30, 301, "a cat"), (70, 702, "a hound"), (50, 501, "a bird")]
# What both files say beyond the own captions: the cat's caption holds of the image 70, the hound's of 50.
EXPECTED = {(70, 301), (50, 702)}
CXC = """caption,image,agg_score,sampling_method
COCO_val2014:sentid:301,COCO_val2014_000000000070.jpg,3.0,c2i_intrasim
COCO_val2014:sentid:501,COCO_val2014_000000000070.jpg,2.99,c2i_intrasim
COCO_val2014:sentid:702,COCO_val2014_000000000050.jpg,4.5,c2i_intrasim
COCO_val2014:sentid:701,COCO_val2014_000000000070.jpg,5.0,c2i_original
COCO_val2014:sentid:999,COCO_val2014_000000000070.jpg,5.0,c2i_intrasim
"""
BY_IMAGE = {"70": [701, 702, 301], "50": [702, 999]}
BY_CAPTION = {"301": [70, 30], "702": [50], "999": [70]}
FORMS = {
    "cxc.csv": CXC,
    "by_image.json": json.dumps(BY_IMAGE),
    "by_caption.json": json.dumps(BY_CAPTION),
    "lines.jsonl": "\n".join(json.dumps({image: captions}) for image, captions in BY_IMAGE.items()),
    "named.jsonl": "\n".join(json.dumps({"caption_id": int(c), "image_ids": i}) for c, i in BY_CAPTION.items()),
}


def coco(folder: Path, files: Any = None, **options: Any) -> CocoCaptions:
    content = {
        "images": [{"id": of, "file_name": f"{number}.jpg"} for number, of in enumerate((70, 30, 50))],
        "annotations": [{"id": key, "image_id": of, "caption": text} for of, key, text in CAPTIONS],
    }
    (folder / "captions_test.json").write_text(json.dumps(content))
    settings = {"split": "test", "image_size": 16, "positives": files, **options}
    return CocoCaptions(folder / "captions_test.json", folder / "pictures", **settings)


def related(data: ImageTextData) -> set[tuple[int, int]]:
    """Pairs of COCO's ids that are true beyond the own captions."""
    block = data.relevance(torch.arange(len(data)), torch.arange(len(data.captions)))
    images, captions = (70, 30, 50), (701, 702, 301, 501)
    own = {(image, caption) for image, caption, _ in CAPTIONS}
    true = {(images[row], captions[column]) for row, column in torch.nonzero(block).tolist()}
    assert own <= true
    return true - own


@pytest.mark.parametrize("name", FORMS)
def test_the_published_forms_are_read(folder: Path, name: str) -> None:
    (folder / name).write_text(FORMS[name])
    data = coco(folder, str(folder / name))
    assert related(data) == EXPECTED
    assert any("2 positives beyond the own captions" in note and name in note for note in data.notes)
    assert data.fingerprint == coco(folder).fingerprint, "the content is the same"
    assert "positives" in data.provenance() and "positives" not in coco(folder).provenance()


def test_several_files_join_and_the_threshold_counts(folder: Path) -> None:
    for name, text in FORMS.items():
        (folder / name).write_text(text)
    both = [str(folder / "by_image.json"), str(folder / "by_caption.json")]
    assert related(coco(folder, both)) == EXPECTED
    csv = str(folder / "cxc.csv")
    assert related(coco(folder, csv, positives_threshold=2.5)) == EXPECTED | {(70, 501)}
    assert related(coco(folder, csv, positives_threshold=4.0)) == {(50, 702)}


def test_a_limit_and_fewer_captions_keep_the_relation_of_what_is_left(folder: Path) -> None:
    (folder / "p.json").write_text(json.dumps(BY_IMAGE))
    limited = coco(folder, str(folder / "p.json"), limit=2)
    assert limited.relevance(torch.arange(2), torch.arange(3)).tolist() == [[True, True, True], [False, False, True]]
    fewer = FewerCaptions(coco(folder, str(folder / "p.json")), 1)
    row = fewer.captions.index("a cat")
    assert fewer.relevance(torch.arange(3), torch.tensor([row])).flatten().tolist() == [True, True, False]


def test_karpathys_file_has_the_ids_too(folder: Path) -> None:
    images = [
        {
            "filename": f"{number}.jpg",
            "cocoid": of,
            "split": "test",
            "sentences": [{"raw": text, "sentid": key} for owner, key, text in CAPTIONS if owner == of],
        }
        for number, of in enumerate((70, 30, 50))
    ]
    images[1]["sentences"].insert(0, {"raw": " ", "sentid": 999})  # left out, and its id with it
    (folder / "karpathy.json").write_text(json.dumps({"images": images}))
    (folder / "cxc.csv").write_text(CXC)
    data = KarpathyJSON(
        folder / "karpathy.json",
        folder / "pictures",
        split="test",
        image_size=16,
        positives=str(folder / "cxc.csv"),
        on_error="skip",
    )
    assert related(data) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("other.json", json.dumps({"1": [2], "3": [4]}), r"none of the 2 pairs of other.json"),
        ("other.json", "[1, 2]", "no known form"),
        ("other.json", '{"a": 1}', "no known form"),
        ("other.json", "{", "cannot be read"),
        ("other.csv", "a,b\n1,2\n", "agg_score"),
        ("other.csv", CXC.replace("sentid:301", "x"), "line 2 names no image"),
        ("other.csv", CXC.replace("2.99", "many"), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_a_sentence(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=said):
        coco(folder, str(folder / name))


def test_other_splits_are_told_that_nothing_is_theirs(folder: Path) -> None:
    (folder / "p.json").write_text(json.dumps({"1": [2]}))
    data = coco(folder, str(folder / "p.json"), split="val", holds="val")
    assert any(note.startswith("0 positives beyond") for note in data.notes)


def test_without_ids_they_mean_nothing(folder: Path) -> None:
    (folder / "p.json").write_text(json.dumps(BY_IMAGE))
    with pytest.raises(UserError, match="COCO's ids"):
        KarpathyJSON(folder / "dataset.json", folder, split="test", image_size=16, positives=str(folder / "p.json"))
    with pytest.raises(UserError, match=r"dataset\.positives"):
        coco(folder, str(folder / "none.json"))


def test_a_threshold_that_no_file_reads_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(folder)
    words = ["dataset=coco_captions", f"dataset.annotations={folder}/captions_{{split}}.json"]
    words += [f"dataset.root={folder}/pictures", "dataset.positives_threshold=2", "attacks=none"]
    assert launch("evaluate", [*words, f"hydra.run.dir={folder / 'run'}"]) == 2
    assert "nothing would read it, because dataset.positives names no CSV" in capsys.readouterr().err
