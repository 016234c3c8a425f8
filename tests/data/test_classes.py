"""Sets of labelled images: the class list, the readers of files and the embedded sets."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data import (
    Cifar10,
    Cifar100,
    ClassArrays,
    ClassFolders,
    Digits,
    ImageClassData,
    KarpathyJSON,
    Mnist,
    SceneClasses,
)
from robustcli.data.classes import class_list, held_out
from robustcli.data.scenes.captions import vocabulary
from robustcli.data.scenes.world import ATTRIBUTES, TEXTURES, scene_keys, single_objects
from robustcli.utils.errors import UserError

SCENES = {"train": 60, "val": 30, "test": 30}
ALL = torch.arange(10_000)


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten cats, red and of different depth, and ten dogs, blue; three of each to test."""
    for split, count in (("train", 10), ("test", 3)):
        for i in range(count):
            picture(tmp_path / split / "cat" / f"{i}.png", (100 + i, 0, 0))
            picture(tmp_path / split / "dog" / f"{i}.png", (0, 0, 100 + i))
    return tmp_path


def folders(root: Path, split: str = "test", **change: object) -> ClassFolders:
    return ClassFolders(root, **{"split": split, "classes": ["dog", "cat"], "image_size": 8, **change})  # type: ignore[arg-type]


def test_labels_follow_the_list_and_not_the_disk(folder: Path) -> None:
    data = folders(folder)
    assert data.classes == ("dog", "cat") and len(data) == 6
    pixels = data.images(torch.arange(6))
    assert pixels.shape == (6, 3, 8, 8) and pixels.dtype == torch.float32
    assert torch.equal(pixels[:, 0, 0, 0] > 0, data.labels == 1), "the red ones are the cats"
    turned = folders(folder, classes=["cat", "dog"])
    assert torch.equal(turned.labels, 1 - data.labels) and turned.image_ids == data.image_ids
    assert turned.fingerprint != data.fingerprint, "the order of the classes is part of the set"
    assert data.provenance() == {"fingerprint": data.fingerprint, "images": 6, "classes": 2, "skipped": 0}


def test_the_first_images_are_of_all_classes(folder: Path) -> None:
    data = folders(folder, "train", limit=8)
    assert len(data) == 8 and set(data.labels.tolist()) == {0, 1}
    assert data.image_ids == folders(folder, "train").image_ids[:8]


def test_where_the_folders_stand_does_not_matter(folder: Path) -> None:
    before = folders(folder).fingerprint
    (folder / "test").rename(folder / "images-test")
    assert folders(folder / "images-{split}").fingerprint == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, r"dataset\.classes is null.* has the folders cat, dog; write dataset\.classes=\[cat,dog\]"),
        ({"classes": ["dog", "cat", "cow"]}, r"lists 'cow', but .* has the folders cat, dog"),
        ({"classes": ["dog", "fish"]}, "lists 'fish'"),
        ({"classes": ["dog", True]}, r"lists 'True', .* \(names such as true, .* need quotes"),
        ({"classes": ["dog", "cat", "dog"]}, "has 'dog' twice"),
        ({"classes": ["dog"]}, "expected at least two"),
        ({"split": "val"}, r"no folder .*val: .*dataset\.val_share"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"limit": 0}, r"dataset\.limit is 0"),
        ({"val_share": 1.0, "split": "train"}, r"dataset\.val_share is 1\.0"),
        ({"fingerprint": "0" * 64}, "not those that were pinned"),
    ],
)
def test_mistakes_in_folders(folder: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        folders(folder, **change)


def test_a_folder_that_is_not_listed_and_an_empty_one_are_errors(folder: Path) -> None:
    (folder / "test" / "cow").mkdir()
    with pytest.raises(UserError, match=r"has the folder 'cow', which dataset\.classes does not list"):
        folders(folder)
    with pytest.raises(UserError, match="the class 'cow' has no image"):
        folders(folder, classes=["dog", "cat", "cow"])


def test_a_wrong_archive_is_met_before_its_images_are(folder: Path) -> None:
    named = {"name": "pets", "class_count": 3, "counts": {"test": 8}}
    with pytest.raises(
        UserError, match=r"the list of the 3 classes of pets comes with its archive; .* has the folders"
    ):
        folders(folder, **named, classes=None)
    with pytest.raises(UserError, match="has 2 names, but pets has 3 classes"):
        folders(folder, **named)
    with pytest.raises(UserError, match="has 6 images, but the split 'test' of pets has 8: unpack the archive anew"):
        folders(folder, **{**named, "class_count": 2})
    whole = folders(folder, **{**named, "class_count": 2, "counts": {"test": 6}}, limit=2)
    assert whole.name == "pets" and len(whole) == 2, "a limit is no wrong archive"
    assert len(folders(folder, "val", val_share=0.3, counts={"train": 20, "val": 1})) < 20, "counted before the share"
    with pytest.raises(UserError, match=r"dataset\.fit is 'fill': choose one of crop, squash, letterbox"):
        folders(folder, fit="fill")
    (folder / "unpacked").mkdir()
    (folder / "test").rename(folder / "unpacked" / "test")
    with pytest.raises(UserError, match=rf"the folder 'test' is one level deeper: set dataset\.root={folder}/unpacked"):
        folders(folder)


def test_a_folder_without_the_split_says_what_lies_there_instead(folder: Path) -> None:
    (folder / "test").rename(folder / "validation")
    with pytest.raises(UserError, match=r"no folder .*/test: judge on one that is there, evaluation\.split=val, or"):
        folders(folder)
    with pytest.raises(UserError, match=rf"its own folders are classes: move them into {folder}/validation/test; in"):
        folders(folder / "validation")


def test_the_folder_of_val_may_be_called_validation(folder: Path) -> None:
    (folder / "test").rename(folder / "validation")
    assert len(folders(folder, "val")) == 6 and len(folders(Path(f"{folder}/{{split}}"), "val")) == 6


@pytest.mark.parametrize(("name", "content"), [("classes.txt", "dog\n\ncat\n"), ("classes.json", '["dog", "cat"]')])
def test_the_list_may_stand_in_a_file(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert folders(folder, classes=str(folder / name)).classes == ("dog", "cat")


def test_bad_lists_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"dog": 1}')
    with pytest.raises(UserError, match="holds no list of names"):
        class_list(tmp_path / "a.json", "dataset.classes", "")
    with pytest.raises(UserError, match="does not exist"):
        class_list("nowhere.txt", "dataset.classes", "")


def test_bad_images_are_named_or_skipped_and_counted(folder: Path) -> None:
    (folder / "test" / "cat" / "1.png").write_bytes(b"no image")
    (folder / "test" / "cat" / "readme.txt").write_text("cats")
    with pytest.raises(UserError, match=r"readme\.txt is not an image file"):
        folders(folder)
    data = folders(folder, on_error="skip")
    assert data.skipped == 2 and len(data) == 5 and "cat/1.png" not in data.image_ids
    assert torch.equal(data.images(torch.arange(5))[:, 0, 0, 0] > 0, data.labels == 1), "labels moved with their images"


def test_a_picture_in_two_classes_is_told(folder: Path, tmp_path: Path) -> None:
    assert not any("several classes" in note for note in folders(folder).notes)
    picture = next((folder / "test" / "dog").iterdir())
    shutil.copy(picture, folder / "test" / "cat" / f"again{picture.suffix}")
    told = [note for note in folders(folder).notes if "several classes" in note]
    assert told == ["1 pictures stand in several classes, for example one in 'dog' and 'cat': at most one is right."]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=np.concatenate([pixels, pixels[:1]]), labels=np.array([0, 1, 2, 2]))
    data = ClassArrays(tmp_path / "{split}.npz", split="test", classes=3)
    assert [note for note in data.notes if "one in '0' and '2'" in note]


def test_a_share_of_train_is_val(folder: Path) -> None:
    parts = {split: set(folders(folder, split, val_share=0.3).image_ids) for split in ("train", "val")}
    assert not parts["train"] & parts["val"]
    assert parts["train"] | parts["val"] == set(folders(folder, "train").image_ids)
    assert 0 < len(parts["val"]) < 10
    assert held_out([str(i) for i in range(4000)], 0.25).float().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("layout", "shape"), [(None, (5, 8, 6)), (None, (5, 8, 6, 3)), (None, (5, 3, 8, 6)), ("NCHW", (5, 3, 8, 3))]
)
def test_arrays_of_every_layout(tmp_path: Path, layout: str | None, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=pixels, labels=np.array([0, 1, 2, 1, 0]))
    data = ClassArrays(tmp_path / "{split}.npz", split="test", classes=3, layout=layout)
    channels = 1 if len(shape) == 3 else 3
    found = data.images(torch.tensor([2]))[0]
    assert found.shape[0] == channels and data.classes == ("0", "1", "2") and data.labels.tolist() == [0, 1, 2, 1, 0]
    own = pixels[2][..., None] if len(shape) == 3 else pixels[2]
    expected = own if shape[1] == 3 else own.transpose(2, 0, 1)
    assert torch.equal(found, torch.from_numpy(expected.astype(np.float32)) / 255)


def test_arrays_of_floats_with_keys_and_names_of_their_own(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 4 * 4 * 4).reshape(4, 4, 4)
    np.savez(tmp_path / "a.npz", x_test=pixels, y_test=np.array([[0], [1], [1], [0]]), names=np.array(list("abcd")))
    data = ClassArrays(
        tmp_path / "a.npz",
        split="test",
        classes=["n", "y"],
        images="x_{split}",
        labels="y_{split}",
        ids="names",
        limit=3,
    )
    assert data.image_ids == ["a", "b", "c"] and data.images(ALL[:3]).max() == pytest.approx(pixels[2].max())


@pytest.mark.parametrize(
    ("arrays", "change", "message"),
    [
        ({}, {"classes": None}, r"dataset\.classes is null"),
        ({}, {"holds": None}, r"set dataset\.holds"),
        ({}, {"holds": "train"}, r"holds the split 'train'.*a file for each split, with \{split\}"),
        ({}, {"images": "x"}, r"no array 'x', only images, labels"),
        ({}, {"layout": "NHWC"}, r"dataset\.layout is NHWC"),
        ({"images": np.full((2, 4, 4), 2.0)}, {}, r"floats in \[0, 1\]"),
        ({"images": np.full((2, 4, 4), np.nan)}, {}, "without NaN"),
        ({"images": np.zeros((2, 4, 4), np.int32)}, {}, "expected uint8"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, {}, "does not tell its layout"),
        ({"images": np.zeros((2, 3, 3, 3), np.uint8)}, {}, "does not tell its layout"),
        ({"labels": np.array([0, 3])}, {}, "labels from 0 to 3"),
        ({"labels": np.array([0.0, 1.0])}, {}, "expected one whole number"),
        ({"labels": np.array([0])}, {}, "expected one whole number"),
        ({"labels": np.array([0, {}], dtype=object)}, {}, "Python objects"),
        ({"ids": np.array([1, 1])}, {"ids": "ids"}, "1 different names for 2 images"),
    ],
)
def test_mistakes_in_arrays(tmp_path: Path, arrays: dict[str, object], change: dict[str, object], message: str) -> None:
    stored = {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 1]), **arrays}
    np.savez(tmp_path / "a.npz", **stored)  # type: ignore[arg-type]
    settings = {"split": "test", "classes": 2, "holds": "test", **change}
    with pytest.raises(UserError, match=message):
        ClassArrays(tmp_path / "a.npz", **settings)  # type: ignore[arg-type]


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK but no archive")
    with pytest.raises(UserError, match="cannot be read"):
        ClassArrays(tmp_path / "a.npz", split="test", classes=2, holds="test")


def test_digits_are_split_by_class_without_overlap() -> None:
    parts = {split: Digits(split=split) for split in ("train", "val", "test")}
    names = [set(data.image_ids) for data in parts.values()]
    assert len(set.union(*names)) == sum(map(len, names)) == 1797
    for data in parts.values():
        shares = torch.bincount(data.labels) / len(data)
        assert shares.min() > 0.09 and shares.max() < 0.11
        pixels = data.images(torch.arange(len(data)))
        assert pixels.shape[1:] == (1, 8, 8) and float(pixels.min()) == 0 and float(pixels.max()) == 1
    assert Digits(split="test", seed=1).image_ids != parts["test"].image_ids
    assert Digits(split="test").fingerprint == parts["test"].fingerprint


def test_digits_keep_their_labels() -> None:
    from sklearn.datasets import load_digits

    stored, data = load_digits(), Digits(split="val")
    for row in (0, 7, 100):
        place = int(data.image_ids[row].removeprefix("digit-"))
        assert int(stored.target[place]) == int(data.labels[row])
        assert np.array_equal(stored.images[place] / 16, data.images(torch.tensor([row]))[0, 0].double().numpy())


def test_scenes_of_one_object_are_complete_and_split() -> None:
    keys = [scene_keys(single_objects(split)) for split in ("train", "val", "test")]
    together = np.concatenate(keys)
    assert len(np.unique(together)) == len(together) == np.prod([len(names) for names in ATTRIBUTES]) * len(TEXTURES)
    assert len(keys[0]) > 6 * len(keys[1]) and all((single_objects(s).counts == 1).all() for s in ("train", "val"))


def test_scene_classes_show_their_class() -> None:
    shapes = SceneClasses("shape", split="test", **SCENES)
    colours = SceneClasses("colour", split="test", **SCENES)
    assert torch.equal(shapes.images(ALL[:30]), colours.images(ALL[:30])), "the attribute changes the label alone"
    assert not torch.equal(shapes.labels, colours.labels) and shapes.fingerprint != colours.fingerprint
    assert SceneClasses("shape", split="test", **SCENES).fingerprint == shapes.fingerprint
    red, blue = (colours.images(torch.nonzero(colours.labels == i).flatten()) for i in (0, 2))
    assert _spread(red, 0) > _spread(blue, 0) and _spread(blue, 2) > _spread(red, 2)


def test_every_attribute_of_a_scene_is_a_class_that_templates_tell() -> None:
    sets = {name: SceneClasses(name, split="test", **SCENES) for name in ("colour", "shape", "size", "place")}
    assert [data.classes for data in sets.values()] == list(ATTRIBUTES)
    for place, (name, data) in enumerate(sets.items()):
        assert torch.equal(data.images(ALL[:9]), sets["shape"].images(ALL[:9]))
        assert len(data.labels.unique()) == len(ATTRIBUTES[place])
        said = {word for template in data.templates for word in template.split()} - {"{}"}
        assert data.templates and all("{}" in template for template in data.templates), name
        assert said <= set(vocabulary())
    golden = SceneClasses("shape", split="test", train=8, val=8, test=40).fingerprint
    assert golden == "6c5e059dbc34069148b5f369dc7319e9614ffc511d0e762563791094855ff52a", "made before there were four"


def _spread(images: torch.Tensor, channel: int) -> float:
    """Excess of the brightest pixels of a channel over the mean of all, as an object of that colour makes it."""
    flat = images[:, channel].flatten(1)
    others = images.mean(1).flatten(1)
    return float((flat - others).amax(1).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribute": "texture"}, r"dataset\.attribute is 'texture'"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"size": 48}, r"dataset\.size is 48"),
        ({"train": 0, "split": "train"}, r"dataset\.train is 0"),
    ],
)
def test_mistakes_in_scene_classes(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SceneClasses(**{"split": "test", **SCENES, **change})  # type: ignore[arg-type]


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, hundred: bool) -> None:
    """A set of CIFAR's layout, small, whose sums torchvision is told."""
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = CIFAR100 if hundred else CIFAR10
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    names = [f"class {i}" for i in range(100 if hundred else 10)]
    key, labels = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
    rng = np.random.default_rng(0)
    for file, _ in [*reader.train_list, *reader.test_list]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, key: [i % len(names) for i in range(20)]}))
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps({labels: names}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).is_file())


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_as_torchvision_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Cifar10]) -> None:
    cifar(tmp_path, monkeypatch, kind is Cifar100)
    parts = {split: kind(tmp_path, split=split, val_share=0.3) for split in ("train", "val", "test")}
    assert len(parts["test"]) == 20 and parts["test"].images(ALL[:20]).shape == (20, 3, 32, 32)
    assert len(set(parts["train"].image_ids) | set(parts["val"].image_ids)) == (20 if kind is Cifar100 else 100)
    assert not set(parts["train"].image_ids) & set(parts["val"].image_ids) and len(parts["val"]) > 0
    assert parts["test"].labels.tolist() == [i % len(parts["test"].classes) for i in range(20)]


def test_mnist_as_torchvision_keeps_it(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 7)):
        pixels = np.full((count, 28, 28), 51, np.uint8)
        images = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        for part, content in (("images-idx3", images), ("labels-idx1", labels)):
            (raw / f"{name}-{part}-ubyte").write_bytes(content)
    data = Mnist(tmp_path, split="test")
    assert data.classes == tuple("0123456789") and data.labels.tolist() == list(range(7))
    assert torch.allclose(data.images(ALL[:7]), torch.full((7, 1, 28, 28), 0.2))


@pytest.mark.parametrize("kind", [Cifar10, Cifar100, Mnist])
def test_sets_that_are_not_there_say_how_to_get_them(tmp_path: Path, kind: type[Cifar10]) -> None:
    with pytest.raises(UserError, match=r"download it once, .*download=True"):
        kind(tmp_path, split="test")


def test_every_set_of_classes_keeps_the_interface(folder: Path) -> None:
    sets: list[ImageClassData] = [Digits(split="val"), SceneClasses(split="val", **SCENES), folders(folder)]
    for data in sets:
        assert len(set(data.image_ids)) == len(data) == len(data.labels)
        assert data.labels.dtype == torch.long and data.labels.min() >= 0 and data.labels.max() < len(data.classes)
        pixels = data.images(torch.tensor([2, 0]))
        assert torch.equal(pixels[1:], data.images(torch.tensor([0]))) and len(data.fingerprint) == 64
        assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1
        assert type(data).__name__ in repr(data)
    assert not issubclass(KarpathyJSON, ImageClassData)
    assert json.dumps(sets[0].provenance())
