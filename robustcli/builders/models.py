"""From a composed config to the objects of a run; every engine builds through here, so a mistake is met early."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robustcli.attacks import Cached, CandidateSource, SynonymTable
from robustcli.data import ImageClassData, ImageTextData
from robustcli.defenses import ClassObjective, Objective
from robustcli.models import Classifier, DualEncoder, WordTokenizer, build_vocabulary, load_classifier, load_dual
from robustcli.models.generators import NVAE, Evidence
from robustcli.models.words import split_words
from robustcli.utils.errors import UserError

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


def build_data(config: DictConfig, split: str) -> ImageTextData | ImageClassData:
    """The data set of ``dataset=...``, one split of it."""
    data: ImageTextData | ImageClassData = instantiate(config, split=split)
    return data


def build_captioned(config: DictConfig, split: str) -> ImageTextData:
    """`build_data` for a command that needs captions."""
    data = build_data(config, split)
    if not isinstance(data, ImageTextData):
        raise UserError(f"dataset {data.name} has classes and no captions: choose one such as dataset=scenes.")
    return data


def build_classes(config: DictConfig, split: str) -> ImageClassData:
    """`build_data` for a command that needs classes."""
    data = build_data(config, split)
    if not isinstance(data, ImageClassData):
        raise UserError(f"dataset {data.name} has captions and no classes: choose one such as dataset=scene_classes.")
    return data


def build_model(
    config: DictConfig, checkpoint: str | None, data: ImageTextData | ImageClassData, *, seed: int
) -> DualEncoder | Classifier:
    """The model of ``model=...`` that fits to ``data``, with the weights of ``checkpoint`` if one is given."""
    if isinstance(data, ImageTextData):
        return build_dual_encoder(config, checkpoint, data, seed=seed)
    return build_classifier(config, checkpoint, data, seed=seed)


def build_surrogate(
    config: DictConfig, data: ImageTextData | ImageClassData, device: torch.device
) -> DualEncoder | Classifier | None:
    """The model of ``attack.surrogate``: weights of ``model=...`` or of a file that says what it is, or a model config.

    Raises:
        UserError: no such file, or a model that does not fit to ``data``.
    """
    wanted = config.attack.get("surrogate")
    if wanted is None:
        return None
    node, checkpoint = (wanted, None) if isinstance(wanted, DictConfig) else (config.model, str(wanted))
    return build_model(node, checkpoint, data, seed=config.seed).to(device)


def build_classifier(config: DictConfig, checkpoint: str | None, data: ImageClassData, *, seed: int) -> Classifier:
    """The classifier of ``model=...`` for the classes of ``data``, with the weights of ``checkpoint`` if one is given.

    Without weights it starts from random ones and, where the config names no classes, for those of ``data``.
    """
    settings: dict[str, Any] = dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    if settings.get("checkpoint") is None:
        settings |= {"seed": seed, **({"classes": data.classes} if settings.get("classes", 0) is None else {})}
    model = load_classifier(settings)
    if model.classes is not None and tuple(model.classes) != tuple(data.classes):
        raise UserError(
            f"the model knows the classes {_shortened(model.classes)}, but dataset {data.name} has "
            f"{_shortened(data.classes)}: choose the model or the class list that belongs to the other."
        )
    if model.class_count != len(data.classes):
        raise UserError(
            f"the model has {model.class_count} classes, but dataset {data.name} has {_shortened(data.classes)}: "
            "choose the model or the class list that belongs to the other."
        )
    return model


def _shortened(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])]) + f" ({len(names)})"


def build_dual_encoder(config: DictConfig, checkpoint: str | None, data: ImageTextData, *, seed: int) -> DualEncoder:
    """The dual encoder of ``model=...``, with the weights of ``checkpoint`` if one is given.

    A `tiny` without weights learns the words of ``data``; with weights it keeps the vocabulary they were trained with.
    """
    settings: dict[str, Any] = dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    trainable = settings.pop("trainable", "both")
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    if str(settings["_target_"]).endswith("tiny") and settings.get("checkpoint") is None:
        settings |= {"vocabulary": build_vocabulary(data.captions), "seed": seed}
    model = load_dual(settings)
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


def build_class_objective(config: DictConfig) -> ClassObjective:
    """The training objective of ``objective=...``."""
    objective: ClassObjective = instantiate(config)
    return objective


def build_objective(config: DictConfig) -> Objective:
    """The training objective of ``defense=...``."""
    objective: Objective = instantiate(config)
    return objective


def build_generator(config: DictConfig, checkpoint: str | None, data: ImageClassData, *, seed: int) -> NVAE:
    """The generator of ``generator=...`` with weights that can be trained, those of ``checkpoint`` if one is given.

    Raises:
        UserError: it makes images of another size than those of ``data``.
    """
    chosen = {} if checkpoint is None else {"checkpoint": checkpoint}
    generator: NVAE = instantiate(config, **chosen, seed=seed, _convert_="all")
    shape = tuple(data.images(torch.tensor([0])).shape[1:])
    if shape != generator.resolution:
        raise UserError(
            f"generator.resolution is {list(generator.resolution)}, but images of dataset {data.name} are "
            f"{list(shape)}: set generator.resolution={str(list(shape)).replace(' ', '')}, or the size of the data set."
        )
    return generator.requires_grad_(True)


def build_evidence(config: DictConfig) -> Evidence:
    """The training objective of a generator."""
    objective: Evidence = instantiate(config)
    return objective
