"""Rendering of scenes to pixels, vectorised and in integers, so that a recipe gives the same bytes on every machine.

Shapes: N scenes, S pixels a side, G = 2 S grid points a side (each pixel is the mean of four).
"""

import numpy as np
from numpy.typing import NDArray

from robustcli.data.scenes.draws import integers, words
from robustcli.data.scenes.world import NONE, OBJECTS, World

Grid = NDArray[np.int32]
_RGB = np.array(
    [[214, 52, 48], [52, 168, 72], [56, 92, 214], [226, 200, 60], [146, 70, 184], [238, 128, 176]], dtype=np.int32
)
_CHUNK = 64  # part of the recipe: the noise is drawn chunk by chunk
_STREAM = 40
_TEXTURE = 28  # half the grey levels between the two tones of a background


def render_scenes(
    world: World, size: int, seed: int, *, contrast: float, noise: int, period: int = 8
) -> NDArray[np.uint8]:
    """Images (N,3,S,S), uint8.

    Args:
        size: S, a multiple of 32.
        contrast: distance of all tones from mid-grey, 1 for full; at half the contrast a given eps is twice as
            large beside the tones.
        noise: each channel of each pixel is shifted by up to this many grey levels afterwards.
        period: half the width of a stripe, check or dot and its gap, in grid points of 32 pixels a side.
    """
    n, scale = len(world), size // 32
    place = {
        "phase": integers(seed, _STREAM, (n, 2), 16 * scale),
        "tone": 60 + integers(seed, _STREAM + 1, (n, 1), 110) + integers(seed, _STREAM + 2, (n, 3), 25) - 12,
        "jitter": integers(seed, _STREAM + 3, (n, OBJECTS, 2), 7 * scale) - 3 * scale,
        "radius": integers(seed, _STREAM + 4, (n, OBJECTS), 3 * scale),
        "tint": integers(seed, _STREAM + 5, (n, OBJECTS, 3), 51) - 25,
    }
    images = np.empty((n, 3, size, size), dtype=np.uint8)
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        here = {key: value[part].astype(np.int32) for key, value in place.items()}
        canvas = _background(world.textures[part], here, 2 * size, period * scale)
        for o in range(OBJECTS):
            _paint(canvas, world.objects[part, o].astype(np.int32), here, o, scale)
        toned = 128 + ((_halved(canvas) - 128) * round(100 * contrast)) // 100
        images[part] = np.clip(toned + _noise(part, canvas.shape[0], size, seed, noise), 0, 255)
    return images


def _background(textures: NDArray[np.int64], place: dict[str, Grid], points: int, period: int) -> Grid:
    grid = np.arange(points, dtype=np.int32)
    y, x = grid[None, :, None] + place["phase"][:, :1, None], grid[None, None, :] + place["phase"][:, 1:, None]
    stripes = ((x + y) // period) % 2
    checks = (x // period + y // period) % 2
    dots = ((x % period - period // 2) ** 2 + (y % period - period // 2) ** 2 <= (period // 3) ** 2).astype(np.int32)
    kind = textures[:, None, None]
    sign = np.where(
        kind == 1, 2 * stripes - 1, np.where(kind == 2, 2 * checks - 1, np.where(kind == 3, 2 * dots - 1, 0))
    )
    return np.asarray(place["tone"][:, :, None, None] + _TEXTURE * sign[:, None], dtype=np.int32)


def _paint(canvas: Grid, attributes: Grid, place: dict[str, Grid], o: int, scale: int) -> None:
    there = np.flatnonzero(attributes[:, 0] != NONE)
    colour, kind, size, cell = attributes[there].T
    grid = np.arange(canvas.shape[-1], dtype=np.int32)
    cy = (16 + 32 * (cell // 2)) * scale + place["jitter"][there, o, 0]
    cx = (16 + 32 * (cell % 2)) * scale + place["jitter"][there, o, 1]
    radius = np.where(size == 0, 7 * scale, 11 * scale) + place["radius"][there, o]
    dy, dx = grid[None, :, None] - cy[:, None, None], grid[None, None, :] - cx[:, None, None]
    inside = _inside(kind[:, None, None], dy, dx, radius[:, None, None].astype(np.int32))
    rgb = _RGB[colour] + place["tint"][there, o]
    canvas[there] = np.where(inside[:, None], rgb[:, :, None, None], canvas[there])


def _inside(kind: Grid, dy: Grid, dx: Grid, r: Grid) -> NDArray[np.bool_]:
    ay, ax, square = np.abs(dy), np.abs(dx), dx * dx + dy * dy
    box = np.maximum(ay, ax)
    shapes = [
        square <= r * r,  # circle
        5 * box <= 4 * r,  # square, of about the same area as the circle
        (dy <= (3 * r) // 4) & (2 * ax <= dy + r),  # triangle, its point up
        (square <= r * r) & (4 * square >= r * r),  # ring
        (np.minimum(ay, ax) <= r // 3) & (box <= r),  # cross
        ay + ax <= r,  # diamond
    ]
    return np.asarray(np.select([kind == k for k in range(len(shapes))], shapes, default=False))


def _halved(canvas: Grid) -> Grid:
    rows = canvas[:, :, ::2] + canvas[:, :, 1::2]
    return np.asarray((rows[..., ::2] + rows[..., 1::2]) // 4, dtype=np.int32)


def _noise(part: slice, n: int, size: int, seed: int, level: int) -> Grid:
    # Eight draws a word.
    draw = words(seed, _STREAM + 100 + part.start, (n, 3, size, size // 8)).astype("<u8").view(np.uint8)
    return np.asarray(((draw.astype(np.int32) * (2 * level + 1)) >> 8) - level, dtype=np.int32)
