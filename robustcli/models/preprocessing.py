"""The published preprocessing of a folder of transformers, and what of it differs from ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.utils.errors import UserError

_FILES = ("preprocessor_config.json", "processor_config.json")
_MODES = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow's filters
_OTHERS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}
# Of CLIP and its kin; SigLIP's maps pixels to [-1, 1].
_CLIP: tuple[tuple[float, ...], ...] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_SIGLIP: tuple[tuple[float, ...], ...] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Preprocessing:
    """Mean and standard deviation per channel in units of [0,1] pixels, the interpolation, and remarks."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    remarks: tuple[str, ...]


def published(folder: Path, kind: str, side: int) -> Preprocessing:
    """The preprocessing of ``folder``, whose network takes ``side`` pixels a side.

    Args:
        kind: the ``model_type``, whose usual mean and std stand where the folder has no file of preprocessing.

    Raises:
        UserError: a file that cannot be read, or pixels that are not divided by 255.
    """
    mean, std = _SIGLIP if kind == "siglip" else _CLIP
    told: list[str] = []
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        usual = f"{folder} has no {_FILES[0]}: mean and std are the usual ones of its kind, {kind}."
        return Preprocessing(mean, std, "bicubic", (usual,))
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        settings = read.get("image_processor", read)
        mean, std = (_channels(settings.get(key), usual) for key, usual in (("image_mean", mean), ("image_std", std)))
        if settings.get("do_normalize") is False:
            mean, std = (0.0,) * 3, (1.0,) * 3
        scaled = settings.get("do_rescale", True) and abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-3
        filter_ = int(settings.get("resample", 3))
        told = _geometry(path, settings, side) if settings.get("do_resize", True) else []
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"model.path: {path} cannot be read ({error!r:.100}): fetch it again.") from error
    if not scaled:
        raise UserError(f"model.path: {path} does not divide pixels by 255, as every model here does.")
    if filter_ not in _MODES:
        told.append(f"{path} resizes by the filter {_OTHERS.get(filter_, filter_)}, and bicubic is taken.")
    return Preprocessing(mean, std, _MODES.get(filter_, "bicubic"), tuple(told))


def _channels(values: Any, usual: tuple[float, ...]) -> tuple[float, ...]:
    found = usual if values is None else tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"{len(found)} channels")
    return found


def _geometry(path: Path, settings: Mapping[str, Any], side: int) -> list[str]:
    """Sentences on resizing and cropping that the square images of a data set do not have behind them."""
    size = settings.get("size", side)
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    if "shortest_edge" not in size:
        return [
            f"{path} squeezes whole images into a square, while a data set crops their centre unless it has "
            "dataset.fit=squash."
        ]
    crop = settings.get("crop_size", side) if settings.get("do_center_crop", True) else side
    crop = crop if isinstance(crop, int) else int(crop["height"])
    if (int(size["shortest_edge"]), crop) == (side, side):
        return []
    return [
        f"{path} resizes the shorter side to {size['shortest_edge']} pixels and crops the centre of {crop}, while the "
        f"square images of a data set are resized to {side} as they are."
    ]
