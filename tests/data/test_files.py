"""Karpathy JSON, image-caption lists and tables: what is read, and every mistake a user's files can hold."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data import CaptionTable, KarpathyJSON
from robustcli.utils.errors import UserError

Edit = Callable[[Callable[[list[Any]], object]], None]


def load(folder: Path, split: str = "train", **options: Any) -> KarpathyJSON:
    return KarpathyJSON(folder / "dataset.json", folder, split=split, **{"image_size": 16, **options})


def table(
    folder: Path, lines: list[str], split: str = "test", name: str = "captions_test.csv", **options: Any
) -> CaptionTable:
    (folder / name).write_text("\n".join(lines) + "\n")
    return CaptionTable(folder / name, folder / "pictures", split=split, image_size=16, **options)


# What is read


def test_karpathy_images_captions_and_owners(folder: Path):
    data = load(folder)
    assert (data.name, data.split, len(data), data.skipped) == ("small", "train", 4, 0)
    assert data.image_ids == [f"pictures/{n}.jpg" for n in range(4)]  # restval counts as train
    assert data.owner.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert data.captions[3] == "caption 0 of image 2"
    assert [len(own) for own in data.captions_of()] == [1, 2, 3, 4]
    assert load(folder, "val").image_ids == ["pictures/4.jpg"]


def test_pixels_are_those_of_the_file_in_the_order_asked_for(folder: Path):
    found = load(folder).images(torch.tensor([2, 0, 2]))
    assert found.shape == (3, 3, 16, 16) and found.dtype == torch.float32 and found.is_contiguous()
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    with Image.open(folder / "pictures" / "2.jpg") as image:
        mean = np.asarray(image.crop((5, 0, 35, 30))).reshape(-1, 3).mean(axis=0) / 255
    assert found[0].mean(dim=(1, 2)).tolist() == pytest.approx(mean.tolist(), abs=0.01)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_of_the_set_is_an_error(folder: Path, index: int):
    with pytest.raises(IndexError, match="the set has 4"):
        load(folder).images(torch.tensor([index]))


def test_limit_takes_the_first_images(folder: Path):
    assert load(folder, limit=2).image_ids == load(folder).image_ids[:2]


def test_list_form_with_lists_of_captions_and_with_a_row_for_each(folder: Path):
    lists = [{"image": "pictures/1.jpg", "caption": ["one", "two"]}, {"image": "pictures/0.jpg", "caption": ["three"]}]
    rows = [
        {"image": "pictures/1.jpg", "caption": "one", "image_id": 7},
        {"image": "pictures/0.jpg", "caption": "three"},
        {"image": "pictures/1.jpg", "caption": "two"},
    ]
    (folder / "lists_test.json").write_text(json.dumps(lists))
    (folder / "rows_test.json").write_text(json.dumps(rows))
    first = KarpathyJSON(folder / "lists_test.json", folder, split="test", image_size=16)
    second = KarpathyJSON(folder / "rows_{split}.json", folder, split="test", image_size=16)
    assert first.captions == second.captions == ["one", "two", "three"]
    assert first.fingerprint == second.fingerprint  # the same content, however it is written


def test_a_list_is_only_the_split_that_its_name_says(folder: Path):
    (folder / "captions_test.json").write_text('[{"image": "pictures/1.jpg", "caption": "a"}]')
    with pytest.raises(UserError, match=r"split 'train' is asked for, but it is of the split 'test'.*\{split\}"):
        KarpathyJSON(folder / "captions_test.json", folder, split="train")


@pytest.mark.parametrize(("name", "separator"), [("captions_test.csv", ","), ("captions_test.tsv", "\t")])
def test_table_rows_of_one_image_belong_together(folder: Path, name: str, separator: str):
    lines = [
        f"image{separator}caption",
        f'1.jpg{separator}"one, two"',
        f"0.jpg{separator}three",
        f"1.jpg{separator}four",
    ]
    data = table(folder, lines, name=name)
    assert data.image_ids == ["1.jpg", "0.jpg"]
    assert data.captions == ["one, two", "four", "three"] and data.owner.tolist() == [0, 0, 1]


def test_table_with_columns_of_other_names_and_a_split_column(folder: Path):
    lines = ["text,file,set", "a b,0.jpg,train", "c d,1.jpg,val", "e f,0.jpg,train"]
    options = {"image_column": "file", "caption_column": "text", "split_column": "set", "name": "all.csv"}
    assert table(folder, lines, "train", **options).captions == ["a b", "e f"]
    assert table(folder, lines, "val", **options).captions == ["c d"]
    with pytest.raises(UserError, match="has no split 'test', only train, val"):
        table(folder, lines, "test", **options)


@pytest.mark.parametrize(("name", "separator"), [("captions_test.csv", ","), ("captions_test.tsv", "\t")])
@pytest.mark.parametrize("closing", ['sign reads stop"', 'sign reads "open"', '"sign" reads'])
def test_a_quotation_mark_that_begins_an_unquoted_caption_swallows_no_row(
    folder: Path, name: str, separator: str, closing: str
):
    captions = ['"a dog runs', "a cat", closing, "a man"]
    lines = [f"image{separator}caption", *(f"{n}.jpg{separator}{text}" for n, text in enumerate(captions))]
    data = table(folder, lines, name=name)
    assert data.image_ids == [f"{n}.jpg" for n in range(4)] and data.captions == captions


def test_a_quoted_caption_of_a_table_may_hold_a_line_break_but_no_row(folder: Path):
    lines = ["image,caption", '0.jpg,"a dog', 'runs"', "1.jpg,a cat"]
    assert table(folder, lines).captions == ["a dog runs", "a cat"]
    with pytest.raises(UserError, match=r"line 2: a quotation mark .* ends in line 4, but line 3 looks like a row"):
        table(folder, ["image,caption", '0.jpg,"a dog', "1.jpg,a cat", 'a shop, whose sign reads, stop"'])


# Mistakes: each is an error that names the file and the place, or is skipped and counted


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def deep(path: Path) -> None:
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(path, format="png")


def thin(path: Path) -> None:
    Image.new("RGB", (40_000, 1)).save(path, format="png")


FILE_FAULTS = {
    "is missing": Path.unlink,
    "is damaged or truncated": truncate,
    "is not an image": lambda path: path.write_text("<html>404</html>"),
    "is empty": lambda path: path.write_bytes(b""),
    "expected 8 bits": deep,
    "40000 x 1 pixels": thin,
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_bad_file_is_named_with_its_record_or_skipped(folder: Path, fault: str, caplog: pytest.LogCaptureFixture):
    FILE_FAULTS[fault](folder / "pictures" / "1.jpg")
    with pytest.raises(UserError, match=rf"dataset.json, images\[1\]: the image .*1\.jpg .*{fault}.*on_error=skip"):
        load(folder, image_size=224)
    with caplog.at_level(logging.WARNING):
        data = load(folder, image_size=224, on_error="skip")
    assert data.skipped == 1 and fault in caplog.text
    assert data.image_ids == ["pictures/0.jpg", "pictures/2.jpg", "pictures/3.jpg"]
    assert data.owner.tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    with Image.open(folder / "pictures" / "2.jpg") as image:  # pixels and captions did not slip against each other
        mean = np.asarray(image.crop((5, 0, 35, 30))).mean() / 255
    assert float(data.images(torch.tensor([1])).mean()) == pytest.approx(mean, abs=0.01)


def test_a_bad_file_stays_an_error_when_the_cache_was_made_with_skip(folder: Path):
    truncate(folder / "pictures" / "1.jpg")
    assert load(folder, on_error="skip").skipped == load(folder, on_error="skip").skipped == 1
    with pytest.raises(UserError, match="truncated"):
        load(folder)


ENTRY_FAULTS: dict[str, tuple[Callable[[list[Any]], object], str, int]] = {
    "no caption": (lambda images: images[1].update(sentences=[]), r"images\[1\] \(pictures/1.jpg\) has no caption", 3),
    "empty caption": (lambda images: images[1]["sentences"][0].update(raw=" "), r"images\[1\].*empty caption", 4),
    "not a text": (lambda images: images[1]["sentences"].append({"raw": 5}), r"images\[1\].*empty caption", 4),
    "no raw": (lambda images: images[1]["sentences"].append({}), r"images\[1\].*empty caption", 4),
    "duplicate": (lambda images: images.insert(2, images[1]), r"images\[2\] repeats the image 'pictures/1.jpg'", 4),
    "no file name": (lambda images: images[1].pop("filename"), r"images\[1\] has no filename", 3),
    "no sentences": (lambda images: images[1].pop("sentences"), r"images\[1\] has no sentences", 3),
    "not an object": (lambda images: images.insert(0, "x"), r"images\[0\] has no filename and no split", 4),
}


@pytest.mark.parametrize("fault", ENTRY_FAULTS)
def test_a_bad_entry_is_named_or_skipped(folder: Path, edit: Edit, fault: str):
    change, message, left = ENTRY_FAULTS[fault]
    edit(change)
    with pytest.raises(UserError, match=message):
        load(folder)
    data = load(folder, on_error="skip")
    assert (data.skipped, len(data)) == (1, left)


def test_an_image_in_two_splits_is_an_error(folder: Path, edit: Edit):
    edit(lambda images: images.append({**images[0], "split": "test", "filename": "../pictures/./0.jpg"}))
    with pytest.raises(UserError, match=r"images\[6\] repeats the image 'pictures/0.jpg' of images\[0\]"):
        load(folder, "test")


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "C:\\secret.jpg", "a/../../../b.jpg", "a\0b"])
def test_a_name_that_leads_out_of_the_root_is_an_error_even_with_skip(folder: Path, edit: Edit, name: str):
    edit(lambda images: images[0].update(filename=name, filepath=""))
    with pytest.raises(UserError, match=r"images\[0\] names the image .* outside of"):
        load(folder, on_error="skip")


def test_a_folder_of_images_may_be_a_link(folder: Path):
    (folder / "pictures").rename(folder / "elsewhere")
    (folder / "pictures").symlink_to(folder / "elsewhere")
    assert len(load(folder)) == 4


def test_a_missing_split_names_those_present(folder: Path, edit: Edit):
    edit(lambda images: images.pop())
    with pytest.raises(UserError, match=r"dataset.json has no split 'test', only train, val\."):
        load(folder, "test")


def test_missing_annotations_say_where_to_put_them_and_where_they_come_from(folder: Path):
    with pytest.raises(UserError, match=r"dataset.annotations is .*absent.json.*put the file there \(example.org\)"):
        KarpathyJSON(folder / "absent.json", folder, split="test", origin="example.org")
    (folder / "pictures" / "5.jpg").unlink()
    with pytest.raises(UserError, match=r"5.jpg is missing \(it comes from: example.org\)"):
        load(folder, "test", origin="example.org")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [\n{"filename": }]}', "line 2, column 14 is not valid JSON"),
        (b'{"annotations": []}', "neither of the known forms"),
        (b'{"images": ["\xff"]}', "is not UTF-8 text"),
    ],
)
def test_unreadable_annotations(folder: Path, content: bytes, message: str):
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"dataset.json.*{message}"):
        load(folder)


def test_list_faults(folder: Path):
    rows = [
        {"image": "pictures/1.jpg", "caption": ["a"]},
        {"picture": "x"},
        {"image": "pictures/1.jpg", "caption": ["b"]},
    ]
    (folder / "list_test.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"list_test.json, \[1\] is not an object with image and caption"):
        KarpathyJSON(folder / "list_test.json", folder, split="test")
    data = KarpathyJSON(folder / "list_test.json", folder, split="test", on_error="skip", image_size=16)
    assert (data.skipped, data.captions) == (2, ["a"])  # the second is the repeated image


@pytest.mark.parametrize(
    ("lines", "message", "left"),
    [
        (["image,caption", "0.jpg,a", "1.jpg,b, c"], "line 3 has 3 fields, expected 2 .*quotes", 1),
        (["image,caption", "0.jpg,a", "1.jpg,"], "line 3 has an empty caption", 1),
        (["image,caption", '0.jpg,"a', 'b"', " ,b"], "line 4 names no image", 1),
        (["image,caption", "0.jpg,a", "7.jpg,b"], "line 3: the image .*7.jpg is missing", 1),
    ],
)
def test_a_bad_row_is_named_with_its_line_or_skipped(folder: Path, lines: list[str], message: str, left: int):
    with pytest.raises(UserError, match=f"captions_test.csv, {message}"):
        table(folder, lines)
    data = table(folder, lines, on_error="skip")
    assert (data.skipped, len(data)) == (1, left)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,captions", "0.jpg,a"], "no column 'caption', only image, captions: set dataset.caption_column"),
        (["image,caption,image", "0.jpg,a,b"], "has 2 columns 'image'"),
        ([], "no column 'image', only an empty first line|no column 'image'"),
        (["image,caption", "0.jpg,a", '1.jpg,"b', "c"], "line 3 cannot be read as a table"),
        (["image,caption", "../../0.jpg,a"], "line 2 names the image '../../0.jpg', which is outside"),
        (["image,caption"], "has no usable image"),
    ],
)
def test_an_unusable_table(folder: Path, lines: list[str], message: str):
    with pytest.raises(UserError, match=message):
        table(folder, lines, on_error="skip")


def test_an_image_of_a_table_in_two_splits_is_an_error(folder: Path):
    lines = ["image,caption,split", "0.jpg,a,train", "0.jpg,b,test"]
    with pytest.raises(UserError, match=r"line 3 puts the image '0.jpg' into the split 'test', line 2 into 'train'"):
        table(folder, lines, split_column="split")


def test_a_table_must_say_its_split_and_kind(folder: Path):
    with pytest.raises(UserError, match=r"does not say which split it is: write \{split\}"):
        table(folder, ["image,caption", "0.jpg,a"], name="captions.csv")
    with pytest.raises(UserError, match=r"no delimited text: read it by dataset=parquet"):
        table(folder, ["image,caption", "0.jpg,a"], name="captions_test.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "dataset.on_error is 'ignore', expected one of raise, skip"),
        ({"image_size": 0}, "dataset.image_size is 0"),
        ({"limit": 0}, "dataset.limit is 0"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        load(folder, **options)


# Fingerprint


def test_fingerprint_is_of_the_content_and_not_of_the_place(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    before = load(folder).fingerprint
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "set"
    os.rename(folder / "pictures", folder / "moved")
    elsewhere.mkdir()
    os.rename(folder / "moved", elsewhere / "pictures")
    (elsewhere / "dataset.json").write_text((folder / "dataset.json").read_text())
    assert load(elsewhere).fingerprint == before
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert load(elsewhere, "val").fingerprint != before


def test_fingerprint_changes_with_a_caption_and_with_a_byte_of_an_image(folder: Path, edit: Edit):
    before = load(folder).fingerprint
    edit(lambda images: images[0]["sentences"][0].update(raw="another caption"))
    with_caption = load(folder).fingerprint
    path = folder / "pictures" / "0.jpg"
    path.write_bytes(path.read_bytes() + b"\0")  # decodes to the same pixels
    assert len({before, with_caption, load(folder).fingerprint}) == 3


def test_a_pinned_fingerprint_is_checked(folder: Path):
    right = load(folder).fingerprint
    assert load(folder, fingerprint=right).fingerprint == right
    assert load(folder, fingerprint={"train": right}).fingerprint == right
    load(folder, "val", fingerprint={"train": right})
    with pytest.raises(UserError, match=rf"dataset.fingerprint is 123, but the split 'train' of small has {right}"):
        load(folder, fingerprint="123")


def test_a_limited_set_is_not_held_to_the_fingerprint_of_the_whole(folder: Path, caplog: pytest.LogCaptureFixture):
    load(folder, fingerprint=load(folder).fingerprint, limit=2)
    assert "not checked" in caplog.text
