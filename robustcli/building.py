"""From a composed config to the objects of a run; every engine builds through here, so a mistake is met early."""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import Cached, CandidateSource, RetrievalAttack, SynonymTable, parse_eps
from robustcli.attacks.threat import parse_number
from robustcli.data.base import ImageTextData
from robustcli.defenses import Objective
from robustcli.errors import UserError
from robustcli.models import DualEncoder, WordTokenizer, build_vocabulary, load
from robustcli.models.words import split_words

_SIDES = ("image", "text")
_BUDGET = {("image", "norm"): "linf", ("image", "eps"): "4/255", ("text", "max_words"): 1}  # as conf/attack ships it
_MOST_UNKNOWN = 0.2  # share of words that a model may not know before its figures mean nothing


def choose_device(name: str, threads: int) -> torch.device:
    """The device called ``name`` (``auto``: a GPU if there is one), with ``threads`` CPU threads.

    Threads are never taken by default: two busy processes with two threads each are slower than with one.
    """
    torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} is not to be had here ({str(error).splitlines()[0]}): use cpu or auto."
        ) from error
    return device


def build_data(config: DictConfig, split: str) -> ImageTextData:
    """The data set of ``dataset=...``, one split of it."""
    data: ImageTextData = instantiate(config, split=split)
    return data


def build_model(config: DictConfig, checkpoint: str | None, data: ImageTextData, *, seed: int) -> DualEncoder:
    """The model of ``model=...``, with the weights of ``checkpoint`` if one is given.

    A `tiny` without weights learns the words of ``data``; with weights it keeps the vocabulary they were trained with.
    """
    settings: dict[str, Any] = dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    trainable = settings.pop("trainable", "both")
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    if str(settings["_target_"]).endswith("tiny") and settings.get("checkpoint") is None:
        settings |= {"vocabulary": build_vocabulary(data.captions), "seed": seed}
    model = load(settings)
    model.set_trainable(trainable)
    _check_words(model, data)
    return model


def _check_words(model: DualEncoder, data: ImageTextData) -> None:
    """Refuse a word tokenizer that knows too few words: substitutions that it cannot see would look harmless."""
    if not isinstance(model.tokenizer, WordTokenizer):
        return
    known = set(model.tokenizer.words)
    words = [word for caption in data.captions[:1000] for word in split_words(caption)]
    share = sum(word not in known for word in words) / max(1, len(words))
    if share > _MOST_UNKNOWN:
        raise UserError(
            f"the model does not know {share:.0%} of the words of {data.name}: train it on such captions "
            "(model.checkpoint=null starts from their words), or choose another model."
        )


def build_candidates(config: DictConfig, data: ImageTextData, model: DualEncoder) -> CandidateSource:
    """The source of words that may stand for another; what a language model says is kept on disk.

    Args:
        data: gives the synonym table where ``candidates.table`` is null, and the words of ``candidates=neighbours``.
        model: whose token table says what is near, as it is now.
    """
    kind = str(config["_target_"]).rpartition(".")[2]
    if kind == "SynonymTable" and config.table is None:
        if data.synonyms is None:
            raise UserError(
                f"dataset {data.name} brings no synonyms: choose candidates=masked_lm "
                "candidates.name_or_path=NAME_OR_FOLDER, candidates=neighbours, or candidates.table=FILE.json."
            )
        return SynonymTable({word: list(words) for word, words in data.synonyms.items()})
    extra = {"model": model, "words": build_vocabulary(data.captions)} if kind == "EmbeddingNeighbours" else {}
    source: CandidateSource = instantiate(config, **extra)
    return Cached(source) if kind == "MaskedLM" else source


def build_attack(
    config: DictConfig, candidates: CandidateSource | None, *, seed: int, budget: Mapping[str, Any] | None = None
) -> RetrievalAttack:
    """The attack of ``config``; norm, eps and number of words from ``budget`` (another attack's config) if given."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    if budget is not None:
        _take_budget(settings, budget)
    image = instantiate(settings["image"], seed=seed) if settings["image"] else None
    text = instantiate(settings["text"], seed=seed, candidates=candidates) if settings["text"] else None
    rest = {key: value for key, value in settings.items() if key not in _SIDES}
    attack: RetrievalAttack = instantiate(rest, image=image, text=text, seed=seed)
    return attack


def _take_budget(settings: dict[str, Any], budget: Mapping[str, Any]) -> None:
    for side, key in _BUDGET:
        if settings.get(side) and budget.get(side):
            settings[side][key] = budget[side][key]


def build_judges(
    config: DictConfig, budget: Mapping[str, Any], candidates: CandidateSource, *, seed: int
) -> Mapping[str, RetrievalAttack]:
    """The attacks of ``judges=...`` by name, all within the budget of the run's own attack.

    A judge that attacks a side which the run's attack leaves alone is outside of the budget, and left out.

    Raises:
        UserError: no judge is within the budget; one was given a budget of its own, or a step size too small for it.
    """
    within = {str(name): node for name, node in config.items() if not any(node[s] and not budget[s] for s in _SIDES)}
    if config and not within:
        raise UserError(
            f"none of the judges {', '.join(map(str, config))} attacks only what attack does: choose attack=mat, "
            "which allows images and captions, or judges=none."
        )
    for name, node in within.items():
        _check_judge(name, node, budget)
    return {name: build_attack(node, candidates, seed=seed, budget=budget) for name, node in within.items()}


def _check_judge(name: str, node: DictConfig, budget: Mapping[str, Any]) -> None:
    for (side, key), shipped in _BUDGET.items():
        own = node[side][key] if node[side] else shipped
        if own not in (shipped, budget[side][key] if budget[side] else shipped):
            raise UserError(
                f"judges.{name}.{side}.{key} is {own}, but judges take the budget of attack: set attack.{side}.{key}."
            )
    image = node["image"]
    if image and image.get("alpha") is not None:
        eps = parse_eps(budget["image"]["eps"], budget["image"]["norm"])
        if image.steps * parse_number("alpha", image.alpha) < eps:
            raise UserError(
                f"judges.{name}: {image.steps} steps of {image.alpha} cannot cross a ball of {budget['image']['eps']}: "
                f"set judges.{name}.image.alpha=null, which scales with eps."
            )


def build_objective(config: DictConfig) -> Objective:
    """The training objective of ``defense=...``."""
    objective: Objective = instantiate(config)
    return objective
