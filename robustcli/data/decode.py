"""From the bytes of an image file to pixels, in one fixed order.

Shapes: S image size, pixels (3,S,S) uint8.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

PIPELINE = 1  # part of the cache's key: raise it with every change that alters a pixel
MOST_PIXELS = 100_000_000  # of the file and of the resized image: larger ones are bombs or mistakes


class BadImage(Exception):
    """Why a file is not usable as an image; the message goes on with a sentence that names the file."""


def decode(data: bytes, image_size: int) -> NDArray[np.uint8]:
    """RGB pixels (3,S,S): decode, to RGB, short side to S (bicubic, antialiased), centre crop. This order, as in CLIP.

    Raises:
        BadImage: not an image, truncated, of more than 8 bits a channel, or of absurd size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.size, image_size)
            if image.mode.startswith(("I", "F")):
                raise BadImage(f"has pixels of the type {image.mode}, expected 8 bits a channel")
            pixels = np.asarray(_short_side(image.convert("RGB"), image_size), dtype=np.uint8)
    except UnidentifiedImageError:
        raise BadImage("is not an image" if data else "is empty") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(f"is damaged or truncated ({error})") from None
    return np.ascontiguousarray(_centre(pixels, image_size).transpose(2, 0, 1))


def _check_size(size: tuple[int, int], image_size: int) -> None:
    short, long = sorted(size)
    if short * long > MOST_PIXELS or image_size * image_size * long > MOST_PIXELS * short:
        raise BadImage(f"is {size[0]} x {size[1]} pixels, more than can be meant")


def _short_side(image: Image.Image, image_size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    if short == image_size:
        return image
    size = (int(image_size * width / short), int(image_size * height / short))
    return image.resize(size, Image.Resampling.BICUBIC)


def _centre(pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    top, left = (round((side - image_size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + image_size, left : left + image_size]
