"""Factories of generators: the targets of ``conf/generator``, and generators from files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcli.models.generators.base import Generator
from robustcli.models.generators.files import load_nvae
from robustcli.models.generators.nvae import NVAE
from robustcli.models.generators.style_files import is_of_stylegan, read_content, style_mixing
from robustcli.models.registry import MODELS, import_factory
from robustcli.models.weights import find_weights, read_safetensors
from robustcli.utils.errors import UserError

_PUBLISHED = "nvae"  # whose layout files have that do not name their generator


def nvae(
    *,
    checkpoint: str | Path | None = None,
    shipped: str | None = None,
    temperature: float = 0.6,
    resolution: Sequence[int] | None = None,
    levels: int = 256,
    autoencoder: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> NVAE:
    """An NVAE: frozen from a file, or with new weights to be trained.

    Args:
        checkpoint: a published .pt, a file of train-generator, or ``shipped``; None for new weights.
        shipped: name of the package's own file that ``checkpoint="shipped"`` stands for.
        temperature: of the draws from the prior.
        resolution: (C,H,W); levels: grey levels of a channel; autoencoder: sizes (see `Sizes`). With a checkpoint they
            come from it, and what is given here must be the same.
        seed: of new weights.

    Raises:
        UserError: a file that is no NVAE or another one than asked for; or neither a file nor sizes.
    """
    if checkpoint is None:
        if resolution is None or autoencoder is None:
            raise UserError(
                "generator.checkpoint is null, and generator.resolution or generator.autoencoder too: give a file, or "
                "sizes for new weights as generator=nvae_digits has them."
            )
        configuration = {"resolution": list(resolution), "autoencoder": dict(autoencoder), "levels": levels}
        return NVAE(configuration, temperature=temperature, seed=seed)
    model = load_nvae(checkpoint, temperature=temperature, shipped=shipped)
    _check_same("resolution", None if resolution is None else list(resolution), list(model.resolution), checkpoint)
    for key, value in (autoencoder or {}).items():
        _check_same(f"autoencoder.{key}", value, model.sizes.published().get(key), checkpoint)
    return model


def load_generator(path: str | Path, *, temperature: float = 0.6, shipped_for: str | None = None) -> Generator:
    """A frozen generator from a file.

    Args:
        path: a published .pt of NVAE, e4e or Style-Transformer, a file of train-generator, or ``shipped``.
        temperature: of the draws from the prior; StyleGAN2 has none.
        shipped_for: name of the data set whose generator ``path="shipped"`` stands for.

    Raises:
        UserError: no such file, none shipped for that data set, or no generator.
    """
    rows = {name: row for name, row in MODELS.items() if row.kind == "generator"}
    shipped = {name: file for row in rows.values() for name, file in row.shipped.items()}
    if str(path) == "shipped" and shipped_for not in shipped:
        raise UserError(
            f"generator is shipped, but none is shipped for {shipped_for}, only for {', '.join(shipped)}: train one "
            "with `robustcli train-generator`, or give the path of a published checkpoint."
        )
    file = find_weights(path, shipped.get(shipped_for or ""))
    stored = read_safetensors(file, tensors=False)[0] if file.suffix == ".safetensors" else {}
    if not stored and is_of_stylegan(content := read_content(file)):
        return style_mixing(content, file)
    name = stored.get("generator", _PUBLISHED)
    if not isinstance(name, str) or name not in rows:
        raise UserError(f"checkpoint {file} is of the generator {name!r}: expected one of {', '.join(rows)}.")
    generator: Generator = import_factory(rows[name].target)(checkpoint=file, temperature=temperature)
    return generator


def _check_same(key: str, asked: Any, stored: Any, checkpoint: str | Path) -> None:
    if asked is not None and asked != stored:
        raise UserError(
            f"generator.{key} is {asked}, but the checkpoint {checkpoint} has {stored}: take generator=nvae, which "
            "asks for no sizes, or new weights with generator.checkpoint=null."
        )
