"""The store of decoded images: made once, whole or not at all, and made anew when a file changes."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.data import KarpathyJSON, pixels
from robustcli.data.decode import Fit
from robustcli.data.sources import Blob
from robustcli.utils.cache import temporary_folder
from robustcli.utils.errors import UserError


def blobs(folder: Path) -> list[Blob]:
    return [Blob(path) for path in sorted((folder / "pictures").iterdir())]


def stores(cache: Path) -> list[Path]:
    return [path for path in (cache / "images").iterdir() if path.suffix != ".lock"]


def opened(folder: Path) -> pixels.PixelStore:
    return pixels.open_store(blobs(folder), 16, stop_at_bad=True)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that were decoded since the test began."""
    seen: list[int] = []
    real = pixels.decode

    def counting(data: bytes, image_size: int, fit: Fit) -> np.ndarray:
        seen.append(len(data))
        return real(data, image_size, fit)

    monkeypatch.setattr(pixels, "decode", counting)
    return seen


def test_files_are_decoded_once_and_read_from_the_store_afterwards(folder: Path, decoded: list[int]):
    first = pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    second = pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    assert len(decoded) == 6
    assert np.array_equal(first.pixels, second.pixels) and first.hashes == second.hashes
    pixels.open_store(blobs(folder), 8, stop_at_bad=True)
    assert len(decoded) == 12  # another size is another store


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_order_does_not_depend_on_the_threads(folder: Path, monkeypatch: pytest.MonkeyPatch, batch: int):
    monkeypatch.setattr(pixels, "BATCH", batch)
    found = pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    alone = [pixels.open_store([blob], 16, stop_at_bad=True).pixels[0] for blob in blobs(folder)]
    assert np.array_equal(found.pixels, np.stack(alone))


def test_a_changed_file_is_decoded_anew(folder: Path):
    Image.new("RGB", (40, 30), "blue").save(folder / "pictures" / "0.jpg", format="bmp")
    before = pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    Image.new("RGB", (40, 30), "orange").save(folder / "pictures" / "0.jpg", format="bmp")  # of the same size
    after = pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    assert not np.array_equal(before.pixels[0], after.pixels[0])
    assert np.array_equal(before.pixels[1:], after.pixels[1:])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_store_leaves_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
):
    calls = []

    def failing(blob: Blob, image_size: int, fit: Fit) -> object:
        calls.append(blob)
        if len(calls) > 3:
            raise failure
        return real(blob, image_size, fit)

    real = pixels._load
    monkeypatch.setattr(pixels, "_load", failing)
    with pytest.raises((KeyboardInterrupt, UserError)):
        pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    assert stores(cache) == []


def test_two_machines_may_make_the_same_store(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    real: Callable[..., object] = pixels._write

    def raced(wanted: list[Blob], size: int, unfinished: Path, **settings: object) -> object:
        result = real(wanted, size, unfinished, **settings)
        shutil.copytree(unfinished, unfinished.with_name(unfinished.name.split("-")[1]))  # the other was faster
        return result

    monkeypatch.setattr(pixels, "_write", raced)
    assert len(pixels.open_store(blobs(folder), 16, stop_at_bad=True).pixels) == 6
    assert len(stores(cache)) == 1


def test_one_of_two_processes_decodes_and_the_other_waits_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    context = multiprocessing.get_context("fork")
    begun, count = context.Event(), context.Value("i", 0)
    real = pixels._load

    def slow(blob: Blob, image_size: int, fit: Fit) -> object:
        begun.set()
        time.sleep(0.05)
        with count.get_lock():
            count.value += 1
        return real(blob, image_size, fit)

    monkeypatch.setattr(pixels, "_load", slow)
    settings = {"args": (blobs(folder), 16), "kwargs": {"stop_at_bad": True}, "daemon": True}
    other = context.Process(target=pixels.open_store, **settings)
    other.start()
    assert begun.wait(30)
    assert len(pixels.open_store(blobs(folder), 16, stop_at_bad=True).pixels) == 6
    other.join(30)
    assert other.exitcode == 0 and count.value == 6


def test_too_little_room_is_said_before_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]):
    usage = shutil._ntuple_diskusage(10, 10, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.0 GB are free: set the environment variable ROBUSTCLI_CACHE"):
        pixels.open_store(blobs(folder), 16, stop_at_bad=True)
    assert decoded == []


def test_a_cache_that_cannot_be_made_is_a_mistake_of_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROBUSTCLI_CACHE", os.fspath(folder / "dataset.json"))
    with pytest.raises(UserError, match=r"dataset\.json/images cannot be made \(.*\): set .* ROBUSTCLI_CACHE"):
        KarpathyJSON(folder / "dataset.json", folder, split="train", image_size=16)


def test_a_batch_is_a_copy(folder: Path):
    data = KarpathyJSON(folder / "dataset.json", folder, split="train", image_size=16)
    first = data.images(torch.tensor([0])).clone()
    data.images(torch.tensor([0])).zero_()
    assert torch.equal(data.images(torch.tensor([0])), first)


def test_another_fit_is_another_store(folder: Path, decoded: list[int]):
    cropped, squashed = (pixels.open_store(blobs(folder), 16, stop_at_bad=True, fit=fit) for fit in ("crop", "squash"))
    assert len(decoded) == 12 and not np.array_equal(cropped.pixels, squashed.pixels)


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: (store / "pixels.u8").write_bytes(bytes(6 * 3 * 16 * 16)),
        lambda store: os.truncate(store / "pixels.u8", 1000),
        lambda store: (store / "pixels.u8").open("ab").write(b"x"),
        lambda store: (store / "pixels.u8").unlink(),
        lambda store: (store / "entries.json").write_text('{"kept": [0'),
        lambda store: (store / "entries.json").write_text("[]"),
        lambda store: (store / "entries.json").write_text('{"kept": [0, 1], "hashes": [], "bad": [], "notes": []}'),
    ],
)
def test_a_damaged_store_is_made_anew(folder: Path, cache: Path, damage: Callable[[Path], object], decoded: list[int]):
    before = np.array(opened(folder).pixels)
    (store,) = stores(cache)
    damage(store)
    assert np.array_equal(opened(folder).pixels, before) and len(decoded) == 12
    assert np.array_equal(opened(folder).pixels, before) and len(decoded) == 12  # and then it is whole
    assert len(stores(cache)) == 1


@pytest.mark.parametrize("batch", [1, 4, 6, 256])
def test_the_sums_are_those_of_batches(folder: Path, batch: int, monkeypatch: pytest.MonkeyPatch, decoded: list[int]):
    monkeypatch.setattr(pixels, "BATCH", batch)
    opened(folder)
    opened(folder)
    assert len(decoded) == 6


def test_what_a_killed_run_left_is_swept(folder: Path, cache: Path):
    def build_and_die() -> None:
        pixels._decoded = lambda *_: os._exit(1)  # type: ignore[assignment]
        opened(folder)

    child = multiprocessing.get_context("fork").Process(target=build_and_die)
    child.start()
    child.join(30)
    old, other = cache / "images" / ".tmp-1-old", cache / "images" / ".tmp-1-other"
    for left in (old, other):
        left.mkdir()
    os.utime(old, (0, 0))
    assert len(stores(cache)) == 3
    opened(folder)
    assert len(stores(cache)) == 2 and other.exists(), "another machine may be at work on what is new"


@pytest.mark.parametrize("name", ["pixels.u8", "entries.json"])
def test_no_pixels_are_written_through_a_link(folder: Path, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """In a cache that users share, one of them may put a link into the folder that another is about to fill."""
    target = folder / "precious"
    target.write_text("mine")

    def planted(place: Path) -> Path:
        made = temporary_folder(place)
        (made / name).symlink_to(target)
        return made

    monkeypatch.setattr(pixels, "temporary_folder", planted)
    with pytest.raises(UserError, match="cannot be written"):
        opened(folder)
    assert target.read_text() == "mine"


def test_a_shared_cache_serves_a_second_user(folder: Path, cache: Path):
    before = os.umask(0o002)
    try:
        opened(folder)
    finally:
        os.umask(before)
    (store,) = stores(cache)
    assert store.stat().st_mode & 0o777 == 0o775
    assert {path.stat().st_mode & 0o777 for path in store.iterdir()} == {0o664}


def test_a_full_or_closed_cache_is_named_with_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path):
    monkeypatch.setattr(pixels, "temporary_folder", lambda place: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(
        UserError, match=r"cache/images cannot be written \(No space left\): make room .* ROBUSTCLI_CACHE"
    ):
        opened(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        UserError, match=r"cache/images cannot be written \(Permission denied\): set .* ROBUSTCLI_CACHE"
    ):
        opened(folder)
