"""Tar shards, written by webdataset's own writer."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from robustcli.data import Shards
from robustcli.data.shards import shard_paths
from robustcli.utils.errors import UserError


def write(path: Path, samples: list[Mapping[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return path


def jpeg(number: int) -> bytes:
    """A picture of 40 x 30 in smooth colours of its own."""
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((40, 30), Image.Resampling.BILINEAR).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def sample(number: int, **parts: Any) -> dict[str, Any]:
    return {"__key__": f"{number:05d}", "jpg": jpeg(number), "txt": f"caption of {number}", **parts}


def load(pattern: Path | str, split: str = "train", **options: Any) -> Shards:
    return Shards(str(pattern), split=split, image_size=16, **options)


def test_shards_of_one_pattern_are_one_set(tmp_path: Path):
    write(tmp_path / "train-000.tar", [sample(0), sample(1)])
    write(tmp_path / "train-001.tar", [sample(0), sample(3)])
    data = load(tmp_path / "train-{000..001}.tar")
    assert data.image_ids == ["train-000/00000", "train-000/00001", "train-001/00000", "train-001/00003"]
    assert data.captions == ["caption of 0", "caption of 1", "caption of 0", "caption of 3"]
    images = data.images(torch.tensor([0, 1, 2]))
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    assert load(tmp_path / "{split}-*.tar").fingerprint == data.fingerprint


def test_the_images_are_those_that_webdataset_reads(tmp_path: Path):
    path = write(tmp_path / "test.tar", [sample(number) for number in range(3)])
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("torchrgb").to_tuple("jpg", "txt"))
    data = load(path, "test")
    assert data.captions == [caption for _, caption in theirs]
    for ours, (image, _) in zip(data.images(torch.arange(3)), theirs, strict=True):
        assert ours.mean(dim=(1, 2)).tolist() == pytest.approx(image[:, :, 5:35].mean(dim=(1, 2)).tolist(), abs=0.03)


@pytest.mark.parametrize(
    ("parts", "captions"),
    [
        ({"txt": "one\ntwo\n\n"}, ["one", "two"]),
        ({"json": {"caption": "from json"}}, ["from json"]),
        ({"json": {"captions": ["one", "two"], "width": 3}}, ["one", "two"]),
        ({"json": {"width": 3}}, ["caption of 0"]),
    ],
)
def test_captions_of_text_and_of_json(tmp_path: Path, parts: dict[str, Any], captions: list[str]):
    assert load(write(tmp_path / "train.tar", [sample(0, **parts)])).captions == captions


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"__key__": "00001", "txt": "a"}, "sample '00001' has no image"),
    "no caption": ({"__key__": "00001", "jpg": jpeg(1)}, "sample '00001' has no caption"),
    "empty caption": (sample(1, json={"caption": " "}), "sample '00001' has an empty caption"),
    "truncated image": (sample(1, jpg=jpeg(1)[:-200]), "sample '00001': the image .* is damaged or truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sample_is_named_or_skipped(tmp_path: Path, fault: str):
    bad, message = FAULTS[fault]
    path = write(tmp_path / "train.tar", [sample(0), bad, sample(2)])
    with pytest.raises(UserError, match=f"train.tar, {message}"):
        load(path)
    data = load(path, on_error="skip")
    assert data.skipped == 1 and data.captions == ["caption of 0", "caption of 2"]


def test_a_repeated_key_is_named(tmp_path: Path):
    path = write(tmp_path / "train.tar", [sample(0), sample(1), sample(0)])
    with pytest.raises(UserError, match="sample '00000' has two members"):
        load(path)
    assert load(path, on_error="skip").captions == ["caption of 0", "caption of 1"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def compress(path: Path) -> None:
    content = path.read_bytes()
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("x.jpg")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("damage", [cut, compress, lambda path: path.write_text("no tar" * 200)])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[Path], object]):
    path = write(tmp_path / "train.tar", [sample(0), sample(1)])
    damage(path)
    with pytest.raises(UserError, match=r"train.tar is not an intact, uncompressed tar file"):
        load(path, on_error="skip")


def test_bad_text_and_bad_json_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"sample '00000' has captions that cannot be read: not UTF-8 text"):
        load(write(tmp_path / "train.tar", [sample(0, txt=b"\xff\xfe")]))
    with pytest.raises(
        UserError, match=r"sample '00000' has captions that cannot be read: the .json, line 1 is not valid JSON"
    ):
        load(write(tmp_path / "train.tar", [sample(0, json=b"{")]))


def test_missing_shards_and_patterns_without_a_split(tmp_path: Path):
    write(tmp_path / "train-0.tar", [sample(0)])
    with pytest.raises(UserError, match=r"2 of its 3 shards do not exist, the first is .*train-1.tar"):
        load(tmp_path / "train-{0..2}.tar")
    with pytest.raises(UserError, match=r"1 of its 1 shards do not exist"):
        load(tmp_path / "val-*.tar", "val")
    with pytest.raises(UserError, match=r"split 'test' is asked for, but it is of the split 'train'"):
        load(tmp_path / "train-0.tar", "test")


def test_links_and_folders_in_an_archive_are_not_samples(tmp_path: Path):
    path = tmp_path / "train.tar"
    write(path, [sample(0)])
    with tarfile.open(path, "a") as archive:
        link, folder = tarfile.TarInfo("00001.jpg"), tarfile.TarInfo("pictures.old")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(folder)
        archive.addfile(link)
    with pytest.raises(UserError, match=r"sample '00001' has a \.jpg that is no file, but a link"):
        load(path)
    data = load(path, on_error="skip")
    assert len(data) == 1 and data.skipped == 1


def test_hidden_folders_are_left_out_and_names_are_normal(tmp_path: Path):
    accent, plain = "caf\u00e9", "cafe\u0301"  # one character, and e with a combining accent
    path = tmp_path / "train.tar"
    parts = {f"./{accent}.jpg": jpeg(0), f"./{plain}.txt": b"a cup", ".ipynb_checkpoints/1.jpg": jpeg(1)}
    with tarfile.open(path, "w") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    data = load(path)
    assert data.image_ids == [f"train/./{accent}"] and data.captions == ["a cup"]


def test_a_picture_of_another_split_is_told(tmp_path: Path):
    write(tmp_path / "train-0.tar", [sample(0), sample(1)])
    write(tmp_path / "test-0.tar", [{**sample(1), "__key__": "renamed"}, sample(2)])
    data = load(tmp_path / "{split}-0.tar", "test")
    assert list(data.notes)[1:] == ["Of the 2 images of test stand 1 also in train, byte for byte."]


@pytest.mark.parametrize("braces", ["{000000..999999}", "{0..99999999999}", "{a,b}" * 20])
def test_braces_that_never_end_are_refused_at_once(braces: str, tmp_path: Path):
    with pytest.raises(UserError, match="stands for more than 100,000 shards: narrow it"):
        shard_paths(f"{tmp_path}/{braces}.tar")


def raw_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A shard of these very bytes, which webdataset's writer would encode itself."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("bad", [{"1.json": b"{broken"}, {"1.txt": "caf\u00e9".encode("latin-1")}])
def test_one_bad_caption_is_one_sample_skipped(tmp_path: Path, bad: Mapping[str, bytes]):
    good = {"0.jpg": jpeg(0), "0.txt": b"good", "1.jpg": jpeg(1)}
    path = raw_tar(tmp_path / "test.tar", {**good, **bad})
    with pytest.raises(UserError, match=r"sample '1' has captions that cannot be read"):
        load(path, "test")
    data = load(path, "test", on_error="skip")
    assert data.captions == ["good"] and data.skipped == 1


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"0.txt": b"\xef\xbb\xbfa red one"}, ["a red one"]),
        ({"0.txt": "a red\x0bone\x0cor\u2028two".encode()}, ["a red one or two"]),
        ({"0.txt": b"one\r\ntwo\rthree\n"}, ["one", "two", "three"]),
        ({"0.txt": b"from txt", "0.json": b'{"captions": []}'}, ["from txt"]),
        ({"0.txt": b"from txt", "0.json": b'{"captions": null, "caption": "from json"}'}, ["from json"]),
    ],
)
def test_text_is_cleaned_and_an_empty_list_leaves_the_word_to_the_text(
    tmp_path: Path, members: Mapping[str, bytes], captions: list[str], caplog: pytest.LogCaptureFixture
):
    data = load(raw_tar(tmp_path / "test.tar", {"0.jpg": jpeg(0), **members}), "test")
    assert data.captions == captions
    assert ("1 .txt members have several lines" in caplog.text) is (len(captions) > 1)
