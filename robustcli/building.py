"""From a composed config to the objects of a run; every engine builds through here, so a mistake is met early."""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import Cached, CandidateSource, RetrievalAttack, SynonymTable
from robustcli.data.base import ImageTextData
from robustcli.defenses import Objective
from robustcli.errors import UserError
from robustcli.models import DualEncoder, build_vocabulary, load

_OPTIONAL_PARTS = ("image", "text")


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
    return model


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
    rest = {key: value for key, value in settings.items() if key not in _OPTIONAL_PARTS}
    attack: RetrievalAttack = instantiate(rest, image=image, text=text, seed=seed)
    return attack


def _take_budget(settings: dict[str, Any], budget: Mapping[str, Any]) -> None:
    for side, keys in (("image", ("norm", "eps")), ("text", ("max_words",))):
        if settings.get(side) and budget.get(side):
            settings[side] |= {key: budget[side][key] for key in keys}


def build_judges(
    config: DictConfig, budget: Mapping[str, Any], candidates: CandidateSource, *, seed: int
) -> Mapping[str, RetrievalAttack]:
    """The attacks of ``judges=...`` by name, all within the budget of the run's own attack."""
    return {str(name): build_attack(node, candidates, seed=seed, budget=budget) for name, node in config.items()}


def build_objective(config: DictConfig) -> Objective:
    """The training objective of ``defense=...``."""
    objective: Objective = instantiate(config)
    return objective
