"""Sentences with a class each, read from tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from robustcli.data import Sentences
from robustcli.utils.errors import UserError
from robustcli.utils.numbered import as_pixels, numbers_in

NEWS = ("World", "Sports", "Sci/Tech")
ROWS = [("A war, and peace", "World"), ("He  ran \t away", "Sports"), ('A "chip"', "Sci/Tech"), ("He won", "Sports")]


def written(path: Path, rows: list[tuple[str, object]], columns: tuple[str, str] = ("text", "label")) -> Path:
    table = pd.DataFrame(rows, columns=list(columns))
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=3)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def read(table: Path, **settings: Any) -> Sentences:
    return Sentences(table, settings.pop("classes", NEWS), split="test", **settings)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("labels", ["names", "from 0", "from 1"])
def test_a_label_is_a_name_or_a_number_in_any_file(tmp_path: Path, suffix: str, labels: str) -> None:
    first = int(labels == "from 1")
    rows = [(text, name if labels == "names" else NEWS.index(name) + first) for text, name in ROWS]
    data = read(written(tmp_path / f"news.{suffix}", rows), first_label=first)
    assert data.captions == ["A war, and peace", "He ran away", 'A "chip"', "He won"]
    assert data.owner.tolist() == [0, 1, 2, 1] and data.classes == data.image_ids == NEWS
    assert (data.name, data.split, len(data), data.notes) == ("news", "test", 3, [])
    assert data.relevance(torch.arange(3), torch.arange(4)).int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert data.provenance() == {"fingerprint": data.fingerprint, "sentences": 4, "classes": 3, "skipped": 0}


def test_names_that_are_numbers_win_and_floats_of_a_column_with_gaps_are_numbers(tmp_path: Path) -> None:
    stars = read(written(tmp_path / "a.csv", [("good", 2), ("bad", 1)]), classes=["2", "1"])
    assert stars.owner.tolist() == [0, 1]
    gaps = written(tmp_path / "b.parquet", [("good", 1.0), ("none", None), ("bad", 0.0)])
    assert read(gaps, classes=["no", "yes"], on_error="skip").owner.tolist() == [1, 0]


def test_the_images_are_the_numbers_of_the_classes(tmp_path: Path) -> None:
    data = read(written(tmp_path / "news.csv", ROWS))
    images = data.images(torch.tensor([2, 0]))
    assert images.shape == (2, 3, 1, 1) and images.dtype == torch.float32 and images.max() <= 1
    assert numbers_in(images).tolist() == [2, 0]
    many = torch.tensor([0, 1, 999, 65537, (1 << 20) - 1])
    assert numbers_in(as_pixels(many)).tolist() == many.tolist()
    with pytest.raises(IndexError):
        data.images(torch.tensor([3]))


def test_the_first_so_many_in_the_order_of_the_files(tmp_path: Path) -> None:
    for number in range(2):
        written(tmp_path / f"news-{number}.csv", [(f"{number}{row}", "Sports") for row in range(3)])
    written(tmp_path / "news_train.csv", [("x", "Sports")])
    data = read(tmp_path / "news-*.csv", limit=4)
    assert data.captions == ["00", "01", "02", "10"] and data.name == tmp_path.name
    assert data.notes == ["No sentence is of the class World, Sci/Tech."]
    # A row behind the limit is not looked at; without it, it is a fault.
    bad = written(tmp_path / "bad.csv", [("a", "World"), ("b", "Wrold")])
    assert read(bad, limit=1).captions == ["a"]
    assert Sentences(tmp_path / "news_{split}.csv", NEWS, split="train").captions == ["x"]
    with pytest.raises(UserError, match="it is of the split 'train'"):
        read(tmp_path / "news_train.csv")


def test_the_fingerprint_is_that_of_texts_labels_and_class_names(tmp_path: Path) -> None:
    table = written(tmp_path / "a.csv", ROWS)
    data = read(table)
    assert read(written(tmp_path / "b.parquet", ROWS)).fingerprint == data.fingerprint
    others = [read(table, classes=[*NEWS, "Business"]), read(table, limit=3)]
    others.append(read(written(tmp_path / "c.csv", [(text, "World") for text, _ in ROWS])))
    assert len({each.fingerprint for each in [data, *others]}) == 4
    assert read(table, fingerprint={"test": data.fingerprint}).fingerprint == data.fingerprint
    with pytest.raises(UserError, match=r"dataset\.fingerprint is 0"):
        read(table, fingerprint="0")


def pictures(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([len(name), number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_pictures_of_the_classes_one_or_more_of_each(tmp_path: Path) -> None:
    table, root = (
        written(tmp_path / "news.csv", ROWS),
        pictures(tmp_path / "p", {"World": 1, "Sports": 3, "Sci/Tech": 2}),
    )
    data, texts = read(table, class_images=root, image_size=8), read(table)
    assert texts.pictures() is None and texts.fingerprint != data.fingerprint
    found = data.pictures()
    assert found is not None and [tuple(each.shape) for each in found] == [(1, 3, 8, 8), (3, 3, 8, 8), (2, 3, 8, 8)]
    for each, name in zip(found, NEWS, strict=True):
        expected = {np.asarray(Image.open(path)).tobytes() for path in (root / name).glob("*.png")}
        assert {picture.mul(255).round().byte().permute(1, 2, 0).numpy().tobytes() for picture in each} == expected
    (root / "World" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png"):
        read(table, class_images=root, image_size=8)
    with pytest.raises(UserError, match="the class World has no usable picture in"):
        read(table, class_images=root, image_size=8, on_error="skip")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": None}, "dataset.classes is null"),
        (
            {"classes": ["World", "Sports"]},
            r"line 4 has the label 'Sci/Tech', which is none of dataset.classes \(World, ",
        ),
        (
            {"text_column": "title"},
            r"has no column 'title', only text, label: set dataset.text_column, for example to tex",
        ),
        ({"label_column": "x"}, "set dataset.label_column, for example to label"),
        ({"limit": 0}, "dataset.limit is 0"),
        ({"class_images": "nowhere"}, "no folder of pictures for the class World, Sports, Sci/Tech"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(written(tmp_path / "news.csv", ROWS), **settings)


def test_bad_rows_are_counted_and_numbers_beyond_the_classes_hint_at_the_first(tmp_path: Path) -> None:
    table = written(tmp_path / "news.csv", [("a", 1), ("b", 3), (" ", 2), ("c", -1), ("d", 2)])
    with pytest.raises(UserError, match=r"line 3 has the label '3'.* from 0 to 2 \(dataset.first_label=1, where"):
        read(table)
    data = read(table, on_error="skip")
    assert (data.captions, data.skipped) == (["a", "d"], 3) and data.notes[0].startswith("3 entries were left out")
    with pytest.raises(UserError, match="has no usable sentence: it has no row"):
        read(written(tmp_path / "empty.csv", []))
    with pytest.raises(UserError, match=r"dataset.table is .*absent.csv, which does not exist"):
        read(tmp_path / "absent.csv")
