"""Builders of what cleans images in front of a model, from config nodes."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.data import ImageClassData, ImageTextData
from robustcli.defenses import Cleaner, PurifiedClassifier, PurifiedEncoder, preprocessing
from robustcli.defenses.purification.alphas import learned_attenuation
from robustcli.evaluation.records import BARE, CLEAN, WORST
from robustcli.models import Classifier, DualEncoder
from robustcli.models.generators import load_generator
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import parse_number

log = logging.getLogger(__name__)

Data = ImageTextData | ImageClassData
_TAKEN = (BARE, CLEAN, WORST)


def build_purified(config: DictConfig | None, data: Data, device: torch.device) -> Callable[[Any], Any]:
    """What puts the cleaner of ``purifier=...`` in front of a model; leaves it as it is where that is null.

    Raises:
        UserError: a generator of images of another size than those of ``data``, or a mistake in the settings.
    """
    if config is None:
        return lambda model: model
    settings: Any = OmegaConf.to_container(config, resolve=True)
    draws, memory = settings.pop("draws", 1), settings.pop("memory", None)
    cleaner = _build_cleaner(settings, data).to(device)
    return partial(_in_front, cleaner, draws, memory)


def build_defences(config: DictConfig, data: Data, device: torch.device) -> dict[str, Callable[[Any], Any]]:
    """The defences of ``robustcli purify`` by name: ``purifier`` in each of its ``variants``, then ``baselines``."""
    variants = {"purifier": {}} if config.variants is None else config.variants
    if not _is_settings(variants) or not all(_is_settings(changed) for changed in variants.values()):
        raise UserError("variants names settings: write it as variants='{linear: {alphas: linear}, plain: {}}'.")
    nodes: dict[str, DictConfig] = {}
    for name, changed in variants.items():
        for key in changed:
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
    if taken := [name for name in nodes if name in _TAKEN]:
        raise UserError(f"a defence is called {taken[0]}, which stands for {BARE!r} or a column: call it otherwise.")
    return {name: build_purified(node, data, device) for name, node in nodes.items()}


def check_draws(defences: Mapping[str, PurifiedClassifier], config: DictConfig) -> None:
    """A `UserError` where a defence that draws has not as many draws as ``evaluation.draws`` asks for."""
    wanted = config.evaluation.draws
    for name, defence in defences.items():
        if wanted is not None and defence.randomised and defence.draws != wanted:
            key = f"baselines.{name}.draws" if name in (config.baselines or {}) else "purifier.draws"
            raise UserError(f"evaluation.draws is {wanted}, but {name} has {defence.draws}: set {key}={wanted}.")


def _build_cleaner(settings: dict[str, Any], data: Data) -> Cleaner:
    if "generator" not in settings:
        cleaner: Cleaner = instantiate(settings)
        return cleaner
    temperature = parse_number("temperature", settings.pop("temperature"), node="purifier")
    generator = load_generator(settings.pop("generator"), temperature=temperature, shipped_for=data.name)
    shape = tuple(data.images(torch.tensor([0])).shape[1:])
    if shape != tuple(generator.resolution):
        raise UserError(
            f"the generator makes images of {_sizes(generator.resolution)}, but those of {data.name} are "
            f"{_sizes(shape)}: choose purifier.generator, or the size of the data set, to fit."
        )
    before = preprocessing(settings.pop("preprocess"))
    _check_learned(settings)
    purifier: Cleaner = instantiate(settings, generator=generator, preprocess=before)
    return purifier


def _check_learned(settings: Mapping[str, Any]) -> None:
    """Alphas that were learned under another attenuation are not what was found."""
    learned = learned_attenuation(settings["alphas"])
    if learned is not None and learned != settings["attenuation"]:
        log.warning(
            "purifier.attenuation is %s, but the alphas of %s were learned with %g: set it to that for what was found",
            settings["attenuation"],
            settings["alphas"],
            learned,
        )


def _is_settings(node: Any) -> bool:
    return isinstance(node, DictConfig | dict)


def _sizes(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} x {shape[2]}"


def _in_front(cleaner: Cleaner, draws: int, memory: float | None, model: Any) -> Any:
    if isinstance(model, Classifier):
        return PurifiedClassifier(model, cleaner, draws=draws, memory=memory)
    assert isinstance(model, DualEncoder)
    return PurifiedEncoder(model, cleaner, draws=draws, memory=memory)
