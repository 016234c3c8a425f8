"""Registry of models and generators: a name, the factory behind it, and the kind of model that it makes.

A row is plain data. `load` and `restore` find factories here, a checkpoint names its own by a row, and the contract
tests run over all rows; ``conf/model`` and ``conf/generator`` hold the settings, whose ``_target_`` is a row's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from robustcli.utils.errors import UserError
from robustcli.utils.targets import resolve_target

Factory = Callable[..., Any]
Kind = Literal["classifier", "dual_encoder", "generator", "trained"]  # `trained`: `Trained`, without latents to mix


@dataclass(frozen=True)
class Row:
    """A factory of the registry.

    Attributes:
        target: its dotted path, as ``_target_`` has it.
        kind: of its models, known without building one, which may need a download.
        shipped: file of ``robustcli/assets`` (without suffix) by the name of the data set that it was trained on.
    """

    target: str
    kind: Kind
    shipped: Mapping[str, str] = field(default_factory=dict)


MODELS: Mapping[str, Row] = {
    "lenet": Row("robustcli.models.lenet", "classifier"),
    "mlp_head": Row("robustcli.models.mlp_head", "classifier"),
    "resnet_cifar": Row("robustcli.models.resnet_cifar", "classifier"),
    "small_cnn": Row("robustcli.models.small_cnn", "classifier"),
    "timm": Row("robustcli.models.timm", "classifier"),
    "torchvision": Row("robustcli.models.torchvision", "classifier"),
    "open_clip": Row("robustcli.models.open_clip", "dual_encoder"),
    "tiny": Row("robustcli.models.tiny", "dual_encoder", {"scenes": "tiny_scenes"}),
    "transformers": Row("robustcli.models.transformers", "dual_encoder"),
    "nvae": Row(
        "robustcli.models.generators.nvae",
        "generator",
        {"digits": "nvae_digits", "scene_classes": "nvae_scene_classes", "scenes": "nvae_scene_classes"},
    ),
    "avae": Row("robustcli.models.generators.avae", "trained", {"digits": "avae_digits"}),
    "ddpm": Row("robustcli.models.generators.ddpm", "trained", {"digits": "ddpm_digits"}),
    "ndvae": Row("robustcli.models.generators.ndvae", "trained", {"digits": "ndvae_digits"}),
}


def import_factory(target: str) -> Factory:
    """Callable at a dotted path, see `resolve_target`; `UserError` where there is none that a config may call."""
    try:
        return resolve_target(target, "model._target_")
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"model._target_ is {target!r}, which cannot be imported ({error}): expected a factory such as "
            "robustcli.models.tiny; the folder of a module of your own stands in PYTHONPATH."
        ) from error


def row_of(factory: Factory) -> tuple[str, Row] | None:
    """Name and row of a factory; None for one that is not in the registry."""
    return next(((name, row) for name, row in MODELS.items() if import_factory(row.target) is factory), None)


def name_of(factory: Factory) -> str:
    """The name of a factory in descriptions: that of its row, or the dotted path of one from elsewhere."""
    found = row_of(factory)
    return found[0] if found else f"{factory.__module__}.{factory.__qualname__}"
