"""Files of StyleGAN2 and of encoders in front of it, in the published layouts.

An encoder comes with the generator that it was trained for: ``{"state_dict", "latent_avg", "opts"}`` with
``encoder.*`` and ``decoder.*`` (e4e), or ``encoder.module.*`` and ``decoder.module.*`` (Style-Transformer); a
generator alone is ``{"g_ema"}`` or the table of its weights. Sizes are those of the weights. The same names are read
from .safetensors, with ``latent_avg`` among them.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustcli.models.generators.e4e import E4EEncoder
from robustcli.models.generators.files import check_match, listed
from robustcli.models.generators.style_mixing import CARS, FACES, Encoder, StyleMixing
from robustcli.models.generators.style_transformer import StyleTransformerEncoder
from robustcli.models.generators.stylegan import StyleGAN2
from robustcli.models.torch_files import read_torch
from robustcli.models.weights import check_numbers, find_weights, read_safetensors
from robustcli.utils.errors import UserError

_E4E = "Encoder4Editing"  # as ``opts.encoder_type`` has it; pSp's encoder has the same names and adds up otherwise
_PARTS = ("encoder.", "decoder.", "style.")
_CARS = 512  # side of the one published generator that makes letter-boxed images
State = Mapping[str, Tensor]
_Network = TypeVar("_Network", bound=nn.Module)


def load_style_mixing(path: str | Path) -> StyleMixing:
    """A frozen encoder and generator in eval mode, with the frame of faces, or of cars where the generator has 512 px.

    Args:
        path: a checkpoint of e4e or of Style-Transformer.

    Raises:
        UserError: no such file, damaged, another thing, parts missing, or an encoder of another kind.
    """
    file = find_weights(path)
    return style_mixing(read_content(file), file)


def style_mixing(content: Any, path: Path) -> StyleMixing:
    """`load_style_mixing` of what was read from ``path``."""
    whole = _state(content, path)
    encoder, decoder = _encoder(whole, content, path), _stylegan2(_below(whole, "decoder"), path)
    average = _average(content, whole, decoder, path)
    try:
        model = StyleMixing(encoder, decoder, average, frame=CARS if decoder.size == _CARS else FACES)
    except ValueError as error:
        raise UserError(f"checkpoint {path} holds parts that do not belong together: {error}.") from error
    return model.requires_grad_(False).eval()


def load_stylegan2(path: str | Path) -> StyleGAN2:
    """A frozen StyleGAN2 in eval mode: alone in a file, or that of a file with its encoder.

    Raises:
        UserError: no such file, damaged, or another thing.
    """
    file = find_weights(path)
    whole = _state(read_content(file), file)
    return _stylegan2(_below(whole, "decoder") or whole, file)


def load_e4e(path: str | Path) -> E4EEncoder:
    """A frozen e4e encoder in eval mode; see `load_stylegan2`."""
    return _load_encoder(path, E4EEncoder)


def load_style_transformer(path: str | Path) -> StyleTransformerEncoder:
    """A frozen Style-Transformer encoder in eval mode; see `load_stylegan2`."""
    return _load_encoder(path, StyleTransformerEncoder)


def read_content(path: Path) -> Any:
    """The content of a file; weights of a large .pt stay on the disk until they are used."""
    return read_safetensors(path)[1] if path.suffix == ".safetensors" else read_torch(path, mmap=True)


def is_of_stylegan(content: Any) -> bool:
    """True for the content of a file of the layouts above, also where it lacks a part."""
    if not isinstance(content, Mapping) or "configuration" in content:
        return False
    table = content.get("state_dict", content)
    names = [str(name).removeprefix("module.") for name in table] if isinstance(table, Mapping) else []
    return "g_ema" in content or any(name.startswith(_PARTS) for name in names)


def _load_encoder(path: str | Path, kind: type[_Network]) -> _Network:
    file = find_weights(path)
    content = read_content(file)
    found = _encoder(_state(content, file), content, file)
    if not isinstance(found, kind):
        raise UserError(f"checkpoint {file} holds a {type(found).__name__}, not a {kind.__name__}.")
    return found


def _state(content: Any, path: Path) -> State:
    """The table of weights of a file, as float32, without the names of wrappers."""
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds {type(content).__name__}, not a table of weights.")
    table = content.get("state_dict", content.get("g_ema", content))
    tensors = isinstance(table, Mapping) and {str(name): value for name, value in table.items()}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(
            f"checkpoint {path} is no file of a StyleGAN2 or of an encoder: it holds {listed(content)}, where a table "
            "of weights should be, alone or under 'state_dict' or 'g_ema'."
        )
    plain = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in plain.items()}


def _below(state: State, part: str) -> State:
    """The weights whose names begin with ``part.``, or ``part.module.``, by what follows."""
    inner = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
    return {name.removeprefix("module."): value for name, value in inner.items()}


def _stylegan2(state: State, path: Path) -> StyleGAN2:
    """Sizes from the shapes: those that are missing come out in the comparison of the names."""
    if "input.input" not in state or "style.1.weight" not in state:
        raise UserError(f"checkpoint {path} holds no StyleGAN2: it has {listed(state)}, but neither style nor input.")
    ups = [name for name in state if re.fullmatch(r"to_rgbs\.\d+\.bias", name)]
    channels = [_width(state, "input.input", 1)]
    channels += [_width(state, f"convs.{2 * block}.conv.weight", 1) for block in range(len(ups))]
    layers = sum(re.fullmatch(r"style\.\d+\.weight", name) is not None for name in state)
    side, dim = 2 ** (len(ups) + 2), _width(state, "style.1.weight", 1)
    return _filled(
        lambda: StyleGAN2(side, style_dim=dim, channels=channels, mapping_layers=layers),
        state,
        path,
        f"the StyleGAN2 of {side} pixels that it seems to be",
    )


def _encoder(whole: State, content: Mapping[str, Any], path: Path) -> Encoder:
    state = dict(_below(whole, "encoder") or whole)
    if "input_layer.0.weight" not in state:
        raise UserError(
            f"checkpoint {path} holds no encoder of e4e or Style-Transformer: it has {listed(whole)}; give the file "
            "that has encoder.* and decoder.* in one, not that of a generator alone."
        )
    width = _width(state, "input_layer.0.weight", 0)
    if any(name.startswith("transformerlayer_") for name in state):
        if "z" in whole:  # beside the encoder, or in it
            state["z"] = whole["z"]
        tokens = _width(state, "z", 1)
        what = "the Style-Transformer encoder that it seems to be"
        return _filled(lambda: StyleTransformerEncoder(latents=tokens, width=width), state, path, what)
    kind = _options(content).get("encoder_type", _E4E)
    if kind != _E4E:
        raise UserError(
            f"checkpoint {path} has an encoder of type {kind!r}, but e4e's is {_E4E!r}: that of pSp has the same names "
            "and computes something else; give the file of e4e."
        )
    heads = {name.split(".")[1] for name in state if name.startswith("styles.")}
    side = 2 ** (len(heads) // 2 + 1)
    return _filled(lambda: E4EEncoder(side, width=width), state, path, f"the e4e encoder of {len(heads)} codes")


def _average(content: Mapping[str, Any], whole: State, decoder: StyleGAN2, path: Path) -> Tensor:
    """The average code; zeros where the options say that the encoder does not start from it."""
    if not _options(content).get("start_from_latent_avg", True):
        return torch.zeros(decoder.style_dim)
    average, allowed = content.get("latent_avg", whole.get("latent_avg")), decoder.latents * decoder.style_dim
    if not isinstance(average, Tensor):
        raise UserError(
            f"checkpoint {path} has no 'latent_avg', the average code that its encoder starts from: take the file as "
            "it was published, which has one beside 'state_dict'."
        )
    if average.numel() not in (decoder.style_dim, allowed) or average.shape[-1:] != (decoder.style_dim,):
        raise UserError(
            f"checkpoint {path} has a latent_avg of {tuple(average.shape)}: expected {decoder.style_dim} numbers, or "
            f"as many for each of {decoder.latents} codes."
        )
    check_numbers(path, {"latent_avg": average.float()}, {"latent_avg": torch.empty(0)})
    return average.float()


def _options(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """``opts``, a table or parsed arguments; what they hold is read and never called."""
    options = content.get("opts", {})
    found = vars(options) if isinstance(options, argparse.Namespace) else options
    return found if isinstance(found, Mapping) else {}


def _width(state: State, name: str, dimension: int) -> int:
    """A side of a weight; 1 where there is none, which the comparison of the names tells."""
    shape = state[name].shape if name in state else ()
    # In a file the modulated weights have a dimension of one in front.
    return int(shape[dimension]) if len(shape) > dimension else 1


def _filled(build: Callable[[], _Network], state: State, path: Path, what: str) -> _Network:
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    check_match(path, state, expected, what)
    check_numbers(path, state, expected)
    network.load_state_dict(dict(state), assign=True)
    return network.requires_grad_(False).eval()
