"""Pixels: the order of the steps fixed by a golden image and by torchvision's, and the kinds of files."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision import transforms

from robustcli.data import decode as decoding
from robustcli.data.decode import FITS, BadImage, Fit, notes_of

GOLDEN = Path(__file__).parent / "golden_12.png"


def coloured(width: int, height: int) -> Image.Image:
    """A pattern with edges and slopes, the same on every machine."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 7 % 256, y * 5 % 256, (x // 3 + y // 4) % 2 * 255], axis=2).astype(np.uint8))


def encoded(image: Image.Image, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def decode(data: bytes, image_size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    return decoding.decode(data, image_size, fit).pixels


def test_golden_image():
    """Crop before resize, another filter, no antialiasing or swapped channels all differ by far more than 1."""
    with Image.open(GOLDEN) as image:
        golden = np.asarray(image).transpose(2, 0, 1).astype(int)
    assert np.abs(decode(encoded(coloured(50, 35)), 12).astype(int) - golden).max() <= 1


@pytest.mark.parametrize("size", [(50, 35), (35, 50), (16, 16), (33, 16), (9, 11), (100, 17)])
def test_the_same_as_the_transforms_of_clip(size: tuple[int, int]):
    clip = transforms.Compose([transforms.Resize(16, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(16)])
    assert np.array_equal(decode(encoded(coloured(*size)), 16), np.asarray(clip(coloured(*size))).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(50, 35), (16, 30), (9, 11)])
def test_squashing_is_torchvisions_resize_to_a_square(size: tuple[int, int]):
    image = coloured(*size)
    floats = transforms.Compose([transforms.ToTensor(), transforms.Resize((16, 16), antialias=True)])(image)
    found = decode(encoded(image), 16, "squash")
    assert np.abs(found / 255 - floats.numpy()).max() <= 1.5 / 255, "but for the rounding to 8 bits"


@pytest.mark.parametrize(("size", "rows", "columns"), [((64, 48), 12, 16), ((20, 40), 16, 8), ((8, 6), 12, 16)])
def test_a_letterbox_holds_the_whole_image_between_black_bars(size: tuple[int, int], rows: int, columns: int):
    white = Image.fromarray(np.full((size[1], size[0], 3), 255, np.uint8))
    inside = decode(encoded(white), 16, "letterbox").all(0)
    top, left = (16 - rows) // 2, (16 - columns) // 2
    assert inside[top : top + rows, left : left + columns].all() and inside.sum() == rows * columns
    shown = decode(encoded(coloured(*size)), 16, "letterbox")[:, top : top + rows, left : left + columns]
    whole = coloured(*size).resize((columns, rows), Image.Resampling.BILINEAR)
    assert np.array_equal(shown, np.asarray(whole).transpose(2, 0, 1))


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = coloured(16, 16)
    for fit in FITS:
        assert np.array_equal(decode(encoded(image), 16, fit), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_kind_of_8_bit_image_becomes_rgb(mode: str):
    form = "tiff" if mode == "CMYK" else "png"
    assert decode(encoded(coloured(20, 16).convert(mode), form), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("form", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated(form: str, share: float):
    data = encoded(coloured(200, 160), form)
    with pytest.raises(BadImage, match="truncated"):
        decode(data[: int(len(data) * share)], 16)


def test_not_an_image():
    with pytest.raises(BadImage, match="is not an image"):
        decode(b"GIF89 no it is not", 16)


def test_too_large_is_said_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("robustcli.data.decode.MOST_PIXELS", 1000)
    with pytest.raises(BadImage, match="50 x 35 pixels"):
        decode(encoded(coloured(50, 35)), 16)
    assert decode(encoded(coloured(30, 33)), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright_as_its_exif_data_say(orientation: int):
    image, exif = coloured(40, 30), Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "png", exif=exif)
    found = decoding.decode(buffer.getvalue(), 16)
    with Image.open(buffer) as stored:
        upright = ImageOps.exif_transpose(stored)
    assert np.array_equal(found.pixels, decode(encoded(upright), 16))
    assert found.turned == (orientation != 1) and found.size == (upright.height, upright.width)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white_whatever_colour_they_hide(mode: str):
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    data = encoded(image.convert(mode))
    found = decoding.decode(data, 16)
    assert found.composed and not found.pixels[:, :, :8].any() and (found.pixels[:, :, 8:] == 255).all()
    opaque = decoding.decode(encoded(Image.new("RGBA", (16, 16), (200, 0, 0, 255))), 16)
    assert not opaque.composed and opaque.pixels[0, 0, 0] == 200


def test_notes_say_what_was_done_to_how_many():
    assert notes_of([(16, 16)] * 3, 16, "crop", turned=0, composed=0) == []
    notes = notes_of([(16, 16), (30, 40), (60, 40), (20, 20)], 16, "squash", turned=1, composed=2)
    assert notes == [
        "3 of 4 images are resized to 16 x 16 pixels (squash), from 20 x 20 to 60 x 40.",
        "1 of 4 images are turned upright as their EXIF data say, which torchvision's transforms do not do.",
        "2 of 4 images have transparent parts, which are laid on white.",
    ]
    (note,) = notes_of([(20, 10)], 16, "crop", turned=0, composed=0)
    assert note == "1 of 1 images are resized to 16 x 16 pixels (crop), from 20 x 10."
