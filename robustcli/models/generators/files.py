"""Files of generators: the published layout of NVAE is read, safetensors are read and written.

A published file is a ``torch.save`` of ``configuration``, ``state_dict`` and one ``state_dict_temp=<T>`` for each
temperature that the moments of the batch norms were estimated again for. Ours holds the weights once, and of each
temperature only the entries that differ, under ``state_dict_temp=<T>/<name>``; the configuration is in its metadata.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcli import __version__
from robustcli.models.generators.nvae import NVAE
from robustcli.models.torch_files import read_torch
from robustcli.models.weights import METADATA_KEY, check_numbers, find_weights, read_safetensors
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic

_WEIGHTS, _AT = "state_dict", "state_dict_temp="
_WRAPPERS = ("module.", "_orig_mod.")  # of distributed and of compiled training


@dataclass(frozen=True)
class _Stored:
    """Content of a file: the configuration, the weights, and the entries that differ at each temperature."""

    configuration: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    at: Mapping[float, Mapping[str, Tensor]]


def load_nvae(path: str | Path, *, temperature: float = 0.6, shipped: str | None = None) -> NVAE:
    """A frozen NVAE in eval mode.

    Its batch norms are those of the entry ``state_dict_temp=<temperature>``. A file that has no such entries at all
    gives its ``state_dict``; one that has them for other temperatures only is refused, for the pictures would be poor.

    Args:
        path: .pt of the published layout, or .safetensors; weights of a large .pt stay on the disk until they are used.
        temperature: of the draws from the prior.
        shipped: name of the package's own file that ``path="shipped"`` stands for.

    Raises:
        UserError: no such file, damaged, not of this layout, of other sizes, or without the temperature.
    """
    found = find_weights(path, shipped)
    stored = _read_safetensors(found) if found.suffix == ".safetensors" else _read_published(found)
    state = {**stored.weights, **_chosen(found, stored, temperature)}
    try:
        with torch.device("meta"):
            model = NVAE(stored.configuration, temperature=temperature)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise UserError(f"the configuration in checkpoint {found} describes no NVAE ({error}).") from error
    check_match(found, state, model.state_dict(), "the NVAE that its configuration describes")
    check_numbers(found, state, model.state_dict())
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def save_nvae(
    model: NVAE,
    path: str | Path,
    *,
    at: Mapping[float, Mapping[str, Tensor]] | None = None,
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write safetensors, whole or not at all, equal bytes for equal weights.

    Args:
        at: for temperatures, the entries of the state dict that differ (moments of the batch norms).
        half: convolutions as float16, half the size; moments, gains and biases stay float32.
    """
    tensors = dict(model.state_dict())
    for temperature, changed in sorted((at or {}).items()):
        tensors |= {f"{_AT}{float(temperature)}/{name}": value for name, value in changed.items()}
    written = {name: _packed(value, half) for name, value in tensors.items()}
    stored = {**(metadata or {}), "version": __version__, "generator": "nvae", "configuration": model.configuration}
    with atomic(Path(path)) as temporary:
        save_file(written, temporary, metadata={METADATA_KEY: json.dumps(stored, sort_keys=True)})


def _packed(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    return (value.half() if half and value.ndim > 1 and value.is_floating_point() else value).contiguous()


def _read_safetensors(path: Path) -> _Stored:
    stored, tensors = read_safetensors(path)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    at: dict[float, dict[str, Tensor]] = {}
    for name in [name for name in tensors if name.startswith(_AT)]:
        label, _, entry = name.partition("/")
        at.setdefault(_temperature(path, label), {})[entry] = tensors.pop(name)
    return _Stored(_configuration(path, stored), tensors, at)


def _read_published(path: Path) -> _Stored:
    content = read_torch(path, mmap=True)
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint {path} holds {type(content).__name__}, not the table of a published NVAE.")
    configuration = _configuration(path, content)
    tables = {str(key): value for key, value in content.items() if str(key).startswith(_WEIGHTS)}
    for key, table in tables.items():
        entries_fit = isinstance(table, Mapping) and all(isinstance(name, str) for name in table)
        if not entries_fit or not all(isinstance(value, Tensor) for value in table.values()):
            raise UserError(f"checkpoint {path} holds no table of weights under {key!r}: it is not of an NVAE.")
    entries = {key: _plain(value) for key, value in tables.items()}
    at = {_temperature(path, key): value for key, value in entries.items() if key.startswith(_AT)}
    if not entries:
        raise UserError(f"checkpoint {path} has no {_WEIGHTS!r}: it holds {listed(content)}.")
    return _Stored(configuration, entries.get(_WEIGHTS, {}), at)


def _temperature(path: Path, label: str) -> float:
    try:
        return float(label.removeprefix(_AT))
    except ValueError:
        raise UserError(f"checkpoint {path} has an entry {label!r}, which names no temperature.") from None


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    # Networks run in the type of their weights, and the arithmetic between the layers is float32.
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _configuration(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    found = content.get("configuration")
    if not isinstance(found, Mapping) or not {"autoencoder", "resolution"} <= set(found):
        raise UserError(
            f"checkpoint {path} has no 'configuration' of 'autoencoder' and 'resolution': it is not of an NVAE "
            f"(it holds {listed(content)}); a published .pt and a file of train-generator have one."
        )
    return found


def _chosen(path: Path, stored: _Stored, temperature: float) -> Mapping[str, Tensor]:
    if temperature in stored.at or not stored.at:
        return stored.at.get(temperature, {})
    known = ", ".join(f"{value:g}" for value in sorted(stored.at))
    raise UserError(
        f"temperature is {temperature:g}, but checkpoint {path} has batch-norm moments for {known} only: choose one "
        "of these, or save its state_dict without the state_dict_temp entries to take that as it is."
    )


def check_match(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """`UserError` where names or shapes of the weights in a file are not those that are expected of ``what``."""
    lacking, odd = [name for name in expected if name not in state], [name for name in state if name not in expected]
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if lacking or odd or wrong:
        kind, names = next((k, n) for k, n in (("lacks", lacking), ("adds", odd), ("has of another shape", wrong)) if n)
        raise UserError(f"checkpoint {path} is not of {what}: it {kind} {listed(names)}.")


def listed(names: Iterable[Any]) -> str:
    """The first four names, and how many more there are."""
    found = [str(name) for name in names]
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
