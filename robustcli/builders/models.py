"""Builders of models that fit the data set, from config nodes.

Every engine builds its models here, before any long work, so a mismatch is an early error.
"""

import copy
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from robustcli.builders.device import on_device
from robustcli.config.unread import refuse_unread, typed
from robustcli.data import ClassTexts, ImageClassData, ImageTextData, Sentences, class_texts
from robustcli.data.walks import normal
from robustcli.models import (
    ClassEncoder,
    Classifier,
    DualEncoder,
    Model,
    WordTokenizer,
    ZeroShot,
    build_vocabulary,
    load,
    load_dual,
)
from robustcli.models.prompt import Prompt, read_prompt
from robustcli.models.registry import MODELS
from robustcli.models.tokenizer import split_words
from robustcli.models.weights import find_weights, held_in, read_safetensors
from robustcli.utils.errors import UserError

log = logging.getLogger(__name__)

_TEXTS = ("templates", "class_names")  # keys that say how a class is written
_MOST_UNKNOWN = 0.2  # share of out-of-vocabulary words, above which figures under text attacks mean nothing


def build_class_texts(config: DictConfig, data: ImageTextData | ImageClassData) -> ClassTexts | None:
    """The texts of the classes of ``data`` by ``templates`` and ``class_names``, for a dual encoder; None for captions.

    Raises:
        UserError: see `class_texts`; or one of both was asked for, and there are captions.
    """
    pictures = isinstance(data, Sentences) and data.pictures() is not None
    if isinstance(data, ImageClassData) or (isinstance(data, Sentences) and not pictures):
        given = (config[key] for key in _TEXTS)
        return class_texts(data, *(list(each) if isinstance(each, ListConfig) else each for each in given))
    for key in _TEXTS:
        why = "dataset.class_images gives the classes as pictures" if pictures else "has captions and no classes"
        refuse_unread(key, why if pictures else f"the data set {data.name} {why}")
    return None


def refuse_unread_texts(models: Iterable[object]) -> None:
    """A `UserError` for an override of the texts of classes where no model reads texts."""
    if not any(texts_of(model) for model in models):
        for key in _TEXTS:
            refuse_unread(key, "no model here is a dual encoder, which alone reads texts of classes")


def texts_of(model: object) -> ZeroShot | None:
    """The texts by which ``model`` classifies images or sentences; None of a model that reads none."""
    return model.texts if isinstance(model, ClassEncoder) else model if isinstance(model, ZeroShot) else None


def build_trained(
    config: DictConfig,
    checkpoint: str | None,
    data: ImageTextData | ImageClassData,
    *,
    seed: int,
    texts: ClassTexts | None = None,
) -> DualEncoder | Classifier:
    """The model of ``model=...`` to judge on ``data``: a dual encoder for captions, a classifier for classes; for
    sentences a dual encoder before their classes.

    Args:
        checkpoint: file of the weights; None: those that the config names.
        texts: of the classes, with which a dual encoder is a classifier; None: those that the set gives, see
            `class_texts`.

    Raises:
        UserError: random weights, which answer by chance, unless ``model.pretrained=random`` asks for them; see
            `build_dual_encoder` and `build_classifier` too.
    """
    model = _trained(config, checkpoint, data, seed=seed, texts=texts)
    if not isinstance(data, Sentences):
        return model
    assert isinstance(model, DualEncoder)
    if (pictures := data.pictures()) is not None:
        return ClassEncoder(model, pictures=pictures)
    return ClassEncoder(model, texts=_zero_shot(model, data, texts))


def _trained(
    config: DictConfig,
    checkpoint: str | None,
    data: ImageTextData | ImageClassData,
    *,
    seed: int,
    texts: ClassTexts | None,
) -> DualEncoder | Classifier:
    if checkpoint is not None and (path := _of_another_model(config, checkpoint)) is not None:
        if isinstance(data, ImageTextData):
            return _with_words(load_dual(path), data)
        return _with_classes(load(path), data, texts)
    if checkpoint is None and _is_own(config) and config.get("pretrained") is None:
        _refuse_drawn(config, data, seed=seed, texts=texts)
    elif checkpoint is None and not config.get("checkpoint") and not config.get("pretrained") and not _brings(config):
        key = "model.pretrained" if "pretrained" in config else "+model.pretrained"
        raise UserError(
            f"model {_shown(str(config.get('_target_')))} has random weights: give those to judge with "
            f"checkpoint=FILE, or with model.pretrained where the model has it; {key}=random judges random ones."
        )
    if isinstance(data, ImageTextData):
        return build_dual_encoder(config, checkpoint, data, seed=seed)
    return build_classifier(config, checkpoint, data, seed=seed, texts=texts)


def _of_another_model(config: DictConfig, checkpoint: str) -> Path | None:
    """The file of ``checkpoint``, where it describes a model of ours and the command line chooses none."""
    path = find_weights(checkpoint) if checkpoint != "shipped" else None
    if path is None or path.suffix != ".safetensors" or typed("model"):
        return None
    made = read_safetensors(path, tensors=False)[0].get("model", {}).get("factory")
    if made not in MODELS or MODELS[made].target == config.get("_target_"):
        return None
    log.info("the model is %s, as %s says", made, path)
    return path


def _is_own(config: DictConfig) -> bool:
    """True for a factory or a network of the user's own, which may load its weights itself."""
    return not str(config.get("_target_")).startswith("robustcli.") and not config.get("checkpoint")


def _refuse_drawn(
    config: DictConfig, data: ImageTextData | ImageClassData, *, seed: int, texts: ClassTexts | None
) -> None:
    """A `UserError` for weights that follow the seed: random ones, while those that a factory loads itself do not."""

    def build(seed: int) -> DualEncoder | Classifier:
        if isinstance(data, ImageTextData):
            return build_dual_encoder(config, None, data, seed=seed)
        return build_classifier(config, None, data, seed=seed, texts=texts)

    found = {build(each).fingerprint() for each in (seed, seed + 1)}
    if len(found) > 1:
        raise UserError(
            f"model {config.get('_target_')} has random weights, which change with the seed: load them in the factory, "
            "or give a file with checkpoint=FILE; +model.pretrained=random judges random ones."
        )


def _brings(config: DictConfig) -> bool:
    """True for a folder of transformers, or a folder or repository of open_clip's, that has weights beside its
    configuration.
    """
    if _shown(str(config.get("_target_"))) == "transformers":
        return config.get("path") is not None and held_in(Path(config.path).expanduser()) is not None
    name = str(config.get("architecture") or "")
    if _shown(str(config.get("_target_"))) != "open_clip":
        return False
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    return name.startswith("hf-hub:") or (
        name.startswith("local-dir:")
        and any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.glob("*"))
    )


def _shown(target: str) -> str:
    """The name of the registry's row with this target; the target itself where there is none."""
    return next((name for name, row in MODELS.items() if row.target == target), target)


def build_surrogate(
    config: DictConfig,
    data: ImageTextData | ImageClassData,
    device: torch.device,
    texts: ClassTexts | None = None,
) -> DualEncoder | Classifier | None:
    """The model of ``evaluation.surrogate``, on ``device``: a checkpoint for ``model=...``, or a model's own config.

    Raises:
        UserError: no such file, random weights, or a model that does not fit to ``data``.
    """
    wanted = config.evaluation.surrogate
    if wanted is None:
        return None
    node, checkpoint = (wanted, None) if isinstance(wanted, DictConfig) else (config.model, str(wanted))
    surrogate = build_trained(node, checkpoint, data, seed=config.seed, texts=texts)
    return on_device(surrogate, device, "evaluation.surrogate")


def build_classifier(
    config: DictConfig,
    checkpoint: str | None,
    data: ImageClassData,
    *,
    seed: int,
    texts: ClassTexts | None = None,
    prompt: Prompt | None = None,
) -> Classifier:
    """The classifier of ``model=...`` for the classes of ``data``, with the weights of ``checkpoint`` if one is given.

    A dual encoder is a classifier by ``texts``, see `ZeroShot`. Without weights a classifier starts from random ones
    and, where the config names no classes, for those of ``data``.

    Args:
        prompt: to learn in place of the templates.

    Raises:
        UserError: a classifier of other classes, or a dual encoder that cannot tell the texts apart.
    """
    model = load(_settings(config), checkpoint, classes=data.classes, seed=seed)
    if isinstance(model, DualEncoder) and config.get("trainable") != "image":
        refuse_unread("model.trainable", "of a dual encoder that classifies by texts the image tower alone trains")
    return _with_classes(model, data, texts, prompt)


def _with_classes(
    model: Model, data: ImageClassData, texts: ClassTexts | None, prompt: Prompt | None = None
) -> Classifier:
    """``model``, which knows the classes of ``data`` or their texts, and answers for its images; else a `UserError`."""
    if isinstance(model, DualEncoder):
        model = _zero_shot(model, data, texts, prompt)
    if model.classes is not None and tuple(map(normal, model.classes)) != tuple(data.classes):
        raise UserError(
            f"the model knows the classes {_shortened(model.classes)}, but dataset {data.name} has "
            f"{_shortened(data.classes)}: choose the model or the class list that belongs to the other."
        )
    if model.class_count != len(data.classes):
        raise UserError(
            f"the model has {model.class_count} classes, but dataset {data.name} has {_shortened(data.classes)}: "
            "choose the model or the class list that belongs to the other."
        )
    _try(model, data)
    return model


def classifying(model: DualEncoder, data: ImageClassData, texts: ClassTexts, *, store: bool = True) -> ZeroShot:
    """A copy of a dual encoder, whose own towers stay trainable, as a classifier by the texts of the classes of
    ``data``.

    Args:
        store: see `ZeroShot`.
    """
    classifier = _zero_shot(copy.deepcopy(model), data, texts, store=store)
    _try(classifier, data)
    return classifier


def _zero_shot(
    model: DualEncoder,
    data: ImageClassData | Sentences,
    texts: ClassTexts | None,
    prompt: Prompt | None = None,
    *,
    store: bool = True,
) -> ZeroShot:
    texts = texts or class_texts(data)
    return ZeroShot(
        model,
        data.classes,
        names=texts.names,
        templates=texts.templates,
        origin=texts.origin,
        allow_equal=texts.published,
        prompt=prompt or (None if texts.prompt is None else read_prompt(texts.prompt)),
        store=store,
    )


def _try(model: Classifier, data: ImageClassData) -> None:
    """A `UserError` for a network that cannot answer for the first image: here, before any long work."""
    image = data.images(torch.zeros(1, dtype=torch.long))
    # Not the texts of a dual encoder: they may be many, and it is not on its device yet.
    answer = model.features if isinstance(model, ZeroShot) else model
    try:
        with torch.no_grad():
            answer(image)
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        size = model.image_size or image.shape[-1]
        raise UserError(
            f"the network {type(model.network).__name__} cannot answer for images of {model.channels} channels and "
            f"{size} x {size} pixels ({line}): set model.image_size, model.mean and model.std to what it was made for."
        ) from error


def _shortened(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])]) + f" ({len(names)})"


def build_dual_encoder(config: DictConfig, checkpoint: str | None, data: ImageTextData, *, seed: int) -> DualEncoder:
    """The dual encoder of ``model=...``, with the weights of ``checkpoint`` if one is given.

    One that has a vocabulary of its own learns the words of ``data``; with weights it keeps the one that they were
    trained with.

    Raises:
        UserError: a classifier, or a dual encoder that does not know the words of ``data``.
    """
    vocabulary = partial(_vocabulary, data)
    return _with_words(load_dual(_settings(config), checkpoint, vocabulary=vocabulary, seed=seed), data)


def _vocabulary(data: ImageTextData) -> tuple[str, ...]:
    """The words of the captions, and behind them those that the set's own synonyms may put into captions: as unknown
    words all of these would be one token, and what an edit says would be lost to any training.
    """
    words = build_vocabulary(data.captions)
    synonyms = dict.fromkeys(word for others in (data.synonyms or {}).values() for word in others)
    return (*words, *sorted(set(build_vocabulary(synonyms)) - set(words)))


def _settings(config: DictConfig) -> dict[str, Any]:
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return dict(settings)


def _with_words(model: DualEncoder, data: ImageTextData) -> DualEncoder:
    """``model``; a `UserError` for a vocabulary with too many unknown words of the data.

    Substitutions among unknown words all give the same token, so that the model would look robust to them.
    """
    if not isinstance(model.tokenizer, WordTokenizer):
        return model
    vocabulary = set(model.tokenizer.words)
    words = [word for caption in data.captions[:1000] for word in split_words(caption)]
    share = sum(word not in vocabulary for word in words) / max(1, len(words))
    if share > _MOST_UNKNOWN:
        raise UserError(
            f"the model does not know {share:.0%} of the words of {data.name}: train it on such captions "
            "(model.checkpoint=null starts from their words), or choose another model."
        )
    return model
