"""Decoding of an image file to square uint8 pixels, in one fixed order of operations.

Shapes: S image size, pixels (3,S,S) uint8.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

PIPELINE = 2  # part of the cache's key: raise it with every change that alters a pixel
MOST_PIXELS = 100_000_000  # of the file and of the resized image: larger ones are bombs or mistakes

Fit = Literal["crop", "squash", "letterbox"]
FITS: tuple[str, ...] = get_args(Fit)


# Pillow's operation that undoes each orientation of EXIF (tag 274); 1 is upright.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """One image, and what was done to it.

    Attributes:
        pixels: (3,S,S) uint8.
        size: height and width in pixels, upright, before it became square.
        turned: its EXIF data said that it lies or is mirrored.
        composed: it had transparent parts, which are white now.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    turned: bool
    composed: bool


class BadImage(Exception):
    """Error for a file that is not usable as an image; its message goes on with a sentence that names the file."""


def decode(data: bytes, image_size: int, fit: Fit = "crop") -> Decoded:
    """RGB pixels (3,S,S): decode, upright, on white, to RGB, resize (antialiased).

    As in CLIP but for two steps, which change nothing in most files: torchvision's transforms leave a photograph lying
    as the camera held it, and show the colours that a transparent pixel happens to hold.

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
            turn = _UPRIGHT.get(_orientation(image))
            shown, composed = _on_white(image)
            shown = shown if turn is None else shown.transpose(turn)
            pixels = np.asarray(_FITS[fit](shown, image_size), dtype=np.uint8)
            width, height = shown.size
    except UnidentifiedImageError:
        raise BadImage("is not an image" if data else "is empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(f"is damaged or truncated ({error})") from None
    upright = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return Decoded(upright, (height, width), turned=turn is not None, composed=composed)


def notes_of(sizes: Sequence[tuple[int, int]], image_size: int, fit: Fit, *, turned: int, composed: int) -> list[str]:
    """Sentences on what `decode` did to a set of images, for the foot of a table.

    Args:
        sizes: height and width of each image before it became square.
        turned, composed: number of images, see `Decoded`.
    """
    resized = sorted({size for size in sizes if size != (image_size, image_size)}, key=lambda size: size[0] * size[1])
    count = sum(size != (image_size, image_size) for size in sizes)
    span = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys((*resized[:1], *resized[-1:])))
    told = [
        (count, f"are resized to {image_size} x {image_size} pixels ({fit}), from {span}"),
        (turned, "are turned upright as their EXIF data say, which torchvision's transforms do not do"),
        (composed, "have transparent parts, which are laid on white"),
    ]
    return [f"{number:,} of {len(sizes):,} images {what}." for number, what in told if number]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged camera data say nothing of the pixels, and Pillow raises whatever it meets there
        return 1


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image in RGB, and True if parts of it were transparent."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB"), False
    coloured = image.convert("RGBA")
    if coloured.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("RGB"), True


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
