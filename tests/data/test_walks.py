"""What a walk over a folder sees: links, hidden files, names in other code points, pictures of another split."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.data import CaptionTable, ClassArrays, ClassFolders, ImageClassData, ImageTextData, KarpathyJSON
from robustcli.data.sampling import PairSampler
from robustcli.utils.errors import UserError
from tests.data.conftest import picture

ACCENT = "caf\u00e9"  # NFC
APART = unicodedata.normalize("NFD", ACCENT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures of each of two classes in train and in test."""
    for place, split in enumerate(("train", "test")):
        for number in range(4):
            path = tmp_path / "set" / split / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * place + number).save(path)
    return tmp_path / "set"


def repeated(data: ImageClassData | ImageTextData) -> list[str]:
    return [note for note in data.notes if "byte for byte" in note]


def folders(root: Path, split: str = "test", **change: object) -> ClassFolders:
    return ClassFolders(root, **{"split": split, "classes": ["cat", "dog"], "image_size": 8, **change})  # type: ignore[arg-type]


def test_linked_folders_are_walked_and_loops_are_faults(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    picture(50).save(tmp_path / "more" / "linked.png")
    (root / "test" / "cat" / "more").symlink_to(tmp_path / "more")
    assert "cat/more/linked.png" in folders(root).image_ids
    (root / "test" / "cat" / "loop").symlink_to(root / "test")
    with pytest.raises(UserError, match="loop is a link to a folder that it stands in"):
        folders(root)
    data = folders(root, on_error="skip")
    assert len(data) == 5 and data.skipped == 1


def test_a_link_without_an_end_is_a_fault(root: Path) -> None:
    (root / "test" / "cat" / "x.png").symlink_to("/nowhere.png")
    with pytest.raises(UserError, match=r"x\.png is a link to /nowhere\.png, which does not exist"):
        folders(root)
    data = folders(root, on_error="skip")
    assert len(data) == 4 and data.skipped == 1


def test_hidden_files_and_folders_are_left_out(root: Path) -> None:
    before = folders(root)
    for name in (".ipynb_checkpoints", ".cache/deep"):
        (root / "test" / "cat" / name).mkdir(parents=True)
        shutil.copy(root / "test" / "cat" / "0.png", root / "test" / "cat" / name / "0-checkpoint.png")
    (root / "test" / "cat" / ".DS_Store").write_bytes(b"x")
    data = folders(root)
    assert data.image_ids == before.image_ids and data.skipped == 0


def test_names_are_compared_in_one_form(root: Path) -> None:
    (root / "test" / "cat").rename(root / "test" / ACCENT)
    linux = folders(root, classes=[ACCENT, "dog"])
    (root / "test" / ACCENT).rename(root / "test" / APART)
    for written in (ACCENT, APART):
        data = folders(root, classes=[written, "dog"])
        assert data.classes == (ACCENT, "dog") and data.fingerprint == linux.fingerprint
    shutil.copytree(root / "test" / APART, root / "test" / ACCENT)
    with pytest.raises(UserError, match="has two folders"):
        folders(root, classes=[ACCENT, "dog"])


def test_files_that_differ_in_code_points_alone_are_a_fault(root: Path) -> None:
    for number, name in enumerate((ACCENT, APART)):
        picture(60 + number).save(root / "test" / "cat" / f"{name}.png")
    with pytest.raises(UserError, match="has the name of another file"):
        folders(root)


def test_a_picture_of_train_in_test_is_told(root: Path) -> None:
    assert repeated(folders(root)) == []
    shutil.copy(root / "train" / "cat" / "0.png", root / "test" / "cat" / "renamed.png")
    assert repeated(folders(root)) == ["Of the 5 images of test stand 1 also in train, byte for byte."]
    assert repeated(folders(root, "train")) == ["Of the 4 images of train stand 1 also in test, byte for byte."]
    shutil.copy(root / "train" / "dog" / "1.png", root / "train" / "dog" / "again.png")
    found = [folders(root, split, val_share=0.5) for split in ("train", "val")]
    held = {name for name in found[1].image_ids if name in ("dog/1.png", "dog/again.png")}
    told = any("also in val" in note for note in repeated(found[0]))
    assert told == (len(held) == 1), "told where one of the two equal pictures is val and the other is train"


def annotate(folder: Path, rows: list[tuple[str, str]]) -> Path:
    images = [{"filename": name, "split": split, "sentences": [{"raw": f"a {name}"}]} for name, split in rows]
    (folder / "d.json").write_text(json.dumps({"images": images}))
    return folder / "d.json"


def test_annotations_meet_the_names_on_the_disk(tmp_path: Path) -> None:
    picture(0).save(tmp_path / f"{APART}.png")
    data = KarpathyJSON(annotate(tmp_path, [(f"{ACCENT}.png", "test")]), tmp_path, split="test", image_size=8)
    assert data.image_ids == [f"{ACCENT}.png"]
    (tmp_path / "t.csv").write_text(f"image,caption,split\n{APART}.png,one,test\n{ACCENT}.png,two,test\n", "utf-8")
    table = CaptionTable(tmp_path / "t.csv", tmp_path, split="test", split_column="split", image_size=8)
    assert table.image_ids == [f"{ACCENT}.png"] and table.captions == ["one", "two"]


def test_repeated_pictures_are_told_of_annotations_and_tables(tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    told = ["Of the 2 images of test stand 1 also in train, byte for byte."]
    rows = [("0.png", "train"), ("1.png", "val"), ("2.png", "test"), ("copy.png", "test")]
    assert repeated(KarpathyJSON(annotate(tmp_path, rows), tmp_path, split="test", image_size=8)) == told
    for split in ("train", "test"):
        lines = [f"{name},a {name}" for name, of in rows if of == split]
        (tmp_path / f"{split}.csv").write_text("\n".join(["image,caption", *lines]))
        (tmp_path / f"{split}.json").write_text(
            json.dumps([{"image": name, "caption": "a"} for name, of in rows if of == split])
        )
    assert repeated(CaptionTable(tmp_path / "{split}.csv", tmp_path, split="test", image_size=8)) == told
    assert repeated(KarpathyJSON(tmp_path / "{split}.json", tmp_path, split="test", image_size=8)) == told


def test_arrays_tell_repeated_pictures_and_masks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    arrays = {"train_x": pixels[:4], "test_x": pixels[3:], "train_y": np.arange(4) % 2, "test_y": np.arange(3) % 2}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    keys = {"images": "{split}_x", "labels": "{split}_y", "classes": 2}
    data = ClassArrays(tmp_path / "a.npz", split="test", **keys)  # type: ignore[arg-type]
    assert data.notes == ["Of the 3 images of test stand 1 also in train, byte for byte."]
    np.savez(tmp_path / "b.npz", images=pixels[:3] % 2, labels=np.arange(3) % 2)
    (note,) = ClassArrays(tmp_path / "b.npz", split="test", classes=2, holds="test").notes
    assert "above 1: read as 0 to 1/255" in note
    np.save(tmp_path / "c.npy", pixels)
    with pytest.raises(UserError, match=r"c\.npy, which holds one array: expected an \.npz"):
        ClassArrays(tmp_path / "c.npy", split="test", classes=2, holds="test")


def test_equal_texts_may_count_as_true_of_all_their_images(tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{n}.png", "caption": ["a river" if n < 2 else "a hill", f"place {n}"]} for n in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    whole = torch.arange(3), torch.arange(6)
    settings = {"split": "train", "image_size": 8}
    distinct = KarpathyJSON(tmp_path / "train.json", tmp_path, **settings)  # type: ignore[arg-type]
    assert torch.equal(distinct.relevance(*whole), distinct.owner[None] == torch.arange(3)[:, None])
    match = KarpathyJSON(tmp_path / "train.json", tmp_path, same_text="match", **settings)  # type: ignore[arg-type]
    more = match.relevance(*whole) & ~distinct.relevance(*whole)
    assert more.nonzero().tolist() == [[0, 2], [1, 0]]
    assert match.relevance(torch.tensor([1, 2]), torch.tensor([0, 5])).tolist() == [[True, False], [False, True]]
    batch = PairSampler(match, batch_size=3, seed=0)(0)
    assert torch.equal(batch.matches, match.relevance(batch.image_ids, batch.caption_ids)), "and so in training"
    with pytest.raises(UserError, match=r"dataset\.same_text is 'equal': choose one of distinct, match"):
        KarpathyJSON(tmp_path / "train.json", tmp_path, same_text="equal", **settings)  # type: ignore[arg-type]


def test_a_name_that_is_not_utf_8_is_a_fault(root: Path) -> None:
    shutil.copy(root / "test" / "cat" / "0.png", os.fsdecode(os.fsencode(root / "test" / "cat") + b"/\xff.png"))
    with pytest.raises(UserError, match=r"\\udcff\.png has a name that is not UTF-8"):
        folders(root)
    data = folders(root, on_error="skip")
    assert len(data) == 4 and data.skipped == 1
    os.mkdir(os.fsencode(root / "test") + b"/d\xff")
    with pytest.raises(UserError, match=r"has a folder 'd.*udcff', whose name is not UTF-8: rename it"):
        folders(root, on_error="skip")


def test_text_that_no_file_could_hold_is_a_fault(folder: Path, edit: Callable[..., None]) -> None:
    edit(lambda images: images[0]["sentences"].append({"raw": "a \ud800 dog"}))
    with pytest.raises(UserError, match=r"images\[0\].* has a caption with half of a character"):
        KarpathyJSON(folder / "dataset.json", folder, split="train", image_size=8)
    data = KarpathyJSON(folder / "dataset.json", folder, split="train", image_size=8, on_error="skip")
    assert data.skipped == 1 and not any("dog" in caption for caption in data.captions)
    edit(lambda images: images[0].update(filename="\ud800.jpg"))
    with pytest.raises(UserError, match="no text of whole characters"):
        KarpathyJSON(folder / "dataset.json", folder, split="train", image_size=8, on_error="skip")


def test_what_was_left_out_is_told_and_no_class_vanishes(root: Path) -> None:
    bad = root / "test" / "cat" / "0.png"
    bad.write_bytes(b"no picture")
    data = folders(root, on_error="skip")
    assert data.notes[0].startswith("1 entry was left out (dataset.on_error=skip), the first: ")
    assert str(bad) in data.notes[0] and "is not an image; all are in the log of the run." in data.notes[0]
    (root / "test" / "cat" / "2.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no image of the class 'cat' can be read, for example .*cat/2\.png is empty: mend"
    ):
        folders(root, on_error="skip")
    assert set(folders(root, on_error="skip", limit=1).image_ids) <= {"dog/1.png", "dog/3.png"}


def test_captions_that_were_left_out_are_counted(folder: Path, edit: Callable[..., None]) -> None:
    edit(lambda images: images[1]["sentences"].extend([{"raw": ""}, {"raw": " "}]))
    (note,) = [
        note
        for note in KarpathyJSON(folder / "dataset.json", folder, split="train", image_size=8, on_error="skip").notes
        if "left out" in note
    ]
    assert note.startswith("2 entries were left out (dataset.on_error=skip), the first: ") and "images[1]" in note
