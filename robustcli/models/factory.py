"""Models by a name, a config node or a file.

The signature of a factory says what it takes from elsewhere: ``classes`` (names in the order of the logits) and
``vocabulary`` come from the data set and ``seed`` from the run, where neither the config nor a checkpoint gives them. A
factory that takes ``checkpoint`` reads the file itself; for any other the weights, their description and the seed are
handled here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from robustcli.models.assembly import seeded_constructors, settings_and_weights
from robustcli.models.classifier import Classifier
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.names import preset, resolve
from robustcli.models.registry import MODELS, Factory, import_factory, name_of, row_of
from robustcli.models.weights import SUFFIXES, Model, assign, find_weights, read_safetensors, read_weights
from robustcli.models.wrapping import wrapped, wrapping
from robustcli.utils.errors import UserError, constructor_errors
from robustcli.utils.suggest import did_you_mean

Config = str | Path | Mapping[str, Any]
Words = Sequence[str] | Callable[[], Sequence[str]]
_LOCAL = "local-dir:"  # open_clip's name for a folder
RANDOM = "random"  # as ``pretrained``: random weights on purpose, which are otherwise not judged
Wanted = TypeVar("Wanted", Classifier, DualEncoder)
# Settings that say where weights come from: every model has them, and a file of weights replaces them.
_OF_WEIGHTS = ("checkpoint", "shipped", "seed")
_KINDS = {  # kind in the registry, and the end of the message where the other is needed
    Classifier: (
        "classifier",
        "is a dual encoder, but what asks for it needs a classifier: robustcli.models.ZeroShot makes one of it by the "
        "texts of classes; or choose a classifier such as model=digits or model=torchvision.",
    ),
    DualEncoder: (
        "dual_encoder",
        "is a classifier, but captions need a dual encoder: choose model=tiny or model=open_clip, or a data set of "
        "classes such as dataset=digits.",
    ),
}


def load(
    name_or_config: Config,
    checkpoint: str | Path | None = None,
    *,
    vocabulary: Words | None = None,
    classes: Sequence[str] | None = None,
    seed: int | None = None,
) -> Model:
    """Model by a name, a config node or a file: a dual encoder, or a classifier in eval mode.

    Args:
        name_or_config: a name; the path of a file that ``save_weights`` wrote; or a mapping: ``_target_`` (dotted path
            of a factory) or ``name``, the arguments of the factory, and for a dual encoder ``trainable``: ``image``,
            ``text`` or ``both``; ``pretrained="random"`` asks for random weights of any model,
            ``weights_key`` for one of several sets of weights in its checkpoint, ``output`` for one of several
            outputs of a classifier's network (a place or a key). Names are the
            factories of the registry (without weights, but for those that are shipped), the files of ``conf/model``
            (``digits``, ``resnet20_cifar``), and the architectures of torchvision (``resnet50``), of open_clip
            (``ViT-B-32``) and of timm, looked up in this order.
        checkpoint: weights to start from, in place of the config's own; ``shipped`` or a path.
        vocabulary: the words of the data set, or a callable that gives them, for a model that learns its own and gets
            no checkpoint; ``classes``: the names of its classes, for a model whose config and checkpoint name none.
        seed: of random weights, where the config gives none.

    Raises:
        UserError: an unknown name, key, tag or file, each with the nearest valid one.
    """
    if _is_file(name_or_config, checkpoint):
        return restore(str(name_or_config))
    shipped = not isinstance(name_or_config, Mapping) and bool(getattr(MODELS.get(str(name_or_config)), "shipped", ()))
    if shipped and checkpoint is None and vocabulary is None:
        name_or_config = preset(str(name_or_config))  # with its own weights, as the names of conf/model have
    factory, settings = resolve(name_or_config)
    trainable = settings.pop("trainable", "both")
    if trainable not in ("image", "text", "both"):
        raise UserError(f"model.trainable is {trainable!r}: expected image, text or both")
    output = settings.pop("output", None)
    if output is not None and (isinstance(output, bool) or not isinstance(output, int | str)):
        raise UserError(f"model.output is {output!r}: expected a place from 0, or a key of the network's outputs")
    if checkpoint is not None:
        settings["checkpoint"] = checkpoint
    key, given = settings.pop("weights_key", None), settings.get("checkpoint")
    if key is not None:
        if given is None:
            raise UserError(f"model.weights_key is {key!r}, but there is no model.checkpoint that it could be of.")
        settings["checkpoint"] = read_weights(given, key=str(key))
    if settings.get("pretrained") == RANDOM:
        if given is not None:
            raise UserError(f"model.pretrained is {RANDOM}, but model.checkpoint is {given}: choose one of both.")
        _refuse_weights_of_a_folder(settings)
        del settings["pretrained"]
    model = _build(factory, settings, {"vocabulary": vocabulary, "classes": classes, "seed": seed})
    if isinstance(model, DualEncoder):
        model.set_trainable(trainable)
    elif output is not None:
        model.output = output
    return model


def _refuse_weights_of_a_folder(settings: Mapping[str, Any]) -> None:
    """A `UserError` where random weights are asked for of a folder that brings its own, which would be read."""
    architecture = str(settings.get("architecture"))
    place = settings.get("path") or (architecture[len(_LOCAL) :] if architecture.startswith(_LOCAL) else None)
    files = Path(place).expanduser().glob("*") if place else []
    if held := sorted(each.name for each in files if each.name.endswith(SUFFIXES)):
        raise UserError(
            f"model.pretrained is {RANDOM}, but {place} has weights ({held[0]}), which would be read: give a folder "
            "without them."
        )


def load_dual(
    config: Config,
    checkpoint: str | Path | None = None,
    *,
    vocabulary: Words | None = None,
    seed: int | None = None,
) -> DualEncoder:
    """Dual encoder by a name or a config node, as `load`.

    Raises:
        UserError: the model is a classifier; or see `load`.
    """
    return _load_as(DualEncoder, config, checkpoint, vocabulary=vocabulary, seed=seed)


def load_classifier(
    config: Config,
    checkpoint: str | Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    seed: int | None = None,
) -> Classifier:
    """Classifier by a name or a config node, as `load`.

    Raises:
        UserError: the model is a dual encoder; or see `load`.
    """
    return _load_as(Classifier, config, checkpoint, classes=classes, seed=seed)


def restore(checkpoint: str | Path, *, factory: Factory | None = None) -> Model:
    """The model of a file that ``save_weights`` wrote, tokenizer, classes and sizes included, from the file alone.

    Args:
        factory: that made the model, where it is none of the registry's: a file may name any code, which is therefore
            not imported on its word.

    Raises:
        UserError: no such file, damaged, or of a model that it does not name, or by a factory that was not given.
    """
    path = find_weights(checkpoint)
    held = read_safetensors(path, tensors=False)[0] if path.suffix == ".safetensors" else {}
    if "generator" in held:
        raise UserError(f"checkpoint {path} is of a generator: read it with robustcli.models.generators.load_generator")
    description = held.get("model") or read_weights(path).description
    made = description.get("factory")
    if not isinstance(made, str):
        raise UserError(
            f"checkpoint {path} does not say which model it is of: name that too, load('resnet50', path), or "
            "model=torchvision model.architecture=resnet50 checkpoint=FILE on the command line."
        )
    if factory is None and made not in MODELS:
        raise UserError(
            f"checkpoint {path} was made by {made}, which is no model of robustcli, and code is not imported because a "
            f"file names it: pass it, restore(path, factory={made.rpartition('.')[2]}), or choose a model whose "
            f"_target_ is {made}."
        )
    factory = factory or import_factory(MODELS[made].target)
    known = _options(factory)
    return _build(factory, {**{key: description[key] for key in description if key in known}, "checkpoint": path}, {})


def _load_as(kind: type[Wanted], config: Config, checkpoint: str | Path | None, **offered: Any) -> Wanted:
    registered, otherwise = _KINDS[kind]
    row = None if _is_file(config, checkpoint) else row_of(resolve(config)[0])
    if row is not None and row[1].kind != registered:  # before it is built, which may take words or a download
        raise UserError(f"the model {row[0]} {otherwise}")
    model = load(config, checkpoint, **offered)
    if not isinstance(model, kind):
        raise UserError(f"the model {model.description['factory']} {otherwise}")
    return model


def _is_file(config: Config, checkpoint: str | Path | None) -> bool:
    """True where a file alone names the model."""
    return not isinstance(config, Mapping) and str(config).endswith(SUFFIXES) and checkpoint is None


def _build(factory: Factory, settings: dict[str, Any], offered: Mapping[str, Any]) -> Model:
    """The model of a factory; a description that it does not give itself is made of its settings."""
    known = _options(factory)
    reads = "checkpoint" in known
    wrapper = wrapping(factory, settings, offered)
    settings = {key: value for key, value in settings.items() if key not in wrapper.keys() - known.keys()}
    for key in settings:
        if key not in known and (reads or key not in _OF_WEIGHTS):
            raise UserError(
                f"model.{key} is not an option of {factory.__name__} ({', '.join(known)})"
                + did_you_mean(key, list(known))
            )
    if not reads:
        return _assembled(factory, settings, offered, wrapper)
    if settings.get("checkpoint") is None:
        settings = _filled(settings, known, offered)
    model = _call(factory, settings, wrapper)
    if model.description.get("factory") != name_of(factory):
        model.description = {**_described(settings, {}), **model.description, "factory": name_of(factory)}
    return model


def _assembled(
    factory: Factory, settings: dict[str, Any], offered: Mapping[str, Any], wrapper: Mapping[str, Any]
) -> Model:
    """The model of a factory that knows nothing of files: described by its arguments, with weights put in here."""
    known = _options(factory)
    checkpoint, shipped = settings.get("checkpoint"), settings.get("shipped")
    if checkpoint is None:
        settings = _filled(settings, known, offered)
    defaults = {key: each.default for key, each in known.items() if each.default is not Parameter.empty}
    said = {key: value for key, value in settings.items() if value is not None or key in defaults}
    asked = {key: value for key, value in (defaults | said).items() if key not in _OF_WEIGHTS}
    effective, weights = settings_and_weights(factory, asked, checkpoint, shipped=shipped)
    if weights is not None:
        stored = {key: value for key, value in weights.description.items() if key in known}
        effective = _filled(stored | effective, known, offered)
        wrapper = {key: wrapper[key] if wrapper[key] is not None else weights.description.get(key) for key in wrapper}
    seed = settings.get("seed", offered.get("seed"))
    with seeded_constructors(seed or 0):  # for a factory that draws and knows of no seed
        model = _call(factory, effective | ({} if seed is None or "seed" not in known else {"seed": seed}), wrapper)
    own = model.description if wrapper and model.description.keys() == wrapper.keys() else {}  # of a wrapped network
    model.description = {"factory": name_of(factory), **_described(effective, defaults), **own}
    if weights is not None:
        assign(model, weights)
    return model


def _options(factory: Factory) -> dict[str, Parameter]:
    """The parameters that a config can set by name."""
    parameters = signature(factory).parameters
    return {key: each for key, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


def _filled(settings: Mapping[str, Any], known: Mapping[str, Parameter], offered: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with offers of the data set and the run for parameters that nothing else sets."""
    filled = dict(settings)
    for key, value in offered.items():
        if value is None or key not in known:
            continue
        default = known[key].default
        unset = filled.get(key, None if default is Parameter.empty else default) is None
        if unset or (key == "seed" and key not in filled):
            filled[key] = value() if callable(value) else value
    return filled


def _call(factory: Factory, settings: Mapping[str, Any], wrapper: Mapping[str, Any]) -> Model:
    """The model of a factory and its settings, a bare network wrapped.

    Raises:
        UserError: a setting is missing, or the result is no model.
    """
    for key, parameter in _options(factory).items():
        if parameter.default is Parameter.empty and settings.get(key) is None:
            example = ": give a name such as ViT-B-16 or resnet50" if key == "architecture" else ""
            raise UserError(f"model.{key} is missing{example or f', which {name_of(factory)} needs'}")
    with constructor_errors(f"model {name_of(factory)}"):
        model = factory(**settings)
    if isinstance(model, nn.Module) and not isinstance(model, Classifier | DualEncoder) and wrapper:
        return wrapped(model, name_of(factory), settings, wrapper)
    for key in wrapper.keys() - _options(factory).keys():
        if wrapper[key] is not None and key != "classes":
            raise UserError(f"model.{key} is not an option of {factory.__name__}, which makes its own wrapper.")
    if not isinstance(model, Classifier | DualEncoder):
        raise UserError(
            f"model._target_ {name_of(factory)} makes a {type(model).__name__}: expected a torch.nn.Module, or a "
            "robustcli.models.Classifier or DualEncoder, which take pixels in [0,1]"
        )
    return model


def _described(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON data, which a checkpoint can hold; a default that is none stays in the code alone."""
    described = {}
    for key, value in settings.items():
        if key in _OF_WEIGHTS:
            continue
        try:
            described[key] = json.loads(json.dumps(value))
        except TypeError:
            if value is not defaults.get(key):
                raise UserError(
                    f"model.{key} is {value!r}, which a checkpoint cannot hold: expected numbers, strings, lists of "
                    "them or null"
                ) from None
    return described
