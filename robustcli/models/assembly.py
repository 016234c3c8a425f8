"""Assembly of models from arguments and checkpoints: settings that a checkpoint holds, seeded weights, errors.

A factory writes down its arguments; a checkpoint of ours holds them, and rebuilds the model by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from robustcli.models.registry import name_of
from robustcli.models.weights import Checkpoint, Weights, check_shapes, read_weights
from robustcli.utils.errors import UserError

Classes = Sequence[str] | int
Network = TypeVar("Network", bound=nn.Module)


def settings_and_weights(
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    *,
    shipped: str | None = None,
) -> tuple[dict[str, Any], Weights | None]:
    """Effective settings of a factory, and the weights of the checkpoint, if one is given.

    The description in a checkpoint of ours takes precedence where the caller left the default.

    Args:
        settings: arguments of ``factory``, plain JSON data.
        shipped: name of the package's own file that ``checkpoint="shipped"`` stands for.

    Raises:
        UserError: the checkpoint is of another factory, or was made with another value than the one asked for.
    """
    asked = {key: _plain(value) for key, value in settings.items()}
    if checkpoint is None:
        return asked, None
    weights = read_weights(checkpoint, shipped=shipped)
    stored = weights.description
    if not stored:
        return asked, weights
    made, name = stored.get("factory"), name_of(factory)
    if made != name:
        raise UserError(
            f"checkpoint {weights.path} is of another model: it was saved from {made}, not from {name}: choose that "
            "model, or another checkpoint"
        )
    parameters = signature(factory).parameters
    for key, value in asked.items():
        free = parameters[key].default
        if key in stored and value != stored[key] and (free is Parameter.empty or value != _plain(free)):
            raise UserError(
                f"model.{key} is {value}, but the checkpoint {weights.path} has {stored[key]}: leave model.{key} out, "
                "or train from new weights with model.checkpoint=null"
            )
    return {key: stored.get(key, value) for key, value in asked.items()}, weights


def class_count(classes: Classes) -> int:
    """Number of classes, of a number or of a list of names; `UserError` for fewer than two."""
    number = classes if isinstance(classes, int) else len(classes)
    if number < 2:
        raise UserError(f"model.classes is {classes!r}: expected at least two names, or their number")
    return number


def check_sizes(most: int, **sizes: int) -> None:
    """`UserError` for a number of layers that no network has; each is an object, made before any weight is."""
    for key, value in sizes.items():
        if value > most:
            raise UserError(f"model.{key} is {value}, more than can be meant: at most {most:,}.")


def he_initialised(build: Callable[[], Network], seed: int, weights: Weights | None) -> Network:
    """A network whose convolutions and linear layers are drawn from ``seed`` (He et al. 2015), its norms neutral.

    Raises:
        UserError: its shapes are not those of the ``weights`` that it is to hold, see `check_shapes`.
    """
    if weights is not None:
        check_shapes(weights, build)
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are replaced at once
        network = build()
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


@contextmanager
def seeded_constructors(seed: int) -> Iterator[None]:
    """Context in which a library's constructors draw from ``seed``; the global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed the accelerators too
        yield


def tag_or_file(pretrained: str | None, checkpoint: Checkpoint | None) -> tuple[str | None, Checkpoint | None]:
    """Tag and checkpoint, where ``pretrained`` may name either: a file given there is a checkpoint."""
    if pretrained is not None and (Path(pretrained).is_file() or "/" in pretrained):
        return None, checkpoint or pretrained
    return pretrained, checkpoint


@contextmanager
def library_errors(architecture: str, tag: str | None = None) -> Iterator[None]:
    """Context that turns errors of a library, of a download or of a folder into a `UserError` with the remedy."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, ImportError, TypeError) as error:
        wanted = f"{architecture} with the weights {tag}" if tag else architecture
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"model {wanted} cannot be built ({line}): where there is no network, copy the checkpoint to this machine "
            "and give model.checkpoint=PATH"
        ) from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
