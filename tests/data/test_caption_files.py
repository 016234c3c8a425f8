"""Files of captions in the forms in which they are passed on: each is read as it is, or is an error with its line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli.data import CaptionParquet, CaptionTable, CocoCaptions, KarpathyJSON
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError

WANTED = (["0.jpg", "1.jpg"], ["a dog , running", "a hound", "a cat"], [0, 0, 1])


def table(folder: Path, text: str, name: str = "captions_test.csv", **options: Any) -> CaptionTable:
    (folder / name).write_bytes(text.encode(options.pop("encoding", "utf-8")))
    return CaptionTable(folder / name, folder / "pictures", **{"split": "test", "image_size": 16, **options})


def coco(folder: Path, content: Any, name: str = "captions_test.json", **options: Any) -> CocoCaptions:
    (folder / name).write_text(json.dumps(content))
    return CocoCaptions(folder / name, folder / "pictures", **{"split": "test", "image_size": 16, **options})


def parquet(folder: Path, content: dict[str, list[Any]], name: str = "test.parquet", **options: Any) -> CaptionParquet:
    pd.DataFrame(content).to_parquet(folder / name, row_group_size=2)
    return CaptionParquet(folder / name, **{"split": "test", "image_size": 16, **options})


def held(data: ImageTextData) -> tuple[list[str], list[str], list[int]]:
    return list(data.image_ids), list(data.captions), data.owner.tolist()


TOKEN = "0.jpg#0\ta dog , running\n0.jpg#1\ta hound\n1.jpg#0\ta cat\n"
QUOTED = 'image,caption\n0.jpg,"a dog , running"\n0.jpg,a hound\n1.jpg,a cat\n'
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Kaggle's .txt": ("captions_test.txt", QUOTED, {}),
    "Flickr's .token, without a header": ("results_test.token", TOKEN, {}),
    "the same, renamed": ("results_test.tsv", TOKEN, {}),
    "numbered names under a header": ("results_test.tsv", "image\tcaption\n" + TOKEN, {}),
    "pipes with blanks": (
        "results_test.csv",
        "image_name| comment_number| comment\n0.jpg| 0| a dog , running\n0.jpg| 1| a hound\n1.jpg| 0| a cat\n",
        {"image_column": "image_name", "caption_column": "comment"},
    ),
    "semicolons": ("german_test.csv", "image;caption\n0.jpg;a dog , running\n0.jpg;a hound\n1.jpg;a cat\n", {}),
    "a delimiter that is said": ("said_test.txt", "image\tcaption\n" + TOKEN, {"delimiter": "tab"}),
    "UTF-16 of a spreadsheet": ("excel_test.csv", QUOTED.replace("\n", "\r\n"), {"encoding": "utf-16"}),
    "a JSON list in a cell": (
        "five_test.csv",
        'image,caption\n0.jpg,"[""a dog , running"", ""a hound""]"\n1.jpg,a cat\n',
        {},
    ),
    "a list as pandas prints it": (
        "five_test.csv",
        "image;caption\n0.jpg;['a dog , running', \"a hound\"]\n1.jpg;['a cat']\n",
        {},
    ),
    "a list as numpy prints it, without commas": (
        "five_test.csv",
        "image;caption\n0.jpg;['a dog , running' 'a hound']\n1.jpg;a cat\n",
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_in_the_form_in_which_it_comes(folder: Path, form: str) -> None:
    name, text, options = FORMS[form]
    assert held(table(folder, text, name, **options)) == WANTED


@pytest.mark.parametrize("caption", ["[laughs]", "[a, b]", "['a' + 'b']", "[1, 2]", "[]", "a ['b']"])
def test_brackets_that_hold_no_list_of_texts_are_a_caption(folder: Path, caption: str) -> None:
    assert table(folder, f"image;caption\n0.jpg;{caption}\n").captions == [caption]


def test_a_row_with_other_fields_than_the_first_line_is_named(folder: Path) -> None:
    text = "image_name| comment_number| comment\n0.jpg| 0| a dog\n0.jpg| 4   a hound\n"
    columns = {"image_column": "image_name", "caption_column": "comment"}
    with pytest.raises(UserError, match="line 3 has 2 fields, expected 3"):
        table(folder, text, **columns)
    assert table(folder, text, **columns, on_error="skip").skipped == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image_name| n| comment\n", {}, r"only image_name, n, comment: set dataset.image_column, .* to image_name\.$"),
        ("filename,title\n", {}, r"only filename, title: set dataset.image_column, for example to filename\."),
        ("filename,title\n", {"image_column": "filename"}, r"set dataset.caption_column, for example to title\."),
        ("image,caption\n", {"delimiter": ":"}, r"dataset.delimiter is ':': choose one of , ; \| and tab"),
        ("image,caption\n", {"delimiter": ";"}, r"has no column 'image', only image,caption"),
        ("0.jpg#0\ta\n", {"split_column": "split"}, r"has no header, and so no column 'split'"),
    ],
)
def test_the_hint_names_columns(folder: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(folder, text, **options)


# Which split a file is of


def rows(count: int = 6) -> str:
    return "image,caption\n" + "".join(f"{n}.jpg,picture {n}\n{n}.jpg,number {n}\n" for n in range(count))


def test_one_file_without_a_split_is_parted_by_image(folder: Path) -> None:
    shares = {"val_share": 0.3, "test_share": 0.15}
    (folder / "all.csv").write_text(rows())
    parts = {
        split: CaptionTable(folder / "all.csv", folder / "pictures", split=split, image_size=16, **shares)
        for split in ("train", "val", "test")
    }
    names = [name for data in parts.values() for name in data.image_ids]
    assert sorted(names) == [f"{n}.jpg" for n in range(6)], "each image is in one split"
    assert all(len(data.captions) == 2 * len(data) and len(data) for data in parts.values())
    assert not any("also in" in note for data in parts.values() for note in data.notes)


def test_holds_says_the_split_of_a_file_whatever_its_name(folder: Path) -> None:
    assert len(table(folder, rows(), "captions_val.csv", holds="test")) == 6
    with pytest.raises(UserError, match=r"holds the split 'test' as dataset.holds says, but 'train' is asked for"):
        table(folder, rows(), "captions.csv", holds="test", split="train")
    with pytest.raises(UserError, match=r"dataset.holds is 'dev': choose one of train, val, test"):
        table(folder, rows(), holds="dev")
    with pytest.raises(UserError, match=r"dataset.holds and dataset.split_column are both set"):
        table(folder, rows(), holds="test", split_column="split")


def test_a_file_that_its_name_calls_test_is_not_parted_into_a_training_set(folder: Path) -> None:
    with pytest.raises(UserError, match=r"split 'train' is asked for, but it is of the split 'test'"):
        table(folder, rows(), split="train", val_share=0.2)
    assert len(table(folder, rows(), val_share=0.2)) == 6  # the share is one of the training images


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"val_share": 1.0}, r"dataset.val_share is 1.0"),
        ({"val_share": 0.6, "test_share": 0.6}, r"together they leave nothing to train on"),
        ({"test_share": 1e-6}, r"the split 'test' of .*all.csv is empty, for it has 6 images"),
    ],
)
def test_shares_that_leave_a_split_empty(folder: Path, shares: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(folder, rows(), "all.csv", **shares)


# COCO's own captions


def coco_content() -> dict[str, Any]:
    texts = [(7, "a dog , running"), (3, "a cat"), (7, "a hound")]
    return {
        "info": {},
        "images": [{"id": 7, "file_name": "0.jpg"}, {"id": 3, "file_name": "1.jpg"}],
        "annotations": [{"id": n, "image_id": of, "caption": text} for n, (of, text) in enumerate(texts)],
    }


def test_coco_captions_join_images_and_annotations(folder: Path) -> None:
    assert held(coco(folder, coco_content())) == WANTED
    assert len(coco(folder, coco_content(), "captions_val2017.json", holds="test")) == 2
    assert len(coco(folder, coco_content(), "captions_val2017.json", split="val")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\] has no id or no file_name"),
        (lambda c: c["images"].append(c["images"][0]), r"images\[2\] repeats the id 7 or the image '0.jpg'"),
        (lambda c: c["annotations"].append({"image_id": 9, "caption": "a"}), r"annotations\[3\] is of the image 9"),
        (lambda c: c["annotations"][1].update(caption=" "), r"annotations\[1\] has an empty caption"),
        (lambda c: c["annotations"].pop(1), r"images\[1\] \(1.jpg\) has no caption"),
    ],
)
def test_a_bad_entry_of_coco_is_named_or_skipped(folder: Path, change: Any, message: str) -> None:
    content = coco_content()
    change(content)
    with pytest.raises(UserError, match=message):
        coco(folder, content)
    assert coco(folder, content, on_error="skip").skipped > 0


def test_each_json_form_names_the_reader_of_the_other(folder: Path) -> None:
    coco(folder, coco_content())
    with pytest.raises(UserError, match="read it by dataset=coco_captions"):
        KarpathyJSON(folder / "captions_test.json", folder, split="test")
    with pytest.raises(UserError, match=r"read by dataset=karpathy"):
        coco(folder, [{"image": "0.jpg", "caption": "a"}])


# Parquet


def test_parquet_of_bytes_paths_and_one_or_many_captions_a_row_is_the_same_set(folder: Path) -> None:
    data = {name: (folder / "pictures" / name).read_bytes() for name in ("0.jpg", "1.jpg")}
    pairs = [{"bytes": content, "path": name} for name, content in data.items()]
    forms: list[tuple[dict[str, list[Any]], dict[str, Any]]] = [
        ({"image": pairs, "caption": [["a dog , running", "a hound"], ["a cat"]]}, {}),
        ({"image": [pairs[0], pairs[0], pairs[1]], "caption": ["a dog , running", "a hound", "a cat"]}, {}),
        (
            {"image": ["0.jpg", "0.jpg", "1.jpg"], "caption": ["a dog , running", "a hound", "a cat"]},
            {"root": folder / "pictures"},
        ),
    ]
    sets = [parquet(folder, content, **options) for content, options in forms]
    assert [held(data) for data in sets] == [WANTED] * 3
    assert len({data.fingerprint for data in sets}) == 1
    files = table(folder, QUOTED)
    assert sets[0].fingerprint == files.fingerprint
    assert torch.equal(sets[0].images(torch.arange(2)), files.images(torch.arange(2)))


def test_bare_bytes_are_named_by_their_content(folder: Path) -> None:
    content = [(folder / "pictures" / name).read_bytes() for name in ("0.jpg", "1.jpg", "0.jpg")]
    data = parquet(folder, {"image": content, "caption": ["one", "two", "three"]})
    assert data.captions == ["one", "three", "two"] and all(len(name) == 16 for name in data.image_ids)


def test_several_parquet_files_are_one_set(folder: Path) -> None:
    for number in range(2):
        content = (folder / "pictures" / f"{number}.jpg").read_bytes()
        rows = {"image": [{"bytes": content, "path": f"{number}.jpg"}], "caption": [f"picture {number}"]}
        pd.DataFrame(rows).to_parquet(folder / f"test-{number:05}-of-00002.parquet")
    data = CaptionParquet(folder / "{split}-*.parquet", split="test", image_size=16)
    assert data.image_ids == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"image": ["0.jpg"], "text": ["a"]}, {}, r"no column 'caption', only image, text: set dataset.caption_column"),
        (
            {"image": ["0.jpg"], "caption": ["a"]},
            {},
            r"row 0 names the file '0.jpg' and holds no bytes: .*dataset.root",
        ),
        ({"image": [None], "caption": ["a"]}, {}, r"row 0 has no image in the column 'image'"),
        ({"image": [b"\x00"], "caption": ["a"]}, {}, r"row 0: the image .* is not an image"),
        (
            {"image": [{"bytes": b"1", "path": "a"}, {"bytes": b"2", "path": "a"}], "caption": ["a", "b"]},
            {},
            r"row 1 has another picture of the name 'a' than row 0",
        ),
    ],
)
def test_a_bad_parquet(folder: Path, content: dict[str, list[Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parquet(folder, content, **options)


def test_a_damaged_parquet_is_named(folder: Path) -> None:
    (folder / "test.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"test.parquet cannot be read .*no parquet file"):
        CaptionParquet(folder / "test.parquet", split="test")
