"""Small archives of labelled images in the layouts that torchvision unpacks; each function writes one into a folder."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

PER_SPLIT = 6  # images; two classes take turns, or one stands after the other as in the archive


def image(path: Path, seed: int, size: tuple[int, int] = (20, 14)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def seeds(split: str) -> range:
    start = {"train": 0, "val": 100, "test": 200}[split]
    return range(start, start + PER_SPLIT)


def oxford_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, file in (("train", "trainval"), ("test", "test")):
        names = [
            (("Abyssinian", "yorkshire_terrier")[seed % 2] + f"_{seed}", seed % 2 + 1, seed) for seed in seeds(split)
        ]
        lines = [f"{name} {label} {label} 1\n" for name, label, _ in names]
        (base / "annotations" / f"{file}.txt").write_text("".join(lines))
        for name, _, seed in names:
            image(base / "images" / f"{name}.jpg", seed)


def flowers102(root: Path) -> None:
    base, splits = root / "flowers-102", {"trnid": "train", "valid": "val", "tstid": "test"}
    for seed in (seed for split in splits.values() for seed in seeds(split)):
        image(base / "jpg" / f"image_{seed + 1:05d}.jpg", seed)
    ids = {key: np.array([[seed + 1 for seed in seeds(split)]]) for key, split in splits.items()}
    savemat(base / "setid.mat", ids)
    savemat(base / "imagelabels.mat", {"labels": np.array([[seed % 102 + 1 for seed in range(300)]])})


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [f"{('banded', 'dotted')[seed % 2]}/{seed}.jpg" for seed in seeds(split)]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        for name, seed in zip(names, seeds(split), strict=True):
            image(base / "images" / name, seed)


def fgvc_aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    (base / "images").mkdir(parents=True)
    (base / "variants.txt").write_text("707-320\nF-16A/B\n")
    for split in ("train", "val", "test"):
        lines = [f"{seed:07d} {('707-320', 'F-16A/B')[seed % 2]}\n" for seed in seeds(split)]
        (base / f"images_variant_{split}.txt").write_text("".join(lines))
        for seed in seeds(split):
            image(base / "images" / f"{seed:07d}.jpg", seed)


def stanford_cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General 2000", "Ram C/V 2012"], object)})
    dtype = [("class", object), ("fname", object)]
    places = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, place in places.items():
        rows = np.array([(seed % 2 + 1, f"{seed:05d}.jpg") for seed in seeds(split)], dtype)
        savemat(base / place, {"annotations": rows})
        for seed in seeds(split):
            image(base / f"cars_{split}" / f"{seed:05d}.jpg", seed)


def food101(root: Path) -> None:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        listed = {
            name: [f"{name}/{seed}" for seed in seeds(split) if seed % 2 == i]
            for i, name in enumerate(("apple_pie", "pho"))
        }
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for name, files in listed.items():
            for file in files:
                image(base / "images" / f"{file}.jpg", int(file.removeprefix(f"{name}/")))


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    for seed in seeds("train"):
        image(base / "GTSRB" / "Training" / f"{seed % 2:05d}" / f"{seed}.ppm", seed)
    with (tmp := base / "GT-final_test.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerows(
            [("Filename", "Width", "ClassId"), *((f"{seed:05d}.ppm", 20, seed % 43) for seed in seeds("test"))]
        )
    assert tmp.is_file()
    for seed in seeds("test"):
        image(base / "GTSRB" / "Final_Test" / "Images" / f"{seed:05d}.ppm", seed)


def country211(root: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        for seed in seeds(split):
            image(root / "country211" / name / ("AD", "ZW")[seed % 2] / f"{seed}.jpg", seed)


def caltech101(root: Path) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    for seed in range(12):
        image(base / ("accordion", "wild_cat")[seed % 2] / f"image_{seed // 2 + 1:04d}.jpg", seed)
    image(base / "BACKGROUND_Google" / "image_0001.jpg", 100)


def eurosat(root: Path) -> None:
    for seed in range(12):
        image(root / "eurosat" / "2750" / ("AnnualCrop", "SeaLake")[seed % 2] / f"Sea_{seed}.jpg", seed, (64, 64))


def sun397(root: Path) -> None:
    base = root / "SUN397"
    for seed in range(12):
        image(base / ("a/abbey", "a/apartment_building/outdoor")[seed % 2] / f"sun_{seed}.jpg", seed)
    (base / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n")


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    (base / "class_names.txt").write_text("airplane\nbird\n")
    for split in ("train", "test"):
        pixels = [np.random.default_rng(seed).integers(0, 256, (3, 96, 96), dtype=np.uint8) for seed in seeds(split)]
        np.stack(pixels).tofile(base / f"{split}_X.bin")
        np.array([seed % 2 + 1 for seed in seeds(split)], np.uint8).tofile(base / f"{split}_y.bin")
    (base / "unlabeled_X.bin").touch()


def svhn(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for split in ("train", "test"):
        pixels = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8) for seed in seeds(split)]
        labels = np.array([[10 if seed % 10 == 0 else seed % 10] for seed in seeds(split)], np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": np.stack(pixels, axis=-1), "y": labels})


def pcam(root: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="PCAM lies in HDF5 files, which take h5py")
    base = root / "pcam"
    base.mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        pixels = [np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8) for seed in seeds(split)]
        with h5py.File(base / f"camelyonpatch_level_2_split_{name}_x.h5", "w") as file:
            file["x"] = np.stack(pixels)
        with h5py.File(base / f"camelyonpatch_level_2_split_{name}_y.h5", "w") as file:
            file["y"] = np.array([seed % 2 for seed in seeds(split)], np.uint8).reshape(-1, 1, 1, 1)


def folders(root: Path, names: list[str], start: int = 0) -> None:
    """An 8 x 8 image in each folder, all different."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        pixels = np.random.default_rng(start + place).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{place}.JPEG", "png")  # ImageNet has such files too


def imagenet(root: Path) -> None:
    from robustcli.data.imagenet import synsets_of

    folders(root / "train", synsets_of("imagenet"))
    folders(root / "val", synsets_of("imagenet"), 1000)


# By the name of the choice in conf/dataset: the writer, and what beside the folder has to be said of so small a set.
ARCHIVES: Mapping[str, tuple[Callable[[Path], None], Mapping[str, Any]]] = {
    **{
        writer.__name__: (writer, {"image_size": 16, "whole": False, "val_share": 0.4})
        for writer in (oxford_pets, stanford_cars, food101, gtsrb)
    },
    **{
        writer.__name__: (writer, {"image_size": 16, "whole": False})
        for writer in (flowers102, dtd, fgvc_aircraft, country211)
    },
    **{
        writer.__name__: (writer, {"image_size": 16, "whole": False, "val_share": 0.4, "test_share": 0.4})
        for writer in (caltech101, eurosat, sun397)
    },
    "stl10": (stl10, {"val_share": 0.4}),
    "svhn": (svhn, {"val_share": 0.4}),
    "pcam": (pcam, {}),
    "imagenet": (imagenet, {"image_size": 8, "whole": False}),
}


def accept_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take the small files for the real ones, whose sums it knows."""
    for module in ("stl10", "svhn", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5: Path(path).is_file())
