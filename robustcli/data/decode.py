"""Decoding of an image file to square uint8 pixels, in one fixed order of operations.

Shapes: S image size, pixels (3,S,S) uint8.
"""

import io
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

PIPELINE = 1  # part of the cache's key: raise it with every change that alters a pixel
MOST_PIXELS = 100_000_000  # of the file and of the resized image: larger ones are bombs or mistakes

Fit = Literal["crop", "squash", "letterbox"]
FITS: tuple[str, ...] = get_args(Fit)


class BadImage(Exception):
    """Error for a file that is not usable as an image; its message goes on with a sentence that names the file."""


def decode(data: bytes, image_size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """RGB pixels (3,S,S): decode, to RGB, resize (antialiased). This order, as in CLIP.

    Args:
        data: the file's content.
        image_size: S in pixels.
        fit: how an image becomes square: ``crop`` (short side to S, bicubic, then the centre), ``squash`` (both sides
            to S, bilinear, whatever the shape) or ``letterbox`` (long side to S, bilinear, black bars at the others).

    Raises:
        BadImage: not an image, truncated, of more than 8 bits a channel, or of absurd size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.size, image_size)
            if image.mode.startswith(("I", "F")):
                raise BadImage(f"has pixels of the type {image.mode}, expected 8 bits a channel")
            pixels = np.asarray(_FITS[fit](image.convert("RGB"), image_size), dtype=np.uint8)
    except UnidentifiedImageError:
        raise BadImage("is not an image" if data else "is empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(f"is damaged or truncated ({error})") from None
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check_size(size: tuple[int, int], image_size: int) -> None:
    short, long = sorted(size)
    if short * long > MOST_PIXELS or image_size * image_size * long > MOST_PIXELS * short:
        raise BadImage(f"is {size[0]} x {size[1]} pixels, more than can be meant")


def _cropped(image: Image.Image, image_size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    if short != image_size:
        image = image.resize(
            (int(image_size * width / short), int(image_size * height / short)), Image.Resampling.BICUBIC
        )
    left, top = (round((side - image_size) / 2) for side in image.size)
    return image.crop((left, top, left + image_size, top + image_size))


def _squashed(image: Image.Image, image_size: int) -> Image.Image:
    size = (image_size, image_size)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _letterboxed(image: Image.Image, image_size: int) -> Image.Image:
    long = max(image.size)
    width, height = (max(1, round(image_size * side / long)) for side in image.size)
    canvas = Image.new("RGB", (image_size, image_size))
    resized = image if long == image_size else image.resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(resized, ((image_size - width) // 2, (image_size - height) // 2))
    return canvas


_FITS: Mapping[str, Callable[[Image.Image, int], Image.Image]] = {
    "crop": _cropped,
    "squash": _squashed,
    "letterbox": _letterboxed,
}
