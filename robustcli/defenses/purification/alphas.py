"""Schedules of alphas: how much of each latent a purifier draws anew, coarse to fine (Serez et al. 2025, section 3).

Shapes: L latents.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

_KEY = "purifier.alphas"
_SUFFIXES = (".json", ".txt", ".csv", ".npy")
# Found by the paper with Bayesian optimisation, before the attenuation; for its three generators.
LEARNED: Mapping[str, tuple[float, ...]] = {
    "gender": (
        *(0.492, 0.728, 0.058, 0.331, 0.246, 0.059, 0.068, 0.526, 0.646),
        *(0.816, 0.548, 0.692, 0.309, 0.610, 0.729, 0.348, 0.728, 0.697),
    ),
    "ids": (
        *(0.000, 0.000, 0.001, 0.136, 0.131, 0.206, 0.179, 0.305, 0.347, 0.349, 0.465, 0.528),
        *(0.551, 0.606, 0.681, 0.676, 0.834, 0.800, 0.938, 0.911, 1.0, 1.0, 1.0, 1.0),
    ),
    "cars": (
        *(1.000, 0.000, 0.000, 0.737, 0.000, 0.000, 0.834, 1.000),
        *(0.261, 0.000, 0.205, 1.000, 0.908, 0.000, 0.268, 1.000),
    ),
}
_LENGTHS = {task: len(values) for task, values in LEARNED.items()}


def linear(count: int) -> list[float]:
    """``i / L`` for i = 1..L, coarse to fine: the finest latent is drawn anew in full."""
    return [i / count for i in range(1, count + 1)]


def cosine(count: int) -> list[float]:
    """``(1 - cos(pi i / L)) / 2`` for i = 1..L: lower than `linear` for the coarse half, higher for the fine one."""
    return [0.5 * (1.0 - math.cos(math.pi * i / count)) for i in range(1, count + 1)]


def _cut(value: float, decimals: int) -> float:
    return math.floor(value * 10.0**decimals + 1e-9) / 10.0**decimals  # 0.29 * 100 is 28.999...


# The paper's config files hold rounded numbers; those of one are cut off instead.
PRESETS: Mapping[str, tuple[float, ...]] = {
    "paper_linear_gender": tuple(_cut(value, 2) for value in linear(18)),
    "paper_linear_ids": tuple(round(value, 2) for value in linear(24)),
    "paper_linear_cars": tuple(round(value, 3) for value in linear(16)),
    "paper_cosine_gender": tuple(round(value, 3) for value in cosine(18)),
    "paper_cosine_ids": tuple(round(value, 2) for value in cosine(24)),
    "paper_cosine_cars": tuple(round(value, 3) for value in cosine(16)),
    **{f"learned_{task}": values for task, values in LEARNED.items()},
}
_BY_LENGTH: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    "learned": {len(values): values for values in LEARNED.values()},
    **{
        f"paper_{rule}": {length: PRESETS[f"paper_{rule}_{task}"] for task, length in _LENGTHS.items()}
        for rule in ("linear", "cosine")
    },
}
_FORMULAS: Mapping[str, Callable[[int], list[float]]] = {
    "linear": linear,
    "cosine": cosine,
    "none": lambda count: [0.0] * count,
}
NAMES = (*_FORMULAS, *_BY_LENGTH, *PRESETS)


def schedule(alphas: str | Path | Sequence[float] | Tensor, count: int) -> Tensor:
    """The alphas of ``count`` latents, (L,) float64 in [0,1], coarse to fine.

    Args:
        alphas: ``linear``, ``cosine`` or ``none`` (all 0, reconstruction alone); ``learned``, ``paper_linear`` and
            ``paper_cosine``, the paper's vectors for L latents; the name of a preset, see `PRESETS`; L numbers; or a
            file of them: a JSON list or what ``learn-alphas`` writes, a .txt or .csv of one a line, a .npy, or the
            directory of a ``learn-alphas`` run.
        count: L.

    Raises:
        UserError: an unknown name, no such file, another length than L, or a value that is no number in [0,1].
    """
    if isinstance(alphas, str) and alphas in NAMES:
        found: Any = _named(alphas, count)
    elif isinstance(alphas, str | Path):
        content = _read(_existing(alphas))
        found = content.get("alphas") if isinstance(content, dict) else content
    else:
        found = alphas.tolist() if isinstance(alphas, Tensor) else alphas
    return _checked(found, count, str(alphas) if isinstance(alphas, str | Path) else None)


def learned_attenuation(alphas: Any) -> float | None:
    """Attenuation under which the alphas of a ``learn-alphas`` file were learned; None for any other ``alphas``.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    if not isinstance(alphas, str | Path) or alphas in NAMES:
        return None
    content = _read(_existing(alphas))
    found = content.get("attenuation") if isinstance(content, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _named(name: str, count: int) -> Sequence[float]:
    if name in _FORMULAS:
        return _FORMULAS[name](count)
    if name in PRESETS:
        return PRESETS[name]
    if count in _BY_LENGTH[name]:
        return _BY_LENGTH[name][count]
    raise UserError(
        f"{_KEY} is {name!r}, but the paper has none for a generator of {count} latents (only for "
        f"{', '.join(map(str, _LENGTHS.values()))}): learn them with `robustcli learn-alphas`, and give its directory "
        f"as {_KEY}=DIRECTORY."
    )


def _existing(alphas: str | Path) -> Path:
    path = Path(alphas).expanduser()
    path = path / "alphas.json" if path.is_dir() else path
    if path.is_file():
        return path
    if path.suffix.lower() in _SUFFIXES:
        raise UserError(f"{_KEY} is {path}, but there is no such file: give one that exists, or linear or cosine.")
    if str(alphas) == "mutual_information":
        raise UserError(
            f"{_KEY} is mutual_information, which depends on data and generator: find them with `robustcli "
            f"learn-alphas alphas=mutual_information`, and give its directory as {_KEY}=DIRECTORY."
        )
    raise UserError(
        f"{_KEY} has no schedule {str(alphas)!r}{did_you_mean(str(alphas), NAMES)} (choices: {', '.join(NAMES)}; a "
        f"list of numbers; or a file, {', '.join(_SUFFIXES)})"
    )


def _read(path: Path) -> Any:
    """A list of numbers, or the table that ``learn-alphas`` writes."""
    try:
        match path.suffix.lower():
            case ".npy":
                return np.load(path, allow_pickle=False).tolist()
            case ".json":
                return json.loads(path.read_text(encoding="utf-8"))
            case ".txt" | ".csv":
                return [
                    line.strip().rstrip(",") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
                ]
    except Exception as error:  # the parsers of json and npy raise whatever they meet in damaged bytes
        raise UserError(f"{_KEY} is {path}, which cannot be read as a list of numbers ({error}).") from error
    raise UserError(f"{_KEY} is {path}: expected a file that ends in {', '.join(_SUFFIXES)}.")


def _checked(values: Any, count: int, source: str | None) -> Tensor:
    said = f"{_KEY} ({source})" if source else _KEY
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"{said} is no list of numbers: give {count} of them, or linear or cosine.")
    if len(values) != count:
        raise UserError(f"{said} has {len(values)} values, but the generator has {count} latents: give one for each.")
    numbers = [_number(value, place, said) for place, value in enumerate(values)]
    return torch.tensor(numbers, dtype=torch.float64)


def _number(value: Any, place: int, said: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:  # a NaN fails too
        raise UserError(f"{said} has {value!r} for latent {place}: each is a share, from 0 (kept) to 1 (drawn anew).")
    return number
