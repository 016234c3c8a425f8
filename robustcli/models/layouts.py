"""Layouts of state dicts: the prefixes that wrappers put in front of names, and the names of libraries.

A network is found in a state dict by its own names and shapes, wherever it stands in there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from robustcli.models.hugging_face import MARK, openai_names

State = Mapping[str, Tensor]

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # that OpenAI's files carry among the weights
# Data parallel and compiled networks, Lightning modules and the like put a name in front of all weights.
TORCHS = ("module.", "_orig_mod.")
_WRAPPERS = (*TORCHS, "model.", "net.", "1.", "visual.")
# What robustness and RobustBench keep beside a network that stands under `model.`: its normalisation, and an attacker.
_BESIDE = ("normalizer.", "normalize.", "attacker.")
_COUNTER = "num_batches_tracked"
_AVERAGED = "n_averaged"  # the counter of torch's AveragedModel
_TEXT_PARTS = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
_CONSTANTS = ("position_ids", "attn_mask")  # that some versions store, and networks make anew
_OF_TEXT = {"text", "text_model", "text_projection", "token_embedding", "ln_final"}  # parts of names in a text tower


def bare(state: State, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """The names as they are inside of all wrappers whose prefix stands before each of them."""
    inner = {name: value for name, value in state.items() if name != _AVERAGED}
    while inner and (prefix := next((each for each in prefixes if all(name.startswith(each) for name in inner)), "")):
        inner = below(inner, prefix)
    return inner


def below(state: State, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fitted(state: State, expected: State) -> dict[str, Tensor]:
    """Names and shapes as in ``expected`` where layouts differ: wrappers, Hugging Face's CLIP, prefix of the text
    tower, scalars as (1,).
    """
    prefixes = [each for each in _WRAPPERS if not _any_starts(expected, each)]
    state = bare(_alone(state), prefixes)
    if MARK in state and MARK not in expected:
        state = bare(openai_names(state), prefixes)
    nested = _any_starts(expected, "text.")
    if nested and "positional_embedding" in state:
        state = {f"text.{name}" if name.startswith(_TEXT_PARTS) else name: value for name, value in state.items()}
    elif not nested:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    state = {_renumbered(name, expected): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name in expected or not name.endswith(_CONSTANTS)}
    # Counters of batch norms, which files of old versions lack and no output depends on.
    state |= {name: value for name, value in expected.items() if name.endswith(_COUNTER) and name not in state}
    return {
        name: value.reshape(expected[name].shape)
        if name in expected and value.numel() == expected[name].numel() == 1
        else value
        for name, value in state.items()
    }


def fits(state: State, expected: State) -> bool:
    """True where ``state``, once `fitted`, has each weight that is expected, in its shape."""
    found = fitted(state, expected)
    return all(name in found and found[name].shape == value.shape for name, value in expected.items())


def places(state: State, expected: State) -> list[str]:
    """Prefixes below which the whole network stands, with its shapes, beside weights of other things."""
    count = Counter(name[: end + 1] for name in state for end, sign in enumerate(name) if sign == ".")
    needed = sum(not name.endswith(_COUNTER) for name in expected)
    found = [each for each, held in count.items() if held >= needed and fits(below(state, each), expected)]
    return [each for each in found if not any(_wraps(each, other) for other in found)]


def stands_behind(state: State, expected: State) -> bool:
    """True for weights behind another layer, ``Sequential(Normalise(), network)``, or beside one."""
    if len(_alone(state)) < len(state):
        return True
    inner = bare(state, [each for each in _WRAPPERS if each != "1."])
    return all(name.startswith("1.") for name in inner) and not _any_starts(expected, "1.")


def canonical(state: State) -> dict[str, Tensor]:
    """The weights of a dual encoder, or of its image tower, under open_clip's names, whatever stands before them."""
    inner = openai_names(bare(_alone(state), [each for each in _WRAPPERS if each != "visual."]))
    mark = "conv1.weight"
    place = min((name for name in inner if name.endswith(mark) and not name.endswith(f"0.{mark}")), key=len, default="")
    prefix = place.removesuffix(mark).removesuffix("visual.")
    under = below(inner, prefix)
    if place.endswith(f"visual.{mark}"):
        return {name.removeprefix("text."): value for name, value in under.items()}
    return {f"visual.{name}": value for name, value in under.items()}


def without_text(states: Iterable[State]) -> bool:
    """True for sets of weights of which none has a part of a text tower."""
    return not any(_OF_TEXT & {*name.split(".")} for state in states for name in state)


def _alone(state: State) -> dict[str, Tensor]:
    """The weights of a network without those of the layers that a library keeps beside it."""
    inner = bare(state, TORCHS)
    held = _any_starts(inner, "model.")
    return {name: value for name, value in inner.items() if not (held and name.startswith(_BESIDE))}


def _any_starts(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _renumbered(name: str, expected: State) -> str:
    """The name of a layer of AltCLIP's text tower, which versions of transformers count as ``layer`` or ``layers``."""
    if name in expected:
        return name
    other = name.replace(".layer.", ".layers.") if ".layer." in name else name.replace(".layers.", ".layer.")
    return other if other in expected else name


def _wraps(outer: str, inner: str) -> bool:
    """True where ``inner`` is ``outer`` with nothing but wrappers behind it: the same weights."""
    rest = inner.removeprefix(outer)
    while wrapper := next((each for each in _WRAPPERS if rest.startswith(each)), ""):
        rest = rest.removeprefix(wrapper)
    return inner != outer and inner.startswith(outer) and not rest
