"""The sets of the field's zero-shot tables: torchvision's archives, ImageNet and its variants, shards of classes."""

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from robustcli.builders.hook import construct
from robustcli.cli.main import app
from robustcli.config.compose import compose
from robustcli.data import Cifar10, Cifar100, ClassShards, ImageClassData, ImageNet, Mnist
from robustcli.data.decode import decode
from robustcli.data.imagenet import VARIANTS, class_names, synsets_of
from robustcli.data.torchvision_files import ARCHIVES
from robustcli.utils.errors import UserError
from tests.data import archives

BENCHMARKS = {
    "caltech101": "caltech101",
    "country211": "country211",
    "dtd": "dtd",
    "eurosat": "eurosat",
    "fgvc_aircraft": "fgvc_aircraft",
    "flowers102": "flowers",
    "food101": "food101",
    "gtsrb": "gtsrb",
    "imagenet": "imagenet1k",
    "oxford_pets": "pets",
    "pcam": "pcam",
    "stanford_cars": "cars",
    "stl10": "stl10",
    "sun397": "sun397",
    "svhn": "svhn",
}


@pytest.fixture(autouse=True)
def sums(monkeypatch: pytest.MonkeyPatch) -> None:
    archives.accept_sums(monkeypatch)


def build(name: str, root: Path, split: str = "test", **change: Any) -> ImageClassData:
    settings = {"root": str(root), **archives.ARCHIVES[name][1], **change}
    words = [
        f"dataset={name}",
        *(f"++dataset.{key}={'null' if value is None else value}" for key, value in settings.items()),
    ]
    data: ImageClassData = construct(dict(compose("evaluate", words).dataset), node="dataset", split=split)
    return data


def small(name: str, root: Path, split: str = "test", **change: Any) -> ImageClassData:
    archives.ARCHIVES[name][0](root)
    return build(name, root, split, **change)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_every_archive_has_a_small_one_here() -> None:
    assert {*ARCHIVES, "stl10", "svhn", "pcam", "imagenet"} == set(archives.ARCHIVES) == set(BENCHMARKS)


@pytest.mark.parametrize("name", ARCHIVES)
def test_images_and_labels_are_those_that_torchvision_gives(name: str, tmp_path: Path) -> None:
    from torchvision import datasets

    facts = ARCHIVES[name]
    data = small(name, tmp_path, image_size=12, **({"test_share": 1.0} if not facts.splits else {}))
    arguments = {"split": facts.splits["test"]} if facts.splits else {}
    theirs = getattr(datasets, facts.reader)(str(tmp_path), **arguments, download=False)
    expected = sorted((decode(png(image), 12).pixels.tobytes(), int(label)) for image, label in theirs)
    pixels = (data.images(torch.arange(len(data))) * 255).round().to(torch.uint8).numpy()
    assert sorted((each.tobytes(), label) for each, label in zip(pixels, data.labels.tolist(), strict=True)) == expected
    assert len(expected) == (12 if not facts.splits else archives.PER_SPLIT)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("caltech101", ("accordion", "wild cat")),
        ("oxford_pets", ("Abyssinian", "Yorkshire Terrier")),
        ("dtd", ("banded", "dotted")),
        ("fgvc_aircraft", ("707-320", "F-16A/B")),
        ("stanford_cars", ("AM General 2000", "Ram C/V 2012")),
        ("food101", ("apple pie", "pho")),
        ("sun397", ("abbey", "apartment building outdoor")),
        ("eurosat", ("AnnualCrop", "SeaLake")),
        ("country211", ("AD", "ZW")),
        ("gtsrb", tuple(map(str, range(43)))),
        ("stl10", ("airplane", "bird")),
        ("svhn", tuple("0123456789")),
    ],
)
def test_classes_are_called_as_torchvision_calls_them(name: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    data = small(name, tmp_path)
    assert data.classes == classes and data.name == name and data.benchmark == BENCHMARKS[name] and not data.templates


def test_flowers_have_the_names_of_torchvision(tmp_path: Path) -> None:
    classes = small("flowers102", tmp_path).classes
    assert len(set(classes)) == 102 and classes[0] == "pink primrose"


def test_clip_benchmark_knows_the_sets_by_their_names() -> None:
    package = pytest.importorskip("clip_benchmark.datasets", reason="clip-benchmark is not installed")
    folder = Path(package.__file__).parent
    templates = json.loads((folder / "en_zeroshot_classification_templates.json").read_text())
    known = {*BENCHMARKS.values(), *(str(kind.benchmark) for kind in (Cifar10, Cifar100, Mnist, ImageNet))}
    assert known <= set(templates)


@pytest.mark.parametrize("kind", [Cifar10, Cifar100, Mnist])
def test_a_set_says_what_clip_benchmark_calls_it(kind: type[ImageClassData]) -> None:
    assert kind.benchmark == kind.__name__.lower() and ImageClassData.benchmark is None


def test_svhn_and_stl10_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    from torchvision import datasets

    for name, reader in (("stl10", datasets.STL10), ("svhn", datasets.SVHN)):
        data, theirs = small(name, tmp_path / name), reader(str(tmp_path / name), split="test", download=False)
        for row, (image, label) in enumerate(theirs):
            own = (data.images(torch.tensor([row]))[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            assert np.array_equal(own, np.asarray(image)) and int(data.labels[row]) == label
    (tmp_path / "stl10" / "stl10_binary" / "class_names.txt").unlink()
    with pytest.raises(UserError, match=r"has no class_names\.txt"):
        build("stl10", tmp_path / "stl10")


def test_the_first_images_are_of_all_classes_and_a_limit_is_no_other_archive(tmp_path: Path) -> None:
    data = small("food101", tmp_path, "train", val_share=0.0)
    few = build("food101", tmp_path, "train", val_share=0.0, limit=3)  # the archive lists three of one class first
    assert set(few.labels.tolist()) == {0, 1} and list(few.image_ids) == list(data.image_ids)[:3]
    assert few.fingerprint != data.fingerprint


def test_the_fingerprint_is_of_content_names_and_labels(tmp_path: Path) -> None:
    before = small("dtd", tmp_path / "a").fingerprint
    assert small("dtd", tmp_path / "b").fingerprint == before, "the folder does not matter"
    listed = tmp_path / "b" / "stanford_cars"
    cars = small("stanford_cars", tmp_path / "b")
    from scipy.io import loadmat, savemat

    file = listed / "cars_test_annos_withlabels.mat"
    rows = loadmat(file, squeeze_me=True)["annotations"]
    rows["class"] = 3 - rows["class"]
    savemat(file, {"annotations": rows})
    again = build("stanford_cars", tmp_path / "b")
    assert torch.equal(again.labels, 1 - cars.labels) and again.fingerprint != cars.fingerprint


def test_a_part_of_an_archive_is_told_before_its_images_are_decoded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 6 images, but the split 'test' of dtd has 1880: .*dataset\.whole=false"):
        small("dtd", tmp_path, whole=True)
    with pytest.raises(UserError, match="has 12 images, but the split 'all' of eurosat has 27000"):
        small("eurosat", tmp_path, whole=True)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("food101", {"test_share": 0.5}, "food101 has a split test of its own"),
        ("food101", {"val_share": 0.0, "split": "val"}, r"food101 has no split 'val': set dataset\.val_share above 0"),
        ("food101", {"val_share": 1.0}, r"dataset\.val_share is 1\.0"),
        ("food101", {"split": "dev"}, "no split 'dev'"),
        ("food101", {"archive": "food102"}, r"dataset\.archive is 'food102': choose one of caltech101"),
        ("food101", {"fit": "fill"}, r"dataset\.fit is 'fill'"),
        ("food101", {"limit": 0}, r"dataset\.limit is 0"),
        ("eurosat", {"test_share": None}, r"dataset\.test_share is None, but eurosat has no splits of its own"),
        (
            "eurosat",
            {"test_share": 1.0, "split": "train"},
            r"'train' of eurosat is empty .* and dataset\.test_share=1\.0",
        ),
    ],
)
def test_mistakes_in_archives(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        small(name, tmp_path, **change)


def test_a_missing_image_and_a_damaged_one_are_named_or_skipped(tmp_path: Path) -> None:
    small("oxford_pets", tmp_path)
    files = sorted((tmp_path / "oxford-iiit-pet" / "images").glob("*_20?.jpg"))
    files[0].unlink()
    with pytest.raises(UserError, match=rf"the image {files[0]} is missing"):
        build("oxford_pets", tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:200])
    with pytest.raises(UserError, match=r"is missing|is damaged or truncated"):
        build("oxford_pets", tmp_path)
    data = build("oxford_pets", tmp_path, on_error="skip")
    assert data.skipped == 2 and len(data) == archives.PER_SPLIT - 2
    assert all(int(label) == ("yorkshire" in name) for name, label in zip(data.image_ids, data.labels, strict=True))


def test_lists_that_point_elsewhere_are_refused(tmp_path: Path) -> None:
    small("gtsrb", tmp_path)
    listed = tmp_path / "gtsrb" / "GT-final_test.csv"
    text = listed.read_text()
    listed.write_text(text.replace(";28\n", ";43\n").replace(";28\r\n", ";43\r\n"))
    with pytest.raises(UserError, match="a label that none of its 43 classes has"):
        build("gtsrb", tmp_path)
    listed.write_text(text.replace("00200.ppm", "../../../../../../00200.ppm"))
    with pytest.raises(UserError, match="is outside of"):
        build("gtsrb", tmp_path)
    listed.write_bytes(b"\xff\xfe\x00damaged")
    with pytest.raises(UserError, match="finds no whole GTSRB"):
        build("gtsrb", tmp_path)


def test_nothing_is_made_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*caltech101/101_ObjectCategories\): download it once"):
        build("caltech101", tmp_path)
    assert not list(tmp_path.iterdir()), "torchvision's reader of Caltech101 would make a folder"


def test_pcam_takes_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'robustcli\[hdf5\]'"):
        build("pcam", tmp_path)


def test_pcam_is_read_from_the_file_in_any_order(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="PCAM lies in HDF5 files, which take h5py")
    data = small("pcam", tmp_path)
    with h5py.File(tmp_path / "pcam" / "camelyonpatch_level_2_split_test_x.h5") as file:
        stored = np.asarray(file["x"])
    found = data.images(torch.tensor([4, 0, 4]))
    assert np.array_equal((found * 255).round().byte().permute(0, 2, 3, 1).numpy(), stored[[4, 0, 4]])
    assert (
        data.labels.tolist() == [seed % 2 for seed in archives.seeds("test")]
        and len(build("pcam", tmp_path, limit=2)) == 2
    )
    with h5py.File(tmp_path / "pcam" / "camelyonpatch_level_2_split_test_y.h5", "a") as file:
        file["y"][0] = 2
    with pytest.raises(UserError, match=r"cannot be read \(a label 2\)"):
        build("pcam", tmp_path, limit=3)
    (tmp_path / "pcam" / "camelyonpatch_level_2_split_test_y.h5").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot be read .*: unpack them anew"):
        build("pcam", tmp_path)


# Those that an archive, an account or a page is needed for; what the sentence says of where to get them.
MISSING = {
    **{name: "download it once, `python -c" for name in (*ARCHIVES, "stl10", "svhn", "cifar10", "mnist")},
    "stanford_cars": "torchvision cannot download it any more, so put",
    "imagenet": "with an account at image-net.org",
    "imagenet_r": "unpack imagenet-r.tar of its authors",
    "imagenet_a": "unpack imagenet-a.tar of its authors",
    "imagenet_sketch": "unpack the archive of its authors",
    "imagenetv2": "unpack the matched-frequency archive of its authors",
    "class_shards": "download the set of clip-benchmark on Hugging Face",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_archive_is_one_sentence_and_exit_code_2(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", f"dataset={name}", f"dataset.root={tmp_path / 'nowhere'}", "model=digits", "attacks=quick"]
    result = CliRunner().invoke(app, ["validate", *words], prog_name="robustcli", catch_exceptions=False)
    said = result.output + capfd.readouterr().err
    assert result.exit_code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert MISSING[name] in said and str(tmp_path / "nowhere") in said and "http" not in said
    assert not list(tmp_path.iterdir())


def variant(root: Path, name: str, names: list[str], **change: Any) -> ImageNet:
    archives.folders(root, names)
    return ImageNet(name, root, **{"split": "test", "image_size": 8, "whole": False, **change})


@pytest.mark.parametrize(
    ("name", "listed", "count"), [("imagenet-r", "imagenet_r", 200), ("imagenet-a", "imagenet_a", 200)]
)
def test_variants_of_imagenet_have_the_classes_of_their_own_folders(
    name: str, listed: str, count: int, tmp_path: Path
) -> None:
    synsets = synsets_of(listed)
    data = variant(tmp_path, name, synsets)
    assert len(data) == len(data.classes) == len(set(data.classes)) == count and data.benchmark == "imagenet1k"
    whole = dict(zip(synsets_of("imagenet"), class_names(synsets_of("imagenet")), strict=True))
    for image_id, label in zip(data.image_ids, data.labels.tolist(), strict=True):
        synset = image_id.split("/")[0]
        assert synsets[label] == synset and data.classes[label] == whole[synset]
    with pytest.raises(UserError, match=rf"{name} has no split 'train', only test"):
        ImageNet(name, tmp_path, split="train")


def test_imagenet_has_the_order_of_the_sorted_synsets(tmp_path: Path) -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    data = small("imagenet", tmp_path)
    assert data.name == "imagenet" and len(data) == len(set(data.classes)) == 1000
    folders = sorted(path.name for path in (tmp_path / "val").iterdir())
    assert [folders[label] for label in data.labels.tolist()] == [name.split("/")[0] for name in data.image_ids]
    other = [ours for ours, theirs in zip(data.classes, IMAGENET_CLASSNAMES, strict=True) if ours != theirs]
    assert other == ["projectile", "sunglass"], "open_clip calls two pairs of classes alike"
    assert len(set(build("imagenet", tmp_path, limit=50).labels.tolist())) > 45, "the first ones are of all classes"


def test_imagenetv2_counts_its_folders(tmp_path: Path) -> None:
    root = tmp_path / "files"
    data = variant(root, "imagenetv2", [str(number) for number in range(1000)])
    assert [int(name.split("/")[0]) for name in data.image_ids] == data.labels.tolist()
    assert data.classes == class_names(synsets_of("imagenet"))
    (root / "1000").mkdir()
    with pytest.raises(UserError, match="has the folder '1000', no class of the set"):
        ImageNet("imagenetv2", root, split="test")
    (root / "1000").rmdir()
    with pytest.raises(UserError, match=r"has 1000 images, but the split 'test' of imagenetv2 has 10000"):
        ImageNet("imagenetv2", root, split="test")
    (root / "7" / "7.JPEG").rename(root / "8" / "7.JPEG")
    (root / "7").rmdir()
    with pytest.raises(UserError, match="has no folder '7', which the set has"):
        ImageNet("imagenetv2", root, split="test")


def test_mistakes_in_variants(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.variant is 'imagenet-x': choose one of imagenet, imagenet-r"):
        ImageNet("imagenet-x", tmp_path, split="test")
    assert set(VARIANTS) == {"imagenet", "imagenet-r", "imagenet-a", "imagenet_sketch", "imagenetv2"}


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for extension, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def pixels(seed: int) -> bytes:
    return png(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)))


@pytest.fixture
def benchmark_set(tmp_path: Path) -> Path:
    """Eleven shards of two images each, all labelled by the number of the shard's image, modulo 2."""
    root = tmp_path / "wds_vtab-pets"
    for number in range(11):
        samples = {f"s{2 * number + i:07d}": {"png": pixels(2 * number + i), "cls": b"%d\n" % i} for i in range(2)}
        shard(root / "test" / f"{number}.tar", samples)
    (root / "test" / "nshards.txt").write_text("11")
    (root / "classnames.txt").write_text("cat\ndog\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\na {c}, a pet\n")
    return root


def test_shards_of_clip_benchmark_keep_order_names_and_templates(benchmark_set: Path) -> None:
    import webdataset

    data = ClassShards(benchmark_set, split="test", image_size=10)
    assert data.name == "pets" and data.classes == ("cat", "dog") and data.benchmark is None
    assert data.templates == ("a photo of a {}.", "a {}, a pet")
    urls = f"{benchmark_set}/test/{{0..10}}.tar"
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("torchrgb").to_tuple("png", "cls"))
    assert data.labels.tolist() == [int(label) for _, label in theirs] and len(data) == 22
    assert torch.allclose(data.images(torch.arange(22)), torch.stack([image for image, _ in theirs]), atol=1e-6)
    few = ClassShards(benchmark_set, split="test", image_size=10, limit=5)
    assert list(few.image_ids) == list(data.image_ids)[:5] == [f"{n // 2}/s{n:07d}" for n in range(5)]


def test_shards_may_have_no_templates(benchmark_set: Path) -> None:
    (benchmark_set / "zeroshot_classification_templates.txt").unlink()
    assert ClassShards(benchmark_set, split="test", image_size=10, name="mine").templates == ()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"png": pixels(99)}, "has the label '' in .cls, expected a number from 0 to 1"),
        ({"png": pixels(99), "cls": b"2"}, "has the label '2' in .cls"),
        ({"png": pixels(99), "cls": b"-1"}, "has the label '-1' in .cls"),
        ({"png": pixels(99), "cls": "²".encode()}, "has the label '²' in .cls"),
        ({"cls": b"1"}, r"has no image \(jpg, jpeg, png, webp\)"),
        ({"png": b"no image", "cls": b"1"}, "is not an image"),
    ],
)
def test_bad_samples_of_shards_are_named_or_skipped(parts: dict[str, bytes], message: str, benchmark_set: Path) -> None:
    shard(benchmark_set / "test" / "10.tar", {"bad": parts, "good": {"png": pixels(50), "cls": b"1"}})
    with pytest.raises(UserError, match=message):
        ClassShards(benchmark_set, split="test", image_size=10)
    data = ClassShards(benchmark_set, split="test", image_size=10, on_error="skip")
    assert data.skipped == 1 and len(data) == 21 and data.labels.tolist()[-1] == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("test/nshards.txt", "12", "says 12, but 11 shards lie there: complete the download"),
        ("classnames.txt", "cat\ncat\n", "has 'cat' twice"),
        ("zeroshot_classification_templates.txt", "a photo\n", r"has the line 'a photo': expected \{c\} once"),
    ],
)
def test_mistakes_beside_shards(file: str, text: str, message: str, benchmark_set: Path) -> None:
    (benchmark_set / file).write_text(text)
    with pytest.raises(UserError, match=message):
        ClassShards(benchmark_set, split="test", image_size=10)


def test_shards_without_class_names_say_what_is_missing(benchmark_set: Path) -> None:
    (benchmark_set / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"classnames\.txt, which does not exist"):
        ClassShards(benchmark_set, split="test", image_size=10)
    with pytest.raises(UserError, match=r"has no shards train/0\.tar"):
        ClassShards(benchmark_set, split="val", image_size=10)
