"""The contract of every choice of ``dataset=``: a new file in conf/dataset is tested here without another edit.

A set that lies in files has its row in ``FILES``, which makes a small one; a set that is another's YAML with values of
its own (flickr8k is a Karpathy JSON) is tested as that.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from robustcli.builders.data import build_data
from robustcli.config import groups as config_groups
from robustcli.config.compose import compose
from robustcli.data import ImageClassData, ImageTextData
from tests.data import archives

Make = Callable[[Path], list[str]]
Data = ImageTextData | ImageClassData
SPLITS = ("train", "val", "test")


def pictures(root: Path) -> list[tuple[str, str]]:
    """Names below ``root`` and splits of nine images, three a split."""
    rows = [(f"{split}-{number}.png", split) for split in SPLITS for number in range(3)]
    for place, (name, _) in enumerate(rows):
        pixels = np.random.default_rng(place).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return rows


def karpathy(root: Path) -> list[str]:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"{name} is {word}"} for word in ("one", "two")]}
        for name, split in pictures(root)
    ]
    (root / "captions.json").write_text(json.dumps({"dataset": "small", "images": images}))
    return [f"dataset.annotations={root}/captions.json", f"dataset.root={root}", "dataset.image_size=16"]


def table(root: Path) -> list[str]:
    with (root / "captions.csv").open("w", newline="") as file:
        rows = [(name, f"this is {name}", split) for name, split in pictures(root)]
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    words = [f"dataset.table={root}/captions.csv", f"dataset.root={root}", "dataset.image_size=16"]
    return [*words, "dataset.split_column=split"]


def coco_captions(root: Path) -> list[str]:
    rows = pictures(root)
    for split in SPLITS:
        own = [(number, name) for number, (name, of) in enumerate(rows) if of == split]
        images = [{"id": number, "file_name": name} for number, name in own]
        annotations = [{"image_id": number, "caption": f"this is {name}"} for number, name in own]
        (root / f"captions_{split}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return [f"dataset.annotations='{root}/captions_{{split}}.json'", f"dataset.root={root}", "dataset.image_size=16"]


def parquet(root: Path) -> list[str]:
    rows = pictures(root)
    table = {
        "image": [{"bytes": (root / name).read_bytes(), "path": name} for name, _ in rows],
        "caption": [[f"this is {name}", "a picture"] for name, _ in rows],
        "split": [split for _, split in rows],
    }
    pd.DataFrame(table).to_parquet(root / "all.parquet", row_group_size=2)
    return [f"dataset.file={root}/all.parquet", "dataset.split_column=split", "dataset.image_size=16"]


def shards(root: Path) -> list[str]:
    for split in SPLITS:
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for name, own in pictures(root):
                if own != split:
                    continue
                parts = (("png", (root / name).read_bytes()), ("txt", f"this is {name}".encode()))
                for suffix, content in parts:
                    info = tarfile.TarInfo(f"{name.removesuffix('.png')}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return [f"dataset.pattern='{root}/{{split}}.tar'", "dataset.image_size=16"]


def class_folders(root: Path) -> list[str]:
    for place, (name, split) in enumerate(pictures(root)):
        target = root / split / ("cat", "dog")[place % 2]
        target.mkdir(parents=True, exist_ok=True)
        (root / name).rename(target / name)
    return [f"dataset.root={root}", "dataset.classes=[cat,dog]", "dataset.image_size=16"]


def npz(root: Path) -> list[str]:
    for place, split in enumerate(SPLITS):
        pixels = np.random.default_rng(place).integers(0, 256, (3, 8, 8), dtype=np.uint8)
        np.savez(root / f"{split}.npz", images=pixels, labels=np.array([0, 1, 2]))
    return [f"dataset.file='{root}/{{split}}.npz'", "dataset.classes=3"]


def class_shards(root: Path) -> list[str]:
    for place, (name, split) in enumerate(pictures(root)):
        target = root / ("test" if split == "test" else "train")
        target.mkdir(exist_ok=True)
        with tarfile.open(target / f"{place}.tar", "w") as tar:
            for suffix, content in (("png", (root / name).read_bytes()), ("cls", str(place % 2).encode())):
                info = tarfile.TarInfo(f"{name.removesuffix('.png')}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (root / "classnames.txt").write_text("cat\ndog\n")
    return [f"dataset.root={root}", "dataset.image_size=16", "dataset.val_share=0.5"]


def archive(name: str) -> Make:
    def make(root: Path) -> list[str]:
        write, settings = archives.ARCHIVES[name]
        write(root)
        return [f"dataset.root={root}", *(f"dataset.{key}={value}" for key, value in settings.items())]

    return make


FILES: dict[str, Make] = {
    **{name: archive(name) for name in archives.ARCHIVES},
    "class_shards": class_shards,
    "karpathy": karpathy,
    "table": table,
    "coco_captions": coco_captions,
    "parquet": parquet,
    "shards": shards,
    "class_folders": class_folders,
    "npz": npz,
}
# In the layout of a library, which test_classes.py writes; and sentences, which have classes in place of images.
ELSEWHERE = ("cifar10", "sentences")
# Embedded sets whose whole size a test need not wait for.
CHEAP = {
    "scenes": ["dataset.train=24", "dataset.val=8", "dataset.test=8"],
    "scene_classes": ["dataset.train=24", "dataset.val=12", "dataset.test=12"],
}


def own_classes() -> list[str]:
    """The choices that are not another with values of their own, and those of a layout of their own."""
    folder = config_groups.conf_directory() / "dataset"
    bases = {path.stem: yaml.safe_load(path.read_text()).get("defaults") for path in sorted(folder.glob("*.yaml"))}
    return [name for name, base in bases.items() if (base is None or name in FILES) and name not in ELSEWHERE]


@pytest.fixture(params=own_classes())
def build(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Data]:
    name = str(request.param)
    archives.accept_sums(monkeypatch)
    (tmp_path / "files").mkdir()
    words = FILES[name](tmp_path / "files") if name in FILES else CHEAP.get(name, [])
    config = compose("evaluate", [f"dataset={name}", *words]).dataset
    return lambda split: build_data(config, split)


def whole(data: Data) -> torch.Tensor:
    return data.images(torch.arange(len(data)))


def test_images_are_pixels_and_each_is_itself_in_any_order(build: Callable[[str], Data]) -> None:
    data = build("test")
    images = whole(data)
    assert images.ndim == 4 and images.shape[0] == len(data) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0
    order = torch.tensor([len(data) - 1, 0, 0])
    assert torch.equal(data.images(order), images[order])
    assert data.images(order[:0]).shape == (0, *images.shape[1:])


@pytest.mark.parametrize("place", [-1, 10**6])
def test_a_place_that_is_not_there_is_an_error(build: Callable[[str], Data], place: int) -> None:
    """Python's counting from the end would answer for another image."""
    with pytest.raises(IndexError):
        build("test").images(torch.tensor([place]))


def test_splits_are_built_again_to_the_bit_and_share_no_image(build: Callable[[str], Data]) -> None:
    splits = {split: build(split) for split in SPLITS}
    for split, data in splits.items():
        again = build(split)
        assert data.split == split and len(data) == len(data.image_ids) == len(set(data.image_ids)) > 0
        assert again.fingerprint == data.fingerprint and again.provenance() == data.provenance()
        assert torch.equal(whole(again), whole(data))
        json.dumps(data.provenance())
    assert len({data.fingerprint for data in splits.values()}) == len(SPLITS)
    seen = [image.tobytes() for data in splits.values() for image in whole(data).numpy()]
    assert len(set(seen)) >= len(seen) - 1, "a picture of one split stands in another"


def test_what_is_true_of_an_image_fits_to_it(build: Callable[[str], Data]) -> None:
    data = build("test")
    every = torch.arange(len(data))
    if isinstance(data, ImageClassData):
        assert data.labels.shape == (len(data),) and data.labels.dtype == torch.long
        assert data.labels.min() >= 0 and data.labels.max() < len(data.classes) == len(set(data.classes))
        return
    captions = torch.arange(len(data.captions))
    assert data.owner.shape == captions.shape and all(caption.strip() for caption in data.captions)
    assert [data.owner[rows].unique().tolist() for rows in data.captions_of()] == [[row] for row in every.tolist()]
    relation = data.relevance(every, captions)
    assert relation.dtype == torch.bool and bool(relation[data.owner, captions].all())
    assert torch.equal(data.relevance(every[:2], captions[-3:]), relation[:2, -3:]), "blocks of one relation"
    assert torch.equal(data.positives(every, captions).matrix(), relation)
    shuffled = captions.flip(0)[:7].repeat(2)  # rows in any order, and again
    assert torch.equal(data.positives(every[-2:], shuffled).matrix(), relation[-2:][:, shuffled])
