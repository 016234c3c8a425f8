"""Files of weights: safetensors are written; the common formats of CLIP are read, without running code from them."""

import argparse
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli import __version__
from robustcli.models.classifier import Classifier
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.hugging_face import openai_names
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic

log = logging.getLogger(__name__)

Model = DualEncoder | Classifier
ASSETS = Path(__file__).parents[1] / "assets"
# Files of weights in a folder: of Hugging Face, and of a run of ours.
_INDEX = ".index.json"  # of weights in several files (shards): {"weight_map": {name of a weight: name of its file}}
_IN_FOLDERS = (
    *(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX)),
    "checkpoints/last.safetensors",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
METADATA_KEY = "robustcli"  # one entry only: the format writes several in an order that changes from run to run
_OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's files carry among the weights
_COUNTER = "num_batches_tracked"
_AVERAGED = "n_averaged"  # the counter of torch's AveragedModel
_ENTRIES = ("state_dict", "model", "model_state_dict", "net")  # where checkpoints keep the weights that were trained
# Data parallel and compiled networks, Lightning modules and the like put a name in front of all weights.
_TORCHS = ("module.", "_orig_mod.")
_WRAPPERS = (*_TORCHS, "model.", "net.", "1.")
# What robustness and RobustBench keep beside a network that stands under `model.`: its normalisation, and an attacker.
_BESIDE = ("normalizer.", "normalize.", "attacker.")
# What training scripts store beside the weights, and what can hold nothing but data: numbers of numpy, under the names
# of its versions 1 and 2, and parsed arguments.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_TEXT_PARTS = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")


@dataclass(frozen=True)
class Weights:
    """Content of a checkpoint: ``state`` by name, ``description``, which rebuilds the model (empty if foreign).

    ``openai`` is True for a file of OpenAI's, whose networks use QuickGELU, or of others that say so; False for GELU;
    None where it is not said. ``remarks`` are sentences on what the file
    leaves open and the reader decided.
    """

    path: Path
    state: Mapping[str, Tensor]
    description: Mapping[str, Any]
    openai: bool | None = None
    remarks: Sequence[str] = ()


Checkpoint = str | Path | Weights


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
    state = fitted(weights.state, expected)
    _check_match(weights, state, expected)
    check_numbers(weights.path, state, expected)
    model.network.load_state_dict(state)
    model.remarks = [*weights.remarks, *_normalised(weights, expected)]
    for sentence in model.remarks:
        log.warning("%s", sentence)


def check_shapes(weights: Weights, build: Callable[[], nn.Module]) -> None:
    """Check that the network of ``build`` has the names and shapes of ``weights``, before its memory is asked for.

    A file may describe a network of any size beside weights of another.

    Raises:
        UserError: it has not.
    """
    with torch.device("meta"):
        expected = build().state_dict()
    _check_match(weights, fitted(weights.state, expected), expected)


def read_weights(path: Checkpoint, *, shipped: str | None = None, key: str | None = None) -> Weights:
    """Read safetensors, or a ``torch.save`` file of tensors: a state dict, or a checkpoint with one among its entries.

    Args:
        path: of the file, or ``shipped``; weights that were read already are returned as they are.
        shipped: name of the package's own file that ``shipped`` stands for.
        key: the entry of a checkpoint to read; None: the only one that holds weights, or the first of ``state_dict``,
            ``model``, ``model_state_dict`` and ``net``, and a remark names the others.

    Raises:
        UserError: no such file or entry, damaged, a generator's, or holds objects that could run code when read.
    """
    if isinstance(path, Weights):
        return path
    path = find_weights(path, shipped)
    if path.name.endswith(_INDEX):
        state, _ = _chosen({}, _read_shards(path), key, path)
        return Weights(path, openai_names(_bare(state, _TORCHS)), {}, _says_quick_gelu(path))
    if path.suffix == ".safetensors":
        stored, tensors = read_safetensors(path)
        if "generator" in stored:
            raise UserError(
                f"checkpoint {path} is of a generator, which answers nothing: give the weights of a model; a generator "
                f"cleans images in front of one, purifier=mlvgm purifier.generator={path}"
            )
        state, _ = _chosen({}, tensors, key, path)
        if described := stored.get("model", {}):
            return Weights(path, state, described)
        return Weights(path, openai_names(_bare(state, _TORCHS)), {}, _says_quick_gelu(path))
    content = read_torch(path)
    entries = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    sets = {name: value for name, value in entries.items() if _is_state(value)}
    if not sets and not _is_state(entries):
        holds = f"the entries {', '.join([*entries][:8])}" if entries else type(content).__name__
        raise UserError(f"checkpoint {path} holds {holds}, not a table of weights: expected a state_dict")
    state, remarks = _chosen(sets, entries, key, path)
    plain = openai_names(_bare(state, _TORCHS))
    weights = {name: value for name, value in plain.items() if name not in _OPENAI}
    return Weights(path, weights, {}, True if _OPENAI[0] in plain else _says_quick_gelu(path), remarks)


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
    if path.is_dir():
        held = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
        if not held:
            raise UserError(
                f"checkpoint is the folder {path}, which holds no weights: expected {', '.join(_IN_FOLDERS)}."
            )
        return held[0]
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES)
        hint = f"the folder has {', '.join(beside[:5])}" if beside else "expected a .safetensors, .pt or .bin file"
        raise UserError(f"checkpoint is {path}, but there is no such file: {hint}")
    return path


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The weights of all files that an index names, none out of its folder; a `UserError` where one is missing."""
    try:
        mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(mapped.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"checkpoint {index} cannot be read ({error!r:.80}): it is no index of weights") from error
    state: dict[str, Tensor] = {}
    for name in names:
        # By its name alone: a link may lead out of the folder, as all files of Hugging Face's cache do.
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(SUFFIXES):
            raise UserError(f"checkpoint {index} names {name!r:.80}, which is no file of weights in its folder.")
        shard = index.with_name(name)
        if not shard.is_file():
            raise UserError(f"checkpoint {index} names {name}, which is not there: fetch all {len(names)} files.")
        content = read_safetensors(shard)[1] if shard.suffix == ".safetensors" else read_torch(shard)
        if not _is_state(content):
            raise UserError(f"checkpoint {shard} is no table of weights, as {index.name} says: fetch it again.")
        state |= content
    if lacking := sorted(set(mapped) - set(state)):
        raise UserError(f"checkpoint {index}: {_listed('its files lack', lacking)}; fetch them again.")
    return state


def _says_quick_gelu(path: Path) -> bool | None:
    """The activation that a CLIP's ``config.json`` beside the weights says; None where there is none."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config.get("model_type") != "clip":
        return None
    towers = [config.get(f"{tower}_config") or {} for tower in ("vision", "text")]
    acts = {str(tower.get("hidden_act", "quick_gelu")) for tower in towers}  # the default of CLIPConfig
    return acts == {"quick_gelu"}


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
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
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
        mmap: leave the tensors on the disk until they are read, where the file is a zip archive.

    Raises:
        UserError: damaged, or it holds objects that could run code when read.
    """
    names = _zip_names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"checkpoint {path} is a TorchScript archive, which opens only by running the code in it: if you trust it, "
            "convert it once, `torch.save(torch.jit.load(path, map_location='cpu').state_dict(), 'weights.pt')`, "
            "and give weights.pt"
        )
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and bool(names))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} holds Python objects beside tensors, or is damaged; it is not read, for such objects "
            "could run code: save its state_dict alone, best as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}): it is damaged or no torch file") from error


def _is_state(value: Any) -> bool:
    """True for a table of tensors by name, beside which OpenAI's files have numbers."""
    if not isinstance(value, Mapping) or not value:
        return False
    named = all(isinstance(name, str) for name in value)
    return named and all(isinstance(each, Tensor) for name, each in value.items() if name not in _OPENAI)


def _chosen(
    sets: Mapping[str, Mapping[str, Tensor]], bare: Mapping[str, Tensor], key: str | None, path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """One of several ``sets`` of weights, or the ``bare`` one of a file without entries, and a remark on the choice."""
    if key is not None and key not in sets:
        raise UserError(
            f"model.weights_key is {key!r}, but the checkpoint {path} has "
            + (f"the weights {', '.join(sets)}: choose one of them." if sets else "one set of weights without a name.")
        )
    name = key or next((usual for usual in _ENTRIES if usual in sets), next(iter(sets), None))
    if name is None:
        return dict(bare), []
    others = [each for each in sets if each != name]
    told = f"Of the weights in {path} those of {name!r} are read; model.weights_key picks {' or '.join(others)}."
    return dict(sets[name]), [told] if others and key is None else []


def _bare(state: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The names as they are inside of all wrappers whose prefix stands before each of them."""
    bare = {name: value for name, value in state.items() if name != _AVERAGED}
    while bare and (prefix := next((each for each in prefixes if all(name.startswith(each) for name in bare)), "")):
        bare = {name.removeprefix(prefix): value for name, value in bare.items()}
    return bare


def _alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network without those of the layers that a library keeps beside it."""
    bare = _bare(state, _TORCHS)
    held = any(name.startswith("model.") for name in bare)
    return {name: value for name, value in bare.items() if not (held and name.startswith(_BESIDE))}


def _zip_names(path: Path) -> list[str]:
    """Names of the members of a zip archive; none for any other file, and for a damaged one, which torch refuses."""
    with suppress(zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
        return archive.namelist()
    return []


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes as in ``expected`` where formats differ: wrappers, prefix of the text tower, scalars as (1,)."""
    state = _bare(_alone(state), [each for each in _WRAPPERS if not any(name.startswith(each) for name in expected)])
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


def is_image_tower(state: Mapping[str, Tensor]) -> bool:
    """True for weights without the table of a text tower's tokens, or any other part of one."""
    return not any("token_embedding" in name or "text" in name for name in state)


def with_image_tower(tower: Weights, whole: Mapping[str, Tensor], text: str) -> Weights:
    """The weights of a ``whole`` dual encoder, whose text is that of ``text``, with the image tower of a file."""
    bare = _bare(tower.state, (*_WRAPPERS, "visual."))
    state = {name: value for name, value in whole.items() if not name.startswith("visual.")}
    told = f"The image tower is that of {tower.path}, the text tower that of {text}."
    return replace(tower, state=state | {f"visual.{name}": value for name, value in bare.items()}, remarks=[told])


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


def _normalised(weights: Weights, expected: Mapping[str, Tensor]) -> list[str]:
    """A sentence on weights that stood behind another layer, ``Sequential(Normalise(), network)``, or beside one."""
    beside = len(_alone(weights.state)) < len(weights.state)
    state = _bare(weights.state, [each for each in _WRAPPERS if each != "1."])
    behind = all(name.startswith("1.") for name in state) and not any(name.startswith("1.") for name in expected)
    if not beside and not behind:
        return []
    return [
        f"{weights.path} has its network behind another layer, such as a normalisation: model.mean and model.std are "
        "those of the config, and must be that layer's."
    ]


def check_numbers(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """`UserError` for NaN and infinite weights, and for whole numbers where a network computes with real ones.

    Integers are codes of a quantised network, which mean nothing without their scales: cast, they would run and answer.
    """
    for name in expected:
        value = state[name]
        if expected[name].is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"checkpoint {path} has {name} as {kind}, where the model has real numbers: it is of a quantised or "
                "masked network; save the weights that it computes with, as floats."
            )
        masked = not expected[name].is_meta and bool(expected[name].isinf().any())  # a causal mask holds -inf
        if value.is_floating_point() and bool((value.isnan() if masked else ~value.isfinite()).any()):
            raise UserError(
                f"checkpoint {path} has NaN or infinite numbers in {name}, with which every answer is void: its "
                "training diverged or the file is damaged; take an earlier one."
            )


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{label} {', '.join(names[:2])}{more}"
