"""Builders of test-time defences (a purifier or preprocessing in front of a model), from config nodes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from robustcli.builders.device import on_device
from robustcli.builders.hook import build
from robustcli.builders.names import refuse_reserved
from robustcli.data import ImageClassData, ImageTextData
from robustcli.defenses import Cleaner, PurifiedClassifier, PurifiedEncoder, Step
from robustcli.models import Classifier, DualEncoder
from robustcli.utils.errors import UserError

Data = ImageTextData | ImageClassData


def build_purified(config: DictConfig | None, data: Data, device: torch.device) -> Callable[[Any], Any]:
    """A function from a model to the defended model with the cleaner of ``purifier=...`` in front; identity where null.

    Raises:
        UserError: a generator of images of another size than those of ``data``, a cleaner that changes their size, or a
            mistake in the settings.
    """
    if config is None:
        return lambda model: model
    if not isinstance(config, DictConfig) or not isinstance(config.get("_target_"), str):
        raise UserError(f"a purifier is {config!r}, but must be a cleaner: choose one of `robustcli list purifier`.")
    settings: Any = OmegaConf.to_container(config, resolve=True)
    draws, memory = settings.pop("draws", 1), settings.pop("memory", None)
    cleaner = on_device(as_cleaner(build(settings, data, node="purifier")), device, "purifier")
    _try_out(cleaner, data.images(torch.tensor([0])).to(device), data.name)
    # One cleaner for all models: its generator is held in memory once.
    return partial(_defended, cleaner, draws, memory)


def as_cleaner(made: Any) -> Cleaner:
    """A cleaner as it is, a bare network as the function of images that it is; `UserError` for anything else."""
    if isinstance(made, Cleaner):
        return made
    if isinstance(made, torch.nn.Module) and not isinstance(made, Classifier | DualEncoder):
        return Step(made.eval().requires_grad_(False))
    raise UserError(
        f"purifier makes a {type(made).__name__}: expected a robustcli.defenses.Cleaner, or a torch.nn.Module that "
        "takes images (B,C,H,W) in [0,1] and gives such."
    )


def _try_out(cleaner: Cleaner, image: Tensor, name: str) -> None:
    """`UserError` where ``cleaner`` cannot clean an image (1,C,H,W) of the data set ``name``, or changes its size."""
    kind = type(cleaner.function if isinstance(cleaner, Step) else cleaner).__name__
    shape = " x ".join(map(str, image.shape[1:]))
    try:
        with torch.no_grad():
            cleaned = cleaner.finish(cleaner.prepare(image), cleaner.named_noise([0], image, seed=0))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the purifier {kind} cannot clean the images of {name}, which are {shape}: {error}") from error
    if cleaned.shape != image.shape:
        made = " x ".join(map(str, cleaned.shape[1:]))
        raise UserError(
            f"the purifier {kind} turns the images of {name}, which are {shape}, into {made}: a cleaner keeps their "
            "size, change its settings."
        )


def build_defences(config: DictConfig, data: Data, device: torch.device) -> dict[str, Callable[[Any], Any]]:
    """The defences of ``robustcli purify`` by name: ``purifier`` in each of its ``variants``, then ``baselines``.

    Raises:
        UserError: variants that are no mappings or set an unknown key, a name that occurs twice or is reserved; or see
            `build_purified`.
    """
    variants = {"purifier": {}} if config.variants is None else config.variants
    if not _is_settings(variants) or not all(_is_settings(changed) for changed in variants.values()):
        raise UserError("variants names settings: write it as variants='{linear: {alphas: linear}, plain: {}}'.")
    nodes: dict[str, DictConfig] = {}
    for name, changed in variants.items():
        for key in changed:
            # By hand, since a merge of open nodes would take a mistyped key for a new one.
            if key not in config.purifier:
                raise UserError(
                    f"variants.{name}.{key}: the purifier has no such key, but {', '.join(config.purifier)}."
                )
        nodes[str(name)] = OmegaConf.merge(config.purifier, changed)  # type: ignore[assignment]
    for name, node in (config.baselines or {}).items():
        if str(name) in nodes:
            raise UserError(f"baselines.{name} has the name of one of the variants: call it otherwise.")
        if node is not None:
            nodes[str(name)] = node
    refuse_reserved("a defence", nodes)
    return {name: build_purified(node, data, device) for name, node in nodes.items()}


def check_draws(defences: Mapping[str, PurifiedClassifier | PurifiedEncoder], config: DictConfig) -> None:
    """Check of the draws per answer of each randomised defence against ``evaluation.draws``, where that is given.

    Raises:
        UserError: a randomised defence with another number of draws.
    """
    wanted = config.evaluation.draws
    for name, defence in defences.items():
        if wanted is not None and defence.randomised and defence.draws != wanted:
            key = f"baselines.{name}.draws" if name in (config.get("baselines") or {}) else "purifier.draws"
            raise UserError(f"evaluation.draws is {wanted}, but {name} has {defence.draws}: set {key}={wanted}.")


def _is_settings(node: Any) -> bool:
    return isinstance(node, DictConfig | dict)


def _defended(cleaner: Cleaner, draws: int, memory: float | None, model: Any) -> Any:
    if isinstance(model, Classifier):
        return PurifiedClassifier(model, cleaner, draws=draws, memory=memory)
    assert isinstance(model, DualEncoder)
    return PurifiedEncoder(model, cleaner, draws=draws, memory=memory)
