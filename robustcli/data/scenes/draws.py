"""Draws that are the same on every machine: a counter hashed by splitmix64, in integer arithmetic only."""

import numpy as np
from numpy.typing import NDArray

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of splitmix64 (Steele et al. 2014): a bijection on 64-bit words without visible structure."""
    z = values + np.uint64(_STEP)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return z ^ (z >> np.uint64(31))


def words(seed: int, stream: int, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """64-bit random words of ``shape``; each (seed, stream) is its own sequence, longer ones start with shorter."""
    base = mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(stream))
    counter = np.arange(int(np.prod(shape)), dtype=np.uint64)
    return mix(mix(counter) ^ base).reshape(shape)


def integers(seed: int, stream: int, shape: tuple[int, ...], high: int) -> NDArray[np.int64]:
    """Integers of ``shape`` in [0, high); by remainder, whose bias is below ``high`` / 2^40."""
    return ((words(seed, stream, shape) >> np.uint64(24)) % np.uint64(high)).astype(np.int64)
