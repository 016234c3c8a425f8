"""Factories of generators: the targets of ``conf/generator``, and generators from files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustcli.models.generators.avae import AVAE, published
from robustcli.models.generators.ddpm import DDPM
from robustcli.models.generators.files import load_nvae
from robustcli.models.generators.nvae import NVAE
from robustcli.models.generators.style_files import is_of_stylegan, read_content, style_mixing
from robustcli.models.registry import MODELS, import_factory
from robustcli.models.weights import find_weights, read_safetensors
from robustcli.utils.errors import UserError

_PUBLISHED = "nvae"  # whose layout files have that do not name their generator
_TRAINED: Mapping[str, type[AVAE] | type[DDPM]] = {"avae": AVAE, "ddpm": DDPM}


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


def ndvae(**settings: Any) -> NVAE:
    """The network of an ND-VAE: an `nvae`, with weights of a training that cleans (`Denoising`)."""
    return nvae(**settings)


def avae(
    *,
    checkpoint: str | Path | None = None,
    shipped: str | None = None,
    temperature: float = 0.6,
    resolution: Sequence[int] | None = None,
    pool: int = 1,
    encoder: Sequence[int] | None = None,
    decoder: Sequence[int] | None = None,
    style: int = 512,
    layers: int = 4,
    seed: int = 0,
) -> AVAE:
    """An A-VAE: from a file, or with new weights to be trained; in both cases with a critic for the training.

    Args:
        checkpoint: a released .pt, a file of train-generator, or ``shipped``; None for new weights.
        shipped: name of the package's own file that ``checkpoint="shipped"`` stands for.
        temperature: of the draw from the posterior.
        resolution, pool, encoder, decoder, style, layers: see `AVAE`; ``encoder`` None: the released sizes for
            ``resolution``, 64, 128 or 256 px. With a checkpoint they come from it, and are not read.
        seed: of new weights.

    Raises:
        UserError: a file that is no A-VAE; neither a file nor sizes; or sizes that do not fit together.
    """
    if checkpoint is not None:
        stored = AVAE.load(checkpoint, temperature=temperature, shipped=shipped)
        model = AVAE(stored.configuration, temperature=temperature, critic=True, seed=seed)
        model.load_state_dict(stored.state_dict(), strict=False)
        return model
    if resolution is None:
        raise UserError("generator.checkpoint is null, and generator.resolution too: give a file, or sizes.")
    if encoder is None or decoder is None:
        if list(resolution) not in ([3, 64, 64], [3, 128, 128], [3, 256, 256]):
            raise UserError(
                f"generator.encoder and decoder are null, but the released sizes are for 64, 128 and 256 px, not "
                f"{list(resolution)}: give both."
            )
        return AVAE(published(resolution[1]), temperature=temperature, critic=True, seed=seed)
    sizes = {"pool": pool, "encoder": list(encoder), "decoder": list(decoder), "style": style, "layers": layers}
    return AVAE({"resolution": list(resolution), **sizes}, temperature=temperature, critic=True, seed=seed)


def ddpm(
    *,
    checkpoint: str | Path | None = None,
    shipped: str | None = None,
    resolution: Sequence[int] | None = None,
    unet: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> DDPM:
    """A diffusion model: from a file, or with new weights to be trained.

    Args:
        checkpoint: a folder of diffusers, a file of train-generator, or ``shipped``; None for new weights.
        shipped: name of the package's own file that ``checkpoint="shipped"`` stands for.
        resolution, unet, schedule: see `DDPM`; with a checkpoint they come from it, and are not read.
        seed: of new weights.

    Raises:
        UserError: a file that is no such model; neither a file nor sizes; or diffusers is missing.
    """
    if checkpoint is not None:
        return DDPM.load(checkpoint, shipped=shipped)
    if resolution is None or unet is None:
        raise UserError("generator.checkpoint is null, and generator.resolution or unet too: give a file, or sizes.")
    configuration = {"resolution": list(resolution), "unet": dict(unet), "schedule": dict(schedule or {})}
    return DDPM(configuration, seed=seed)


def load_generator(
    path: str | Path, *, temperature: float = 0.6, shipped_for: str | None = None, kind: str = _PUBLISHED
) -> Any:
    """A frozen generator from a file.

    Args:
        path: a published .pt of NVAE, e4e, Style-Transformer or A-VAE, a file of train-generator, for a ``ddpm`` a
            folder of diffusers, or ``shipped``.
        temperature: of the draws, where it has one; StyleGAN2 has none.
        shipped_for: name of the data set whose generator ``path="shipped"`` stands for.
        kind: that is asked for, a row of the registry; of an ``nvae`` the file may name another one that draws anew.

    Raises:
        UserError: no such file, none shipped for that data set, or no generator of that kind.
    """
    shipped = MODELS[kind].shipped
    if str(path) == "shipped" and shipped_for not in shipped:
        raise UserError(
            f"generator is shipped, but none is shipped for {shipped_for}, only for {', '.join(shipped)}: train one "
            "with `robustcli train-generator`, or give the path of a published checkpoint."
        )
    name = shipped.get(shipped_for or "")
    if kind in _TRAINED:
        settings = {"temperature": temperature} if kind == "avae" else {}
        return _TRAINED[kind].load(path, shipped=name, **settings)
    rows = [name for name, row in MODELS.items() if row.kind == "generator"]
    file = find_weights(path, name)
    stored = read_safetensors(file, tensors=False)[0] if file.suffix == ".safetensors" else {}
    if not stored and is_of_stylegan(content := read_content(file)):
        return style_mixing(content, file)
    held = stored.get("generator", _PUBLISHED)
    if not isinstance(held, str) or held not in rows:
        raise UserError(f"checkpoint {file} is of the generator {held!r}: expected one of {', '.join(rows)}.")
    return import_factory(MODELS[held].target)(checkpoint=file, temperature=temperature)


def _check_same(key: str, asked: Any, stored: Any, checkpoint: str | Path) -> None:
    if asked is not None and asked != stored:
        raise UserError(
            f"generator.{key} is {asked}, but the checkpoint {checkpoint} has {stored}: take generator=nvae, which "
            "asks for no sizes, or new weights with generator.checkpoint=null."
        )
