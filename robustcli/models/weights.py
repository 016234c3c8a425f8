"""Files of weights: safetensors are written; the common formats of CLIP are read, without running code from them."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli import __version__
from robustcli.models.classifier import Classifier
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.layouts import (
    OPENAI_NUMBERS,
    TORCHS,
    State,
    bare,
    below,
    fits,
    fitted,
    places,
    stands_behind,
    without_text,
)
from robustcli.models.network import PROMPT, of_image
from robustcli.models.torch_files import read_torch
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
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".pth.tar")
METADATA_KEY = "robustcli"  # one entry only: the format writes several in an order that changes from run to run
_ENTRIES = ("state_dict", "model", "model_state_dict", "net")  # where checkpoints keep the weights that were trained
_DEEPEST = 4  # entries in entries
_BEHIND = (
    "{} has its network behind another layer, such as a normalisation: model.mean and model.std are those of the "
    "config, and must be that layer's."
)


@dataclass(frozen=True)
class Weights:
    """Content of a checkpoint: ``state`` by name, ``description``, which rebuilds the model (empty if foreign).

    ``openai`` is True for a file of OpenAI's, whose networks use QuickGELU, or of others that say so; False for GELU;
    None where it is not said. ``others`` are the sets of weights of the file that were not chosen, by name.
    ``remarks`` are sentences on what the file leaves open and the reader decided.
    """

    path: Path
    state: Mapping[str, Tensor]
    description: Mapping[str, Any]
    openai: bool | None = None
    remarks: Sequence[str] = ()
    others: Mapping[str, State] = field(default_factory=dict)

    @property
    def of_image_alone(self) -> bool:
        """True for a file of another library with no part of a text tower."""
        return not self.description and without_text([self.state, *self.others.values()])


Checkpoint = str | Path | Weights


class OtherModel(UserError):
    """Weights whose names or shapes are not those of the model."""


def save_weights(model: Model, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights as safetensors, whole or not at all, equal bytes for equal weights.

    The names are the network's own, so that open_clip can read the file too. The metadata hold the architecture, the
    vocabulary and the version: the file alone rebuilds the model.
    """
    stored = {**(metadata or {}), "version": __version__, "model": model.description}
    content = model.network.state_dict()
    content.pop(PROMPT, None)  # a file of its own, see `prompt`: other programs know no such weight
    state = {name: weight.detach().cpu().contiguous() for name, weight in content.items()}
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
    weights = located(weights, expected)
    state = fitted(weights.state, expected)
    _check_match(weights, state, expected)
    check_numbers(weights.path, state, expected)
    model.network.load_state_dict(state)
    model.remarks = list(weights.remarks)
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
    weights = located(weights, expected)
    _check_match(weights, fitted(weights.state, expected), expected)


def located(weights: Weights, expected: State) -> Weights:
    """The weights of the network that ``expected`` has the names and shapes of, from wherever in the file they stand.

    A file may hold several sets of weights, and one set the weights of other things beside those of the network. What
    is left out is told in a remark; where nothing fits, the weights are returned as they are.

    Raises:
        UserError: several places fit, and none of them is the usual one.
    """
    if fits(weights.state, expected):
        behind = stands_behind(weights.state, expected)
        return replace(weights, remarks=[*weights.remarks, *([_BEHIND.format(weights.path)] if behind else [])])
    found: dict[str, State] = {name: each for name, each in weights.others.items() if fits(each, expected)}
    if not found:
        found = {each.rstrip("."): below(weights.state, each) for each in places(weights.state, expected)}
    if not found:
        return weights
    name = next(iter(found)) if len(found) == 1 else next((usual for usual in _ENTRIES if usual in found), None)
    if name is None:
        raise UserError(
            f"checkpoint {weights.path} has weights of this model under {_joined(sorted(found), 'and')}: choose one of "
            "them by model.weights_key."
        )
    others = [each for each in sorted(found) if each != name]
    picks = f"; model.weights_key picks {_joined(others, 'or')}" if others else ""
    told = f"Of the weights in {weights.path} those under {name!r} are read, which fit the model{picks}."
    return replace(weights, state=found[name], others={}, remarks=[told])


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
    if path.suffix != ".safetensors" and not path.name.endswith(_INDEX):
        content = read_torch(path)
        entries = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
        sets = dict(_sets(entries, "", set()))
        if not sets and not _is_state(entries):
            holds = f"the entries {', '.join([*entries][:8])}" if entries else type(content).__name__
            raise UserError(f"checkpoint {path} holds {holds}, not a table of weights: expected a state_dict")
        return _foreign(path, *_chosen(sets, entries, key, path))
    stored, tensors = ({}, _read_shards(path)) if path.name.endswith(_INDEX) else read_safetensors(path)
    if "generator" in stored:
        raise UserError(
            f"checkpoint {path} is of a generator, which answers nothing: give the weights of a model; a generator "
            f"cleans images in front of one, purifier=mlvgm purifier.generator={path}"
        )
    state, told, others = _chosen({}, tensors, key, path)
    described = stored.get("model", {})
    return Weights(path, state, described) if described else _foreign(path, state, told, others)


def _foreign(path: Path, state: State, told: Sequence[str], others: Mapping[str, State]) -> Weights:
    """Weights of a file that is none of ours."""
    numbers = {name for name in state if name.rpartition(".")[2] in OPENAI_NUMBERS}
    weights = {name: value for name, value in bare(state, TORCHS).items() if name not in numbers}
    quick_gelu = True if OPENAI_NUMBERS[0] in bare(state, TORCHS) else _says_quick_gelu(path)
    return Weights(path, weights, {}, quick_gelu, told, others)


def held_in(folder: Path) -> Path | None:
    """The file of weights in a folder, or the index of several; None where there is none."""
    return next((folder / name for name in _IN_FOLDERS if (folder / name).is_file()), None)


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
        held = held_in(path)
        if held is None:
            raise UserError(
                f"checkpoint is the folder {path}, which holds no weights: expected {', '.join(_IN_FOLDERS)}."
            )
        return held
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


def _is_state(value: Any) -> bool:
    """True for a table of tensors by name, beside which OpenAI's files have numbers."""
    if not isinstance(value, Mapping) or not value:
        return False
    named = all(isinstance(name, str) for name in value)
    return named and all(isinstance(each, Tensor) for name, each in value.items() if name not in OPENAI_NUMBERS)


def _sets(entries: Mapping[str, Any], prefix: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, State]]:
    """The tables of weights among the entries of a checkpoint and of its entries; those of optimisers are none."""
    for name, value in entries.items():
        if not isinstance(value, Mapping) or id(value) in seen or "optim" in name or depth == _DEEPEST:
            continue
        seen.add(id(value))  # a forged file can hold entries in one another
        if _is_state(value):
            yield f"{prefix}{name}", value
        elif all(isinstance(each, str) for each in value):
            yield from _sets(value, f"{prefix}{name}.", seen, depth + 1)


def _chosen(
    sets: Mapping[str, State], plain: State, key: str | None, path: Path
) -> tuple[State, list[str], Mapping[str, State]]:
    """One of several ``sets`` of weights, or the ``plain`` one of a file without entries; a remark; the others.

    A ``key`` may also be a name that stands before the weights of a set: ``ema`` for ``ema.conv.weight``.
    """
    ends = [(name, name.rpartition(".")[2]) for name in sets]
    usual = next((name for each in _ENTRIES for name, end in ends if end == each), next(iter(sets), None))
    state = sets[usual] if usual is not None else plain
    if key is not None and key not in sets:
        inner = below(state, f"{key}.")
        if not inner:
            raise UserError(
                f"model.weights_key is {key!r}, but the checkpoint {path} has "
                + (f"the weights {', '.join(sets)}: choose one of them." if sets else "one set of weights, without it.")
            )
        return inner, [], {}
    if key is not None:
        return sets[key], [], {}
    others = {name: each for name, each in sets.items() if name != usual}
    told = f"Of the weights in {path} those of {usual!r} are read; model.weights_key picks {_joined([*others], 'or')}."
    return state, [told] if others else [], others


def with_image_tower(tower: Weights, whole: State, text: str) -> Weights:
    """The weights of a ``whole`` dual encoder, whose text is that of ``text``, with the image tower of a file.

    Raises:
        UserError: the file has no such tower.
    """
    parts = {name: value for name, value in whole.items() if of_image(name)}
    prefix = "visual." if all(name.startswith("visual.") for name in parts) else ""  # which open_clip's files leave out
    expected = below(parts, prefix)
    weights = located(tower, expected)
    read = {f"{prefix}{name}": value for name, value in fitted(weights.state, expected).items()}
    _check_match(weights, read, parts)
    told = f"The image tower is that of {tower.path}, the text tower that of {text}."
    return replace(weights, state={**whole, **read}, remarks=[*weights.remarks, told], others={})


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
        number = _number_of_classes(state, expected) if found[:2] == ["", ""] else None
        remedy = "give the architecture and sizes that it was trained with"
        raise OtherModel(
            f"checkpoint {weights.path} is of another model{made}: {differences}: "
            + (remedy if number is None else f"it has {number} classes, so set model.classes={number}")
        )


def _number_of_classes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int | None:
    """The number of logits of a file that fits but for it: its last layer alone has other rows; None if not so."""
    shapes = ((state[name].shape, wanted.shape) for name, wanted in expected.items())
    pairs = [(found, wanted) for found, wanted in shapes if found != wanted]
    if len(pairs) > 2 or not all(pair[0] and pair[0][1:] == pair[1][1:] for pair in pairs):  # a weight and its bias
        return None
    numbers = {found[0] for found, _ in pairs}
    return numbers.pop() if len(numbers) == 1 else None


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


def _joined(names: Sequence[str], word: str) -> str:
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{label} {', '.join(names[:2])}{more}"
