"""Files of weights: safetensors are written; the common formats of CLIP are read, without running code from them."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustcli import __version__
from robustcli.models.classifier import Classifier
from robustcli.models.dual_encoder import DualEncoder
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic

Model = DualEncoder | Classifier
ASSETS = Path(__file__).parents[1] / "assets"
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
METADATA_KEY = "robustcli"  # one entry only: the format writes several in an order that changes from run to run
_OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's files carry among the weights
_COUNTER = "num_batches_tracked"
_TEXT_PARTS = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")


@dataclass(frozen=True)
class Weights:
    """Content of a checkpoint: ``state`` by name, ``description``, which rebuilds the model (empty if foreign).

    ``openai`` is True for a file of OpenAI's, whose networks use QuickGELU.
    """

    path: Path
    state: Mapping[str, Tensor]
    description: Mapping[str, Any]
    openai: bool = False


def save_weights(model: Model, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights as safetensors, whole or not at all, equal bytes for equal weights.

    The names are the network's own, so that open_clip can read the file too. The metadata hold the architecture, the
    vocabulary and the version: the file alone rebuilds the model.
    """
    stored = {**(metadata or {}), "version": __version__, "model": model.description}
    state = {name: weight.detach().cpu().contiguous() for name, weight in model.network.state_dict().items()}
    with atomic(Path(path)) as temporary:
        save_file(state, temporary, metadata={METADATA_KEY: json.dumps(stored, sort_keys=True)})


def load_weights(model: Model, path: str | Path) -> None:
    """Put all weights of a checkpoint into ``model``; a ``UserError``, and nothing changed, where one does not fit."""
    assign(model, read_weights(path))


def assign(model: Model, weights: Weights) -> None:
    """Put the weights of a checkpoint that has been read into ``model``, as ``load_weights``.

    Raises:
        UserError: another vocabulary, or names or shapes that do not fit; nothing is changed then.
    """
    known, stored = model.description.get("vocabulary"), weights.description.get("vocabulary")
    if known is not None and stored is not None and known != stored:
        raise UserError(
            f"checkpoint {weights.path} was trained with another vocabulary ({len(stored)} words, the model has "
            f"{len(known)}): build the model from the checkpoint, which holds its own"
        )
    expected = model.network.state_dict()
    state = _renamed(weights.state, expected)
    _check_match(weights, state, expected)
    model.network.load_state_dict(state)


def read_weights(path: str | Path, *, shipped: str | None = None) -> Weights:
    """Read safetensors, or a ``torch.save`` file of tensors (open_clip's, OpenAI's).

    Args:
        path: of the file, or ``shipped``.
        shipped: name of the package's own file that ``shipped`` stands for.

    Raises:
        UserError: no such file, damaged, or holds objects other than tensors, which could run code when read.
    """
    path = find_weights(path, shipped)
    if path.suffix == ".safetensors":
        stored, state = read_safetensors(path)
        return Weights(path, _unwrapped(state), stored.get("model", {}))
    content = read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for name, value in state.items() if name not in _OPENAI
    ):
        raise UserError(
            f"checkpoint {path} holds {type(content).__name__}, not a table of weights: expected a state_dict"
        )
    plain = _unwrapped(state)
    openai = _OPENAI[0] in plain
    return Weights(path, {name: value for name, value in plain.items() if name not in _OPENAI}, {}, openai)


def find_weights(path: str | Path, shipped: str | None = None) -> Path:
    """Path of a file of weights: ``shipped`` stands for the package's own; `UserError` where it is not there."""
    if str(path) == "shipped":
        if shipped is None:
            raise UserError(
                "checkpoint is shipped, but no weights come with this model: give the path of a file, or null."
            )
        own = ASSETS / f"{shipped}.safetensors"
        if not own.is_file():
            raise UserError(
                f"checkpoint is shipped, but {own} is not there: make it with `make assets`, or set checkpoint=null"
            )
        return own
    path = Path(path).expanduser()
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES)
        hint = f"the folder has {', '.join(beside[:5])}" if beside else "expected a .safetensors, .pt or .bin file"
        raise UserError(f"checkpoint is {path}, but there is no such file: {hint}")
    return path


def read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata of a safetensors file of ours (empty for one from elsewhere), and its tensors by name.

    Args:
        tensors: False reads the first bytes alone, however large the file.

    Raises:
        UserError: damaged, or written by a later version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}): it is damaged or no safetensors file") from error
    _check_metadata(path, stored)
    return stored, state


def _check_metadata(path: Path, stored: Any) -> None:
    """A `UserError` for metadata that are no description of a model, or that a later version wrote."""
    if not isinstance(stored, dict) or not isinstance(stored.get("model", {}), dict):
        raise UserError(
            f"checkpoint {path} describes its model by {stored!r:.60}, which is no table of settings: it is damaged, "
            "or was not written by robustcli."
        )
    version = str(stored.get("version", __version__))
    if _release(version) > _release(__version__):
        raise UserError(
            f"checkpoint {path} was written by robustcli {version}, later than this one ({__version__}), and may mean "
            "other things by the same names: install that version."
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number; others change no format."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def read_torch(path: Path, *, mmap: bool = False) -> Any:
    """The content of a ``torch.save`` file of tensors and plain data.

    Args:
        mmap: leave the tensors on the disk until they are read; for files that are zip archives.

    Raises:
        UserError: damaged, or it holds objects that could run code when read.
    """
    if _is_torchscript(path):
        raise UserError(
            f"checkpoint {path} is a TorchScript archive, which opens only by running the code in it: if you trust it, "
            "convert it once, `torch.save(torch.jit.load(path, map_location='cpu').state_dict(), 'weights.pt')`, "
            "and give weights.pt"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} holds Python objects beside tensors, or is damaged; it is not read, for such objects "
            "could run code: save its state_dict alone, best as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}): it is damaged or no torch file") from error


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names as they are inside of torch's data-parallel wrapper."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _renamed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes as in ``expected`` where formats differ: prefix of the text tower, scalars as (1,)."""
    nested = any(name.startswith("text.") for name in expected)
    if nested and "positional_embedding" in state:
        state = {f"text.{name}" if name.startswith(_TEXT_PARTS) else name: value for name, value in state.items()}
    elif not nested:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name in expected or not name.endswith("position_ids")}
    # Counters of batch norms, which files of old versions lack and no output depends on.
    state |= {name: value for name, value in expected.items() if name.endswith(_COUNTER) and name not in state}
    return {
        name: value.reshape(expected[name].shape)
        if name in expected and value.numel() == expected[name].numel() == 1
        else value
        for name, value in state.items()
    }


def _check_match(weights: Weights, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    wrong = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    shapes = [f"{name} {tuple(state[name].shape)} in place of {tuple(expected[name].shape)}" for name in wrong]
    found = [
        _listed("it lacks", [name for name in expected if name not in state]),
        _listed("the model has no", [name for name in state if name not in expected]),
        _listed("of another shape are", shapes),
    ]
    if any(found):
        origin = weights.description.get("architecture") or weights.description.get("factory")
        made = f" ({origin})" if origin else ""
        differences = "; ".join(filter(None, found))
        raise UserError(
            f"checkpoint {weights.path} is of another model{made}: {differences}: give the architecture and sizes that "
            "it was trained with"
        )


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{label} {', '.join(names[:2])}{more}"
